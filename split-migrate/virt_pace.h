/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * virt_pace.h - the pace of a move that libvirt manages
 *
 * An operator's `virsh migrate-setmaxdowntime` ends our pace: what it sets holds.
 */
#ifndef SPLIT_MIGRATE_VIRT_PACE_H
#define SPLIT_MIGRATE_VIRT_PACE_H

#include <libvirt/libvirt.h>

#include "common/log.h"
#include "split-migrate/driver.h"
#include "split-migrate/pace.h"

struct virt_pace {
    struct pace pace;
    bool ours;                    /* not an operator's */
    bool told;                    /* QEMU keeps the bandwidth it was told if the migration fails */
    bool set;                     /* and the downtime */
    unsigned long long before_ms; /* the downtime before */
};

/** virt_pace_begin() - before @domain is migrated. Return: 0 or -errno, @reason. */
int virt_pace_begin(struct virt_pace *pace, virDomainPtr domain, uint64_t limit_ms,
                    struct reason *reason);

/** virt_pace_step() - how far it is, and what the pager sent (pace.h); tells libvirt or QEMU if need be */
void virt_pace_step(struct virt_pace *pace, virDomainPtr domain,
                    const struct driver_progress *progress, uint64_t sent, uint64_t busy_us);

/** virt_pace_undo() - give the domain back what it had before */
void virt_pace_undo(struct virt_pace *pace, virDomainPtr domain);

#endif
