// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * pages.c - a region's pages, with exact accounting
 *
 * Theory of operation
 * -------------------
 * A region is a memfd as large as the guest's flat RAM, mapped shared, and two
 * bits per page:
 *
 *   exists stored
 *     0      0    never written, or trimmed: takes no memory
 *     1      0    exists and is zero: takes no memory
 *     1      1    data: one page of memory, one page of quota
 *     0      1    on its way: a write that is not finished yet, or a page that was trimmed while
 *                 somebody reads it; has its page of quota
 *
 * Payloads are received into and sent from the mapping without a lock, so a
 * chunk (2 MiB) counts the readers and writers that are at work in it.  While
 * there are any, no page of the chunk loses its memory: what is to go only
 * gets exists = 0 and is swept, with its quota, when the last of them leaves.
 * So an unfinished write needs no undoing of its own: it just never sets
 * exists.  With nobody at work, no page is on its way, and the memory behind
 * the file is exactly the pages with stored = 1.
 *
 * A write fills a page in part only if the rest is zero or wanted: fresh
 * memory is zero; a page that was trimmed under a reader is cleared when
 * the next writer comes (clear_doomed), one trimmed under a writer at once.
 *
 * Quota is charged and stored is set before memory is touched; memory is
 * freed before quota is given back: what is stored never exceeds the quota.
 * Fresh pages are filled (region_fill()) or populated by a system call, which can fail, and not
 * by a page fault, which would kill us when memory is short.
 *
 * A region in files (statedir.h) may be taken up again after its server was killed at any
 * point: a page is what has memory, exists and is stored.  So bits that say less come
 * before memory goes, and exists comes after the contents.
 *
 * A chunk that clients reach over RDMA (region_lend()) has a writer that stays until it is taken
 * back, and all its pages exist: what is trimmed there becomes zero.
 *
 * Locks: chunk c is guarded by locks[c % N_LOCKS]; a thread holds one at a
 * time, and takes the quota's lock inside it.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/nbd.h"
#include "common/nbd_server.h"
#include "common/racy.h"
#include "common/units.h"
#include "subhost-server/chunk.h"
#include "subhost-server/region.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

static pthread_mutex_t *slice_lock(struct region *region, const struct slice *slice)
{
    pthread_mutex_t *lock = &region->locks[slice->index % N_LOCKS];

    pthread_mutex_lock(lock);
    return lock;
}

static uint8_t *page_memory(const struct region *region, const struct slice *slice, unsigned page)
{
    return region->memory + slice->index * CHUNK_BYTES + page * PAGE_BYTES;
}

/* Free the memory behind a slice. */
static void punch(struct region *region, const struct slice *slice)
{
    off_t offset = (off_t)(slice->index * CHUNK_BYTES + slice->first * PAGE_BYTES);
    off_t length = (off_t)((slice->end - slice->first) * PAGE_BYTES);

    if (fallocate(region->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) < 0) {
        log_error("cannot free a region's memory: %m");
    }
}

/* Clear the memory of the slice's stored pages (those that do not exist, if @doomed_only). */
static void clear_stored(struct region *region, const struct slice *slice, bool doomed_only)
{
    racy_begin();
    for (unsigned page = slice->first; page < slice->end; page++) {
        bool exists = get_bit(slice->chunk->exists, page);
        if (get_bit(slice->chunk->stored, page) && !(doomed_only && exists)) {
            memset(page_memory(region, slice, page), 0, PAGE_BYTES);
        }
    }
    racy_end();
}

/* Nobody is at work in the chunk: free the pages that were left to be freed. */
static void sweep(struct region *region, const struct slice *slice)
{
    struct chunk *chunk = slice->chunk;
    struct slice run = whole_chunk(slice);
    unsigned page = 0, n = 0;

    while (page < CHUNK_PAGES) {
        if (!get_bit(chunk->stored, page) || get_bit(chunk->exists, page)) {
            page++;
            continue;
        }
        run.first = page;
        while (page < CHUNK_PAGES && get_bit(chunk->stored, page) &&
               !get_bit(chunk->exists, page)) {
            page++;
        }
        run.end = page;
        punch(region, &run);
        set_stored(&run, false);
        n += run.end - run.first;
    }
    chunk->sweep = false;
    quota_uncharge(&region->claim, n * PAGE_BYTES);
}

static void unpin(struct region *region, struct slice *slice, uint32_t *count)
{
    (*count)--;
    if (slice->chunk->sweep && !is_busy(slice->chunk)) {
        sweep(region, slice);
    }
}

/* ---- reading ---- */

/* Pin one slice; *mixed if it is not all in memory, and then it is not pinned. */
static int read_slice(struct region *region, struct slice *slice, bool strict, bool *mixed)
{
    pthread_mutex_t *lock = slice_lock(region, slice);
    bool exist = all_exist(slice);
    int err = 0;

    if (atomic_load_explicit(&region->dead, memory_order_relaxed)) {
        err = -ESHUTDOWN;
    } else if (strict && !exist) {
        err = -EIO;
    } else if (!exist || count_stored(slice) < slice->end - slice->first) {
        *mixed = true;
    } else if (!*mixed) {
        slice->chunk->readers++;
    }
    if (!err) {
        chunk_touch(slice->chunk);
    }
    pthread_mutex_unlock(lock);
    return err;
}

static void read_unpin(struct region *region, uint64_t page, uint64_t end)
{
    struct slice slice;

    while (slice_next(region->chunks, &page, end, &slice)) {
        pthread_mutex_t *lock = slice_lock(region, &slice);
        unpin(region, &slice, &slice.chunk->readers);
        pthread_mutex_unlock(lock);
    }
}

int region_read_begin(struct region *region, bool strict, uint64_t offset, uint32_t length,
                      const void **memory)
{
    uint64_t first = offset / PAGE_BYTES;
    uint64_t end = (offset + length - 1) / PAGE_BYTES + 1;
    uint64_t page = first, pinned = first;
    struct slice slice;
    bool mixed = false;
    int err = 0;

    /* A strict read looks at all of it even when it is clear that it cannot be sent in one piece. */
    while (!err && !(mixed && !strict) && slice_next(region->chunks, &page, end, &slice)) {
        err = read_slice(region, &slice, strict, &mixed);
        if (!err && !mixed) {
            pinned = page;
        }
    }
    if (err || mixed) {
        read_unpin(region, first, pinned);
        *memory = NULL;
        return err;
    }
    *memory = region->memory + offset;
    return 0;
}

void region_read_end(struct region *region, uint64_t offset, uint32_t length)
{
    read_unpin(region, offset / PAGE_BYTES, (offset + length - 1) / PAGE_BYTES + 1);
}

/* ---- writing ---- */

/* What pages [page, end) need beyond what is stored: a guess, as nothing is locked afterwards. */
static uint64_t missing_bytes(struct region *region, uint64_t page, uint64_t end)
{
    struct slice slice;
    uint64_t missing = 0;

    while (slice_next(region->chunks, &page, end, &slice)) {
        pthread_mutex_t *lock = slice_lock(region, &slice);
        missing += slice.end - slice.first - count_stored(&slice);
        pthread_mutex_unlock(lock);
    }
    return missing * PAGE_BYTES;
}

/* Charge what *prepaid does not cover. */
static int charge(struct region *region, uint64_t bytes, uint64_t *prepaid)
{
    uint64_t covered = bytes < *prepaid ? bytes : *prepaid;

    *prepaid -= covered;
    return bytes > covered ? quota_charge(&region->claim, bytes - covered) : 0;
}

/* Charge and pin one slice; *fresh if some of its pages may have no memory yet. */
static int write_slice(struct region *region, struct slice *slice, uint64_t *prepaid, bool *fresh)
{
    pthread_mutex_t *lock = slice_lock(region, slice);
    struct chunk *chunk = slice->chunk;
    unsigned missing = slice->end - slice->first - count_stored(slice);
    int err = 0;

    if (atomic_load_explicit(&region->dead, memory_order_relaxed)) {
        err = -ESHUTDOWN;
    } else if (missing) {
        err = charge(region, missing * PAGE_BYTES, prepaid);
    }
    if (!err) {
        if (chunk->sweep && !chunk->writers) {
            struct slice whole = whole_chunk(slice);
            clear_stored(region, &whole, true);
        }
        set_stored(slice, true);
        chunk->writers++;
        chunk_touch(chunk);
        *fresh |= missing || !all_exist(slice);
    }
    pthread_mutex_unlock(lock);
    return err;
}

/* Undo write_slice() for pages [page, end), or end it with success. */
static void write_unpin(struct region *region, uint64_t page, uint64_t end, bool complete)
{
    bool dead = atomic_load_explicit(&region->dead, memory_order_relaxed);
    struct slice slice;

    while (slice_next(region->chunks, &page, end, &slice)) {
        pthread_mutex_t *lock = slice_lock(region, &slice);
        if (dead) {
            punch(region, &slice);
        } else if (complete) {
            set_exist(&slice, true);
        } else {
            slice.chunk->sweep = true;
        }
        unpin(region, &slice, &slice.chunk->writers);
        pthread_mutex_unlock(lock);
    }
}

/* Have the kernel allocate pages [first, end) now. */
static int populate(struct region *region, uint64_t first, uint64_t end)
{
    uint8_t *memory = region->memory + first * PAGE_BYTES;
    size_t length = (end - first) * PAGE_BYTES;

    if (madvise(memory, length, MADV_POPULATE_WRITE) == 0) {
        return 0;
    }
    if (errno == EINVAL && /* before Linux 5.14 */
        fallocate(region->fd, FALLOC_FL_KEEP_SIZE, (off_t)(first * PAGE_BYTES), (off_t)length) == 0) {
        return 0;
    }
    log_error("no memory for a region's pages although the quota has room: %m");
    return -ENOSPC;
}

int region_write_begin(struct region *region, uint64_t offset, uint32_t length, bool may_fill,
                       void **memory)
{
    bool whole = offset % PAGE_BYTES == 0 && length % PAGE_BYTES == 0;
    uint64_t first = offset / PAGE_BYTES;
    uint64_t end = (offset + length - 1) / PAGE_BYTES + 1;
    uint64_t page = first, pinned = first;
    uint64_t prepaid = 0;
    struct slice slice;
    bool fresh = false;
    int err = 0;

    if (first / CHUNK_PAGES != (end - 1) / CHUNK_PAGES) {
        /* Charge for all chunks before the first changes, so that a refusal changes none. */
        prepaid = missing_bytes(region, first, end);
        err = quota_charge(&region->claim, prepaid);
        if (err) {
            return err;
        }
    }
    while (!err && slice_next(region->chunks, &page, end, &slice)) {
        err = write_slice(region, &slice, &prepaid, &fresh);
        if (!err) {
            pinned = page;
        }
    }
    quota_uncharge(&region->claim, prepaid);
    bool fill = may_fill && whole && fresh;
    if (!err && fresh && !fill) {
        err = populate(region, first, end);
    }
    if (err) {
        if (pinned < end) {
            populate(region, first, pinned); /* as in region_write_end() */
        }
        write_unpin(region, first, pinned, false);
        return err;
    }
    *memory = fill ? NULL : region->memory + offset;
    return 0;
}

int region_fill(struct region *region, uint64_t offset, uint32_t length, const void *bytes)
{
    const uint8_t *from = bytes;

    while (length) {
        ssize_t n = pwrite(region->fd, from, length, (off_t)offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            log_error("no memory for a region's pages although the quota has room: %m");
            return -ENOSPC;
        }
        from += n;
        offset += (uint64_t)n;
        length -= (uint32_t)n;
    }
    return 0;
}

int region_fill_pipe(struct region *region, uint64_t offset, uint32_t length, int pipe)
{
    pthread_mutex_lock(&region->fill_lock);
    int err = nbd_pipe_splice(pipe, region->fd, offset, length);
    pthread_mutex_unlock(&region->fill_lock);

    if (err) {
        log_error("no memory for a region's pages although the quota has room: %s", strerror(-err));
        return -ENOSPC;
    }
    return 0;
}

int region_write_end(struct region *region, uint64_t offset, uint32_t length, bool complete)
{
    uint64_t first = offset / PAGE_BYTES;
    uint64_t end = (offset + length - 1) / PAGE_BYTES + 1;

    if (!complete) {
        /* Pages that existed, as zeros, stay; what was charged for them may not be there yet. */
        populate(region, first, end);
    }
    write_unpin(region, first, end, complete);
    return atomic_load_explicit(&region->dead, memory_order_relaxed) ? -ESHUTDOWN : 0;
}

void region_lend(struct region *region, uint64_t offset, uint32_t length)
{
    uint64_t page = offset / PAGE_BYTES;
    uint64_t end = (offset + length - 1) / PAGE_BYTES + 1;
    struct slice slice;

    while (slice_next(region->chunks, &page, end, &slice)) {
        pthread_mutex_t *lock = slice_lock(region, &slice);
        set_exist(&slice, true);
        slice.chunk->lent = true;
        pthread_mutex_unlock(lock);
    }
}

void region_take_back(struct region *region, uint64_t offset, uint32_t length)
{
    uint64_t page = offset / PAGE_BYTES;
    uint64_t end = (offset + length - 1) / PAGE_BYTES + 1;
    struct slice slice;

    while (slice_next(region->chunks, &page, end, &slice)) {
        pthread_mutex_t *lock = slice_lock(region, &slice);
        slice.chunk->lent = false;
        slice.chunk->writers--;
        if (!is_busy(slice.chunk) && !atomic_load_explicit(&region->dead, memory_order_relaxed)) {
            uint64_t bytes = count_stored(&slice) * PAGE_BYTES;
            set_stored(&slice, false); /* before the memory goes, as in clear_slice() */
            punch(region, &slice);
            quota_uncharge(&region->claim, bytes);
        }
        pthread_mutex_unlock(lock);
    }
}

bool region_lent_trimmed(struct region *region)
{
    return atomic_exchange_explicit(&region->lent_trimmed, false, memory_order_relaxed);
}

/* ---- clearing ---- */

/* Make a slice of whole pages not exist (@exist = false), or exist and be zero. */
static int clear_slice(struct region *region, struct slice *slice, bool exist)
{
    pthread_mutex_t *lock = slice_lock(region, slice);
    struct chunk *chunk = slice->chunk;
    unsigned stored = count_stored(slice);
    int err = atomic_load_explicit(&region->dead, memory_order_relaxed) ? -ESHUTDOWN : 0;

    if (err) {
        pthread_mutex_unlock(lock);
        return err;
    }
    if (chunk->lent) {
        atomic_store_explicit(&region->lent_trimmed, true, memory_order_relaxed);
        exist = true;
    }
    if (stored && is_busy(chunk)) {
        if (exist || chunk->writers) {
            clear_stored(region, slice, false);
        }
        chunk->sweep |= !exist;
    }
    set_exist(slice, exist);
    if (stored && !is_busy(chunk)) {
        set_stored(slice, false); /* before the memory goes: what is left by a kill is no page */
        punch(region, slice);
        quota_uncharge(&region->claim, stored * PAGE_BYTES);
    }
    pthread_mutex_unlock(lock);
    return 0;
}

static int clear_pages(struct region *region, uint64_t page, uint64_t end, bool exist)
{
    struct slice slice;
    int err = 0;

    while (!err && slice_next(region->chunks, &page, end, &slice)) {
        err = clear_slice(region, &slice, exist);
    }
    return err;
}

/* Zero bytes [offset, offset + length) of one page, which exists then. */
static int zero_part(struct region *region, uint64_t offset, uint64_t length)
{
    struct slice slice = slice_of_page(region->chunks, offset / PAGE_BYTES);
    pthread_mutex_t *lock = slice_lock(region, &slice);
    int err = atomic_load_explicit(&region->dead, memory_order_relaxed) ? -ESHUTDOWN : 0;
    if (!err && get_bit(slice.chunk->stored, slice.first)) {
        bool doomed = !get_bit(slice.chunk->exists, slice.first) && !slice.chunk->writers;
        racy_begin();
        if (doomed) {
            memset(page_memory(region, &slice, slice.first), 0, PAGE_BYTES);
        } else {
            memset(region->memory + offset, 0, length);
        }
        racy_end();
    }
    if (!err) {
        set_exist(&slice, true);
    }
    pthread_mutex_unlock(lock);
    return err;
}

int region_trim(struct region *region, uint64_t offset, uint32_t length)
{
    return clear_pages(region, (offset + PAGE_BYTES - 1) / PAGE_BYTES,
                       (offset + length) / PAGE_BYTES, false);
}

int region_zero(struct region *region, uint64_t offset, uint32_t length)
{
    uint64_t end = offset + length;
    uint64_t first_whole = (offset + PAGE_BYTES - 1) / PAGE_BYTES;
    uint64_t end_whole = end / PAGE_BYTES;
    int err = 0;

    if (first_whole > end_whole) { /* within one page */
        return zero_part(region, offset, length);
    }
    if (offset % PAGE_BYTES) {
        err = zero_part(region, offset, first_whole * PAGE_BYTES - offset);
    }
    if (!err) {
        err = clear_pages(region, first_whole, end_whole, true);
    }
    if (!err && end % PAGE_BYTES) {
        err = zero_part(region, end_whole * PAGE_BYTES, end % PAGE_BYTES);
    }
    return err;
}

/* ---- looking ---- */

static uint32_t page_flags(const struct chunk *chunk, unsigned page, bool strict)
{
    if (!get_bit(chunk->exists, page)) {
        return strict ? NBD_STATE_HOLE : NBD_STATE_HOLE | NBD_STATE_ZERO;
    }
    return get_bit(chunk->stored, page) ? 0 : NBD_STATE_ZERO;
}

/* Add a slice's pages to the extents; false when there is no room for more. */
static bool status_slice(struct region *region, const struct slice *slice, bool strict,
                         struct nbd_extent *extents, size_t *n, size_t max)
{
    pthread_mutex_t *lock = slice_lock((struct region *)region, slice);
    bool room = true;

    for (unsigned page = slice->first; page < slice->end && room; page++) {
        uint32_t flags = page_flags(slice->chunk, page, strict);
        if (*n && extents[*n - 1].flags == flags) {
            extents[*n - 1].length += PAGE_BYTES;
        } else if (*n < max) {
            extents[(*n)++] = (struct nbd_extent){.length = PAGE_BYTES, .flags = flags};
        } else {
            room = false;
        }
    }
    pthread_mutex_unlock(lock);
    return room;
}

int region_status(struct region *region, bool strict, uint64_t offset, uint32_t length,
                  struct nbd_extent *extents, size_t *n)
{
    uint64_t page = offset / PAGE_BYTES;
    uint64_t end = (offset + length - 1) / PAGE_BYTES + 1;
    uint64_t total = 0;
    size_t max = *n;
    struct slice slice;

    if (atomic_load_explicit(&region->dead, memory_order_relaxed)) {
        return -ESHUTDOWN;
    }
    *n = 0;
    while (slice_next(region->chunks, &page, end, &slice) &&
           status_slice(region, &slice, strict, extents, n, max)) {
    }
    /* The first page and the last may be asked for in part. */
    extents[0].length -= offset % PAGE_BYTES;
    for (size_t i = 0; i < *n; i++) {
        total += extents[i].length;
    }
    if (total > length) {
        extents[*n - 1].length -= total - length;
    }
    return 0;
}

uint64_t region_slabs(struct region *region, uint64_t bytes)
{
    uint64_t chunks = bytes / CHUNK_BYTES;
    uint64_t last = UINT64_MAX, n = 0, page = 0;
    uint64_t end = region->size / PAGE_BYTES;
    struct slice slice;

    while (slice_next(region->chunks, &page, end, &slice)) {
        if (slice.index / chunks == last) {
            continue;
        }
        pthread_mutex_t *lock = slice_lock(region, &slice);
        if (count_stored(&slice)) {
            last = slice.index / chunks;
            n++;
        }
        pthread_mutex_unlock(lock);
    }
    return n;
}

void region_slab(struct region *region, uint64_t offset, uint64_t bytes, struct region_slab *slab)
{
    uint64_t page = offset / PAGE_BYTES;
    uint64_t end = (offset + bytes < region->size ? offset + bytes : region->size) / PAGE_BYTES;
    uint64_t now_us = units_now_us();
    struct slice slice;

    *slab = (struct region_slab){.offset = offset};
    if (atomic_load_explicit(&region->dead, memory_order_relaxed)) {
        return;
    }
    while (slice_next(region->chunks, &page, end, &slice)) {
        pthread_mutex_t *lock = slice_lock(region, &slice);
        slab->stored += count_stored(&slice) * PAGE_BYTES;
        slab->heat += chunk_heat(slice.chunk, now_us);
        slab->lent = slab->lent || slice.chunk->lent;
        pthread_mutex_unlock(lock);
    }
}

/* ---- taking files up again ---- */

/* No memory behind pages [page, end): they are zero, if they exist; a write was about to give them some. */
static void reconcile_hole(struct region *region, uint64_t page, uint64_t end)
{
    struct slice slice;

    while (slice_next(region->chunks, &page, end, &slice)) {
        set_stored(&slice, false);
    }
}

/* There is memory behind pages [page, end): it is freed where no page is. Return: pages that are. */
static uint64_t reconcile_data(struct region *region, uint64_t page, uint64_t end)
{
    uint64_t n = 0;

    for (; page < end; page++) {
        struct slice slice = slice_of_page(region->chunks, page);
        if (get_bit(slice.chunk->exists, slice.first) && get_bit(slice.chunk->stored, slice.first)) {
            n++;
        } else {
            set_stored(&slice, false);
            punch(region, &slice);
        }
    }
    return n;
}

int pages_reconcile(struct region *region, uint64_t *stored)
{
    uint64_t n = 0;
    off_t at = 0, size = (off_t)region->size;

    for (uint64_t i = 0; i < region->n_chunks; i++) {
        region->chunks[i].readers = region->chunks[i].writers = 0;
        region->chunks[i].sweep = region->chunks[i].lent = false;
        region->chunks[i].heat = 0;
    }
    while (at < size) {
        off_t data = lseek(region->fd, at, SEEK_DATA);
        if (data < 0 && errno != ENXIO) {
            return -errno;
        }
        data = data < 0 ? size : data;
        off_t hole = data < size ? lseek(region->fd, data, SEEK_HOLE) : size;
        if (hole < 0) {
            return -errno;
        }
        reconcile_hole(region, (uint64_t)at / PAGE_BYTES, (uint64_t)data / PAGE_BYTES);
        n += reconcile_data(region, (uint64_t)data / PAGE_BYTES, (uint64_t)hole / PAGE_BYTES);
        at = hole;
    }
    *stored = n * PAGE_BYTES;
    return 0;
}
