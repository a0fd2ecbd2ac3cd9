// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * attach.c - QEMU hands a guest over, and what it says afterwards
 *
 * A hand-off is read whole, with one time limit, before anything is believed.
 * A second one for the same guest comes when the socket dropped, or when memory
 * was plugged or unplugged.  A guest that is split keeps the layout of its
 * arrival (blocks.h), one that is at rest takes the new one.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "uffd-pager/blocks.h"
#include "uffd-pager/sample.h"

#define ATTACH_TIMEOUT_US 5000000u

struct attachment {
    struct handoff_hello hello;
    int uffd;
    int pagemap; /* -1: none */
    struct layout layout;
    uint32_t cookie; /* of LAYOUT_END */
};

static struct attachment *attach_new(void)
{
    struct attachment *attachment = calloc(1, sizeof(*attachment));

    if (attachment) {
        attachment->uffd = attachment->pagemap = -1;
    }
    return attachment;
}

static void attach_discard(struct attachment *attachment)
{
    layout_close(&attachment->layout);
    if (attachment->uffd >= 0) {
        close(attachment->uffd);
    }
    if (attachment->pagemap >= 0) {
        close(attachment->pagemap);
    }
}

static int attach_add_block(struct attachment *attachment, struct handoff_frame *frame,
                            struct reason *reason)
{
    const struct handoff_block *block = (const void *)frame->body.bytes;
    struct layout *layout = &attachment->layout;

    if (frame->header.type != HANDOFF_BLOCK || frame->n_fds != 1 ||
        layout->n_blocks >= HANDOFF_MAX_BLOCKS) {
        return reason_set(reason, -EPROTO, "a RAM block with its memfd was expected");
    }
    if (layout_by_index(layout, block->index)) {
        return reason_set(reason, -EPROTO, "RAM block %u was handed over twice", block->index);
    }
    struct layout_block *to = &layout->block[layout->n_blocks++];
    memset(to, 0, sizeof(*to));
    memcpy(to->idstr, block->idstr, sizeof(to->idstr));
    to->index = block->index;
    to->hva = block->hva;
    to->size = block->size;
    to->page_size = block->page_size;
    to->fd_offset = block->fd_offset;
    to->fd = frame->fds[0];
    frame->fds[0] = -1;
    return 0;
}

static int attach_read(int fd, struct attachment *attachment, struct reason *reason)
{
    uint64_t deadline = units_now_us() + ATTACH_TIMEOUT_US;
    struct handoff_frame *frame = malloc(sizeof(*frame));
    int err = frame ? handoff_recv(fd, frame, deadline, reason) : -ENOMEM;

    if (err) {
        free(frame);
        return err;
    }
    if (frame->header.type != HANDOFF_HELLO || frame->n_fds != 1) {
        err = reason_set(reason, -EPROTO, "a HELLO with a userfaultfd was expected");
    } else {
        memcpy(&attachment->hello, frame->body.bytes, sizeof(attachment->hello));
        attachment->uffd = frame->fds[0];
        frame->fds[0] = -1;
        if (attachment->hello.n_blocks > HANDOFF_MAX_BLOCKS) {
            err = reason_set(reason, -EPROTO, "at most %u RAM blocks can be handed over",
                             HANDOFF_MAX_BLOCKS);
        }
    }
    handoff_frame_close(frame);
    for (uint32_t i = 0; !err && i < attachment->hello.n_blocks; i++) {
        err = handoff_recv(fd, frame, deadline, reason);
        if (!err) {
            err = attach_add_block(attachment, frame, reason);
            handoff_frame_close(frame);
        }
    }
    if (!err) {
        err = handoff_recv(fd, frame, deadline, reason);
    }
    if (!err) {
        attachment->cookie = frame->header.cookie;
        if (frame->header.type != HANDOFF_LAYOUT_END) {
            err = reason_set(reason, -EPROTO, "LAYOUT_END was expected");
        } else if (frame->n_fds) {
            attachment->pagemap = frame->fds[0];
            frame->fds[0] = -1;
        }
        handoff_frame_close(frame);
    }
    free(frame);
    return err ? err : layout_finish(&attachment->layout, reason);
}

static bool attach_same_file(int a, int b)
{
    struct stat sa;
    struct stat sb;

    return fstat(a, &sa) == 0 && fstat(b, &sb) == 0 && sa.st_dev == sb.st_dev &&
           sa.st_ino == sb.st_ino;
}

static bool attach_same_layout(const struct layout *a, const struct layout *b)
{
    if (a->n_blocks != b->n_blocks) {
        return false;
    }
    for (uint32_t i = 0; i < a->n_blocks; i++) {
        const struct layout_block *x = &a->block[i];
        const struct layout_block *y = &b->block[i];
        if (strcmp(x->idstr, y->idstr) != 0 || x->hva != y->hva || x->size != y->size ||
            x->index != y->index || x->fd_offset != y->fd_offset ||
            !attach_same_file(x->fd, y->fd)) {
            return false;
        }
    }
    return true;
}

static int attach_peer(struct worker *worker, int fd, struct reason *reason)
{
    struct ucred cred;
    socklen_t length = sizeof(cred);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &length) < 0) {
        return reason_set(reason, -errno, "the peer's process cannot be told: %m");
    }
    if (worker->qemu_pidfd >= 0) {
        return cred.pid == worker->qemu_pid
                   ? 0
                   : reason_set(reason, -EBUSY,
                                "process %d already serves as QEMU for guest %s",
                                (int)worker->qemu_pid, worker->uuid_text);
    }
    worker->qemu_pidfd = (int)syscall(SYS_pidfd_open, cred.pid, 0);
    if (worker->qemu_pidfd < 0) {
        return reason_set(reason, -errno, "QEMU (process %d) cannot be watched: %m",
                          (int)cred.pid);
    }
    worker->qemu_pid = cred.pid;
    return 0;
}

/* What an earlier worker left for this guest, if it is of this very QEMU process. */
static int attach_find_session(struct worker *worker, struct reason *reason)
{
    int err = session_load(&worker->session, worker->dir, reason);

    if (err == -ENOENT) {
        return 0;
    }
    if (err) {
        return err;
    }
    if (worker->session.qemu_pid == worker->qemu_pid &&
        worker->session.qemu_start == session_process_start(worker->qemu_pid)) {
        return 1;
    }
    log_warn("what was kept of an earlier run of this guest is removed");
    session_delete_regions(&worker->session, worker->uuid_text);
    char path[300];
    snprintf(path, sizeof(path), "%s/session.json", worker->dir);
    unlink(path);
    snprintf(path, sizeof(path), "%s/map", worker->dir);
    unlink(path);
    return 0;
}

static int attach_first(struct worker *worker, struct reason *reason)
{
    int found = worker->state == WORKER_INCOMING ? 0 : attach_find_session(worker, reason);

    if (found < 0) {
        return found;
    }
    if (found) {
        return incoming_resume(worker, reason);
    }
    if (worker->state == WORKER_INCOMING) {
        return incoming_attached(worker, reason);
    }
    /* A worker that died while it sampled has left the memory registered. */
    int err = sample_clear(&worker->layout, worker->uffd);
    if (err < 0) {
        return reason_set(reason, err, "the userfaultfd of guest %s cannot be used: %s",
                          worker->uuid_text, strerror(-err));
    }
    worker->state = WORKER_ATTACHED;
    return 0;
}

/*
 * A guest that is not split and not on the move has other memory now; nothing here depends on
 * what it had.  In any other state QEMU is turned away, and comes again a little later.
 */
static int attach_replace(struct worker *worker, struct attachment *attachment,
                          struct reason *reason)
{
    if (worker->state != WORKER_ATTACHED && worker->state != WORKER_SENT) {
        return reason_set(reason, -EBUSY, "guest %s is already attached with other memory",
                          worker->uuid_text);
    }
    outgoing_free(worker);
    predictor_free(worker->predictor);
    free(worker->page_heat);
    worker->predictor = NULL;
    worker->page_heat = NULL;
    layout_close(&worker->layout);
    worker->layout = attachment->layout;
    attachment->layout.n_blocks = 0;
    blocks_number(worker);
    return 0;
}

static int attach_again(struct worker *worker, struct attachment *attachment,
                        struct reason *reason)
{
    int err = 0;

    if (worker->state == WORKER_SPLIT) {
        err = blocks_follow(worker, &attachment->layout, reason);
    } else if (!attach_same_layout(&worker->layout, &attachment->layout)) {
        err = attach_replace(worker, attachment, reason);
    }
    if (!err) {
        attach_discard(attachment);
        attachment->uffd = attachment->pagemap = -1;
    }
    return err;
}

static int attach_install(struct worker *worker, struct attachment *attachment,
                          struct reason *reason)
{
    if (memcmp(attachment->hello.uuid, worker->uuid, 16) != 0) {
        return reason_set(reason, -EINVAL, "the hand-off is of another guest");
    }
    if (worker->have_layout) {
        return attach_again(worker, attachment, reason);
    }
    worker->uffd = attachment->uffd;
    worker->pagemap = attachment->pagemap;
    worker->layout = attachment->layout;
    worker->have_layout = true;
    worker->qemu_incoming = attachment->hello.flags & HANDOFF_HELLO_INCOMING;
    attachment->uffd = attachment->pagemap = -1;
    if (worker->pagemap < 0) {
        log_warn("QEMU may not open its /proc/self/pagemap: which memory is in use cannot be seen");
    }
    attachment->layout.n_blocks = 0;
    blocks_number(worker);
    int err = attach_first(worker, reason);
    if (err < 0) {
        worker->have_layout = false;
        layout_close(&worker->layout);
        close(worker->uffd);
        if (worker->pagemap >= 0) {
            close(worker->pagemap);
        }
        worker->uffd = worker->pagemap = -1;
    }
    return err;
}

void attach_accept(struct worker *worker, int fd)
{
    struct attachment *attachment = attach_new();
    struct reason reason = {""};

    if (!attachment) {
        close(fd);
        return;
    }
    int err = attach_read(fd, attachment, &reason);
    if (!err) {
        err = attach_peer(worker, fd, &reason);
    }
    pthread_mutex_lock(&worker->lock);
    if (!err) {
        err = attach_install(worker, attachment, &reason);
    }
    pthread_mutex_lock(&worker->send_lock);
    handoff_send_result(fd, HANDOFF_WELCOME, attachment->cookie, err, &reason,
                        units_now_us() + ATTACH_TIMEOUT_US);
    if (!err) {
        worker->qemu_fd = fd;
    }
    pthread_mutex_unlock(&worker->send_lock);
    pthread_cond_broadcast(&worker->changed);
    bool split = !err && worker->state == WORKER_SPLIT;
    pthread_mutex_unlock(&worker->lock);
    if (split) {
        blocks_retire(worker);
    }
    if (err) {
        log_error("a hand-off was refused: %s", reason.text);
        attach_discard(attachment);
        close(fd);
    } else {
        log_info("QEMU (process %d) handed %llu MiB in %u blocks over; the guest is %s",
                 (int)worker->qemu_pid, (unsigned long long)(worker->layout.flat_size / MIB),
                 worker->layout.n_blocks, worker_state_name(worker->state));
    }
    free(attachment);
}

static int attach_discard_ranges(struct worker *worker, const struct handoff_ranges *ranges)
{
    if (worker->state != WORKER_SPLIT) {
        return 0; /* QEMU punches the hole itself; nothing else knows of the page */
    }
    int err = 0;
    for (uint32_t i = 0; i < ranges->n && !err; i++) {
        const struct handoff_range *range = &ranges->range[i];
        const struct layout_block *block = blocks_of_qemu(worker, range->block);
        if (!block) {
            continue; /* plugged after the split: QEMU's own */
        }
        if (range->offset > block->size || range->length > block->size - range->offset) {
            return -EPROTO;
        }
        err = engine_discard(worker->engine, block->flat + range->offset, range->length);
    }
    return err;
}

static int attach_migration(struct worker *worker, struct handoff_frame *frame)
{
    const struct handoff_migration *migration = (const void *)frame->body.bytes;
    struct reason reason = {""};

    int err = incoming_begin(worker, migration->id, &reason);
    worker_send_result(worker, HANDOFF_IN_BEGUN, frame->header.cookie, err, &reason);
    return 0;
}

int attach_dispatch(struct worker *worker, struct handoff_frame *frame)
{
    int err = 0;

    if (frame->header.type == HANDOFF_DISCARD) {
        /* Without worker.lock: it may wait for pages in flight. Only this thread ends the engine. */
        err = attach_discard_ranges(worker, (const void *)frame->body.bytes);
        worker_send_result(worker, HANDOFF_DISCARDED, frame->header.cookie, err, NULL);
        return err == -EPROTO ? err : 0;
    }
    pthread_mutex_lock(&worker->lock);
    switch (frame->header.type) {
    case HANDOFF_ARMED:
        if (frame->header.cookie) { /* ARM's; nobody waits for DISARM's */
            worker->out.armed_answer = true;
            worker->out.armed_err =
                handoff_result_reason((const void *)frame->body.bytes, &worker->out.armed_reason);
            pthread_cond_broadcast(&worker->changed);
        }
        break;
    case HANDOFF_MIG_BEGIN:
    case HANDOFF_MIG_RUNS:
    case HANDOFF_MIG_FINISH:
    case HANDOFF_MIG_END:
        err = outgoing_from_qemu(worker, frame);
        break;
    case HANDOFF_IN_BEGIN:
        err = attach_migration(worker, frame);
        break;
    case HANDOFF_IN_WAIT:
        incoming_wait(worker, frame->header.cookie);
        break;
    default:
        err = -EPROTO;
    }
    pthread_mutex_unlock(&worker->lock);
    return err;
}
