// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * outgoing.c - send a guest away: partition, mover, and the relay between it and QEMU
 *
 * QEMU decides what is dirty and when the guest stops; the mover sends pages.
 * The worker passes frames between them and watches both.  Whatever breaks
 * before the destination has acknowledged the page map ends in MIG_FAILED to
 * QEMU, and the guest runs on here.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "uffd-pager/mover.h"
#include "uffd-pager/options.h"
#include "uffd-pager/outgoing.h"
#include "uffd-pager/worker.h"

#define OUTGOING_CONNECT_TIMEOUT_S 15
#define OUTGOING_ARM_TIMEOUT_S 5
#define OUTGOING_RELAY_TIMEOUT_US 30000000u

extern char **environ;

static struct mover_totals *outgoing_totals(const struct worker *worker)
{
    uint64_t n_chunks = worker->layout.flat_size / CHUNK_BYTES;

    return worker->out.partition
               ? (struct mover_totals *)((char *)worker->out.partition +
                                         mover_totals_offset(n_chunks))
               : NULL;
}

static void outgoing_end_mover(struct worker *worker)
{
    struct outgoing *out = &worker->out;

    if (out->mover_fd >= 0) {
        close(out->mover_fd);
        out->mover_fd = -1;
    }
    if (out->mover_pid > 0) {
        kill(out->mover_pid, SIGKILL);
        waitpid(out->mover_pid, NULL, 0);
        out->mover_pid = 0;
    }
    worker_wake(worker); /* the main thread polls another descriptor now */
}

void outgoing_free(struct worker *worker)
{
    struct outgoing *out = &worker->out;

    outgoing_end_mover(worker);
    if (out->partition) {
        munmap(out->partition, out->partition_size);
        out->partition = NULL;
    }
    if (out->partition_fd >= 0) {
        close(out->partition_fd);
        out->partition_fd = -1;
    }
}

static void outgoing_disarm(struct worker *worker)
{
    struct handoff_migration migration;

    memcpy(migration.id, worker->out.migration, sizeof(migration.id));
    worker_send(worker, HANDOFF_DISARM, 0, &migration, sizeof(migration));
}

/*
 * Give an outgoing migration up.  QEMU hears MIG_FAILED, which ends its
 * migration and lets the guest run on; an armed QEMU that has not begun is disarmed.
 */
static void outgoing_fail(struct worker *worker, int err, const char *why)
{
    struct outgoing *out = &worker->out;

    if (worker->state != WORKER_SENDING || out->failed) {
        return;
    }
    out->failed = true;
    out->lease = NULL;
    reason_set(&out->reason, 0, "%s", why);
    log_warn("the migration failed: %s", why);
    if (out->begun) {
        if (out->finishing) {
            worker_send_result(worker, HANDOFF_MIG_FINISHED, out->finish_cookie, err, &out->reason);
        }
        worker_send_result(worker, HANDOFF_MIG_FAILED, 0, err, &out->reason);
    } else {
        outgoing_disarm(worker);
        worker->state = WORKER_ATTACHED;
    }
    outgoing_end_mover(worker);
    worker_event(worker, "OUTGOING_FAILED", json_pack("{s:s}", "reason", why));
    pthread_cond_broadcast(&worker->changed);
}

void outgoing_qemu_lost(struct worker *worker)
{
    if (worker->state != WORKER_SENDING) {
        return;
    }
    worker->out.begun = false; /* nobody to tell */
    if (worker->out.failed) {
        worker->state = WORKER_ATTACHED;
    } else {
        outgoing_fail(worker, -ECONNRESET, "QEMU's hand-off connection broke");
    }
}

void outgoing_lease_lost(struct worker *worker, struct control_peer *peer)
{
    pthread_mutex_lock(&worker->lock);
    if (worker->out.lease == peer && peer) {
        outgoing_fail(worker, -ECANCELED, "the controller's connection closed");
    }
    pthread_mutex_unlock(&worker->lock);
}

bool outgoing_may_begin(const struct worker *worker)
{
    return (worker->state == WORKER_ATTACHED || worker->state == WORKER_SENT) &&
           worker->qemu_fd >= 0;
}

uint64_t outgoing_chunks(const struct worker *worker)
{
    return worker->layout.flat_size / CHUNK_BYTES;
}

int outgoing_integer(const json_t *args, const char *key, json_int_t missing, json_int_t most,
                     uint64_t *to, struct reason *reason)
{
    const json_t *value = json_object_get(args, key);
    json_int_t n = value ? json_integer_value(value) : missing;

    if ((value && !json_is_integer(value)) || n < 0 || n > most) {
        return reason_set(reason, -EINVAL, "'%s' must be a whole number from 0 to %lld", key,
                          (long long)most);
    }
    *to = (uint64_t)n;
    return 0;
}

/* ---- prepare ---- */

static int outgoing_partition_file(struct worker *worker, struct reason *reason)
{
    struct outgoing *out = &worker->out;
    uint64_t n_chunks = outgoing_chunks(worker);

    out->partition_size = mover_partition_size(n_chunks);
    out->partition_fd = memfd_create("partition", MFD_CLOEXEC);
    if (out->partition_fd < 0 || ftruncate(out->partition_fd, (off_t)out->partition_size) < 0) {
        return reason_set(reason, -errno, "the partition cannot be stored: %m");
    }
    out->partition = mmap(NULL, out->partition_size, PROT_READ | PROT_WRITE, MAP_SHARED,
                          out->partition_fd, 0);
    if (out->partition == MAP_FAILED) {
        out->partition = NULL;
        return reason_set(reason, -errno, "the partition cannot be stored: %m");
    }
    return 0;
}

/* How many of a chunk's @present pages go to the main host. */
static uint32_t outgoing_to_main(uint8_t byte, const uint64_t *hot, uint32_t present)
{
    uint32_t n = 0;

    for (unsigned i = 0; i < CHUNK_PAGES / 64; i++) {
        n += (uint32_t)__builtin_popcountll(hot[i]);
    }
    return byte & PREDICTOR_HOT || n > present ? present : n;
}

static int outgoing_split(struct worker *worker, const json_t *args, json_t *answer,
                          struct reason *reason)
{
    struct outgoing *out = &worker->out;
    const json_t *subhosts = json_object_get(args, "subhosts");
    uint64_t n_chunks = outgoing_chunks(worker);
    uint32_t *present = calloc(n_chunks, sizeof(*present));
    uint64_t sub_pages[PAGEMAP_MAX_SUBHOSTS];
    uint32_t sub_weight[PAGEMAP_MAX_SUBHOSTS];
    uint64_t budget = 0;
    uint64_t slab = CHUNK_BYTES;
    bool whole = false; /* a sub-host that is reached by RDMA takes slabs whole */
    uint8_t *bytes = out->partition;
    uint64_t *hot = (uint64_t *)((char *)out->partition + mover_hot_offset(n_chunks));

    int err = present && bytes ? 0 : -ENOMEM;
    if (!err) {
        err = outgoing_integer(json_object_get(args, "main"), "budget", 0, INT64_MAX, &budget,
                               reason);
    }
    for (unsigned i = 0; i < out->n_subhosts && !err; i++) {
        const json_t *subhost = json_array_get(subhosts, i);
        uint64_t limit = 0;
        uint64_t weight = 0;
        err = outgoing_integer(subhost, "limit", INT64_MAX, INT64_MAX, &limit, reason);
        if (!err) {
            err = outgoing_integer(subhost, "weight", 1, 1000000, &weight, reason);
        }
        whole = whole || json_object_get(subhost, "rdma");
        sub_pages[i] = limit / PAGE_BYTES;
        sub_weight[i] = (uint32_t)weight;
    }
    if (!err) {
        err = outgoing_integer(args, "slab", CHUNK_BYTES, (uint64_t)INT32_MAX + 1, &slab, reason);
    }
    if (!err) {
        guest_present(&worker->layout, present);
        struct predictor_partition partition = {
            .present = present,
            .main_pages = budget / PAGE_BYTES,
            .n_subhosts = out->n_subhosts,
            .sub_pages = sub_pages,
            .sub_weight = sub_weight,
            .slab_chunks = whole ? (uint32_t)(slab / CHUNK_BYTES) : 0,
            .page_heat = worker->page_heat,
        };
        err = predictor_split(worker->predictor, &partition, bytes, hot);
        if (err) {
            reason_set(reason, err, "the guest's memory does not fit on the hosts given");
        }
    }
    if (!err) {
        uint64_t main_pages = 0;
        uint64_t pages[PAGEMAP_MAX_SUBHOSTS] = {0};
        for (uint64_t chunk = 0; chunk < n_chunks; chunk++) {
            uint32_t to_main = outgoing_to_main(bytes[chunk], hot + chunk * (CHUNK_PAGES / 64),
                                                present[chunk]);
            main_pages += to_main;
            pages[bytes[chunk] & (uint8_t)~PREDICTOR_HOT] += present[chunk] - to_main;
        }
        json_t *array = json_array();
        for (unsigned i = 0; i < out->n_subhosts; i++) {
            json_array_append_new(array, json_integer((json_int_t)(pages[i] * PAGE_BYTES)));
        }
        json_object_set_new(answer, "main_bytes",
                            json_integer((json_int_t)(main_pages * PAGE_BYTES)));
        json_object_set_new(answer, "subhost_bytes", array);
        predictor_export(worker->predictor, bytes + n_chunks);
    }
    free(present);
    return err;
}

static int outgoing_spawn(struct worker *worker, struct reason *reason)
{
    struct outgoing *out = &worker->out;
    posix_spawn_file_actions_t actions;
    int pair[2];
    pid_t pid;
    char name[] = "uffd-pager";
    char option[] = "--mover";
    char number[] = "3";
    char *argv[3 + OPTIONS_PASS] = {name, option, number};

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        return reason_set(reason, -errno, "the mover's socket cannot be made: %m");
    }
    options_pass(argv + 3);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pair[1], 3);
    int err = -posix_spawn(&pid, "/proc/self/exe", &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(pair[1]);
    if (err) {
        close(pair[0]);
        return reason_set(reason, err, "the mover cannot be started: %s", strerror(-err));
    }
    out->mover_pid = pid;
    out->mover_fd = pair[0];
    return 0;
}

static json_t *outgoing_mover_config(struct worker *worker, const json_t *args)
{
    json_t *blocks = json_array();
    char migration[UUID_TEXT_LEN];

    for (uint32_t i = 0; i < worker->layout.n_blocks; i++) {
        const struct layout_block *block = &worker->layout.block[i];
        json_array_append_new(blocks, json_pack("{s:I, s:s, s:I, s:I, s:I}", "index",
                                                (json_int_t)block->index, "idstr", block->idstr,
                                                "size", (json_int_t)block->size, "fd_offset",
                                                (json_int_t)block->fd_offset, "flat",
                                                (json_int_t)block->flat));
    }
    json_t *connections = json_object_get(args, "connections");
    json_t *bandwidth = json_object_get(args, "bandwidth");
    json_t *config = json_pack("{s:s, s:s, s:I, s:I, s:o, s:I, s:O, s:O}", "migration",
                     units_format_uuid(worker->out.migration, migration), "uuid",
                     worker->uuid_text, "connections",
                     connections ? json_integer_value(connections) : (json_int_t)2, "bandwidth",
                     json_integer_value(bandwidth), "blocks", blocks, "flat_size",
                     (json_int_t)worker->layout.flat_size, "main", json_object_get(args, "main"),
                     "subhosts", json_object_get(args, "subhosts"));
    if (config && json_object_get(args, "compress")) {
        json_object_set(config, "compress", json_object_get(args, "compress"));
    }
    return config;
}

static int outgoing_configure_mover(struct worker *worker, const json_t *args,
                                    struct reason *reason)
{
    int fds[HANDOFF_MAX_FDS];
    unsigned n = 0;
    json_t *config = outgoing_mover_config(worker, args);
    char *text = config ? json_dumps(config, JSON_COMPACT) : NULL;

    json_decref(config);
    if (!text || strlen(text) > HANDOFF_MAX_BODY) {
        free(text);
        return reason_set(reason, -EINVAL, "'main' and 'subhosts' must be given, and not at length");
    }
    fds[n++] = worker->out.partition_fd;
    for (uint32_t i = 0; i < worker->layout.n_blocks; i++) {
        fds[n++] = worker->layout.block[i].fd;
    }
    int err = handoff_send(worker->out.mover_fd, HANDOFF_MOVER_CONFIG, 1, text,
                           (uint32_t)strlen(text), fds, n,
                           units_now_us() + OUTGOING_RELAY_TIMEOUT_US);
    free(text);
    return err ? reason_set(reason, err, "the mover does not listen") : 0;
}

/* Wait until @flag, a field of worker->out, is set; the main thread sets it. */
static int outgoing_wait(struct worker *worker, const bool *flag, int seconds)
{
    struct timespec deadline;

    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += seconds;
    while (!*flag && !worker->out.failed) {
        int err = pthread_cond_timedwait(&worker->changed, &worker->lock, &deadline);
        if (err) {
            return -err;
        }
    }
    return worker->out.failed ? -ECANCELED : 0;
}

static int outgoing_arm(struct worker *worker, struct reason *reason)
{
    struct outgoing *out = &worker->out;
    struct handoff_migration migration;

    memcpy(migration.id, out->migration, sizeof(migration.id));
    int err = worker_send(worker, HANDOFF_ARM, 1, &migration, sizeof(migration));
    if (!err) {
        err = outgoing_wait(worker, &out->armed_answer, OUTGOING_ARM_TIMEOUT_S);
    }
    if (err) {
        return reason_set(reason, err, "QEMU did not answer: %s", strerror(-err));
    }
    return out->armed_err ? reason_set(reason, out->armed_err, "%s", out->armed_reason.text) : 0;
}

static int outgoing_check(struct worker *worker, const json_t *args, struct reason *reason)
{
    const char *id = json_string_value(json_object_get(args, "migration"));
    size_t n = json_array_size(json_object_get(args, "subhosts"));

    if (!outgoing_may_begin(worker)) {
        return reason_set(reason, -EBUSY, "guest %s cannot be sent: it is %s%s", worker->uuid_text,
                          worker_state_name(worker->state),
                          worker->qemu_fd < 0 ? " and QEMU is not connected" : "");
    }
    if (!id || units_parse_uuid(id, worker->out.migration) < 0) {
        return reason_set(reason, -EINVAL, "'migration' must be a UUID");
    }
    if (n < 1 || n > PAGEMAP_MAX_SUBHOSTS) {
        return reason_set(reason, -EINVAL, "'subhosts' must be an array of 1 to %u sub-hosts",
                          PAGEMAP_MAX_SUBHOSTS);
    }
    worker->out.n_subhosts = (unsigned)n;
    const char *policy = json_string_value(json_object_get(args, "predictor"));
    if (!worker->predictor) {
        worker->predictor = predictor_new(policy, outgoing_chunks(worker), 1);
    }
    return worker->predictor
               ? 0
               : reason_set(reason, -EINVAL, "there is no predictor '%s'", policy ? policy : "");
}

json_t *outgoing_prepare(struct worker *worker, struct control_peer *peer, const json_t *args,
                         int *err, struct reason *reason)
{
    struct outgoing *out = &worker->out;
    json_t *answer = json_object();

    pthread_mutex_lock(&worker->lock);
    *err = outgoing_check(worker, args, reason);
    if (*err) {
        pthread_mutex_unlock(&worker->lock);
        json_decref(answer);
        return NULL;
    }
    outgoing_free(worker);
    out->mover_ready = out->begun = out->finishing = out->failed = out->armed_answer = false;
    out->reason.text[0] = '\0';
    worker->state = WORKER_SENDING;
    *err = outgoing_partition_file(worker, reason);
    if (!*err) {
        *err = outgoing_split(worker, args, answer, reason);
    }
    if (!*err) {
        *err = outgoing_spawn(worker, reason);
    }
    if (!*err) {
        *err = outgoing_configure_mover(worker, args, reason);
    }
    if (!*err) {
        worker_wake(worker); /* poll the mover's socket */
        *err = outgoing_wait(worker, &out->mover_ready, OUTGOING_CONNECT_TIMEOUT_S);
        if (*err) {
            reason_set(reason, *err, "%s",
                       out->failed ? out->reason.text : "the mover could not connect in time");
        }
    }
    if (!*err) {
        *err = outgoing_arm(worker, reason);
    }
    if (*err) {
        if (!out->failed) {
            outgoing_disarm(worker);
        }
        outgoing_free(worker);
        worker->state = WORKER_ATTACHED;
        json_decref(answer);
        answer = NULL;
    } else {
        out->lease = peer;
    }
    pthread_mutex_unlock(&worker->lock);
    return answer;
}

json_t *outgoing_cancel(struct worker *worker, int *err, struct reason *reason)
{
    pthread_mutex_lock(&worker->lock);
    if (worker->state == WORKER_SENDING) {
        outgoing_fail(worker, -ECANCELED, "it was cancelled");
    } else if (worker->state == WORKER_SENT) {
        *err = reason_set(reason, -EBUSY, "guest %s has been taken over by its destination",
                          worker->uuid_text);
    }
    pthread_mutex_unlock(&worker->lock);
    return NULL;
}

json_t *outgoing_status(struct worker *worker, int *err, struct reason *reason)
{
    pthread_mutex_lock(&worker->lock);
    struct outgoing *out = &worker->out;
    const struct mover_totals *totals = outgoing_totals(worker);
    if (!totals) {
        *err = reason_set(reason, -ENOENT, "guest %s is not being sent", worker->uuid_text);
        pthread_mutex_unlock(&worker->lock);
        return NULL;
    }
    uint64_t busy_us = mover_busy_us(totals);
    const char *state = out->failed                    ? "failed"
                        : worker->state == WORKER_SENT ? "done"
                        : out->begun                   ? "moving"
                                                       : "armed";
    json_t *bytes = json_array();
    for (unsigned i = 0; i < out->n_subhosts; i++) {
        json_array_append_new(bytes, json_integer((json_int_t)totals->subhost_bytes[i]));
    }
    json_t *answer = json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:I}", "state", state, "reason",
        out->reason.text, "rounds", (json_int_t)totals->rounds, "pages_done",
        (json_int_t)totals->pages_done, "zero_pages", (json_int_t)totals->zero_pages, "wire_bytes",
        (json_int_t)totals->wire_bytes, "busy_us", (json_int_t)busy_us, "main_bytes", (json_int_t)totals->main_bytes,
        "subhost_bytes", bytes, "ram", (json_int_t)worker->layout.flat_size);
    pthread_mutex_unlock(&worker->lock);
    return answer;
}

/* ---- relay ---- */

static int outgoing_begin(struct worker *worker, struct handoff_frame *frame)
{
    const struct handoff_migration *migration = (const void *)frame->body.bytes;
    struct outgoing *out = &worker->out;
    struct reason reason = {""};
    int err = 0;

    if (worker->state != WORKER_SENDING || out->failed ||
        memcmp(migration->id, out->migration, 16) != 0) {
        err = reason_set(&reason, -ECANCELED, "%s",
                         out->failed ? out->reason.text
                                     : "the pager is not prepared for this migration");
    } else {
        out->begun = true;
    }
    worker_send_result(worker, HANDOFF_MIG_BEGUN, frame->header.cookie, err, &reason);
    return 0;
}

static void outgoing_end(struct worker *worker, const struct handoff_result *result)
{
    if (worker->state == WORKER_SENT && result->status == 0) {
        log_info("the guest has left");
        return; /* QEMU's exit ends this worker; until then nothing of the guest is dropped */
    }
    if (worker->state == WORKER_SENDING || worker->state == WORKER_SENT) {
        worker->out.begun = false;
        worker->out.lease = NULL;
        if (!worker->out.failed) {
            worker->out.failed = true;
            reason_set(&worker->out.reason, 0, "QEMU ended the migration: %.200s",
                       result->reason[0] ? result->reason : "cancelled");
            worker_event(worker, "OUTGOING_FAILED",
                         json_pack("{s:s}", "reason", worker->out.reason.text));
        }
        outgoing_end_mover(worker);
        worker->state = WORKER_ATTACHED;
        pthread_cond_broadcast(&worker->changed);
        log_info("the guest stays here: %s", worker->out.reason.text);
    }
}

int outgoing_from_qemu(struct worker *worker, struct handoff_frame *frame)
{
    struct outgoing *out = &worker->out;

    if (frame->header.type == HANDOFF_MIG_BEGIN) {
        return outgoing_begin(worker, frame);
    }
    if (frame->header.type == HANDOFF_MIG_END) {
        struct handoff_result *result = (void *)frame->body.bytes;
        result->reason[HANDOFF_REASON_LEN - 1] = '\0';
        outgoing_end(worker, result);
        return 0;
    }
    if (worker->state != WORKER_SENDING || !out->begun || out->failed) {
        /* It crossed MIG_FAILED on the way; what wants an answer gets one all the same. */
        if (frame->header.type == HANDOFF_MIG_FINISH) {
            worker_send_result(worker, HANDOFF_MIG_FINISHED, frame->header.cookie, -ECANCELED,
                               &out->reason);
        }
        return 0;
    }
    if (frame->header.type == HANDOFF_MIG_FINISH) {
        out->finishing = true;
        out->finish_cookie = frame->header.cookie;
    }
    int err = handoff_send(out->mover_fd, frame->header.type, frame->header.cookie,
                           frame->body.bytes, frame->header.length, NULL, 0,
                           units_now_us() + OUTGOING_RELAY_TIMEOUT_US);
    if (err) {
        outgoing_fail(worker, err, "the mover died or does not read");
    }
    return 0;
}

/* The mover said that the destination has, or has not, acknowledged everything. */
static void outgoing_finished(struct worker *worker, const struct handoff_frame *frame)
{
    struct outgoing *out = &worker->out;
    struct reason reason;

    int err = handoff_result_reason((const void *)frame->body.bytes, &reason);
    if (err) {
        outgoing_fail(worker, err, reason.text);
        return;
    }
    if (!out->finishing) {
        outgoing_fail(worker, -EPROTO, "the mover finished before it was asked to");
        return;
    }
    out->finishing = false;
    out->lease = NULL;
    worker->state = WORKER_SENT;
    worker_send_result(worker, HANDOFF_MIG_FINISHED, out->finish_cookie, 0, NULL);
    pthread_cond_broadcast(&worker->changed);
}

void outgoing_from_mover(struct worker *worker)
{
    struct outgoing *out = &worker->out;
    struct handoff_frame *frame = malloc(sizeof(*frame));
    struct reason reason = {""};
    int err = frame ? handoff_recv(out->mover_fd, frame,
                                   units_now_us() + OUTGOING_RELAY_TIMEOUT_US, &reason)
                    : -ENOMEM;

    if (err) {
        if (worker->state == WORKER_SENDING) {
            outgoing_fail(worker, -EPIPE, "the mover died");
        } else {
            outgoing_end_mover(worker);
        }
        free(frame);
        return;
    }
    switch (frame->header.type) {
    case HANDOFF_MIG_BEGUN:
        err = handoff_result_reason((const void *)frame->body.bytes, &reason);
        if (err) {
            outgoing_fail(worker, err, reason.text);
        } else {
            out->mover_ready = true;
            pthread_cond_broadcast(&worker->changed);
        }
        break;
    case HANDOFF_MIG_PROGRESS:
        worker_send(worker, HANDOFF_MIG_PROGRESS, 0, frame->body.bytes, frame->header.length);
        break;
    case HANDOFF_MIG_FINISHED:
        outgoing_finished(worker, frame);
        break;
    case HANDOFF_MIG_FAILED:
        err = handoff_result_reason((const void *)frame->body.bytes, &reason);
        outgoing_fail(worker, err ? err : -EIO, err ? reason.text : "the mover failed");
        break;
    default:
        outgoing_fail(worker, -EPROTO, "the mover sent what it must not");
    }
    handoff_frame_close(frame);
    free(frame);
}
