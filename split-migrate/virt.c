// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/virt.h"

#include <errno.h>
#include <libvirt/virterror.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VIRT_KEEPALIVE_S 5
#define VIRT_KEEPALIVE_COUNT 6

static pthread_t virt_thread;
static bool virt_started;
static atomic_bool virt_stop;
static int virt_timer = -1;

/* libvirt would write its errors to stderr; ours are the sentences that end there. */
static void virt_quiet(void *opaque, virErrorPtr error)
{
    (void)opaque;
    log_debug("libvirt: %s", error && error->message ? error->message : "an error");
}

static void virt_tick(int timer, void *opaque)
{
    (void)opaque;
    virEventUpdateTimeout(timer, -1);
}

static void *virt_loop(void *opaque)
{
    (void)opaque;
    while (!atomic_load(&virt_stop)) {
        if (virEventRunDefaultImpl() < 0) {
            break;
        }
    }
    return NULL;
}

static int virt_events_start(struct reason *reason)
{
    if (virt_started) {
        return 0;
    }
    virSetErrorFunc(NULL, virt_quiet);
    if (virInitialize() < 0 || virEventRegisterDefaultImpl() < 0) {
        return virt_reason(reason, -EIO, "libvirt");
    }
    virt_timer = virEventAddTimeout(-1, virt_tick, NULL, NULL);
    int err = pthread_create(&virt_thread, NULL, virt_loop, NULL);
    if (err) {
        return reason_set(reason, -err, "a thread could not be started");
    }
    virt_started = true;
    return 0;
}

void virt_events_stop(void)
{
    if (virt_started && !atomic_exchange(&virt_stop, true)) {
        virEventUpdateTimeout(virt_timer, 0);
        pthread_join(virt_thread, NULL);
    }
}

int virt_sentence(struct reason *reason, int err, const char *role, const char *message)
{
    char text[REASON_LEN];

    /* libvirt appends what QEMU wrote, over several lines */
    snprintf(text, sizeof(text), "%.*s", (int)strcspn(message, "\r\n"), message);
    size_t length = strlen(text);
    while (length && strchr(". :", text[length - 1])) {
        text[--length] = '\0';
    }
    return reason_set(reason, err, "%s: %s", role, text);
}

int virt_reason(struct reason *reason, int err, const char *role)
{
    return virt_sentence(reason, err, role, virGetLastErrorMessage());
}

int virt_open(virConnectPtr *connect, const char *uri, const char *role, struct reason *reason)
{
    int err = virt_events_start(reason);

    if (err) {
        return err;
    }
    *connect = virConnectOpenAuth(uri[0] ? uri : NULL, virConnectAuthPtrDefault, 0);
    if (!*connect) {
        return virt_reason(reason, -ECONNREFUSED, role);
    }
    /* A driver in this process, and a daemon that knows no keepalive, refuse: that is fine. */
    virConnectSetKeepAlive(*connect, VIRT_KEEPALIVE_S, VIRT_KEEPALIVE_COUNT);
    return 0;
}

void virt_close(virConnectPtr connect)
{
    if (connect) {
        virConnectClose(connect);
    }
}

int virt_domain(virConnectPtr connect, const char *name, virDomainPtr *domain,
                struct reason *reason)
{
    char *end;

    long id = strtol(name, &end, 10);
    *domain = NULL;
    if (name[0] && !*end && id >= 0) {
        *domain = virDomainLookupByID(connect, (int)id);
    }
    if (!*domain) {
        *domain = virDomainLookupByUUIDString(connect, name);
    }
    if (!*domain) {
        *domain = virDomainLookupByName(connect, name);
    }
    return *domain ? 0 : reason_set(reason, -ENOENT, "there is no domain '%.100s'", name);
}

static void virt_job_values(virTypedParameterPtr params, int n, struct driver_progress *progress)
{
    uint64_t dirty_pages = 0;
    uint64_t page_bytes = PAGE_BYTES;
    const struct {
        const char *name;
        uint64_t *to;
    } table[] = {
        {VIR_DOMAIN_JOB_MEMORY_TOTAL, &progress->ram_total},
        {VIR_DOMAIN_JOB_MEMORY_REMAINING, &progress->ram_remaining},
        {VIR_DOMAIN_JOB_MEMORY_ITERATION, &progress->rounds},
        {VIR_DOMAIN_JOB_TIME_ELAPSED, &progress->total_ms},
        {VIR_DOMAIN_JOB_DOWNTIME, &progress->downtime_ms},
        {VIR_DOMAIN_JOB_MEMORY_DIRTY_RATE, &dirty_pages},
        {VIR_DOMAIN_JOB_MEMORY_PAGE_SIZE, &page_bytes},
    };
    unsigned long long value;
    int throttle;

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        if (virTypedParamsGetULLong(params, n, table[i].name, &value) == 1) {
            *table[i].to = value;
        }
    }
    progress->dirty_rate = dirty_pages * page_bytes;
    if (virTypedParamsGetInt(params, n, VIR_DOMAIN_JOB_AUTO_CONVERGE_THROTTLE, &throttle) == 1) {
        progress->throttle = (unsigned)throttle;
    }
}

bool virt_job(virDomainPtr domain, unsigned flags, struct driver_progress *progress)
{
    virTypedParameterPtr params = NULL;
    int type = VIR_DOMAIN_JOB_NONE;
    int n = 0;

    if (!domain || virDomainGetJobStats(domain, &type, &params, &n, flags) < 0) {
        return false;
    }
    virt_job_values(params, n, progress);
    virTypedParamsFree(params, n);
    return type != VIR_DOMAIN_JOB_NONE;
}

const char *virt_state(int state)
{
    static const char *const names[] = {
        [VIR_DOMAIN_NOSTATE] = "no state",     [VIR_DOMAIN_RUNNING] = "running",
        [VIR_DOMAIN_BLOCKED] = "idle",         [VIR_DOMAIN_PAUSED] = "paused",
        [VIR_DOMAIN_SHUTDOWN] = "in shutdown", [VIR_DOMAIN_SHUTOFF] = "shut off",
        [VIR_DOMAIN_CRASHED] = "crashed",      [VIR_DOMAIN_PMSUSPENDED] = "pmsuspended",
    };

    return state >= 0 && (size_t)state < sizeof(names) / sizeof(names[0]) ? names[state]
                                                                          : "not known";
}
