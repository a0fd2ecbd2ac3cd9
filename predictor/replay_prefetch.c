// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * replay_prefetch.c - other ways of prefetching, to compare the pager's with
 *
 * Leap (Al Maruf and Chowdhury, USENIX ATC 2020): the majority among the last distances between page-ins
 * and first uses of what was prefetched (Linux sees both), in a short history first; as many pages
 * as were used since, rounded up to a power of two, eight at most.  Recorded set: the pages of the chunk that were used when they
 * were here last.
 */
#include "common/units.h"
#include "predictor/replay_impl.h"

#define LEAP_WINDOW 8

/* Boyer and Moore's vote among the last @n distances. Return: 0 if there is no majority. */
static int64_t leap_majority(const struct sim *sim, unsigned n)
{
    int64_t candidate = 0;
    unsigned votes = 0, count = 0;

    for (unsigned i = 0; i < n; i++) {
        int64_t delta = sim->leap_delta[(sim->leap_n - 1 - i) % LEAP_HISTORY];
        candidate = votes ? candidate : delta;
        votes = delta == candidate ? votes + 1 : votes - 1;
    }
    for (unsigned i = 0; i < n; i++) {
        count += sim->leap_delta[(sim->leap_n - 1 - i) % LEAP_HISTORY] == candidate;
    }
    return count > n / 2 ? candidate : 0;
}

static void leap_note(struct sim *sim, uint64_t page)
{
    sim->leap_delta[sim->leap_n++ % LEAP_HISTORY] = (int64_t)(page - sim->leap_last);
    sim->leap_last = page;
}

static size_t leap_propose(struct sim *sim, uint64_t page, uint64_t *pages, size_t max)
{
    uint64_t window = 1;
    int64_t stride = 0;
    size_t n = 0;

    leap_note(sim, page);
    for (unsigned length = 4; length <= LEAP_HISTORY && length <= sim->leap_n && !stride;
         length *= 2) {
        stride = leap_majority(sim, length);
    }
    while (window < sim->leap_hits + 1 && window < LEAP_WINDOW) {
        window *= 2;
    }
    sim->leap_hits = 0;
    for (uint64_t i = 1; stride && i <= window && n < max; i++) {
        int64_t next = (int64_t)page + stride * (int64_t)i;
        if (next >= 0) {
            pages[n++] = (uint64_t)next;
        }
    }
    return n;
}

void prefetch_used(struct sim *sim, uint64_t page)
{
    if (sim->options->prefetcher == REPLAY_LEAP) {
        leap_note(sim, page);
        sim->leap_hits++;
    }
}

/* The pages of the chunk that have all of these flags, behind @page first. */
static size_t chunk_propose(const struct sim *sim, uint64_t page, uint8_t flags, uint64_t *pages,
                            size_t max)
{
    uint64_t low = page - page % CHUNK_PAGES;
    size_t n = 0;

    for (uint64_t i = 1; i < CHUNK_PAGES && n < max; i++) {
        uint64_t other = low + (page + i) % CHUNK_PAGES;
        if ((sim->page[other] & flags) == flags) {
            pages[n++] = other;
        }
    }
    return n;
}

size_t prefetch_propose(struct sim *sim, uint64_t page, uint64_t *pages, size_t max)
{
    switch (sim->options->prefetcher) {
    case REPLAY_LEAP:
        return leap_propose(sim, page, pages, max);
    case REPLAY_RECORDED:
        return chunk_propose(sim, page, PAGE_KNOWN | PAGE_USED, pages, max);
    case REPLAY_CHUNK:
        return chunk_propose(sim, page, 0, pages, MAX_PREFETCH);
    default:
        return predictor_prefetch(sim->predictor, page, pages, max);
    }
}
