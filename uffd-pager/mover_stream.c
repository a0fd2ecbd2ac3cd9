// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * mover_stream.c - one of the mover's NBD connections
 *
 * Requests are gathered into a batch, headers and payloads as iovecs, and go
 * out in one sendmsg.  Payloads are sent from the guest's memory as it is then;
 * what the guest writes later it also reports dirty.  A long run is the end of its batch and goes by
 * sendfile(2), without being copied: the socket has references to the guest's pages until the peer has
 * them, so what arrives is what they held at some time since they were handed over, which is as good
 * (and the reply comes after the bytes, so a later round's cannot come before).  Replies are read whenever
 * sending would block, so a peer that sends before it reads cannot lock us up.  With RDMA the channel
 * makes one-sided WRITEs of them (common/nbd_rdma.h).
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common/racy.h"
#include "uffd-pager/mover_internal.h"

#define NO_SLOT UINT16_MAX

struct mover_stream *mover_stream_new(struct mover *mover, struct mover_target *target)
{
    struct mover_stream *stream = calloc(1, sizeof(*stream));

    if (!stream) {
        return NULL;
    }
    stream->mover = mover;
    stream->target = target;
    stream->client.channel = CHANNEL_NONE;
    stream->file = -1;
    stream->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    stream->slots = calloc(STREAM_SLOTS, sizeof(*stream->slots));
    if (stream->wake < 0 || !stream->slots) {
        mover_stream_free(stream);
        return NULL;
    }
    for (unsigned i = 0; i < STREAM_SLOTS; i++) {
        stream->slots[i].next = i + 1 < STREAM_SLOTS ? (uint16_t)(i + 1) : NO_SLOT;
    }
    return stream;
}

void mover_stream_free(struct mover_stream *stream)
{
    if (!stream) {
        return;
    }
    nbd_client_close(&stream->client, stream->n_busy == 0);
    packer_free(stream->packer);
    free(stream->packs);
    if (stream->wake >= 0) {
        close(stream->wake);
    }
    free(stream->slots);
    free(stream);
}

int mover_stream_pack(struct mover_stream *stream)
{
    stream->packer = packer_new();
    stream->packs = malloc(stream->mover->batch_bytes);
    return stream->packer && stream->packs ? 0 : -ENOMEM;
}

static enum pack_method stream_method(const struct mover_stream *stream)
{
    return stream->packer ? (enum pack_method)atomic_load_explicit(&stream->mover->pack_method,
                                                                   memory_order_relaxed)
                          : PACK_NONE;
}

uint64_t mover_stream_most(const struct mover_stream *stream)
{
    uint64_t most = stream->mover->batch_bytes;

    return (stream_method(stream) && most > PACK_MOST ? PACK_MOST : most) / PAGE_BYTES;
}

static int stream_lost(struct mover_stream *stream, int err)
{
    return mover_fail(stream->mover, err, "the connection to %s broke: %s", stream->target->title,
                      channel_error(&stream->client.channel, err));
}

static int stream_reply(struct mover_stream *stream, const struct nbd_simple_reply *reply)
{
    uint64_t cookie;
    int error;

    if (nbd_decode_simple_reply(reply, &cookie, &error) || cookie >= STREAM_SLOTS ||
        !stream->slots[cookie].busy) {
        return mover_fail(stream->mover, -EPROTO, "%s answered what was not asked",
                          stream->target->title);
    }
    struct mover_slot *slot = &stream->slots[cookie];
    slot->busy = false;
    slot->next = stream->free_slot;
    stream->free_slot = (uint16_t)cookie;
    stream->n_busy--;
    stream->in_flight -= slot->wire;
    atomic_fetch_sub(&stream->mover->under_way, slot->type == NBD_CMD_WRITE ? slot->count * PAGE_BYTES : 0);
    return mover_send_reply(stream, slot, error);
}

/* Treat what replies there are. Return: 0 also if there are none. */
static int stream_read(struct mover_stream *stream)
{
    const size_t size = sizeof(struct nbd_simple_reply);

    for (;;) {
        ssize_t n = channel_recv(&stream->client.channel, stream->rx + stream->rx_used,
                                 sizeof(stream->rx) - stream->rx_used, MSG_DONTWAIT);
        if (n == -EAGAIN || n == -EINTR) {
            return 0;
        }
        if (n <= 0) {
            return stream_lost(stream, n < 0 ? (int)n : -ECONNRESET);
        }
        stream->rx_used += (size_t)n;
        size_t used = 0;
        while (stream->rx_used - used >= size) {
            struct nbd_simple_reply reply;
            memcpy(&reply, stream->rx + used, size);
            used += size;
            int err = stream_reply(stream, &reply);
            if (err) {
                return err;
            }
        }
        stream->rx_used -= used;
        memmove(stream->rx, stream->rx + used, stream->rx_used);
    }
}

/* Wait for the socket, treating replies; @timeout_ms: 0 or more is a pause, -1 waits for the peer. */
static int stream_poll(struct mover_stream *stream, short events, int timeout_ms)
{
    struct pollfd pfd = {.fd = stream->client.channel.fd, .events = events};

    if (channel_more(&stream->client.channel)) {
        return stream_read(stream);
    }
    int n = poll(&pfd, 1, timeout_ms < 0 ? MOVER_STALL_TIMEOUT_MS : timeout_ms);
    if (n == 0 && timeout_ms < 0) {
        return mover_fail(stream->mover, -ETIMEDOUT, "%s has answered nothing for %d seconds",
                          stream->target->title, MOVER_STALL_TIMEOUT_MS / 1000);
    }
    return n > 0 && pfd.revents & (POLLIN | POLLERR | POLLHUP) ? stream_read(stream) : 0;
}

/*
 * Wait for this batch's turn under the bandwidth limit of all connections.  What was not used of
 * it for a moment may be made up for.
 */
static int stream_pace(struct mover_stream *stream, uint64_t bytes)
{
    struct mover *mover = stream->mover;

    if (!mover->bandwidth) {
        return 0;
    }
    pthread_mutex_lock(&mover->lock);
    uint64_t now = units_now_us();
    uint64_t start = mover->send_time_us + STREAM_CREDIT_US > now ? mover->send_time_us : now;
    mover->send_time_us = start + bytes * 1000000 / mover->bandwidth;
    pthread_mutex_unlock(&mover->lock);
    while (now < start) {
        int err = stream_poll(stream, POLLIN, (int)((start - now) / 1000 + 1));
        if (err) {
            return err;
        }
        now = units_now_us();
    }
    return 0;
}

/* Drop the first @n bytes of iov[0..*count). Return: the first iovec that has bytes left. */
static struct iovec *stream_advance(struct iovec *iov, unsigned *count, size_t n)
{
    while (*count && n >= iov->iov_len) {
        n -= iov->iov_len;
        iov++;
        (*count)--;
    }
    if (*count) {
        iov->iov_base = (char *)iov->iov_base + n;
        iov->iov_len -= n;
    }
    return iov;
}

/* Send a part of iov[0..count). Return: bytes or -errno. */
static ssize_t stream_send(struct mover_stream *stream, struct iovec *iov, unsigned count)
{
    if (stream->file >= 0 && count == 1) {
        ssize_t sent = sendfile(stream->client.channel.fd, stream->file, &stream->file_offset, iov->iov_len);
        if (sent > 0 || (sent < 0 && (errno == EAGAIN || errno == EINTR))) {
            return sent < 0 ? -errno : sent;
        }
        /* Whatever is wrong, with this file or with the connection: sending it from memory tells. */
        stream->file = -1;
        stream->by_file = false;
    }
    unsigned now = stream->file >= 0 ? count - 1 : count;
    racy_begin();
    ssize_t n = channel_sendv(&stream->client.channel, iov, now, MSG_DONTWAIT | (now < count ? MSG_MORE : 0));
    racy_end();
    return n;
}

int mover_stream_flush(struct mover_stream *stream)
{
    struct iovec *iov = stream->iov;
    unsigned count = stream->n_iov;

    int err = stream_pace(stream, stream->batch_bytes);
    while (count && !err) {
        ssize_t n = stream_send(stream, iov, count);
        if (n >= 0) {
            atomic_fetch_add(&stream->mover->totals->wire_bytes, (uint64_t)n);
            iov = stream_advance(iov, &count, (size_t)n);
        } else if (n == -EAGAIN) {
            err = stream_poll(stream, POLLIN | POLLOUT, -1);
        } else if (n != -EINTR) {
            err = stream_lost(stream, (int)n);
        }
    }
    stream->n_iov = 0;
    stream->file = -1;
    stream->batch_bytes = 0;
    stream->packs_used = 0;
    return err;
}

/* Room for one more request with @payload bytes in the batch and in flight. */
static int stream_room(struct mover_stream *stream, uint64_t payload)
{
    int err = 0;

    if (stream->n_iov + 2 > STREAM_IOVS ||
        stream->batch_bytes + payload > stream->mover->batch_bytes) {
        err = mover_stream_flush(stream);
    }
    while (!err && (stream->free_slot == NO_SLOT ||
                    (stream->n_busy && stream->in_flight + payload > STREAM_WINDOW_BYTES))) {
        err = stream->n_iov ? mover_stream_flush(stream) : stream_poll(stream, POLLIN, -1);
    }
    return err;
}

static uint64_t stream_cpu_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Pack a little of what is about to be sent by each way; @to has room for it. */
static void stream_sample(struct mover_stream *stream, const uint8_t *memory, size_t length, uint8_t *to)
{
    length = length < STREAM_SAMPLE_BYTES ? length : STREAM_SAMPLE_BYTES;
    for (unsigned method = PACK_NONE + 1; method < PACK_METHODS; method++) {
        uint64_t start = stream_cpu_ns();
        size_t packed = packer_pack(stream->packer, (enum pack_method)method, memory, length, to);
        mover_sample(stream->mover, (enum pack_method)method, length, packed, stream_cpu_ns() - start);
    }
}

/* The payload of a slot: its pages as they are or, if that is less, packed. Return: the command. */
static uint16_t stream_payload(struct mover_stream *stream, const struct mover_slot *slot,
                               struct iovec *iov)
{
    const uint8_t *memory = mover_memory_at(stream->mover, slot->first);
    enum pack_method method = stream_method(stream);
    size_t length = slot->count * PAGE_BYTES;
    size_t packed = 0;

    if (stream->packer && length >= STREAM_SAMPLE_BYTES &&
        atomic_exchange_explicit(&stream->mover->sample_due, false, memory_order_relaxed)) {
        stream_sample(stream, memory, length, stream->packs + stream->packs_used);
    }
    if (method && length <= PACK_MOST) {
        uint8_t *to = stream->packs + stream->packs_used;
        packed = packer_pack(stream->packer, method, memory, length, to);
        *iov = (struct iovec){to, packed};
        stream->packs_used += packed;
    }
    if (!packed) {
        *iov = (struct iovec){(void *)(uintptr_t)memory, length};
        if (stream->by_file && slot->count >= STREAM_FILE_PAGES) {
            const struct layout_block *block = layout_by_flat(&stream->mover->layout, slot->first * PAGE_BYTES);
            stream->file = block->fd;
            stream->file_offset = layout_file(block, slot->first * PAGE_BYTES);
        }
    }
    return packed ? NBD_CMD_PACK : NBD_CMD_WRITE;
}

int mover_stream_put(struct mover_stream *stream, uint16_t type, uint64_t first, uint32_t count,
                     uint32_t fresh)
{
    uint32_t length = count * (uint32_t)PAGE_BYTES;
    uint64_t payload = type == NBD_CMD_WRITE ? length : 0;

    int err = stream_room(stream, payload);
    if (err) {
        return err;
    }
    uint16_t i = stream->free_slot;
    struct mover_slot *slot = &stream->slots[i];
    stream->free_slot = slot->next;
    slot->busy = true;
    slot->type = type;
    slot->first = first;
    slot->count = count;
    slot->fresh = fresh;
    slot->wire = 0;
    stream->iov[stream->n_iov++] = (struct iovec){&slot->header, sizeof(slot->header)};
    if (payload) {
        struct iovec *iov = &stream->iov[stream->n_iov++];
        type = stream_payload(stream, slot, iov);
        slot->wire = (uint32_t)iov->iov_len;
        atomic_fetch_add(&stream->mover->under_way, payload);
    }
    nbd_encode_request(&slot->header, type, 0, i, first * PAGE_BYTES,
                       type == NBD_CMD_PACK ? slot->wire : length);
    stream->n_busy++;
    stream->in_flight += slot->wire;
    stream->batch_bytes += sizeof(slot->header) + slot->wire;
    return stream->file >= 0 ? mover_stream_flush(stream) : 0;
}

int mover_stream_wait(struct mover_stream *stream)
{
    struct pollfd pfd[2] = {
        {.fd = stream->client.channel.fd, .events = POLLIN},
        {.fd = stream->wake, .events = POLLIN},
    };
    uint64_t count;

    if (channel_more(&stream->client.channel)) {
        return stream_read(stream);
    }
    int n = poll(pfd, 2, stream->n_busy ? MOVER_STALL_TIMEOUT_MS : -1);
    if (n == 0) {
        return mover_fail(stream->mover, -ETIMEDOUT, "%s has answered nothing for %d seconds",
                          stream->target->title, MOVER_STALL_TIMEOUT_MS / 1000);
    }
    if (n > 0 && pfd[1].revents) {
        ssize_t ignored = read(stream->wake, &count, sizeof(count));
        (void)ignored;
    }
    return n > 0 && pfd[0].revents ? stream_read(stream) : 0;
}
