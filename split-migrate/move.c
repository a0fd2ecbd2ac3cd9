// SPDX-License-Identifier: GPL-2.0-or-later
/* move.c - the sequence of a move, and its undoing */
#include "split-migrate/move.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "predictor/predictor.h"
#include "split-migrate/fault.h"
#include "split-migrate/interrupt.h"
#include "split-migrate/options.h"

struct move *move_new(void)
{
    struct move *move = calloc(1, sizeof(*move));

    if (!move) {
        abort();
    }
    policy_init(&move->policy, predictor_names());
    return move;
}

void move_free(struct move *move)
{
    if (!move) {
        return;
    }
    if (move->driver) {
        move->driver->ops->close(move->driver);
    }
    pager_close(&move->source_pager);
    pager_close(&move->main_pager);
    for (unsigned i = 0; i < move->n_subhosts; i++) {
        subhost_close(&move->subhost[i]);
    }
    free(move);
}

/* ---- undo ---- */

static void move_cancel_pager(struct pager *pager, const char *verb, const char *uuid)
{
    struct reason reason = {""};

    int err =
        pager_call(pager, verb, json_pack("{s:s}", "uuid", uuid), NULL, HOSTS_CALL_MS, &reason);
    if (err && err != -ENOENT) {
        /* The end of our connection cancels as well; a guest that arrived goes with its QEMU. */
        log_info("%s: %s", verb, reason.text);
    }
}

/*
 * Take everything back.  The reservations go last: while either QEMU could
 * still use them they must be there.
 * Return: 0 if the guest is at the source as it was; else -errno, @reason.
 */
static int move_undo(struct move *move, struct reason *reason)
{
    struct driver *driver = move->driver;
    enum driver_phase phase;
    struct reason why = {""};

    progress_end(&move->progress);
    if (move->started) {
        int err = driver->ops->cancel(driver, &phase, &why);
        if (err) {
            log_warn("%s", why.text);
        }
    }
    if (move->outgoing) {
        move_cancel_pager(&move->source_pager, "outgoing-cancel", move->guest.uuid);
    }
    int err = move->prepared ? driver->ops->undo(driver, reason) : 0;
    /* A manager that has not taken the guest back may run it there: its memory must stay. */
    bool keep = err && driver->ops->manages;
    if (move->incoming && !keep) {
        move_cancel_pager(&move->main_pager, "incoming-cancel", move->guest.uuid);
    }
    for (unsigned i = 0; i < move->n_subhosts && !keep; i++) {
        subhost_release(&move->subhost[i], move->guest.uuid);
    }
    move->ended_us = units_now_us();
    return err;
}

/* ---- forwards ---- */

static int move_interrupted(struct reason *reason)
{
    return interrupt_pending() ? reason_set(reason, -EINTR, "interrupted: nothing was moved") : 0;
}

static int move_begin(struct move *move, struct reason *reason)
{
    struct driver *driver = move->driver;
    struct driver_config config = move->options.driver;

    config.bandwidth = move->policy.bandwidth;
    config.downtime_ms = move->policy.downtime_ms;
    config.live = move->options.live;
    int err = move_interrupted(reason);
    if (!err) {
        progress_note(&move->progress, "Reserving memory");
        err = move_reserve(move, reason);
    }
    if (!err) {
        err = move_announce(move, reason);
    }
    if (!err) {
        move->prepared = true;
        err = driver->ops->prepare(driver, &config, reason);
    }
    if (!err) {
        err = move_interrupted(reason);
    }
    if (!err) {
        fault_point(FAULT_BEFORE_ROUND_1);
        move->started = true;
        move->started_us = units_now_us();
        err = driver->ops->start(driver, reason);
    }
    return err;
}

/*
 * The main host's pager must have taken the guest over, or nothing would serve its faults.  Mostly
 * it has said so already; to ask costs the guest some milliseconds.
 */
static int move_check_split(struct move *move, struct reason *reason)
{
    struct pager *pager = &move->main_pager;
    int err;

    if (control_poll(pager->client) == 0 && pager->split && !pager->failed[0]) {
        return 0;
    }
    json_t *guest = pager_guest(pager, move->guest.uuid, &err, reason);

    if (err == -ECONNRESET || err == -EPIPE) {
        pager_close(pager);
        err = pager_open(pager, pager->role, &move->destination.pager, reason);
        guest = err ? NULL : pager_guest(pager, move->guest.uuid, &err, reason);
    }
    const char *state = json_string_value(json_object_get(guest, "state"));
    if (!err && (!state || strcmp(state, "split") != 0)) {
        err = reason_set(reason, -EPROTO,
                         "main host's pager has not taken the guest over: it is %.32s there",
                         state ? state : "not known");
    }
    json_decref(guest);
    return err;
}

static void move_conclude(struct move *move)
{
    struct driver *driver = move->driver;
    struct driver_progress progress;
    struct reason reason = {""};

    move->ended_us = units_now_us();
    /* A manager has ended the source's QEMU, with which the pager forgets the move. */
    int err = move_refresh(move, &reason);
    if (err == -ENOENT && driver->ops->manages) {
        err = 0;
    }
    if (err || driver->ops->poll(driver, &progress, &reason) < 0) {
        log_warn("statistics are not complete: %s", reason.text);
    } else {
        move->last = progress;
    }
    driver->ops->retire(driver, move->options.keep_source);
}

/* @sent: set once the destination may run the guest */
static int move_forward(struct move *move, bool *sent, struct reason *reason)
{
    struct driver *driver = move->driver;

    int err = move_begin(move, reason);
    if (!err) {
        err = move_watch(move, reason);
    }
    if (!err) {
        *sent = driver->ops->manages;
        err = driver->ops->arrived(driver, reason);
    }
    if (!err) {
        err = move_check_split(move, reason);
    }
    return err ? err : driver->ops->hand_over(driver, sent, reason);
}

int move_run(struct move *move, struct reason *reason)
{
    struct reason why = {""};
    struct reason undone = {""};
    bool sent = false;

    int err = move_forward(move, &sent, &why);
    if (!err) {
        move_conclude(move);
        return EXIT_OK;
    }
    if (sent) {
        move->ended_us = units_now_us();
        reason_set(reason, err,
                   "the guest is at the destination and its start there is not certain "
                   "(source and destination QEMU are left alone): %.130s",
                   why.text);
        return EXIT_ATTENTION;
    }
    if (move_undo(move, &undone) < 0) {
        reason_set(reason, err, "%.110s; the guest needs attention at the source: %.90s", why.text,
                   undone.text);
        return EXIT_ATTENTION;
    }
    *reason = why;
    return EXIT_UNCHANGED;
}
