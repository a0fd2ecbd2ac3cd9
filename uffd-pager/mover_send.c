// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * mover_send.c - a stream's thread: chunks into requests, replies into places
 *
 * Theory of operation: mover_internal.h.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/racy.h"
#include "uffd-pager/mover_internal.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

/* Shorter runs are of later rounds: mostly mapped, and where not, the kernel maps what is around them, too. */
#define SEND_SHORT_PAGES 16u

static unsigned block_position(const struct mover *mover, const struct layout_block *block)
{
    return (unsigned)(block - mover->layout.block);
}

const uint8_t *mover_memory_at(const struct mover *mover, uint64_t page)
{
    const struct layout_block *block = layout_by_flat(&mover->layout, page * PAGE_BYTES);

    return mover->memory[block_position(mover, block)].base + (page * PAGE_BYTES - block->flat);
}

static uint8_t place_get(const struct mover *mover, uint64_t page)
{
    return atomic_load_explicit(&mover->place[page], memory_order_relaxed);
}

static void place_set(struct mover *mover, uint64_t first, uint32_t count, uint8_t state)
{
    for (uint64_t page = first; page < first + count; page++) {
        atomic_store_explicit(&mover->place[page], state, memory_order_relaxed);
    }
    /* After the bytes themselves: whoever clears the mark reads them after it. */
    for (uint64_t i = first / PAGE_BYTES; i <= (first + count - 1) / PAGE_BYTES; i++) {
        atomic_store_explicit(&mover->place_dirty[i], 1, memory_order_release);
    }
}

/* ---- what there is to send ---- */

typedef uint64_t zero_vector __attribute__((vector_size(32), may_alias));

static bool page_is_zero(const uint8_t *page)
{
    const zero_vector *v = (const zero_vector *)(const void *)page;

    /* Most pages that are not zero show it in their first words. */
    for (size_t i = 0; i < PAGE_BYTES / sizeof(*v); i += 4) {
        zero_vector any = v[i] | v[i + 1] | v[i + 2] | v[i + 3];
        if (any[0] | any[1] | any[2] | any[3]) {
            return false;
        }
    }
    return true;
}

/* As mover_data_extent(), page by page: nothing beyond the run is looked at, unless it begins with a hole. */
static uint64_t data_extent_short(const struct layout_block *block, off_t at, uint64_t count, bool *data)
{
    uint64_t n = 0;
    off_t start;

    do {
        off_t page = at + (off_t)(n * PAGE_BYTES);
        start = lseek(block->fd, page, SEEK_DATA);
        if (start >= page + (off_t)PAGE_BYTES || (start < 0 && errno == ENXIO)) {
            break;
        }
    } while (++n < count); /* also what cannot be told: read it */
    *data = n > 0;
    if (n == 0) {
        uint64_t hole = start < 0 ? count : (uint64_t)(start - at) / PAGE_BYTES;
        n = hole < count ? hole : count;
    }
    return n;
}

/*
 * SEEK_HOLE may walk far over a large file, so its last answer is kept; that a page has data is all
 * that may be kept.  Scattered pages are here and there between holes: what is kept would be of no
 * use to the next one, and a walk for each, one after the other, took most of a switch-over.
 */
uint64_t mover_data_extent(struct mover *mover, const struct layout_block *block, uint64_t first,
                           uint64_t count, bool *data)
{
    struct mover_memory *memory = &mover->memory[block_position(mover, block)];
    uint64_t at = (uint64_t)layout_file(block, first * PAGE_BYTES);
    uint64_t end = at + count * PAGE_BYTES;

    pthread_mutex_lock(&mover->data_lock);
    *data = at >= memory->data_start && at < memory->data_end;
    if (*data) {
        end = end < memory->data_end ? end : memory->data_end;
    } else if (count < SEND_SHORT_PAGES) {
        pthread_mutex_unlock(&mover->data_lock);
        return data_extent_short(block, (off_t)at, count, data);
    } else {
        off_t start = lseek(block->fd, (off_t)at, SEEK_DATA);
        uint64_t from = start < 0 ? end : (uint64_t)start & ~(PAGE_BYTES - 1);
        if (start < 0 && errno != ENXIO) {
            from = at; /* it cannot be told: read it */
        }
        *data = from <= at;
        if (*data) {
            off_t hole = lseek(block->fd, (off_t)at, SEEK_HOLE);
            memory->data_start = at;
            bool told = hole > (off_t)at; /* if not, read it all */
            memory->data_end = told ? ((uint64_t)hole + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1) : end;
            end = end < memory->data_end ? end : memory->data_end;
        } else {
            end = end < from ? end : from;
        }
    }
    pthread_mutex_unlock(&mover->data_lock);
    return (end - at) / PAGE_BYTES;
}

/* Pages without contents: done, or to be trimmed where they were before. */
static int send_empty(struct mover_stream *stream, uint64_t first, uint64_t count)
{
    struct mover *mover = stream->mover;
    uint64_t end = first + count;

    while (first < end) {
        bool trim = place_get(mover, first) != PAGE_UNTOUCHED;
        uint64_t next = first + 1;
        while (next < end && (place_get(mover, next) != PAGE_UNTOUCHED) == trim) {
            next++;
        }
        if (trim) {
            int err = mover_stream_put(stream, NBD_CMD_TRIM, first, (uint32_t)(next - first), 0);
            if (err) {
                return err;
            }
        } else {
            mover_done(mover, next - first, next - first);
        }
        first = next;
    }
    return 0;
}

static int send_write(struct mover_stream *stream, uint64_t first, uint64_t count, uint32_t fresh)
{
    return count ? mover_stream_put(stream, NBD_CMD_WRITE, first, (uint32_t)count, fresh) : 0;
}

/* Count a page against main's budget. */
static bool budget_take(struct mover *mover, uint64_t pages)
{
    uint64_t held = atomic_load(&mover->main_pages);

    do {
        if (held + pages > atomic_load(&mover->main_limit)) {
            return false;
        }
    } while (!atomic_compare_exchange_weak(&mover->main_pages, &held, held + pages));
    return true;
}

/* Pages for the main host: what its budget does not allow goes to the chunk's sub-host. */
static int send_to_main(struct mover_stream *stream, uint64_t first, uint64_t count)
{
    struct mover *mover = stream->mover;
    uint64_t end = first + count;
    uint32_t fresh = 0;
    int err = 0;

    for (uint64_t page = first; page < end; page++) {
        fresh += place_get(mover, page) == PAGE_UNTOUCHED;
    }
    if (budget_take(mover, fresh)) {
        return send_write(stream, first, count, fresh);
    }
    fresh = 0;
    for (uint64_t page = first; page < end && !err; page++) {
        bool is_fresh = place_get(mover, page) == PAGE_UNTOUCHED;
        if (!is_fresh || budget_take(mover, 1)) {
            fresh += is_fresh;
            continue;
        }
        mover_requeue(mover, 1, page, 1);
        err = send_write(stream, first, page - first, fresh);
        first = page + 1;
        fresh = 0;
    }
    return err ? err : send_write(stream, first, end - first, fresh);
}

static int send_full(struct mover_stream *stream, uint64_t first, uint64_t count)
{
    uint64_t most = mover_stream_most(stream);
    bool to_main = stream->target == &stream->mover->target[MOVER_MAIN];
    int err = 0;

    while (count && !err) {
        uint64_t n = count < most ? count : most;
        err = to_main ? send_to_main(stream, first, n) : send_write(stream, first, n, 0);
        first += n;
        count -= n;
    }
    return err;
}

/* Pages that have data: the zero ones among them are not sent. */
static int send_data(struct mover_stream *stream, uint64_t first, uint64_t count)
{
    const uint8_t *memory = mover_memory_at(stream->mover, first);
    uint64_t at = 0;
    int err = 0;

    if (count >= SEND_SHORT_PAGES) {
        madvise((void *)(uintptr_t)memory, count * PAGE_BYTES, MADV_POPULATE_READ);
    }
    while (at < count && !err) {
        racy_begin();
        bool zero = page_is_zero(memory + at * PAGE_BYTES);
        uint64_t next = at + 1;
        while (next < count && page_is_zero(memory + next * PAGE_BYTES) == zero) {
            next++;
        }
        racy_end();
        err = zero ? send_empty(stream, first + at, next - at)
                   : send_full(stream, first + at, next - at);
        at = next;
    }
    return err;
}

static int send_run(struct mover_stream *stream, const struct layout_block *block, uint64_t first,
                    uint64_t count)
{
    int err = 0;

    while (count && !err) {
        bool data;
        uint64_t n = mover_data_extent(stream->mover, block, first, count, &data);
        err = data ? send_data(stream, first, n) : send_empty(stream, first, n);
        first += n;
        count -= n;
    }
    return err;
}

static bool chunk_bit(const uint64_t bits[MOVER_CHUNK_WORDS], uint64_t i)
{
    return bits[i / 64] >> (i % 64) & 1;
}

static int send_chunk(struct mover_stream *stream, uint64_t chunk,
                      const uint64_t bits[MOVER_CHUNK_WORDS])
{
    const struct layout_block *block = layout_by_flat(&stream->mover->layout, chunk * CHUNK_BYTES);
    uint64_t i = 0;
    int err = 0;

    while (i < CHUNK_PAGES && !err) {
        uint64_t end = i;
        while (end < CHUNK_PAGES && chunk_bit(bits, end)) {
            end++;
        }
        if (end > i) {
            err = send_run(stream, block, chunk * CHUNK_PAGES + i, end - i);
        }
        i = end + 1;
    }
    return err;
}

/* ---- replies ---- */

/* The main host is full although its budget says otherwise: believe it. */
static int reply_main_full(struct mover_stream *stream, const struct mover_slot *slot)
{
    struct mover *mover = stream->mover;

    if (slot->fresh == 0) {
        return mover_fail(mover, -ENOSPC, "%s has no room for pages it already had",
                          stream->target->title);
    }
    atomic_store(&mover->main_limit, atomic_fetch_sub(&mover->main_pages, slot->fresh) - slot->fresh);
    for (uint64_t page = slot->first; page < slot->first + slot->count; page++) {
        mover_requeue(mover, place_get(mover, page) == PAGE_UNTOUCHED ? 1 : 0, page, 1);
    }
    return 0;
}

static int reply_refused(struct mover_stream *stream, const struct mover_slot *slot, int err)
{
    if (err == -ENOSPC) {
        return mover_fail(stream->mover, err, "%s is full", stream->target->title);
    }
    return mover_fail(stream->mover, err, "%s refused to %s guest memory: %s",
                      stream->target->title, slot->type == NBD_CMD_TRIM ? "trim" : "store",
                      strerror(-err));
}

int mover_send_reply(struct mover_stream *stream, const struct mover_slot *slot, int err)
{
    struct mover *mover = stream->mover;
    bool to_main = stream->target == &mover->target[MOVER_MAIN];

    if (err == -ENOSPC && to_main && slot->type == NBD_CMD_WRITE) {
        return reply_main_full(stream, slot);
    }
    if (err) {
        return reply_refused(stream, slot, err);
    }
    if (slot->type == NBD_CMD_TRIM) {
        place_set(mover, slot->first, slot->count, PAGE_UNTOUCHED);
        if (to_main) {
            atomic_fetch_sub(&mover->main_pages, slot->count);
        }
        mover_done(mover, slot->count, slot->count);
    } else {
        place_set(mover, slot->first, slot->count, to_main ? PAGE_LOCAL : PAGE_REMOTE);
        atomic_fetch_add(stream->target->bytes, slot->count * PAGE_BYTES);
        mover_done(mover, slot->count, 0);
    }
    return 0;
}

/* ---- the thread ---- */

void *mover_send_main(void *arg)
{
    struct mover_stream *stream = arg;
    uint64_t bits[MOVER_CHUNK_WORDS];
    uint64_t chunk;

    int err = mover_connect(stream);
    while (!err && !mover_stopped(stream->mover)) {
        if (mover_take(stream, &chunk, bits)) {
            err = send_chunk(stream, chunk, bits);
            continue;
        }
        err = mover_stream_flush(stream);
        if (!err) {
            err = mover_stream_wait(stream);
        }
    }
    return NULL;
}
