// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * driver_qmp.c - move a guest between two QEMUs by their monitors
 *
 * Theory of operation
 * -------------------
 * Exactly one side runs, and this file is what decides it:
 *
 *   - the destination is told `stop` while it waits for the guest, so it never starts by itself;
 *   - it gets `cont` from hand_over() only, once, after the source has completed;
 *   - the source gets `cont` from undo() only, and never after hand_over() has sent its `cont`,
 *     even if no answer to that came.
 *
 * QEMU stops the guest at the switch-over and starts it again by itself when a
 * migration fails; undo() only makes sure.  late-block-activate keeps the
 * destination's hands off the disks until its `cont`, so that the source can
 * take them back.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "split-migrate/driver.h"
#include "split-migrate/hosts.h"
#include "split-migrate/pace.h"
#include "split-migrate/qmp.h"

#define QMP_POLL_MS 600000 /* QEMU does not answer while it sends the last dirty pages */
#define QMP_SETTLE_US 60000000u
#define QMP_RESUME_US 15000000u
#define QMP_SAMPLES 8192u     /* pages of a guest, to see how much it writes */
#define QMP_SAMPLES_LEAST 512u /* of each GiB */
#define QMP_STEP_US 10000
#define QMP_NO_LIMIT ((json_int_t)1 << 40) /* bytes/s; QEMU's own default would be 128 MiB/s */

struct driver_qmp {
    struct driver base;
    struct qmp source;
    struct qmp destination;
    struct driver_guest guest;
    char stream[ENDPOINT_TEXT_LEN];
    bool own_stream; /* its socket file is ours to remove */
    bool live;
    bool listening; /* the destination has begun: it cannot be used again */
    bool set;       /* the source's settings were changed */
    bool handed_over;
    json_t *capabilities; /* the source's, before */
    json_t *arrival_capabilities; /* the destination's, before */
    json_t *parameters;
    struct pace pace;
};

struct driver_capability {
    const char *name;
    bool on;
};

#define DRIVER_AUTO_CONVERGE "auto-converge"

/*
 * No pause before the switch-over: QEMU would wait for us with the guest stopped, and for ever if
 * we died.
 */
static const struct driver_capability driver_source_capabilities[] = {
    {"events", true},
    {"return-path", true},
    {"pause-before-switchover", false},
    {DRIVER_AUTO_CONVERGE, false}, /* as the operator wants it */
};

static const struct driver_capability driver_destination_capabilities[] = {
    {"events", true},
    {"return-path", true},
    {"late-block-activate", true},
};

#define DRIVER_N(array) (sizeof(array) / sizeof((array)[0]))

static struct driver_qmp *driver_of(struct driver *driver)
{
    return (struct driver_qmp *)driver;
}

/* ---- open ---- */

static int driver_check_idle(struct driver_qmp *d, struct reason *reason)
{
    static const char *const busy[] = {"setup", "active",     "pre-switchover", "device",
                                       "colo",  "cancelling", "wait-unplug",    "failing"};
    json_t *answer = NULL;

    int err = qmp_call(&d->source, "query-migrate", NULL, &answer, QMP_CALL_MS, NULL, reason);
    if (err) {
        return err;
    }
    const char *status = json_string_value(json_object_get(answer, "status"));
    for (size_t i = 0; status && i < DRIVER_N(busy) && !err; i++) {
        if (strcmp(status, busy[i]) == 0 || strncmp(status, "postcopy", 8) == 0) {
            err = reason_set(reason, -EBUSY,
                             "source QEMU is migrating already: its migration is '%s'", status);
        }
    }
    json_decref(answer);
    return err;
}

static int driver_open_source(struct driver_qmp *d, const struct target *target,
                              struct reason *reason)
{
    struct driver_guest *guest = &d->guest;

    int err = qmp_open(&d->source, "source QEMU", &target->monitor, reason);
    if (!err) {
        err = qmp_uuid(&d->source, guest->uuid, reason);
    }
    if (!err) {
        err = qmp_status(&d->source, guest->status, sizeof(guest->status), &guest->running, reason);
    }
    return err;
}

static int driver_check_source(struct driver_qmp *d, struct reason *reason)
{
    const struct driver_guest *guest = &d->guest;

    if (strcmp(guest->status, "running") != 0 && strcmp(guest->status, "paused") != 0 &&
        strcmp(guest->status, "prelaunch") != 0) {
        return reason_set(reason, -EBUSY,
                          "the guest cannot be moved: it must be running or paused, and it is '%s'",
                          guest->status);
    }
    int err = qmp_has_object(&d->source, "ram-pager", reason);
    return err ? err : driver_check_idle(d, reason);
}

/* A QEMU listens once: what a controller that died has begun cannot be begun again. */
static int driver_check_fresh(struct driver_qmp *d, struct reason *reason)
{
    json_t *answer = NULL;

    int err = qmp_call(&d->destination, "query-migrate", NULL, &answer, QMP_CALL_MS, NULL, reason);
    const char *status = json_string_value(json_object_get(answer, "status"));
    if (!err && status && strcmp(status, "none") != 0) {
        err = reason_set(reason, -EBUSY,
                         "destination QEMU has begun to receive a guest before: it must be started "
                         "anew");
    }
    json_decref(answer);
    return err;
}

static int driver_open_destination(struct driver_qmp *d, const struct target *source,
                                   const struct target *target, struct reason *reason)
{
    char uuid[UUID_TEXT_LEN];
    char status[32];
    bool running;

    if (strcmp(source->monitor.host, target->monitor.host) == 0) {
        return reason_set(reason, -EINVAL,
                          "source and destination must be two QEMUs, and both are "
                          "%.150s",
                          target->monitor.host);
    }
    d->own_stream = !target->migrate[0];
    int err = target_stream(source, target, d->stream, reason);
    if (!err) {
        err = qmp_open(&d->destination, "destination QEMU", &target->monitor, reason);
    }
    if (!err) {
        err = qmp_status(&d->destination, status, sizeof(status), &running, reason);
    }
    if (!err && strcmp(status, "inmigrate") != 0) {
        err = reason_set(reason, -EBUSY,
                         "destination QEMU does not wait for a guest: it must be started with "
                         "-incoming defer, and it is '%s'",
                         status);
    }
    if (!err) {
        err = qmp_uuid(&d->destination, uuid, reason);
    }
    if (!err && strcmp(uuid, d->guest.uuid) != 0) {
        err = reason_set(reason, -EINVAL,
                         "destination QEMU is for another guest: its UUID must be %s, and it is %s",
                         d->guest.uuid, uuid);
    }
    if (!err) {
        err = qmp_has_object(&d->destination, "ram-pager", reason);
    }
    return err ? err : driver_check_fresh(d, reason);
}

static void driver_close(struct driver *driver)
{
    struct driver_qmp *d = driver_of(driver);

    qmp_close(&d->source);
    qmp_close(&d->destination);
    json_decref(d->capabilities);
    json_decref(d->arrival_capabilities);
    json_decref(d->parameters);
    free(d);
}

static int driver_open(struct driver **driver, const struct target *source,
                       const struct target *destination, struct driver_guest *guest,
                       struct reason *reason)
{
    struct driver_qmp *d = calloc(1, sizeof(*d));

    if (!d) {
        return reason_set(reason, -ENOMEM, "out of memory");
    }
    d->base.ops = &driver_qmp;
    int err = driver_open_source(d, source, reason);
    if (!err && destination) {
        err = driver_check_source(d, reason);
    }
    if (!err && destination) {
        err = driver_open_destination(d, source, destination, reason);
    }
    if (err) {
        driver_close(&d->base);
        return err;
    }
    *guest = d->guest;
    *driver = &d->base;
    return 0;
}

/* ---- look ---- */

/*
 * QEMU looks at 512 pages of each GiB if it is not told otherwise: of a small guest too few to tell one
 * that writes little.
 */
static json_int_t driver_samples(uint64_t ram)
{
    uint64_t gib = ram / GIB ? ram / GIB : 1;

    return (json_int_t)(QMP_SAMPLES / gib > QMP_SAMPLES_LEAST ? QMP_SAMPLES / gib : QMP_SAMPLES_LEAST);
}

static int driver_dirty_rate(struct driver *driver, uint64_t ram, uint64_t *rate, struct reason *reason)
{
    struct driver_qmp *d = driver_of(driver);
    uint64_t deadline = units_now_us() + QMP_RESUME_US;
    bool measured = false;

    int err = qmp_call(&d->source, "calc-dirty-rate",
                       json_pack("{s:i, s:I}", "calc-time", 1, "sample-pages", driver_samples(ram)), NULL,
                       QMP_CALL_MS, NULL, reason);
    while (!err && !measured) {
        json_t *answer = NULL;
        usleep(10 * QMP_STEP_US);
        err = qmp_call(&d->source, "query-dirty-rate", NULL, &answer, QMP_CALL_MS, NULL, reason);
        const char *status = json_string_value(json_object_get(answer, "status"));
        measured = status && strcmp(status, "measured") == 0;
        *rate = hosts_bytes(answer, "dirty-rate") * MIB;
        json_decref(answer);
        if (!err && !measured && units_now_us() > deadline) {
            err = reason_set(reason, -ETIMEDOUT, "source QEMU does not tell how much the guest writes");
        }
    }
    return err;
}

/* ---- prepare, start ---- */

static int driver_set_capabilities(struct qmp *qmp, const struct driver_capability *capabilities,
                                   size_t n, bool auto_converge, struct reason *reason)
{
    json_t *list = json_array();

    for (size_t i = 0; i < n; i++) {
        bool on = strcmp(capabilities[i].name, DRIVER_AUTO_CONVERGE) == 0 ? auto_converge
                                                                          : capabilities[i].on;
        json_array_append_new(list, json_pack("{s:s, s:b}", "capability", capabilities[i].name,
                                              "state", on));
    }
    return qmp_call(qmp, "migrate-set-capabilities", json_pack("{s:o}", "capabilities", list), NULL,
                    QMP_CALL_MS, NULL, reason);
}

static int driver_listen(struct driver_qmp *d, struct reason *reason)
{
    int err = qmp_call(&d->destination, "query-migrate-capabilities", NULL,
                       &d->arrival_capabilities, QMP_CALL_MS, NULL, reason);

    if (!err) {
        err = driver_set_capabilities(&d->destination, driver_destination_capabilities,
                                      DRIVER_N(driver_destination_capabilities), false, reason);
    }
    if (!err) {
        d->listening = true;
        err = qmp_call(&d->destination, "stop", NULL, NULL, QMP_CALL_MS, NULL, reason);
    }
    if (!err) {
        err = qmp_call(&d->destination, "migrate-incoming",
                       json_pack("{s:s, s:b}", "uri", d->stream, "exit-on-error", 0), NULL,
                       QMP_CALL_MS, NULL, reason);
    }
    return err;
}

static int driver_prepare(struct driver *driver, const struct driver_config *config,
                          struct reason *reason)
{
    struct driver_qmp *d = driver_of(driver);

    d->live = config->live;
    pace_begin(&d->pace, config->downtime_ms);
    int err = qmp_call(&d->source, "query-migrate-capabilities", NULL, &d->capabilities,
                       QMP_CALL_MS, NULL, reason);
    if (!err) {
        err = qmp_call(&d->source, "query-migrate-parameters", NULL, &d->parameters, QMP_CALL_MS,
                       NULL, reason);
    }
    if (!err) {
        d->set = true;
        err = driver_set_capabilities(&d->source, driver_source_capabilities,
                                      DRIVER_N(driver_source_capabilities),
                                      config->auto_converge, reason);
    }
    if (!err) {
        err = qmp_call(&d->source, "migrate-set-parameters",
                       json_pack("{s:I, s:I}", "max-bandwidth",
                                 config->bandwidth ? (json_int_t)config->bandwidth : QMP_NO_LIMIT,
                                 "downtime-limit", (json_int_t)d->pace.downtime_ms),
                       NULL, QMP_CALL_MS, NULL, reason);
    }
    return err ? err : driver_listen(d, reason);
}

static int driver_start(struct driver *driver, struct reason *reason)
{
    struct driver_qmp *d = driver_of(driver);

    if (!d->live && d->guest.running) {
        int err = qmp_call(&d->source, "stop", NULL, NULL, QMP_CALL_MS, NULL, reason);
        if (err) {
            return err;
        }
    }
    return qmp_call(&d->source, "migrate", json_pack("{s:s}", "uri", d->stream), NULL, QMP_CALL_MS,
                    NULL, reason);
}

/* ---- while it moves ---- */

static enum driver_phase driver_phase_of(const char *status)
{
    static const struct {
        const char *status;
        enum driver_phase phase;
    } table[] = {
        {"none", DRIVER_IDLE},
        {"setup", DRIVER_SETUP},
        {"wait-unplug", DRIVER_SETUP},
        {"active", DRIVER_MOVING},
        {"pre-switchover", DRIVER_PAUSED},
        {"device", DRIVER_DEVICE},
        {"cancelling", DRIVER_CANCELLING},
        {"failing", DRIVER_CANCELLING},
        {"completed", DRIVER_COMPLETED},
        {"failed", DRIVER_FAILED},
        {"cancelled", DRIVER_CANCELLED},
    };

    for (size_t i = 0; status && i < DRIVER_N(table); i++) {
        if (strcmp(table[i].status, status) == 0) {
            return table[i].phase;
        }
    }
    return status ? DRIVER_MOVING : DRIVER_IDLE;
}

static int driver_query(struct qmp *qmp, struct driver_progress *progress, struct reason *reason)
{
    json_t *answer = NULL;

    memset(progress, 0, sizeof(*progress));
    int err = qmp_call(qmp, "query-migrate", NULL, &answer, QMP_POLL_MS, NULL, reason);
    if (err) {
        return err;
    }
    const json_t *ram = json_object_get(answer, "ram");
    const char *error = json_string_value(json_object_get(answer, "error-desc"));
    progress->phase = driver_phase_of(json_string_value(json_object_get(answer, "status")));
    progress->ram_total = hosts_bytes(ram, "total");
    progress->ram_remaining = hosts_bytes(ram, "remaining");
    progress->rounds = hosts_bytes(ram, "dirty-sync-count");
    progress->dirty_rate = hosts_bytes(ram, "dirty-pages-rate") * PAGE_BYTES;
    progress->throttle = (unsigned)hosts_bytes(answer, "cpu-throttle-percentage");
    progress->total_ms = hosts_bytes(answer, "total-time");
    progress->downtime_ms = hosts_bytes(answer, "downtime");
    snprintf(progress->error, sizeof(progress->error), "%s", error ? error : "");
    json_decref(answer);
    return 0;
}

static int driver_allow(struct driver_qmp *d, struct reason *reason)
{
    json_t *args = json_pack("{s:I}", "downtime-limit", (json_int_t)d->pace.downtime_ms);

    if (d->pace.bandwidth) {
        json_object_set_new(args, "avail-switchover-bandwidth",
                            json_integer((json_int_t)d->pace.bandwidth));
    }
    return qmp_call(&d->source, "migrate-set-parameters", args, NULL, QMP_POLL_MS, NULL, reason);
}

static int driver_poll(struct driver *driver, struct driver_progress *progress,
                       struct reason *reason)
{
    struct driver_qmp *d = driver_of(driver);

    int err = driver_query(&d->source, progress, reason);
    driver->stopped_us = d->source.stop_us;
    if (!err && progress->phase == DRIVER_MOVING &&
        pace_step(&d->pace, progress->rounds, driver->sent, driver->busy_us,
                  units_now_us())) {
        err = driver_allow(d, reason);
    }
    return err;
}

static int driver_proceed(struct driver *driver, struct reason *reason)
{
    return qmp_call(&driver_of(driver)->source, "migrate-continue",
                    json_pack("{s:s}", "state", "pre-switchover"), NULL, QMP_POLL_MS, NULL, reason);
}

static int driver_suspend(struct driver *driver, struct reason *reason)
{
    return qmp_call(&driver_of(driver)->source, "stop", NULL, NULL, QMP_POLL_MS, NULL, reason);
}

static int driver_fd(struct driver *driver)
{
    struct driver_qmp *d = driver_of(driver);

    return d->source.client ? control_fd(d->source.client) : -1;
}

static void driver_events(struct driver *driver)
{
    qmp_events(&driver_of(driver)->source);
}

static bool driver_over(enum driver_phase phase)
{
    return phase == DRIVER_IDLE || phase == DRIVER_COMPLETED || phase == DRIVER_FAILED ||
           phase == DRIVER_CANCELLED;
}

static int driver_cancel(struct driver *driver, enum driver_phase *phase, struct reason *reason)
{
    struct driver_qmp *d = driver_of(driver);
    uint64_t deadline = units_now_us() + QMP_SETTLE_US;
    struct driver_progress progress;

    int err = driver_query(&d->source, &progress, reason);
    if (!err && !driver_over(progress.phase)) {
        err = qmp_call(&d->source, "migrate_cancel", NULL, NULL, QMP_CALL_MS, NULL, reason);
    }
    while (!err && !driver_over(progress.phase)) {
        usleep(QMP_STEP_US);
        err = driver_query(&d->source, &progress, reason);
        if (!err && units_now_us() > deadline) {
            err = reason_set(reason, -ETIMEDOUT, "source QEMU does not end its migration");
        }
    }
    *phase = progress.phase;
    return err;
}

/* ---- the end ---- */

static int driver_arrived(struct driver *driver, struct reason *reason)
{
    struct driver_qmp *d = driver_of(driver);
    uint64_t deadline = units_now_us() + QMP_SETTLE_US;
    struct driver_progress progress;
    char status[32];
    bool running;

    for (;;) {
        int err = driver_query(&d->destination, &progress, reason);
        if (!err) {
            err = qmp_status(&d->destination, status, sizeof(status), &running, reason);
        }
        if (err) {
            return err;
        }
        if (progress.phase == DRIVER_FAILED || progress.phase == DRIVER_CANCELLED) {
            return reason_set(reason, -EIO, "destination QEMU could not take the guest: %.180s",
                              progress.error[0] ? progress.error : "it did not say why");
        }
        if (running) {
            return reason_set(reason, -EPROTO,
                              "destination QEMU runs the guest without having been told to");
        }
        if (strcmp(status, "inmigrate") != 0 &&
            (progress.phase == DRIVER_COMPLETED || progress.phase == DRIVER_IDLE)) {
            return 0;
        }
        if (units_now_us() > deadline) {
            return reason_set(reason, -ETIMEDOUT,
                              "destination QEMU does not finish: it is still '%s'", status);
        }
        usleep(QMP_STEP_US / 5);
    }
}

static int driver_hand_over(struct driver *driver, bool *sent, struct reason *reason)
{
    struct driver_qmp *d = driver_of(driver);
    uint64_t deadline = units_now_us() + QMP_RESUME_US;
    char status[32];
    bool running = false;

    *sent = false;
    if (!d->guest.running) {
        d->handed_over = true;
        return 0;
    }
    qmp_events(&d->destination); /* a monitor that is known to be closed gets nothing sent */
    int err = qmp_call(&d->destination, "cont", NULL, NULL, QMP_POLL_MS, sent, reason);
    d->handed_over = *sent;
    while (!err && !running) {
        err = qmp_status(&d->destination, status, sizeof(status), &running, reason);
        if (!err && !running && units_now_us() > deadline) {
            err = reason_set(reason, -ETIMEDOUT,
                             "destination QEMU was told to run the guest, and it is '%s'", status);
        }
        if (!err && !running) {
            usleep(QMP_STEP_US);
        }
    }
    driver->stopped_us = d->source.stop_us;
    driver->resumed_us = d->destination.resume_us;
    return err;
}

static void driver_forget_stream(struct driver_qmp *d)
{
    if (d->own_stream && d->listening) {
        unlink(d->stream + strlen("unix:"));
    }
}

/* Give a QEMU back what it had of those in @ours; one that refuses keeps ours. */
static void driver_restore_capabilities(struct qmp *qmp, const json_t *before,
                                        const struct driver_capability *ours, size_t n)
{
    json_t *list = json_array();

    for (size_t i = 0; i < json_array_size(before); i++) {
        json_t *entry = json_array_get(before, i);
        const char *name = json_string_value(json_object_get(entry, "capability"));
        for (size_t k = 0; name && k < n; k++) {
            if (strcmp(name, ours[k].name) == 0) {
                json_array_append(list, entry);
            }
        }
    }
    qmp_call(qmp, "migrate-set-capabilities", json_pack("{s:o}", "capabilities", list), NULL,
             QMP_CALL_MS, NULL, NULL);
}

static void driver_retire(struct driver *driver, bool keep_source)
{
    struct driver_qmp *d = driver_of(driver);

    driver_forget_stream(d);
    /* With a return path the guest could not be saved to a file. */
    driver_restore_capabilities(&d->destination, d->arrival_capabilities,
                                driver_destination_capabilities,
                                DRIVER_N(driver_destination_capabilities));
    if (!keep_source) {
        qmp_quit(&d->source);
    }
}

/* ---- undo ---- */

/* Give the source back the settings it had; a QEMU that refuses keeps ours, which do no harm. */
static void driver_restore(struct driver_qmp *d)
{
    json_t *parameters = json_object();
    static const char *const names[] = {"max-bandwidth", "downtime-limit",
                                        "avail-switchover-bandwidth"};

    for (size_t i = 0; i < DRIVER_N(names); i++) {
        json_t *value = json_object_get(d->parameters, names[i]);
        if (value) {
            json_object_set(parameters, names[i], value);
        }
    }
    driver_restore_capabilities(&d->source, d->capabilities, driver_source_capabilities,
                                DRIVER_N(driver_source_capabilities));
    qmp_call(&d->source, "migrate-set-parameters", parameters, NULL, QMP_CALL_MS, NULL, NULL);
}

/* Make sure that the source runs if it ran. */
static int driver_resume(struct driver_qmp *d, struct reason *reason)
{
    uint64_t deadline = units_now_us() + QMP_RESUME_US;
    struct reason refused = {""};
    char status[32] = "unknown";
    bool running = false;

    for (;;) {
        int err = qmp_status(&d->source, status, sizeof(status), &running, reason);
        if (err || running || !d->guest.running) {
            return err;
        }
        if (strcmp(status, "finish-migrate") != 0) {
            /* It may refuse while it tidies up; what counts is whether it runs in the end. */
            qmp_call(&d->source, "cont", NULL, NULL, QMP_CALL_MS, NULL, &refused);
        }
        if (units_now_us() > deadline) {
            return reason_set(reason, -EIO, "the guest does not run again: it is '%s'%s%.160s",
                              status, refused.text[0] ? ": " : "", refused.text);
        }
        usleep(refused.text[0] ? 10 * QMP_STEP_US : QMP_STEP_US);
    }
}

static int driver_undo(struct driver *driver, struct reason *reason)
{
    struct driver_qmp *d = driver_of(driver);

    if (d->handed_over) {
        return reason_set(reason, -EBUSY, "the guest has been handed over");
    }
    if (d->listening) {
        qmp_quit(&d->destination);
        driver_forget_stream(d);
        d->listening = false;
    }
    int err = driver_resume(d, reason);
    if (d->set && !err) {
        driver_restore(d);
    }
    return err;
}

const struct driver_ops driver_qmp = {
    .scheme = "qmp",
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
