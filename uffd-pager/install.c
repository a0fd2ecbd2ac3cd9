// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * install.c - a page's byte and the kernel's view of it, changed together
 *
 * The kernel wakes the faulter inside the ioctl, before we unlock the page.  What faults in between
 * (a write to a page that was just installed write-protected, say) finds the page busy, leaves
 * PAGE_MISSED in its byte and is woken after unlocking.  A second wake costs a system call only
 * then.
 *
 * Should there be contents in the file where the map has none, the file is right: whatever put them
 * there, they are at least as new as any other copy (the rule of pagemap_recover).
 */
#include "uffd-pager/install.h"

#include <errno.h>

#include "uffd-pager/uffd_abi.h"

bool page_missed(struct pagemap *map, uint64_t page)
{
    uint8_t byte = pagemap_get(map, page);

    while (byte & PAGE_BUSY) {
        if (byte & PAGE_MISSED ||
            atomic_compare_exchange_weak_explicit(&map->pages[page], &byte,
                                                  (uint8_t)(byte | PAGE_MISSED),
                                                  memory_order_acq_rel, memory_order_acquire)) {
            return true;
        }
    }
    return false;
}

void page_retag(struct pagemap *map, uint64_t page, uint8_t state)
{
    uint8_t byte = pagemap_get(map, page);

    while (!atomic_compare_exchange_weak_explicit(
        &map->pages[page], &byte, (uint8_t)((byte & ~PAGE_STATE_MASK) | state),
        memory_order_acq_rel, memory_order_acquire)) {
    }
}

bool page_release(struct pagemap *map, uint64_t page, uint8_t state)
{
    uint8_t byte = atomic_load_explicit(&map->pages[page], memory_order_relaxed);
    uint8_t kept = page_state(state) == PAGE_LOCAL || page_state(state) == PAGE_CLEAN ? PAGE_KEPT : 0;

    while (!atomic_compare_exchange_weak_explicit(&map->pages[page], &byte,
                                                  (uint8_t)(state | (byte & kept)),
                                                  memory_order_acq_rel, memory_order_relaxed)) {
    }
    return byte & PAGE_MISSED;
}

void page_wake(struct engine *engine, const struct layout_block *block, uint64_t first, uint64_t n)
{
    if (uffd_wake(engine->uffd, page_hva(block, first), n * PAGE_BYTES) == -ESRCH) {
        engine_gone(engine);
    }
}

void page_unlock(struct engine *engine, const struct layout_block *block, uint64_t page,
                 uint8_t state)
{
    page_unlock_run(engine, block, page, 1, state);
}

void page_unlock_run(struct engine *engine, const struct layout_block *block, uint64_t first,
                     uint64_t n, uint8_t state)
{
    bool missed = false;

    for (uint64_t page = first; page < first + n; page++) {
        missed |= page_release(engine->map, page, state);
    }
    if (missed) {
        page_wake(engine, block, first, n);
    }
}

bool install_guess_written(struct engine *engine, uint64_t page)
{
    uint8_t flags =
        atomic_load_explicit(&engine->chunk_flags[page_chunk(page)], memory_order_relaxed);

    return flags / CHUNK_WRITTEN >= CHUNK_WRITTEN_MAX - 1 && page % 8;
}

void install_learn(struct engine *engine, uint64_t page, bool written)
{
    _Atomic uint8_t *flags = &engine->chunk_flags[page_chunk(page)];
    uint8_t was = atomic_load_explicit(flags, memory_order_relaxed);
    uint8_t now;

    do {
        unsigned count = was / CHUNK_WRITTEN;
        unsigned then = written ? count + 1 : count > 2 ? count - 2 : 0; /* it takes two of three */
        then = then < CHUNK_WRITTEN_MAX ? then : CHUNK_WRITTEN_MAX;
        if (then == count) {
            return;
        }
        now = (uint8_t)(was % CHUNK_WRITTEN + then * CHUNK_WRITTEN);
    } while (!atomic_compare_exchange_weak_explicit(flags, &was, now, memory_order_relaxed,
                                                    memory_order_relaxed));
}

void install_used(struct engine *engine, uint64_t page)
{
    if (pagemap_used(engine->map, page)) {
        predictor_prefetch_outcome(engine->predictor, page, true);
    }
}

static void install_failed(struct engine *engine, int err)
{
    if (err == -ESRCH) {
        engine_gone(engine);
    } else if (err != -ENOENT) {
        stats_add(&engine->stats.install_errors, 1);
    }
}

int install_fetched(struct engine *engine, const struct layout_block *block, uint64_t page,
                    const void *contents, bool write)
{
    int err = uffd_copy(engine->uffd, page_hva(block, page), contents, !write);

    if (err == 0) {
        page_unlock(engine, block, page, write ? PAGE_LOCAL : PAGE_CLEAN | PAGE_WANTED);
        return 0;
    }
    if (err == -EEXIST) {
        uffd_unprotect(engine->uffd, page_hva(block, page), PAGE_BYTES);
        page_release(engine->map, page, PAGE_LOCAL);
        page_wake(engine, block, page, 1);
        return 0;
    }
    install_failed(engine, err);
    room_give(engine, page_chunk(page), 1);
    page_unlock(engine, block, page, PAGE_REMOTE);
    return err;
}

int install_zero(struct engine *engine, const struct layout_block *block, uint64_t first,
                 uint64_t n)
{
    uint64_t done;
    int err = uffd_zero(engine->uffd, page_hva(block, first), n * PAGE_BYTES, &done);
    uint64_t pages = done / PAGE_BYTES;

    page_unlock_run(engine, block, first, pages, PAGE_LOCAL);
    if (pages == n) {
        return 0;
    }
    if (err == -EEXIST) {
        page_release(engine->map, first + pages, PAGE_LOCAL);
        page_wake(engine, block, first + pages, 1);
        pages++;
        err = 0;
    } else {
        install_failed(engine, err);
    }
    if (pages < n) {
        room_give(engine, page_chunk(first), (unsigned)(n - pages));
        page_unlock_run(engine, block, first + pages, n - pages, PAGE_UNTOUCHED);
    }
    return pages ? 0 : err;
}

void install_lost(struct engine *engine, const struct layout_block *block, uint64_t page)
{
    int err = uffd_poison(engine->uffd, page_hva(block, page));

    if (err < 0) {
        install_failed(engine, err);
    }
    room_give(engine, page_chunk(page), 1);
    stats_add(&engine->stats.lost_pages, 1);
    page_unlock(engine, block, page, PAGE_LOST);
}
