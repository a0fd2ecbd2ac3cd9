/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * predictor.h - which memory will be touched: access history in, decisions out
 *
 * A pure library: no I/O, no clocks, no global state, deterministic given its
 * seed.  The unit is the 2 MiB chunk; callers say which chunks were accessed
 * in the current period and end the period with predictor_tick().
 */
#ifndef PREDICTOR_PREDICTOR_H
#define PREDICTOR_PREDICTOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct predictor;

enum predictor_access {
    PREDICTOR_READ,  /* sampled: touched in this period */
    PREDICTOR_WRITE, /* from the dirty log */
    PREDICTOR_FAULT, /* a page-in was needed */
};

/** predictor_names() - NULL-terminated list of policy names; the first is the default */
const char *const *predictor_names(void);

/**
 * predictor_new() - make one
 * @policy: a name of predictor_names(), or NULL for the default
 * @seed: ties are broken by a pseudo-random order drawn from it, never by address
 * Return: NULL if the policy is unknown or memory is out.
 */
struct predictor *predictor_new(const char *policy, uint64_t n_chunks, uint64_t seed);
void predictor_free(struct predictor *predictor);

/** predictor_sweeps() - victims are to be chosen by page (sweep.h), and not by predictor_victims() */
bool predictor_sweeps(const struct predictor *predictor);

/** predictor_note() - chunk @chunk was accessed in this period; any thread, no lock, no allocation */
void predictor_note(struct predictor *predictor, uint64_t chunk, enum predictor_access kind);

/** predictor_tick() - end a period: age all history; one thread at a time */
void predictor_tick(struct predictor *predictor);

/** predictor_heat() - 0 (cold) to 255 (hot); any thread */
uint8_t predictor_heat(const struct predictor *predictor, uint64_t chunk);

/* The history as bytes, one a chunk: what travels with a guest. */
void predictor_export(const struct predictor *predictor, uint8_t *history);
void predictor_import(struct predictor *predictor, const uint8_t *history);

#define PREDICTOR_HOT 0x80u /* in a partition byte: the chunk's pages go to the main host */

struct predictor_partition {
    const uint32_t *present;    /* [n_chunks] pages that exist in each chunk */
    uint64_t main_pages;        /* pages the main host may hold at most */
    unsigned n_subhosts;        /* 1 to 127 */
    const uint64_t *sub_pages;  /* [n_subhosts] pages each may hold at most */
    const uint32_t *sub_weight; /* [n_subhosts] share wanted, relative; 0: only when others are full */
    uint32_t slab_chunks; /* so many sub-hosts take whole: they go together if there is room; 0: no such thing */
    const uint8_t *page_heat; /* [n_chunks * CHUNK_PAGES] (page_heat.h); NULL: nothing is known by page */
};

/**
 * predictor_split() - divide a guest: hottest pages and chunks to the main host until it is full, the rest
 * over the sub-hosts in proportion to weight and room
 * @out: [n_chunks]; the low 7 bits name a sub-host for every chunk (a hot one's pages go there when
 *       they are paged out), PREDICTOR_HOT says main host, for all of the chunk
 * @hot: [n_chunks * CHUNK_PAGES] bits, all 0 before; a page that goes to the main host on its own account
 *
 * Source: S-memV's split by a histogram of 8-bit aging histories; where it takes the threshold
 * bin's chunks in address order, we take them in seeded pseudo-random order.
 * Return: 0, or -ENOSPC if the present pages do not fit.
 */
int predictor_split(struct predictor *predictor, const struct predictor_partition *partition,
                    uint8_t *out, uint64_t *hot);

/**
 * predictor_victims() - the coldest chunks that have resident pages
 * @resident: [n_chunks] resident pages in each chunk; read while others change it
 * @want_pages: stop when the chosen chunks hold this many
 * @chunks: result, coldest first
 * Return: how many were stored, at most @max.
 * Repeated calls rotate over equals.  One thread at a time.
 */
size_t predictor_victims(struct predictor *predictor, const _Atomic uint16_t *resident,
                         uint64_t want_pages, uint64_t *chunks, size_t max);

/**
 * predictor_prefetch() - pages worth fetching after a page-in of @page
 * @pages: result: page numbers, nearest first, never @page itself; the caller skips those that are
 *         not remote
 * Return: how many were stored, at most @max.  Any thread.
 */
size_t predictor_prefetch(struct predictor *predictor, uint64_t page, uint64_t *pages, size_t max);

/**
 * predictor_prefetch_guesses() - what predictor_prefetch() last named for @page are guesses
 * True unless @page continues a run.  Guesses are to be marked idle as soon as they are here, and
 * predictor_prefetch_outcome() to be told.  Pages of a run are not: nearly all are used, and each
 * that is would cost the guest a soft fault.  Any thread.
 */
bool predictor_prefetch_guesses(struct predictor *predictor, uint64_t page);

/**
 * predictor_prefetch_outcome() - whether a guess was right
 * @page: it was fetched as a guess and marked
 * @used: its mark is gone, as was seen when it was looked at, or it was faulted for while it was
 *        fetched; or false: it leaves, idle
 * Once for each such page; a lost call costs nothing but a worse guess.  Any thread, no lock.
 */
void predictor_prefetch_outcome(struct predictor *predictor, uint64_t page, bool used);

#endif
