// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * mover.c - the mover's main thread: frames from the worker, progress and results to it
 *
 * Theory of operation: mover_internal.h.
 *
 *   state        what is true                                    left by
 *   fresh        not configured                                  MOVER_CONFIG
 *   connecting   streams connect, each in its thread             all are up: MIG_BEGUN; one fails: MIG_BEGUN(reason)
 *   moving       pages come and go                               MIG_FINISH, failure
 *   finishing    waits for the last reply, then sends the map    MIG_FINISHED
 *   failed       the reason was sent; frames are ignored, but MIG_FINISH is answered with it
 * Every state ends when the worker closes the socket.
 */
#include "uffd-pager/mover.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "uffd-pager/mover_internal.h"

#define FRAME_TIMEOUT_US 30000000u /* for the rest of a frame, or for room to send one */

static enum mover_fault fault_from_environment(void)
{
    static const struct {
        const char *name;
        enum mover_fault fault;
    } faults[] = {
        {"mover-exit-round-1", MOVER_FAULT_EXIT_ROUND_1},
        {"mover-exit-round-2", MOVER_FAULT_EXIT_ROUND_2},
        {"mover-exit-finish", MOVER_FAULT_EXIT_FINISH},
        {"mover-stop-finish", MOVER_FAULT_STOP_FINISH},
        {"mover-stall-round-1", MOVER_FAULT_STALL_ROUND_1},
    };
    const char *name = getenv("SPLIT_MIGRATE_FAULT");

    for (size_t i = 0; name && i < sizeof(faults) / sizeof(faults[0]); i++) {
        if (strcmp(name, faults[i].name) == 0) {
            return faults[i].fault;
        }
    }
    return MOVER_FAULT_NONE;
}

static int mover_answer(struct mover *mover, uint16_t type, uint32_t cookie, int err,
                        const struct reason *reason)
{
    return handoff_send_result(mover->fd, type, cookie, err, reason,
                               units_now_us() + FRAME_TIMEOUT_US);
}

static int start_streams(struct mover *mover)
{
    for (unsigned i = 0; i < mover->n_targets; i++) {
        for (unsigned c = 0; c < mover->connections; c++) {
            struct mover_stream *stream = mover->target[i].stream[c];
            stream->connecting = true;
            int err = pthread_create(&stream->thread, NULL, mover_send_main, stream);
            if (err) {
                return mover_fail(mover, -err, "the mover cannot start a thread: %s",
                                  strerror(err));
            }
            stream->started = true;
        }
    }
    return 0;
}

/*
 * Have a stream end.  If replies are still awaited its connection is cut.
 * Return: false if it goes on connecting, which cannot be interrupted.
 */
static bool stop_stream(struct mover *mover, struct mover_stream *stream)
{
    struct timespec deadline;
    uint64_t one = 1;

    if (!stream || !stream->started) {
        return true;
    }
    pthread_mutex_lock(&mover->lock);
    bool connecting = stream->connecting;
    if (stream->connected && (mover->failed || mover->outstanding)) {
        channel_abort(&stream->client.channel);
    }
    pthread_mutex_unlock(&mover->lock);
    ssize_t ignored = write(stream->wake, &one, sizeof(one));
    (void)ignored;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += 1;
    return (connecting ? pthread_timedjoin_np(stream->thread, NULL, &deadline)
                       : pthread_join(stream->thread, NULL)) == 0;
}

static bool stop_streams(struct mover *mover)
{
    bool all = true;

    pthread_mutex_lock(&mover->lock);
    mover->stop = true;
    pthread_mutex_unlock(&mover->lock);
    for (unsigned i = 0; mover->target && i < mover->n_targets; i++) {
        for (unsigned c = 0; c < mover->connections; c++) {
            all = all && stop_stream(mover, mover->target[i].stream[c]);
        }
    }
    return all;
}

/* ---- frames ---- */

static int take_config(struct mover *mover, struct handoff_frame *frame)
{
    struct reason reason = {""};

    if (mover->configured) {
        handoff_frame_close(frame);
        return mover_fail(mover, -EPROTO, "the mover was configured twice");
    }
    mover->begin_cookie = frame->header.cookie;
    int err = mover_configure(mover, frame, &reason);
    if (err) {
        return mover_fail(mover, err, "%s", reason.text);
    }
    mover->configured = true;
    return start_streams(mover);
}

static int take_frame(struct mover *mover, struct handoff_frame *frame)
{
    struct reason reason = {""};

    if (frame->header.type == HANDOFF_MOVER_CONFIG) {
        return take_config(mover, frame);
    }
    handoff_frame_close(frame);
    if (frame->header.type == HANDOFF_MIG_FINISH) {
        mover->finishing = true;
        mover->finish_cookie = frame->header.cookie;
        if (!mover->configured) {
            return mover_fail(mover, -EPROTO, "the mover was not configured");
        }
        mover_want_main(mover);
        return 0;
    }
    if (frame->header.type != HANDOFF_MIG_RUNS || !mover->configured || mover->finishing) {
        return mover_fail(mover, -EPROTO, "the mover got a message of type %u, which it does not expect now",
                          frame->header.type);
    }
    if (mover->told_failure) {
        return 0;
    }
    mover_want_main(mover);
    int err = mover_hand_over(mover, (const struct handoff_runs *)frame->body.bytes, &reason);
    return err ? mover_fail(mover, err, "%s", reason.text) : 0;
}

/* ---- what the worker is told ---- */

static int tell_begun(struct mover *mover)
{
    pthread_mutex_lock(&mover->lock);
    bool up = mover->n_ready == mover->n_targets * mover->connections;
    pthread_mutex_unlock(&mover->lock);
    if (mover->begun || !up) {
        return 0;
    }
    mover->begun = true;
    return mover_answer(mover, HANDOFF_MIG_BEGUN, mover->begin_cookie, 0, NULL);
}

static int tell_failure(struct mover *mover)
{
    struct reason reason;

    pthread_mutex_lock(&mover->lock);
    bool failed = mover->failed;
    int code = mover->err;
    reason = mover->reason;
    pthread_mutex_unlock(&mover->lock);
    if (!failed) {
        return 0;
    }
    int err = 0;
    if (!mover->told_failure) {
        log_warn("%s", reason.text);
    }
    if (!mover->begun) {
        mover->begun = true;
        err = mover_answer(mover, HANDOFF_MIG_BEGUN, mover->begin_cookie, code, &reason);
    } else if (!mover->told_failure && !mover->finishing) {
        err = mover_answer(mover, HANDOFF_MIG_FAILED, 0, code, &reason);
    }
    mover->told_failure = true;
    if (!err && mover->finishing && !mover->finished) {
        mover->finished = true;
        err = mover_answer(mover, HANDOFF_MIG_FINISHED, mover->finish_cookie, code, &reason);
    }
    return err;
}

/* Progress is left out while the worker does not read: the next one tells it all. */
static int tell_progress(struct mover *mover, bool drained)
{
    /* Under the lock, so that the two counts belong together: QEMU refuses what cannot be. */
    pthread_mutex_lock(&mover->lock);
    struct handoff_progress now = {
        .pages_done = atomic_load(&mover->totals->pages_done),
        .zero_pages = atomic_load(&mover->totals->zero_pages),
        .wire_bytes = atomic_load(&mover->totals->wire_bytes),
    };
    pthread_mutex_unlock(&mover->lock);
    uint64_t new_pages = now.pages_done - mover->reported.pages_done;
    uint64_t time_us = units_now_us();
    struct pollfd pfd = {.fd = mover->fd, .events = POLLOUT};

    if (!new_pages || (!drained && new_pages < MOVER_REPORT_PAGES &&
                       time_us - mover->reported_us < MOVER_REPORT_US)) {
        return 0;
    }
    if (poll(&pfd, 1, 0) != 1 || !(pfd.revents & POLLOUT)) {
        return 0;
    }
    mover->reported = now;
    mover->reported_us = time_us;
    return handoff_send(mover->fd, HANDOFF_MIG_PROGRESS, 0, &now, sizeof(now), NULL, 0,
                        time_us + FRAME_TIMEOUT_US);
}

static int tell_finished(struct mover *mover)
{
    struct reason reason = {""};

    pthread_mutex_lock(&mover->lock);
    bool able = mover->map_connected && !mover->failed;
    pthread_mutex_unlock(&mover->lock);
    if (!mover->finishing || mover->finished || !able) {
        return 0;
    }
    mover->finished = true;
    int code = mover_map_commit(mover, &reason);
    return mover_answer(mover, HANDOFF_MIG_FINISHED, mover->finish_cookie, code, &reason);
}

/* The map of what is settled, once a later round has begun. */
static int write_early(struct mover *mover, uint64_t *rounds)
{
    pthread_mutex_lock(&mover->lock);
    bool able = mover->map_connected && !mover->finishing;
    pthread_mutex_unlock(&mover->lock);
    if (!able || atomic_load(&mover->totals->rounds) == *rounds) {
        return 0;
    }
    *rounds = atomic_load(&mover->totals->rounds);
    int err = *rounds > 1 ? mover_map_write(mover) : 0;
    return err ? mover_fail(mover, err, "the page map cannot be sent to the main host: %s",
                            strerror(-err))
               : 0;
}

static int mover_step(struct mover *mover, uint64_t *rounds)
{
    int err = tell_failure(mover);
    if (err || mover->told_failure || !mover->configured) {
        return err;
    }
    err = tell_begun(mover);
    bool drained = mover_next_round(mover);
    if (!err) {
        err = tell_progress(mover, drained);
    }
    if (!err && mover->begun && drained) {
        err = tell_finished(mover);
    }
    if (!err) {
        write_early(mover, rounds);
    }
    return err;
}

/* Return: 0, or -errno when there is nobody to talk to any more. */
static int read_frame(struct mover *mover, struct handoff_frame *frame)
{
    struct reason reason = {""};

    int err = handoff_recv(mover->fd, frame, units_now_us() + FRAME_TIMEOUT_US, &reason);
    if (err == -EPROTO) {
        mover_fail(mover, err, "%s", reason.text);
        tell_failure(mover);
    } else if (!err) {
        take_frame(mover, frame); /* a failure is told in the next step */
    }
    return err;
}

static void mover_loop(struct mover *mover, struct handoff_frame *frame)
{
    struct pollfd pfd[2] = {
        {.fd = mover->fd, .events = POLLIN},
        {.fd = mover->event, .events = POLLIN},
    };
    uint64_t rounds = 0;
    uint64_t count;
    int err = 0;

    while (!err) {
        bool more = mover->configured && !mover->told_failure &&
                    mover->reported.pages_done != atomic_load(&mover->totals->pages_done);
        int n = poll(pfd, 2, more ? (int)(MOVER_REPORT_US / 1000) : -1);
        if (n > 0 && pfd[1].revents) {
            ssize_t ignored = read(mover->event, &count, sizeof(count));
            (void)ignored;
        }
        if (n > 0 && pfd[0].revents) {
            err = read_frame(mover, frame);
        }
        if (!err) {
            err = mover_step(mover, &rounds);
        }
    }
    log_debug("the mover ends: %s", strerror(-err));
}

int mover_main(int fd)
{
    struct mover *mover = calloc(1, sizeof(*mover));
    struct handoff_frame *frame = malloc(sizeof(*frame));
    int status = 1;

    signal(SIGPIPE, SIG_IGN);
    if (mover && frame) {
        mover->fd = fd;
        mover->map.channel = CHANNEL_NONE;
        mover->fault = fault_from_environment();
        mover->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        pthread_mutex_init(&mover->lock, NULL);
        pthread_mutex_init(&mover->data_lock, NULL);
        if (mover->event >= 0) {
            mover_loop(mover, frame);
            if (!stop_streams(mover)) {
                _exit(1); /* a connection attempt must not keep us here */
            }
            status = mover->finished && !mover->failed ? 0 : 1;
        }
        if (mover->map_connected) {
            nbd_client_close(&mover->map, mover->finished);
        }
        close(mover->event);
        mover_release(mover);
    }
    close(fd);
    free(frame);
    free(mover);
    return status;
}
