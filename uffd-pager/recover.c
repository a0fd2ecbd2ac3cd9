// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * recover.c - make the page map, the memfds and the write-protection agree after a worker's death
 *
 * Truth is the stable part of a page's byte together with whether the memfd has data
 * (common/pagemap.h):
 *
 *                 data in the memfd        hole
 *   busy          LOCAL                    UNTOUCHED, REMOTE: as they were; LOCAL, CLEAN: REMOTE
 *   UNTOUCHED     LOCAL                    UNTOUCHED
 *   LOCAL         LOCAL                    UNTOUCHED (the guest discarded it)
 *   REMOTE        LOCAL                    REMOTE
 *   CLEAN         CLEAN                    REMOTE
 *   LOST          LOST                     LOST
 *
 * A busy LOCAL hole in a chunk without a sub-host can only be a discard that was cut short: UNTOUCHED.
 * What lies in no block any more (it was unplugged) is UNTOUCHED, and trimmed on its sub-host.
 * Chunks with pages that were leaving or being discarded are fenced: WRITEs and TRIMs of the dead worker
 * may still be in the sub-host's buffers.  READs do no harm, and dropped pages are not sent.
 * UNTOUCHED pages are trimmed: nobody knows which TRIMs it still had to send.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "uffd-pager/homes.h"
#include "uffd-pager/install.h"
#include "uffd-pager/uffd_abi.h"

static uint8_t recover_state(uint8_t byte, bool data, bool has_subhost)
{
    uint8_t state = page_state(byte);

    if (state == PAGE_LOST) {
        return PAGE_LOST;
    }
    if (data) {
        return state == PAGE_CLEAN && !(byte & PAGE_BUSY) ? PAGE_CLEAN : PAGE_LOCAL;
    }
    if (state == PAGE_LOCAL) {
        return byte & PAGE_BUSY && has_subhost ? PAGE_REMOTE : PAGE_UNTOUCHED;
    }
    return state == PAGE_CLEAN ? PAGE_REMOTE : state;
}

static void recover_pages(struct engine *engine, uint64_t first, uint64_t end, bool data)
{
    struct pagemap *map = engine->map;

    for (uint64_t page = first; page < end; page++) {
        uint64_t chunk = page_chunk(page);
        uint8_t byte = pagemap_get(map, page);
        bool has_subhost = homes_of(engine, chunk).n > 0;
        uint8_t state = recover_state(byte, data, has_subhost);
        bool sends = page_state(byte) == PAGE_LOCAL || page_state(byte) == PAGE_UNTOUCHED;
        if (byte & PAGE_BUSY && sends && has_subhost) {
            atomic_fetch_or(&engine->chunk_flags[chunk], CHUNK_FENCED);
        }
        if (state != byte) {
            pagemap_unlock(map, page, state);
        }
        if (state == PAGE_UNTOUCHED && has_subhost) {
            engine_want_trim(engine, page);
        }
    }
}

static int recover_block(struct engine *engine, const struct layout_block *block)
{
    off_t at = (off_t)block->fd_offset;
    off_t end = at + (off_t)block->size;

    while (at < end) {
        off_t data = lseek(block->fd, at, SEEK_DATA);
        if (data < 0 && errno != ENXIO) {
            return -errno;
        }
        data = data < 0 || data > end ? end : data;
        off_t hole = data < end ? lseek(block->fd, data, SEEK_HOLE) : end;
        if (hole < 0) {
            return -errno;
        }
        hole = hole > end ? end : hole;
        uint64_t base = block->flat - block->fd_offset;
        recover_pages(engine, (base + (uint64_t)at) / PAGE_BYTES,
                      (base + (uint64_t)data) / PAGE_BYTES, false);
        recover_pages(engine, (base + (uint64_t)data) / PAGE_BYTES,
                      (base + (uint64_t)hole) / PAGE_BYTES, true);
        at = hole;
    }
    return 0;
}

static void recover_gap(struct engine *engine, uint64_t from, uint64_t to)
{
    for (uint64_t page = from / PAGE_BYTES; page < to / PAGE_BYTES; page++) {
        if (pagemap_get(engine->map, page) != PAGE_UNTOUCHED) {
            pagemap_unlock(engine->map, page, PAGE_UNTOUCHED);
            engine_want_trim(engine, page);
        }
    }
}

int recover_map(struct engine *engine, struct reason *reason)
{
    uint64_t at = 0;

    for (uint32_t i = 0; i < engine->layout->n_blocks; i++) {
        const struct layout_block *block = &engine->layout->block[i];
        recover_gap(engine, at, block->flat);
        at = block->flat + block->size;
        int err = recover_block(engine, block);
        if (err < 0) {
            return reason_set(reason, err, "RAM block '%s' cannot be looked through: %s",
                              block->idstr, strerror(-err));
        }
    }
    recover_gap(engine, at, engine->layout->flat_size);
    return 0;
}

/*
 * Never both at once: a CLEAN page must not be unprotected for a moment, for the guest runs.
 */
static int recover_protect_run(struct engine *engine, const struct layout_block *block,
                               uint64_t first, uint64_t end, uint8_t state)
{
    uint64_t start = page_hva(block, first);
    uint64_t length = (end - first) * PAGE_BYTES;

    if (state == PAGE_CLEAN) {
        return uffd_protect(engine->uffd, start, length);
    }
    return state == PAGE_LOCAL ? uffd_unprotect(engine->uffd, start, length) : 0;
}

int recover_protection(struct engine *engine, struct reason *reason)
{
    for (uint32_t i = 0; i < engine->layout->n_blocks; i++) {
        const struct layout_block *block = &engine->layout->block[i];
        uint64_t page = block->flat / PAGE_BYTES;
        while (page < page_end(block)) {
            uint8_t state = pagemap_get(engine->map, page);
            uint64_t first = page++;
            while (page < page_end(block) && pagemap_get(engine->map, page) == state) {
                page++;
            }
            int err = recover_protect_run(engine, block, first, page, state);
            if (err < 0) {
                return reason_set(reason, err,
                                  "the write-protection of RAM block '%s' cannot be set: %s",
                                  block->idstr, strerror(-err));
            }
        }
    }
    return 0;
}
