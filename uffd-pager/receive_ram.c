// SPDX-License-Identifier: GPL-2.0-or-later
/* receive_ram.c - the RAM export of an arriving guest.  Theory of operation: receive_internal.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "uffd-pager/receive_internal.h"

/* How far from @flat, at most @length, one block or one gap goes. */
static uint64_t ram_part(const struct receive *receive, uint64_t flat, uint64_t length,
                         const struct layout_block **block)
{
    uint64_t end = receive->layout->flat_size;

    *block = layout_by_flat(receive->layout, flat);
    if (*block) {
        end = (*block)->flat + (*block)->size;
    } else {
        for (uint32_t i = receive->layout->n_blocks; i-- > 0;) {
            if (receive->layout->block[i].flat > flat) {
                end = receive->layout->block[i].flat;
            }
        }
    }
    return length < end - flat ? length : end - flat;
}

static bool ram_has_gap(const struct receive *receive, uint64_t flat, uint64_t length)
{
    const struct layout_block *block;

    while (length) {
        uint64_t part = ram_part(receive, flat, length, &block);
        if (!block) {
            return true;
        }
        flat += part;
        length -= part;
    }
    return false;
}

/* ---- which pages are here ---- */

static bool held_get(const struct receive *receive, uint64_t page)
{
    return receive->held[page / 64] >> (page % 64) & 1;
}

/* Count the pages of a write; those that exist count once. */
static int held_take(struct receive *receive, uint64_t first, uint64_t last)
{
    uint64_t fresh = 0;
    int err = 0;

    pthread_mutex_lock(&receive->count_lock);
    for (uint64_t page = first; page <= last; page++) {
        fresh += !held_get(receive, page);
    }
    if (receive->held_pages + fresh > receive->config.budget / PAGE_BYTES) {
        err = -ENOSPC;
    } else {
        for (uint64_t page = first; page <= last && fresh; page++) {
            receive->held[page / 64] |= (uint64_t)1 << (page % 64);
        }
        receive->held_pages += fresh;
    }
    pthread_mutex_unlock(&receive->count_lock);
    return err;
}

static void held_drop(struct receive *receive, uint64_t first, uint64_t count)
{
    pthread_mutex_lock(&receive->count_lock);
    for (uint64_t page = first; page < first + count && receive->held_pages; page++) {
        receive->held_pages -= held_get(receive, page);
        receive->held[page / 64] &= ~((uint64_t)1 << (page % 64));
    }
    pthread_mutex_unlock(&receive->count_lock);
}

/* ---- write ---- */

/* Pages may change until the commit.  ram_leave() follows if it is not over. */
static int ram_enter(struct receive *receive)
{
    pthread_rwlock_rdlock(&receive->gate);
    if (receive->committed) {
        pthread_rwlock_unlock(&receive->gate);
        return -EPERM;
    }
    return 0;
}

static void ram_leave(struct receive *receive)
{
    pthread_rwlock_unlock(&receive->gate);
}

static int ram_write_begin(struct nbd_export *export, uint64_t offset, uint32_t length,
                           void **memory)
{
    struct receive_client *client = export->opaque;

    if (ram_has_gap(client->receive, offset, length)) {
        return -EINVAL;
    }
    if (export->pipes) {
        *memory = NULL;
        int err = ram_enter(client->receive);
        if (!err) {
            err = held_take(client->receive, offset / PAGE_BYTES, (offset + length - 1) / PAGE_BYTES);
            ram_leave(client->receive);
        }
        return err;
    }
    *memory = bounce_get(&client->bounce, length);
    return *memory ? 0 : -ENOMEM;
}

/* A part of a payload whose pages are held: the gate is not kept while the rest is waited for. */
static int ram_write_pipe(struct nbd_export *export, uint64_t flat, uint32_t length, int pipe)
{
    struct receive *receive = ((struct receive_client *)export->opaque)->receive;
    const struct layout_block *block;
    int err = ram_enter(receive);

    if (err) {
        return err;
    }
    pthread_mutex_lock(&receive->write_lock);
    while (length && !err) {
        uint32_t part = (uint32_t)ram_part(receive, flat, length, &block);
        err = nbd_pipe_splice(pipe, block->fd, (uint64_t)layout_file(block, flat), part);
        flat += part;
        length -= part;
    }
    pthread_mutex_unlock(&receive->write_lock);
    ram_leave(receive);
    return err;
}

static int ram_pwrite(const struct receive *receive, const uint8_t *bytes, uint64_t flat,
                      uint64_t length)
{
    const struct layout_block *block;

    while (length) {
        uint64_t part = ram_part(receive, flat, length, &block);
        ssize_t n = pwrite(block->fd, bytes, part, layout_file(block, flat));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? -errno : -EIO;
        }
        bytes += n;
        flat += (uint64_t)n;
        length -= (uint64_t)n;
    }
    return 0;
}

static int ram_store(struct receive *receive, const uint8_t *bytes, uint64_t flat, uint64_t length)
{
    int err = ram_enter(receive);

    if (err) {
        return err;
    }
    err = held_take(receive, flat / PAGE_BYTES, (flat + length - 1) / PAGE_BYTES);
    if (!err) {
        err = ram_pwrite(receive, bytes, flat, length);
    }
    ram_leave(receive);
    return err;
}

static int ram_write_end(struct nbd_export *export, uint64_t offset, uint32_t length, void *memory,
                         bool complete)
{
    struct receive_client *client = export->opaque;
    int err = complete ? 0 : -EIO;

    if (complete && memory) {
        err = ram_store(client->receive, memory, offset, length);
    }

    if (!err) {
        atomic_fetch_add(&client->receive->bytes, length);
    }
    bounce_trim(&client->bounce, RECEIVE_KEEP_BYTES);
    return err;
}

/* ---- trim, write zeroes ---- */

int receive_ram_drop(struct receive *receive, uint64_t first, uint64_t count)
{
    uint64_t flat = first * PAGE_BYTES;
    uint64_t length = count * PAGE_BYTES;

    while (length) {
        const struct layout_block *block;
        uint64_t part = ram_part(receive, flat, length, &block);
        if (block && fallocate(block->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                               layout_file(block, flat), (off_t)part) < 0) {
            return -errno;
        }
        flat += part;
        length -= part;
    }
    held_drop(receive, first, count);
    return 0;
}

static int ram_zero_part(struct receive *receive, uint64_t flat, uint64_t end)
{
    static const uint8_t zeros[PAGE_BYTES];

    if (flat >= end || !layout_by_flat(receive->layout, flat)) {
        return 0;
    }
    pthread_mutex_lock(&receive->count_lock);
    bool held = held_get(receive, flat / PAGE_BYTES);
    pthread_mutex_unlock(&receive->count_lock);
    return held ? ram_pwrite(receive, zeros, flat, end - flat) : 0;
}

/* Whole pages are punched; of others what is in the range is zeroed if @partial. */
static int ram_clear(struct nbd_export *export, uint64_t offset, uint32_t length, bool partial)
{
    struct receive_client *client = export->opaque;
    struct receive *receive = client->receive;
    uint64_t end = offset + length;
    uint64_t first = (offset + PAGE_BYTES - 1) / PAGE_BYTES;
    uint64_t last = end / PAGE_BYTES; /* exclusive */

    int err = ram_enter(receive);
    if (err) {
        return err;
    }
    if (first < last) {
        err = receive_ram_drop(receive, first, last - first);
    }
    if (!err && partial && first > last) { /* within one page */
        err = ram_zero_part(receive, offset, end);
    } else if (!err && partial) {
        err = ram_zero_part(receive, offset, first * PAGE_BYTES);
        if (!err) {
            err = ram_zero_part(receive, last * PAGE_BYTES, end);
        }
    }
    ram_leave(receive);
    return err;
}

static int ram_trim(struct nbd_export *export, uint64_t offset, uint32_t length)
{
    return ram_clear(export, offset, length, false);
}

static int ram_write_zeroes(struct nbd_export *export, uint64_t offset, uint32_t length,
                            bool no_hole)
{
    (void)no_hole; /* a hole reads as zeros, and that is all a page of zeros is here */
    return ram_clear(export, offset, length, true);
}

/* ---- read ---- */

static int ram_pread(const struct receive *receive, uint8_t *bytes, uint64_t flat, uint64_t length)
{
    const struct layout_block *block;

    while (length) {
        uint64_t part = ram_part(receive, flat, length, &block);
        ssize_t n = (ssize_t)part;
        if (!block) {
            memset(bytes, 0, part);
        } else {
            n = pread(block->fd, bytes, part, layout_file(block, flat));
        }
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? -errno : -EIO;
        }
        bytes += n;
        flat += (uint64_t)n;
        length -= (uint64_t)n;
    }
    return 0;
}

static int ram_read_begin(struct nbd_export *export, uint64_t offset, uint32_t length,
                          const void **memory)
{
    struct receive_client *client = export->opaque;

    if (client->read_bytes + length > RECEIVE_READ_BYTES) {
        return -ENOMEM;
    }
    struct receive_read *read = malloc(sizeof(*read) + length);
    if (!read) {
        return -ENOMEM;
    }
    int err = ram_pread(client->receive, read->bytes, offset, length);
    if (err) {
        free(read);
        return err;
    }
    read->offset = offset;
    read->length = length;
    read->next = client->reads;
    client->reads = read;
    client->read_bytes += length;
    *memory = read->bytes;
    return 0;
}

static void ram_read_end(struct nbd_export *export, uint64_t offset, uint32_t length)
{
    struct receive_client *client = export->opaque;

    for (struct receive_read **link = &client->reads; *link; link = &(*link)->next) {
        struct receive_read *read = *link;
        if (read->offset == offset && read->length == length) {
            *link = read->next;
            client->read_bytes -= length;
            free(read);
            return;
        }
    }
}

static int ram_block_status(struct nbd_export *export, uint64_t offset, uint32_t length,
                            struct nbd_extent *extents, size_t *n)
{
    const struct receive_client *client = export->opaque;
    size_t most = *n;
    uint64_t left = length;

    for (*n = 0; left && *n < most; (*n)++) {
        const struct layout_block *block;
        uint64_t part = ram_part(client->receive, offset, left, &block);
        bool data = false;
        if (block) {
            off_t at = layout_file(block, offset);
            off_t start = lseek(block->fd, at, SEEK_DATA);
            data = start == at;
            off_t end = data ? lseek(block->fd, at, SEEK_HOLE) : start;
            if (end > at && (uint64_t)(end - at) < part) {
                part = (uint64_t)(end - at);
            }
        }
        extents[*n] = (struct nbd_extent){
            .length = part,
            .flags = data ? 0 : NBD_STATE_HOLE | NBD_STATE_ZERO,
        };
        offset += part;
        left -= part;
    }
    return 0;
}

static void ram_close(struct nbd_export *export)
{
    struct receive_client *client = export->opaque;

    while (client->reads) {
        struct receive_read *read = client->reads;
        client->reads = read->next;
        free(read);
    }
    bounce_free(&client->bounce);
    free(client);
}

const struct nbd_export_ops receive_ram_ops = {
    .read_begin = ram_read_begin,
    .read_end = ram_read_end,
    .write_begin = ram_write_begin,
    .write_pipe = ram_write_pipe,
    .write_end = ram_write_end,
    .trim = ram_trim,
    .write_zeroes = ram_write_zeroes,
    .block_status = ram_block_status,
    .close = ram_close,
};
