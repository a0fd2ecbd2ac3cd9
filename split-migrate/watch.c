// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * watch.c - while the guest moves
 *
 * One thread looks at QEMU and at the source's pager in turn, at least ten
 * times a second and at once when one of them sends an event.  The connections
 * to the sub-hosts and the main host's pager are leases, and a closed one
 * means that what it held is gone - until the switch-over, when the daemons
 * may already have taken it over.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "split-migrate/fault.h"
#include "split-migrate/interrupt.h"
#include "split-migrate/move.h"

#define WATCH_STEP_MS 100
#define WATCH_QUICK_MS 20       /* at the beginning */
#define WATCH_SWITCH_MS 20      /* the guest stands still: QEMU's events say when to look */
#define WATCH_QUICK_US 1000000u /* how long the beginning is */

int move_refresh(struct move *move, struct reason *reason)
{
    struct move_stats *stats = &move->stats;
    json_t *answer = NULL;

    int err =
        pager_call(&move->source_pager, "outgoing-status",
                   json_pack("{s:s}", "uuid", move->guest.uuid), &answer, HOSTS_CALL_MS, reason);
    if (err) {
        return err;
    }
    const char *state = json_string_value(json_object_get(answer, "state"));
    const char *why = json_string_value(json_object_get(answer, "reason"));
    const json_t *bytes = json_object_get(answer, "subhost_bytes");
    snprintf(stats->state, sizeof(stats->state), "%s", state ? state : "");
    snprintf(stats->reason, sizeof(stats->reason), "%s", why ? why : "");
    stats->rounds = hosts_bytes(answer, "rounds");
    stats->pages_done = hosts_bytes(answer, "pages_done");
    stats->zero_pages = hosts_bytes(answer, "zero_pages");
    stats->wire_bytes = hosts_bytes(answer, "wire_bytes");
    stats->main_bytes = hosts_bytes(answer, "main_bytes");
    move->driver->sent = stats->wire_bytes;
    move->driver->busy_us = hosts_bytes(answer, "busy_us");
    for (unsigned i = 0; i < move->n_subhosts; i++) {
        json_int_t value = json_integer_value(json_array_get(bytes, i));
        stats->subhost_bytes[i] = value > 0 ? (uint64_t)value : 0;
    }
    json_decref(answer);
    return 0;
}

static void watch_show(struct move *move, bool final)
{
    static const char *const names[] = {
        [DRIVER_IDLE] = "preparing",        [DRIVER_SETUP] = "preparing",
        [DRIVER_MOVING] = "moving",         [DRIVER_PAUSED] = "switching over",
        [DRIVER_DEVICE] = "switching over", [DRIVER_CANCELLING] = "cancelling",
        [DRIVER_COMPLETED] = "completed",   [DRIVER_FAILED] = "failed",
        [DRIVER_CANCELLED] = "cancelled",
    };
    const struct move_stats *stats = &move->stats;
    struct progress_values values = {
        .phase = names[move->last.phase],
        .total = move->last.ram_total,
        .remaining = move->last.phase == DRIVER_COMPLETED ? 0 : move->last.ram_remaining,
        .main_bytes = stats->main_bytes,
        .wire_bytes = stats->wire_bytes,
        .rounds = stats->rounds,
    };

    for (unsigned i = 0; i < move->n_subhosts; i++) {
        values.sub_bytes += stats->subhost_bytes[i];
    }
    progress_show(&move->progress, &values, final);
}

/* The pager only tells what QEMU told it, without QEMU's reason. */
static bool by_qemu(const char *why)
{
    static const char begin[] = "QEMU ended the migration";

    return strncmp(why, begin, sizeof(begin) - 1) == 0;
}

/* The sentence an operator gets: the pagers know causes, QEMU mostly consequences. */
static int watch_failed(struct move *move, const char *otherwise, struct reason *reason)
{
    const char *why = otherwise;

    if (move->main_pager.client) {
        control_poll(move->main_pager.client);
    }
    /* libvirt ends the destination's QEMU when it gives up: it knows why, the pager does not. */
    bool ended = move->driver->ops->manages && move->last.error[0] &&
                 strcmp(move->main_pager.failed, HOSTS_GUEST_GONE) == 0;
    if (move->main_pager.failed[0] && !ended) {
        why = move->main_pager.failed;
    } else if (move->source_pager.failed[0] &&
               (!by_qemu(move->source_pager.failed) || !move->last.error[0])) {
        why = move->source_pager.failed;
    } else if (move->stats.reason[0] && (!by_qemu(move->stats.reason) || !move->last.error[0])) {
        why = move->stats.reason;
    } else if (move->last.error[0]) {
        why = move->last.error;
    }
    return reason_set(reason, -ECANCELED, "the migration failed: %.200s", why);
}

/*
 * Give up, unless QEMU has completed meanwhile: then what follows shows whether the guest is there.
 */
static int watch_give_up(struct move *move, int failure, struct reason *reason)
{
    enum driver_phase phase;
    struct reason why = {""};

    progress_note(&move->progress, "Cancelling");
    int err = move->driver->ops->cancel(move->driver, &phase, &why);
    if (err) {
        log_warn("%s", why.text);
    } else if (phase == DRIVER_COMPLETED) {
        progress_note(&move->progress, "The guest has moved before it could be cancelled");
        return 0;
    } else if (failure == -ECANCELED && !move->last.error[0] &&
               move->driver->ops->poll(move->driver, &move->last, &why) == 0) {
        return watch_failed(move, "", reason); /* only now it is known what QEMU's side says */
    }
    return failure;
}

/* Say once that it does not converge, and how far QEMU slows the guest down for it. */
static void watch_stall(struct move *move)
{
    struct stall *stall = &move->stall;
    unsigned throttle = stall->throttle;
    bool stalled = stall->stalled;
    char because[STALL_TEXT];
    char note[64];

    if (!stall_step(stall, &move->last, move->stats.wire_bytes, units_now_us())) {
        return;
    }
    if (stall->stalled && !stalled) {
        progress_end(&move->progress);
        log_warn("the move does not come to an end%s%s", stall_because(stall, because, sizeof(because)),
                 move->options.driver.auto_converge ? "" : ": --auto-converge would slow it down");
    }
    if (stall->throttle > throttle) {
        snprintf(note, sizeof(note), "Slowing the guest down by %u %%", stall->throttle);
        progress_note(&move->progress, note);
    }
}

/* Shall the operator's wish or the clock end it? Return: 0, or -errno with a sentence in @reason.
 */
static int watch_limits(struct move *move, struct reason *reason)
{
    uint64_t limit = move->policy.timeout_s * 1000000u;
    char because[STALL_TEXT];
    char note[STALL_TEXT + 64];

    if (interrupt_pending()) {
        return reason_set(reason, -EINTR, "interrupted: the migration was cancelled");
    }
    bool late = limit && units_now_us() - move->started_us > limit;
    if (late && move->options.suspend_late) {
        if (!move->suspended) {
            snprintf(note, sizeof(note), "Suspending the guest: it takes too long%s",
                     stall_because(&move->stall, because, sizeof(because)));
            progress_note(&move->progress, note);
            move->suspended = true;
            return move->driver->ops->suspend(move->driver, reason);
        }
        return 0;
    }
    if (late) {
        return reason_set(reason, -ETIMEDOUT,
                          "the migration did not finish within %llu s%s: it was cancelled",
                          (unsigned long long)move->policy.timeout_s,
                          stall_because(&move->stall, because, sizeof(because)));
    }
    return 0;
}

static int watch_leases(struct move *move, struct reason *reason)
{
    if (control_poll(move->main_pager.client) < 0) {
        return reason_set(reason, -ECONNRESET, "main host's pager closed its connection");
    }
    for (unsigned i = 0; i < move->n_subhosts; i++) {
        if (control_poll(move->subhost[i].client) < 0) {
            return reason_set(reason, -ECONNRESET,
                              "sub-host '%s' closed its connection: the guest's region there is "
                              "gone",
                              move->subhost[i].policy->name);
        }
    }
    if (move->main_pager.failed[0] || move->source_pager.failed[0]) {
        return watch_failed(move, "", reason);
    }
    return 0;
}

/* Sleep until something happens that poll(2) can see, or a step has passed. */
static void watch_wait(struct move *move)
{
    struct pollfd fds[PAGEMAP_MAX_SUBHOSTS + 3];
    nfds_t n = 0;
    bool quick = units_now_us() - move->started_us < WATCH_QUICK_US;
    int wait_ms = move->last.phase >= DRIVER_PAUSED ? WATCH_SWITCH_MS
                  : quick                           ? WATCH_QUICK_MS
                                                    : WATCH_STEP_MS;
    int fd = move->driver->ops->fd(move->driver);

    if (fd >= 0) {
        fds[n++] = (struct pollfd){.fd = fd, .events = POLLIN};
    }
    if (!move->proceeded) {
        fds[n++] = (struct pollfd){.fd = control_fd(move->source_pager.client), .events = POLLIN};
        fds[n++] = (struct pollfd){.fd = control_fd(move->main_pager.client), .events = POLLIN};
        for (unsigned i = 0; i < move->n_subhosts; i++) {
            fds[n++] = (struct pollfd){.fd = control_fd(move->subhost[i].client), .events = POLLIN};
        }
    }
    if (poll(fds, n, wait_ms) > 0) {
        move->driver->ops->events(move->driver);
        control_poll(move->source_pager.client);
    }
}

/*
 * Look once.  Return: 1 to go on, 0 when the source has completed, -errno.
 *
 * From the switch-over on only QEMU's word counts: whatever the pagers report makes its migration
 * fail.
 */
static int watch_once(struct move *move, struct reason *reason)
{
    struct driver *driver = move->driver;

    int err = driver->ops->poll(driver, &move->last, reason);
    if (err) {
        return err;
    }
    enum driver_phase phase = move->last.phase;
    if (phase == DRIVER_COMPLETED) {
        return 0;
    }
    move->proceeded |= phase == DRIVER_DEVICE;
    /* While the guest stands still the processors have better things to do than to answer us. */
    err = phase == DRIVER_DEVICE ? 0 : move_refresh(move, reason);
    if (phase == DRIVER_FAILED || phase == DRIVER_CANCELLED || phase == DRIVER_IDLE) {
        return watch_failed(move,
                            phase == DRIVER_IDLE ? "source QEMU knows nothing of it"
                                                 : "somebody cancelled it",
                            reason);
    }
    if (move->proceeded) {
        return 1;
    }
    if (!err && strcmp(move->stats.state, "failed") == 0) {
        err = watch_failed(move, "the pager gave up", reason);
    }
    if (!err) {
        err = watch_leases(move, reason);
    }
    if (err) {
        return err;
    }
    if (phase == DRIVER_MOVING) {
        watch_stall(move);
    }
    if (phase >= DRIVER_MOVING && (move->stats.pages_done || move->stats.rounds)) {
        fault_point(FAULT_ROUND);
    }
    if (phase == DRIVER_PAUSED) {
        err = driver->ops->proceed(driver, reason);
        move->proceeded = err == 0;
    }
    return err ? err : 1;
}

int move_watch(struct move *move, struct reason *reason)
{
    for (;;) {
        int rc = watch_once(move, reason);
        /* Who manages the move can be asked to end it at any time. */
        bool asked = move->driver->ops->manages && interrupt_pending();
        if (rc == 1 && (!move->proceeded || asked)) {
            int err = watch_limits(move, reason);
            rc = err ? err : 1;
        }
        watch_show(move, rc <= 0);
        if (rc < 0) {
            rc = watch_give_up(move, rc, reason);
        }
        if (rc <= 0) {
            progress_end(&move->progress);
            return rc;
        }
        watch_wait(move);
    }
}
