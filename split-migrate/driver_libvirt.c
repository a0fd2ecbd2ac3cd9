// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * driver_libvirt.c - move a domain between two libvirts, by virDomainMigrate3
 *
 * Theory of operation
 * -------------------
 * libvirt decides which side runs.  It starts the destination's QEMU, watches the migration, lets
 * the guest run there or resumes it here, and ends the QEMU that is left over; so `virsh
 * domjobinfo`, `domjobabort`, `migrate-setmaxdowntime` and the events see a migration like any
 * other.  All this file does is to run the call in a thread, look at the job meanwhile, and tell
 * how it ended:
 *
 *   - the call returns a domain: the guest runs at the destination, whatever we find later;
 *   - it fails: libvirt has resumed the guest here.  undo() makes sure, and that it is not active
 *     at the destination, before anybody frees memory that it may be using there.
 *
 * The domain is looked at before anything starts: a form that cannot be split is refused.
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/log.h"
#include "split-migrate/domain_xml.h"
#include "split-migrate/driver.h"
#include "split-migrate/virt.h"
#include "split-migrate/virt_pace.h"

#define LIBVIRT_STEP_US 10000
#define LIBVIRT_LOOK_US 15000000u
#define LIBVIRT_LOOK_STEP_US 100000
#define LIBVIRT_SETTLE_US 120000000u
#define LIBVIRT_ABORT_AGAIN_US 500000u
#define LIBVIRT_RESUME_US 15000000u

struct driver_libvirt {
    struct driver base;
    struct driver_guest guest;
    virConnectPtr source;
    virConnectPtr destination;
    virDomainPtr domain;
    char name[128]; /* at the source */
    int on_source;  /* callbacks, -1: none */
    int on_destination;
    struct driver_config config;
    struct virt_pace pace;
    bool suspended; /* by suspend() */

    int wake; /* an eventfd: there may be something new */
    pthread_t thread;
    bool began;
    pthread_mutex_t lock; /* what follows belongs to it */
    bool ended;
    int result;
    bool aborted;
    struct reason reason;
    uint64_t stopped_us;
    uint64_t resumed_us;
};

static struct driver_libvirt *driver_of(struct driver *driver)
{
    return (struct driver_libvirt *)driver;
}

static void driver_wake(const struct driver_libvirt *d)
{
    uint64_t one = 1;

    if (write(d->wake, &one, sizeof(one)) < 0) {
        log_debug("a wake-up was lost");
    }
}

/* ---- events ---- */

static int driver_on_source(virConnectPtr connect, virDomainPtr domain, int event, int detail,
                            void *opaque)
{
    struct driver_libvirt *d = opaque;

    (void)connect;
    (void)domain;
    if (event == VIR_DOMAIN_EVENT_SUSPENDED && detail == VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED) {
        pthread_mutex_lock(&d->lock);
        d->stopped_us = units_now_us();
        pthread_mutex_unlock(&d->lock);
    }
    driver_wake(d);
    return 0;
}

static int driver_on_destination(virConnectPtr connect, virDomainPtr domain, int event, int detail,
                                 void *opaque)
{
    struct driver_libvirt *d = opaque;
    char uuid[VIR_UUID_STRING_BUFLEN] = "";

    (void)connect;
    (void)detail;
    virDomainGetUUIDString(domain, uuid);
    if (event == VIR_DOMAIN_EVENT_RESUMED && strcmp(uuid, d->guest.uuid) == 0) {
        pthread_mutex_lock(&d->lock);
        d->resumed_us = units_now_us();
        pthread_mutex_unlock(&d->lock);
    }
    return 0;
}

static void driver_listen(struct driver_libvirt *d)
{
    d->on_source =
        virConnectDomainEventRegisterAny(d->source, d->domain, VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                                         VIR_DOMAIN_EVENT_CALLBACK(driver_on_source), d, NULL);
    d->on_destination =
        virConnectDomainEventRegisterAny(d->destination, NULL, VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                                         VIR_DOMAIN_EVENT_CALLBACK(driver_on_destination), d, NULL);
}

/* ---- open ---- */

static int driver_uuid(const struct target *target, char uuid[UUID_TEXT_LEN], struct reason *reason)
{
    virConnectPtr connect = NULL;
    virDomainPtr domain = NULL;

    int err = virt_open(&connect, target->uri, "libvirt", reason);
    if (!err) {
        err = virt_domain(connect, target->domain, &domain, reason);
    }
    if (!err && virDomainGetUUIDString(domain, uuid) < 0) {
        err = virt_reason(reason, -EIO, "libvirt");
    }
    if (domain) {
        virDomainFree(domain);
    }
    virt_close(connect);
    virt_events_stop();
    return err;
}

static int driver_open_source(struct driver_libvirt *d, const struct target *target,
                              struct reason *reason)
{
    struct driver_guest *guest = &d->guest;
    int state = VIR_DOMAIN_NOSTATE;

    int err = virt_open(&d->source, target->uri, "source libvirt", reason);
    if (!err) {
        err = virt_domain(d->source, target->domain, &d->domain, reason);
    }
    if (err) {
        return err;
    }
    if (virDomainGetUUIDString(d->domain, guest->uuid) < 0 ||
        virDomainGetState(d->domain, &state, NULL, 0) < 0) {
        return virt_reason(reason, -EIO, "source libvirt");
    }
    snprintf(d->name, sizeof(d->name), "%s", virDomainGetName(d->domain));
    snprintf(guest->status, sizeof(guest->status), "%s", virt_state(state));
    guest->running = state == VIR_DOMAIN_RUNNING || state == VIR_DOMAIN_BLOCKED;
    if (virDomainIsActive(d->domain) != 1) {
        return reason_set(reason, -ENOENT, "domain '%.100s' is not running", d->name);
    }
    return 0;
}

static int driver_fit(struct driver_libvirt *d, struct domain_fit *fit, struct reason *reason)
{
    char *xml = virDomainGetXMLDesc(d->domain, 0);

    if (!xml) {
        return virt_reason(reason, -EIO, "source libvirt");
    }
    int err = domain_xml_inspect(xml, fit, reason);
    free(xml);
    return err ? err : domain_xml_refuse(fit, d->name, reason);
}

static int driver_check_source(struct driver_libvirt *d, struct reason *reason)
{
    virDomainJobInfo job;

    if (!d->guest.running && strcmp(d->guest.status, "paused") != 0) {
        return reason_set(reason, -EBUSY,
                          "domain '%.80s' cannot be moved: it must be running or paused, and it is "
                          "%s",
                          d->name, d->guest.status);
    }
    if (virDomainGetJobInfo(d->domain, &job) == 0 && job.type != VIR_DOMAIN_JOB_NONE) {
        return reason_set(reason, -EBUSY,
                          "domain '%.80s' has a job already: see virsh domjobinfo %.80s", d->name,
                          d->name);
    }
    return 0;
}

static int driver_check_destination(struct driver_libvirt *d, const struct domain_fit *fit,
                                    struct reason *reason)
{
    virDomainPtr there = virDomainLookupByUUIDString(d->destination, d->guest.uuid);
    bool active = there && virDomainIsActive(there) == 1;

    if (there) {
        virDomainFree(there);
    }
    if (active) {
        return reason_set(reason, -EEXIST, "domain '%.80s' runs at the destination already",
                          d->name);
    }
    char *xml = virConnectGetDomainCapabilities(d->destination, fit->emulator, fit->arch,
                                                fit->machine, fit->virt_type, 0);
    if (!xml) {
        reason_set(reason, -ENOENT, "the destination cannot run '%.110s': %.110s", fit->emulator,
                   virGetLastErrorMessage());
        return -ENOENT;
    }
    free(xml);
    return 0;
}

static void driver_close(struct driver *driver)
{
    struct driver_libvirt *d = driver_of(driver);

    pthread_mutex_lock(&d->lock);
    bool busy = d->began && !d->ended;
    pthread_mutex_unlock(&d->lock);
    if (busy) {
        return; /* cancel() has given it up: the end of the process ends its connections */
    }
    if (d->began) {
        pthread_join(d->thread, NULL);
    }
    if (d->on_source >= 0) {
        virConnectDomainEventDeregisterAny(d->source, d->on_source);
    }
    if (d->on_destination >= 0) {
        virConnectDomainEventDeregisterAny(d->destination, d->on_destination);
    }
    virt_events_stop();
    if (d->domain) {
        virDomainFree(d->domain);
    }
    virt_close(d->source);
    virt_close(d->destination);
    close(d->wake);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

static int driver_open(struct driver **driver, const struct target *source,
                       const struct target *destination, struct driver_guest *guest,
                       struct reason *reason)
{
    struct driver_libvirt *d = calloc(1, sizeof(*d));
    struct domain_fit fit;

    if (!d) {
        return reason_set(reason, -ENOMEM, "out of memory");
    }
    d->base.ops = &driver_libvirt;
    d->on_source = -1;
    d->on_destination = -1;
    d->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_init(&d->lock, NULL);
    int err = driver_open_source(d, source, reason);
    if (!err) {
        err = driver_fit(d, &fit, reason);
    }
    if (!err && destination) {
        err = driver_check_source(d, reason);
    }
    if (!err && destination) {
        err = virt_open(&d->destination, destination->uri, "destination libvirt", reason);
    }
    if (!err && destination) {
        err = driver_check_destination(d, &fit, reason);
    }
    if (err) {
        driver_close(&d->base);
        return err;
    }
    if (destination) {
        driver_listen(d);
    }
    *guest = d->guest;
    *driver = &d->base;
    return 0;
}

/* ---- look ---- */

static int driver_dirty_rate(struct driver *driver, uint64_t ram, uint64_t *rate, struct reason *reason)
{
    (void)ram; /* libvirt takes no number of samples */
    struct driver_libvirt *d = driver_of(driver);
    virDomainPtr domains[] = {d->domain, NULL};
    uint64_t deadline = units_now_us() + LIBVIRT_LOOK_US;
    long long mib = -1;

    if (virDomainStartDirtyRateCalc(d->domain, 1, 0) < 0) {
        return virt_reason(reason, -EIO, "source libvirt");
    }
    while (mib < 0) {
        virDomainStatsRecordPtr *records = NULL;
        int status = -1;
        usleep(LIBVIRT_LOOK_STEP_US);
        if (virDomainListGetStats(domains, VIR_DOMAIN_STATS_DIRTYRATE, &records, 0) < 1) {
            return virt_reason(reason, -EIO, "source libvirt");
        }
        virTypedParamsGetInt(records[0]->params, records[0]->nparams, "dirtyrate.calc_status", &status);
        if (status == VIR_DOMAIN_DIRTYRATE_MEASURED) {
            virTypedParamsGetLLong(records[0]->params, records[0]->nparams,
                                   "dirtyrate.megabytes_per_second", &mib);
        }
        virDomainStatsRecordListFree(records);
        if (mib < 0 && units_now_us() > deadline) {
            return reason_set(reason, -ETIMEDOUT,
                              "source libvirt does not tell how much the guest writes");
        }
    }
    *rate = (uint64_t)mib * MIB;
    return 0;
}

/* ---- prepare, start ---- */

static int driver_prepare(struct driver *driver, const struct driver_config *config,
                          struct reason *reason)
{
    struct driver_libvirt *d = driver_of(driver);

    d->config = *config;
    return virt_pace_begin(&d->pace, d->domain, config->downtime_ms, reason);
}

static unsigned driver_flags(const struct driver_config *config)
{
    return (config->live ? VIR_MIGRATE_LIVE : 0u) |
           (config->persistent ? VIR_MIGRATE_PERSIST_DEST : 0u) |
           (config->undefine_source ? VIR_MIGRATE_UNDEFINE_SOURCE : 0u) |
           (config->abort_on_error ? VIR_MIGRATE_ABORT_ON_ERROR : 0u) |
           (config->auto_converge ? VIR_MIGRATE_AUTO_CONVERGE : 0u) |
           (config->unsafe ? VIR_MIGRATE_UNSAFE : 0u);
}

/*
 * The sentence of a migration that failed: of two hosts' messages the destination's tells more,
 * unless it is the source that gave up.
 */
static int driver_failure(struct reason *reason)
{
    static const char at_source[] = "Message from the source host: ";
    static const char at_destination[] = "Message from the destination host: ";
    char text[1024];

    snprintf(text, sizeof(text), "%s", virGetLastErrorMessage());
    char *there = strstr(text, at_destination);
    if (!there) {
        return virt_reason(reason, -EIO, "libvirt");
    }
    *there = '\0';
    const char *here = strstr(text, at_source);
    if (here && strstr(here, "due to I/O error")) {
        return virt_sentence(reason, -EIO, "source libvirt", here + strlen(at_source));
    }
    return virt_sentence(reason, -EIO, "destination libvirt", there + strlen(at_destination));
}

static void *driver_thread(void *opaque)
{
    struct driver_libvirt *d = opaque;
    const struct driver_config *config = &d->config;
    virTypedParameterPtr params = NULL;
    struct reason reason = {""};
    int n = 0, most = 0, err = 0;
    virDomainPtr moved = NULL;

    if (config->bandwidth &&
        virTypedParamsAddULLong(&params, &n, &most, VIR_MIGRATE_PARAM_BANDWIDTH,
                                (config->bandwidth + MIB - 1) / MIB) < 0) {
        err = -ENOMEM;
    }
    if (!err && config->dname &&
        virTypedParamsAddString(&params, &n, &most, VIR_MIGRATE_PARAM_DEST_NAME, config->dname) <
            0) {
        err = -ENOMEM;
    }
    if (!err && config->migrate_uri &&
        virTypedParamsAddString(&params, &n, &most, VIR_MIGRATE_PARAM_URI, config->migrate_uri) <
            0) {
        err = -ENOMEM;
    }
    if (!err) {
        moved =
            virDomainMigrate3(d->domain, d->destination, params, (unsigned)n, driver_flags(config));
    }
    bool aborted = !moved && virGetLastErrorCode() == VIR_ERR_OPERATION_ABORTED;
    if (!moved) {
        err = driver_failure(&reason);
    } else {
        virDomainFree(moved);
    }
    virTypedParamsFree(params, n);
    pthread_mutex_lock(&d->lock);
    d->ended = true;
    d->result = err;
    d->aborted = aborted;
    d->reason = reason;
    pthread_mutex_unlock(&d->lock);
    driver_wake(d);
    return NULL;
}

static int driver_start(struct driver *driver, struct reason *reason)
{
    struct driver_libvirt *d = driver_of(driver);

    int err = pthread_create(&d->thread, NULL, driver_thread, d);
    if (err) {
        return reason_set(reason, -err, "a thread could not be started");
    }
    d->began = true;
    return 0;
}

/* ---- while it moves ---- */

/* How it was, in the end: the destination knows it even if the source's domain is gone. */
static void driver_completed_stats(struct driver_libvirt *d, struct driver_progress *progress)
{
    const unsigned flags = VIR_DOMAIN_JOB_STATS_COMPLETED | VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED;
    virDomainPtr there = virDomainLookupByUUIDString(d->destination, d->guest.uuid);

    if (!virt_job(there, flags, progress)) {
        virt_job(d->domain, flags, progress);
    }
    if (there) {
        virDomainFree(there);
    }
}

static enum driver_phase driver_phase_now(struct driver_libvirt *d,
                                          struct driver_progress *progress)
{
    int state = VIR_DOMAIN_NOSTATE, why = 0;

    bool job = virt_job(d->domain, 0, progress);
    bool tells = d->guest.running && d->config.live && !d->suspended;
    if (tells && virDomainGetState(d->domain, &state, &why, 0) == 0 && state == VIR_DOMAIN_PAUSED &&
        why == VIR_DOMAIN_PAUSED_MIGRATION) {
        return DRIVER_DEVICE;
    }
    return job && progress->ram_total ? DRIVER_MOVING : DRIVER_SETUP;
}

static int driver_poll(struct driver *driver, struct driver_progress *progress,
                       struct reason *reason)
{
    struct driver_libvirt *d = driver_of(driver);

    (void)reason;
    memset(progress, 0, sizeof(*progress));
    pthread_mutex_lock(&d->lock);
    bool ended = d->ended;
    driver->stopped_us = d->stopped_us;
    driver->resumed_us = d->resumed_us;
    pthread_mutex_unlock(&d->lock);
    if (!ended) {
        progress->phase = driver_phase_now(d, progress);
        if (progress->phase == DRIVER_MOVING) {
            virt_pace_step(&d->pace, d->domain, progress, driver->sent, driver->busy_us);
        }
        return 0;
    }
    if (d->result) {
        progress->phase = d->aborted ? DRIVER_CANCELLED : DRIVER_FAILED;
        memcpy(progress->error, d->reason.text, sizeof(progress->error));
    } else {
        progress->phase = DRIVER_COMPLETED;
        driver_completed_stats(d, progress);
    }
    return 0;
}

static int driver_proceed(struct driver *driver, struct reason *reason)
{
    (void)driver;
    (void)reason;
    return 0; /* libvirt does it */
}

static int driver_suspend(struct driver *driver, struct reason *reason)
{
    struct driver_libvirt *d = driver_of(driver);

    if (virDomainSuspend(d->domain) < 0) {
        return virt_reason(reason, -EIO, "source libvirt");
    }
    d->suspended = true; /* the state no longer tells that it switches over */
    return 0;
}

static int driver_fd(struct driver *driver)
{
    return driver_of(driver)->wake;
}

static void driver_events(struct driver *driver)
{
    uint64_t count;

    if (read(driver_of(driver)->wake, &count, sizeof(count)) < 0) {
        return; /* nothing new */
    }
}

static int driver_cancel(struct driver *driver, enum driver_phase *phase, struct reason *reason)
{
    struct driver_libvirt *d = driver_of(driver);
    uint64_t now = units_now_us();
    uint64_t deadline = now + LIBVIRT_SETTLE_US;
    uint64_t again = now;
    struct driver_progress progress = {.phase = DRIVER_IDLE};

    while (d->began) {
        driver_poll(driver, &progress, reason);
        now = units_now_us();
        if (progress.phase >= DRIVER_COMPLETED) {
            break;
        }
        /* There is a time at the beginning in which libvirt has no job that it could abort. */
        if (now >= again) {
            if (virDomainAbortJob(d->domain) < 0) {
                log_debug("virDomainAbortJob: %s", virGetLastErrorMessage());
            }
            again = now + LIBVIRT_ABORT_AGAIN_US;
        }
        if (now > deadline) {
            *phase = progress.phase;
            return reason_set(reason, -ETIMEDOUT, "libvirt does not end the migration");
        }
        usleep(LIBVIRT_STEP_US);
    }
    *phase = progress.phase;
    return 0;
}

/* ---- the end ---- */

static int driver_arrived(struct driver *driver, struct reason *reason)
{
    (void)driver;
    (void)reason;
    return 0; /* libvirt has looked */
}

static int driver_hand_over(struct driver *driver, bool *sent, struct reason *reason)
{
    (void)driver;
    (void)reason;
    *sent = true; /* libvirt has done it */
    return 0;
}

static void driver_retire(struct driver *driver, bool keep_source)
{
    (void)driver;
    (void)keep_source; /* libvirt has ended the source's QEMU */
}

static bool driver_active_there(struct driver_libvirt *d)
{
    virDomainPtr there = virDomainLookupByUUIDString(d->destination, d->guest.uuid);
    bool active = there && virDomainIsActive(there) == 1;

    if (there) {
        virDomainFree(there);
    }
    return active;
}

/* Is the guest as libvirt leaves it at the source?  What stopped it meanwhile is not ours to undo. */
static bool driver_given_back(const struct driver_libvirt *d, int state, int why)
{
    if (state == VIR_DOMAIN_PAUSED) {
        return !d->guest.running || why == VIR_DOMAIN_PAUSED_IOERROR ||
               why == VIR_DOMAIN_PAUSED_USER;
    }
    return state == VIR_DOMAIN_RUNNING || state == VIR_DOMAIN_BLOCKED;
}

/* libvirt resumes the guest itself; this waits until it is seen. */
static int driver_undo(struct driver *driver, struct reason *reason)
{
    struct driver_libvirt *d = driver_of(driver);
    uint64_t deadline = units_now_us() + LIBVIRT_RESUME_US;
    int state = VIR_DOMAIN_NOSTATE, why = 0;

    pthread_mutex_lock(&d->lock);
    bool there = d->began && (!d->ended || d->result == 0);
    pthread_mutex_unlock(&d->lock);
    if (there) {
        return reason_set(reason, -EBUSY, "libvirt has not taken it back");
    }
    for (;;) {
        if (virDomainGetState(d->domain, &state, &why, 0) < 0) {
            return virt_reason(reason, -EIO, "source libvirt");
        }
        bool active = driver_active_there(d);
        if (!active && driver_given_back(d, state, why)) {
            virt_pace_undo(&d->pace, d->domain);
            return 0;
        }
        if (units_now_us() > deadline) {
            return reason_set(reason, -EIO, "domain '%.60s' is %s there%s", d->name,
                              virt_state(state), active ? " and active at the destination" : "");
        }
        usleep(LIBVIRT_STEP_US);
    }
}

const struct driver_ops driver_libvirt = {
    .scheme = "libvirt",
    .manages = true,
    .uuid = driver_uuid,
    .open = driver_open,
    .dirty_rate = driver_dirty_rate,
    .prepare = driver_prepare,
    .start = driver_start,
    .poll = driver_poll,
    .proceed = driver_proceed,
    .suspend = driver_suspend,
    .fd = driver_fd,
    .events = driver_events,
    .cancel = driver_cancel,
    .arrived = driver_arrived,
    .hand_over = driver_hand_over,
    .retire = driver_retire,
    .undo = driver_undo,
    .close = driver_close,
};
