/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * install.h - a page's byte and the kernel's view of it, changed together
 *
 * All callers own the page (PAGE_BUSY), but for page_missed().
 */
#ifndef UFFD_PAGER_INSTALL_H
#define UFFD_PAGER_INSTALL_H

#include "uffd-pager/engine_impl.h"

/* In a busy page's byte: somebody's fault was turned away, wake after unlocking. */
#define PAGE_MISSED 0x10u

static inline uint8_t page_state(uint8_t byte)
{
    return byte & PAGE_STATE_MASK;
}

static inline uint64_t page_chunk(uint64_t page)
{
    return page / CHUNK_PAGES;
}

static inline uint64_t page_hva(const struct layout_block *block, uint64_t page)
{
    return layout_hva(block, page * PAGE_BYTES);
}

/** page_end() - the first page after @block */
static inline uint64_t page_end(const struct layout_block *block)
{
    return (block->flat + block->size) / PAGE_BYTES;
}

/** page_missed() - leave word on a busy page. Return: false if it is not busy any more. */
bool page_missed(struct pagemap *map, uint64_t page);

/** page_retag() - change the state of a busy page, which stays busy */
void page_retag(struct pagemap *map, uint64_t page, uint8_t state);

/** page_release() - unlock in @state. Return: true if somebody was turned away and is to be woken. */
bool page_release(struct pagemap *map, uint64_t page, uint8_t state);

/** page_unlock() - unlock in @state, wake whoever was turned away */
void page_unlock(struct engine *engine, const struct layout_block *block, uint64_t page,
                 uint8_t state);

/** page_unlock_run() - the same for @n pages, with one wake */
void page_unlock_run(struct engine *engine, const struct layout_block *block, uint64_t first,
                     uint64_t n, uint8_t state);

/** page_wake() - make whoever waits for @n pages fault again */
void page_wake(struct engine *engine, const struct layout_block *block, uint64_t first, uint64_t n);

/**
 * install_guess_written() - is a page that now comes back likely to be written while it is here?
 * Then it is better installed as LOCAL at once: a WRITE in the background for the fault that the first write to a
 * protected page is.  Learnt by chunk from install_learn(); every eighth page goes on being protected, so that
 * it can be unlearnt.  Any thread.
 */
bool install_guess_written(struct engine *engine, uint64_t page);

/** install_learn() - a protected page was @written, or has left as it came; any thread */
void install_learn(struct engine *engine, uint64_t page, bool written);

/**
 * install_fetched() - a FETCHING page's contents have come: install, unlock, wake
 * @write: a write waits for it, so it becomes LOCAL, else CLEAN
 * Return: 0, or -errno, and the page is REMOTE and unlocked again, its room given back.
 */
int install_fetched(struct engine *engine, const struct layout_block *block, uint64_t page,
                    const void *contents, bool write);

/** install_used() - the guest has accessed a page that is here; any thread, also the page's owner */
void install_used(struct engine *engine, uint64_t page);

/**
 * install_zero() - @n ZEROING pages from @first: install, unlock, wake
 * Those that could not be installed are UNTOUCHED again, their room given back.
 * Return: 0, or -errno if the first could not.
 */
int install_zero(struct engine *engine, const struct layout_block *block, uint64_t first,
                 uint64_t n);

/** install_lost() - a FETCHING page has no contents any more: poison, unlock, wake; its room is given back */
void install_lost(struct engine *engine, const struct layout_block *block, uint64_t page);

#endif
