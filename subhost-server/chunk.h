/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * chunk.h - inside the region: 2 MiB of pages, their bits, and slices of them
 *
 * Everything here but slice_next() is called with the chunk's lock held.
 */
#ifndef SUBHOST_SERVER_CHUNK_H
#define SUBHOST_SERVER_CHUNK_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/units.h"
#include "subhost-server/quota.h"

#define CHUNK_WORDS (CHUNK_PAGES / 64)
#define N_LOCKS 64
#define HEAT_HALF_US 4000000u

struct chunk {
    uint64_t exists[CHUNK_WORDS];
    uint64_t stored[CHUNK_WORDS];
    uint32_t readers;
    uint32_t writers;
    bool sweep; /* there may be pages on their way out */
    bool lent;  /* clients reach it by themselves, unseen: nothing of it goes (region_lend()) */
    uint16_t heat;     /* requests, halved every HEAT_HALF_US */
    uint16_t heat_age; /* when it was last brought up to date, in that unit; it may wrap */
};

struct region {
    uint8_t *memory;
    struct chunk *chunks;
    uint64_t size;
    uint64_t n_chunks;
    struct quota_claim claim;
    int fd;
    atomic_uint references;
    atomic_uint clients;
    atomic_bool dead;
    atomic_uint epoch;
    pthread_mutex_t fill_lock; /* for large writes: whoever waited for the file's own lock would spin */
    pthread_mutex_t pull_lock; /* held by a copy that fills it from another sub-host */
    _Atomic uint64_t serial;   /* copies of an earlier serial than this are over */
    atomic_bool lent_trimmed; /* since region_lent_trimmed() was asked */
    pthread_mutex_t locks[N_LOCKS];
};

/* Pages [first, end) of chunk number @index: what one lock covers of a request. */
struct slice {
    struct chunk *chunk;
    uint64_t index;
    unsigned first, end;
};

/* The next slice of pages [*page, end); false when there is none. */
static inline bool slice_next(struct chunk *chunks, uint64_t *page, uint64_t end,
                              struct slice *slice)
{
    if (*page >= end) {
        return false;
    }
    slice->index = *page / CHUNK_PAGES;
    slice->chunk = &chunks[slice->index];
    slice->first = (unsigned)(*page % CHUNK_PAGES);
    uint64_t last = (slice->index + 1) * CHUNK_PAGES;
    last = last < end ? last : end;
    slice->end = (unsigned)(last - slice->index * CHUNK_PAGES);
    *page = last;
    return true;
}

static inline struct slice slice_of_page(struct chunk *chunks, uint64_t page)
{
    unsigned first = (unsigned)(page % CHUNK_PAGES);
    uint64_t index = page / CHUNK_PAGES;

    return (struct slice){
        .chunk = &chunks[index], .index = index, .first = first, .end = first + 1};
}

/* The bits of word @w that pages [first, end) cover. */
static inline uint64_t word_mask(unsigned w, unsigned first, unsigned end)
{
    unsigned low = first > w * 64 ? first - w * 64 : 0;
    unsigned high = end < w * 64 + 64 ? end - w * 64 : 64;
    uint64_t below_high = high == 64 ? ~(uint64_t)0 : ((uint64_t)1 << high) - 1;

    return below_high & ~(((uint64_t)1 << low) - 1);
}

/* The words a slice has bits in: [words_first, words_end). */
static inline unsigned words_first(const struct slice *slice)
{
    return slice->first / 64;
}

static inline unsigned words_end(const struct slice *slice)
{
    return (slice->end + 63) / 64;
}

static inline unsigned count_stored(const struct slice *slice)
{
    unsigned n = 0;

    for (unsigned w = words_first(slice); w < words_end(slice); w++) {
        uint64_t mask = word_mask(w, slice->first, slice->end);
        n += (unsigned)__builtin_popcountll(slice->chunk->stored[w] & mask);
    }
    return n;
}

static inline bool all_exist(const struct slice *slice)
{
    uint64_t missing = 0;

    for (unsigned w = words_first(slice); w < words_end(slice); w++) {
        missing |= ~slice->chunk->exists[w] & word_mask(w, slice->first, slice->end);
    }
    return !missing;
}

static inline void set_exist(struct slice *slice, bool exist)
{
    for (unsigned w = words_first(slice); w < words_end(slice); w++) {
        uint64_t mask = word_mask(w, slice->first, slice->end);
        slice->chunk->exists[w] = exist ? slice->chunk->exists[w] | mask
                                        : slice->chunk->exists[w] & ~mask;
    }
}

static inline void set_stored(struct slice *slice, bool stored)
{
    for (unsigned w = words_first(slice); w < words_end(slice); w++) {
        uint64_t mask = word_mask(w, slice->first, slice->end);
        slice->chunk->stored[w] = stored ? slice->chunk->stored[w] | mask
                                         : slice->chunk->stored[w] & ~mask;
    }
}

static inline bool get_bit(const uint64_t *bits, unsigned page)
{
    return bits[page / 64] >> (page % 64) & 1;
}

/** chunk_heat() - how much it was used lately, up to date at @now_us */
static inline uint16_t chunk_heat(struct chunk *chunk, uint64_t now_us)
{
    uint16_t now = (uint16_t)(now_us / HEAT_HALF_US);
    uint16_t age = (uint16_t)(now - chunk->heat_age);

    chunk->heat = age < 16 ? (uint16_t)(chunk->heat >> age) : 0;
    chunk->heat_age = now;
    return chunk->heat;
}

static inline void chunk_touch(struct chunk *chunk)
{
    if (chunk_heat(chunk, units_now_us()) < UINT16_MAX) {
        chunk->heat++;
    }
}

static inline bool is_busy(const struct chunk *chunk)
{
    return chunk->readers || chunk->writers;
}

/**
 * pages_reconcile() - make the bits and the memory of files that were found agree (region_adopt())
 * Nobody else has the region yet.  Return: 0 and the bytes stored, or -errno.
 */
int pages_reconcile(struct region *region, uint64_t *stored);

static inline struct slice whole_chunk(const struct slice *slice)
{
    struct slice whole = *slice;

    whole.first = 0;
    whole.end = CHUNK_PAGES;
    return whole;
}

#endif
