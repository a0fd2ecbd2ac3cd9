// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/virt_pace.h"

#include <errno.h>
#include <libvirt/libvirt-qemu.h>
#include <libvirt/virterror.h>
#include <stdio.h>
#include <stdlib.h>

#include "split-migrate/virt.h"

/* libvirt's own way to set it is a parameter that is given before a migration begins. */
static void virt_pace_tell(struct virt_pace *pace, virDomainPtr domain, uint64_t bandwidth)
{
    char command[128];
    char *answer = NULL;

    snprintf(command, sizeof(command),
             "{\"execute\": \"migrate-set-parameters\", "
             "\"arguments\": {\"avail-switchover-bandwidth\": %llu}}",
             (unsigned long long)bandwidth);
    if (virDomainQemuMonitorCommand(domain, command, &answer, 0) < 0) {
        log_info("QEMU was not told the rate that was seen: %s", virGetLastErrorMessage());
    }
    free(answer);
    pace->told = true;
}

int virt_pace_begin(struct virt_pace *pace, virDomainPtr domain, uint64_t limit_ms,
                    struct reason *reason)
{
    *pace = (struct virt_pace){.ours = true};
    pace_begin(&pace->pace, limit_ms);
    if (virDomainMigrateGetMaxDowntime(domain, &pace->before_ms, 0) < 0 ||
        virDomainMigrateSetMaxDowntime(domain, pace->pace.downtime_ms, 0) < 0) {
        return virt_reason(reason, -EIO, "source libvirt");
    }
    pace->set = true;
    return 0;
}

void virt_pace_step(struct virt_pace *pace, virDomainPtr domain,
                    const struct driver_progress *progress, uint64_t sent, uint64_t busy_us)
{
    const struct pace before = pace->pace;
    unsigned long long now_ms;

    if (!pace->ours ||
        !pace_step(&pace->pace, progress->rounds, sent, busy_us, units_now_us())) {
        return;
    }
    if (virDomainMigrateGetMaxDowntime(domain, &now_ms, 0) < 0) {
        return; /* it is over */
    }
    if (now_ms != before.downtime_ms) {
        pace->ours = false;
        return;
    }
    if (pace->pace.downtime_ms != before.downtime_ms &&
        virDomainMigrateSetMaxDowntime(domain, pace->pace.downtime_ms, 0) < 0) {
        log_info("libvirt does not take the downtime: %s", virGetLastErrorMessage());
    }
    if (pace->pace.bandwidth != before.bandwidth) {
        virt_pace_tell(pace, domain, pace->pace.bandwidth);
    }
}

void virt_pace_undo(struct virt_pace *pace, virDomainPtr domain)
{
    if (pace->set) {
        virDomainMigrateSetMaxDowntime(domain, pace->before_ms, 0);
    }
    if (pace->told) {
        virt_pace_tell(pace, domain, 0);
    }
}
