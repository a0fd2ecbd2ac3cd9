// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * prefetch.c - which pages to fetch after a page-in, before they are asked for
 *
 * A small table remembers, by chunk, the last page-in and how long a run it continues.  A page-in a
 * little further in the same direction lengthens the run; each step doubles the window fetched ahead,
 * so a scan soon costs one fault per window.  "A little" is the window fetched last time, because a
 * scan faults next behind it.  A run goes on across the border of a chunk.
 *
 * A page-in that continues no run fetches pages on both sides, nearest first: a guess.  How many
 * depends on what became of such pages of the chunk before.  The caller tells whether they were
 * used; of the share that was, a moving average by chunk, follow none (but for a try now and then)
 * to 16.
 *
 * The tables are hashes without chains and without locks: an entry is one word, the later writer
 * wins.  A lost entry costs a prefetch, not correctness.
 */
#include <stdbool.h>

#include "common/units.h"
#include "predictor/policy.h"

#define NEAR 8            /* so close to a page-in of no run, another begins one */
#define RUN_MAX 6         /* the window ahead ends growing at 4 << RUN_MAX pages */
#define NEIGHBOURS_MAX 16 /* the most that a guess fetches */
#define TRY_EVERY 8       /* where guesses fail, one page-in of so many tries again ... */
#define TRY_PAGES 2       /* ... with so many pages */
#define USED_SHIFT 5      /* the average is over the last 32 pages or so */

#define SCATTERED 1 /* the kinds of stream */
#define FORWARD 2
#define BACKWARD 3

struct stream {
    uint64_t page;
    unsigned run;  /* page-ins that continued it, at most RUN_MAX */
    unsigned kind; /* 0: one page-in so far */
};

/* A word: page + 1 in the upper 48 bits (0: empty), then run and kind, a byte each. */
static struct stream stream_load(struct predictor *predictor, uint64_t chunk, bool *found)
{
    uint64_t word = atomic_load_explicit(
        &predictor->streams[policy_mix(chunk) % PREFETCH_STREAMS], memory_order_relaxed);
    struct stream stream = {.page = (word >> 16) - 1, .run = word >> 8 & 0xff, .kind = word & 0xff};

    *found = word && stream.page >> (CHUNK_SHIFT - PAGE_SHIFT) == chunk;
    return stream;
}

static void stream_store(struct predictor *predictor, const struct stream *stream)
{
    uint64_t slot = policy_mix(stream->page >> (CHUNK_SHIFT - PAGE_SHIFT)) % PREFETCH_STREAMS;

    atomic_store_explicit(&predictor->streams[slot],
                          (stream->page + 1) << 16 | stream->run << 8 | stream->kind,
                          memory_order_relaxed);
}

static unsigned stream_window(const struct stream *stream)
{
    return stream->kind >= FORWARD ? 4u << stream->run : NEAR;
}

/* The stream that @page continues, or begins. */
static struct stream stream_next(const struct stream *old, uint64_t page)
{
    struct stream next = {.page = page, .kind = SCATTERED};
    bool ahead = page > old->page;
    uint64_t distance = ahead ? page - old->page : old->page - page;
    unsigned kind = ahead ? FORWARD : BACKWARD;

    if (distance == 0) {
        next = *old;
    } else if (distance <= stream_window(old) + 1 && (old->kind < FORWARD || old->kind == kind)) {
        next.kind = kind;
        next.run = old->kind == kind && old->run < RUN_MAX ? old->run + 1 : old->run;
    }
    return next;
}

/* The stream that led to @page: of its chunk, else one that comes across the chunk's border. */
static struct stream stream_find(struct predictor *predictor, uint64_t page)
{
    uint64_t chunk = page >> (CHUNK_SHIFT - PAGE_SHIFT);
    bool found;
    struct stream old = stream_load(predictor, chunk, &found);

    if (found) {
        return stream_next(&old, page);
    }
    for (int side = -1; side <= 1; side += 2) {
        old = stream_load(predictor, chunk + (uint64_t)side, &found);
        if (found) {
            struct stream next = stream_next(&old, page);
            if (next.kind >= FORWARD) {
                return next;
            }
        }
    }
    return (struct stream){.page = page};
}

static _Atomic uint8_t *share_used(struct predictor *predictor, uint64_t page)
{
    return &predictor->used[policy_mix(page >> (CHUNK_SHIFT - PAGE_SHIFT)) % PREFETCH_STREAMS];
}

void predictor_prefetch_outcome(struct predictor *predictor, uint64_t page, bool used)
{
    _Atomic uint8_t *share = share_used(predictor, page);
    unsigned now = atomic_load_explicit(share, memory_order_relaxed);
    unsigned round = (1u << USED_SHIFT) - 1;

    now = used ? now + ((PREFETCH_ALL_USED - now + round) >> USED_SHIFT)
               : now - ((now + round) >> USED_SHIFT);
    atomic_store_explicit(share, (uint8_t)now, memory_order_relaxed);
}

bool predictor_prefetch_guesses(struct predictor *predictor, uint64_t page)
{
    bool found;
    struct stream stream = stream_load(predictor, page >> (CHUNK_SHIFT - PAGE_SHIFT), &found);

    return !found || stream.kind < FORWARD;
}

/* How many pages around @page are worth fetching. */
static size_t neighbours(struct predictor *predictor, uint64_t page)
{
    unsigned percent =
        atomic_load_explicit(share_used(predictor, page), memory_order_relaxed) * 100u /
        PREFETCH_ALL_USED;

    if (percent < 15) {
        return policy_mix(page) % TRY_EVERY == 0 ? TRY_PAGES : 0;
    }
    return percent < 35 ? 2 : percent < 50 ? 4 : percent < 70 ? 8 : NEIGHBOURS_MAX;
}

static size_t propose_run(const struct stream *stream, uint64_t end, uint64_t *pages, size_t max)
{
    bool forward = stream->kind == FORWARD;
    uint64_t page = stream->page, room = forward ? end - 1 - page : page;
    uint64_t window = stream_window(stream) < room ? stream_window(stream) : room;
    size_t n = 0;

    for (; n < window && n < max; n++) {
        pages[n] = forward ? page + 1 + n : page - 1 - n;
    }
    return n;
}

/* Up to @max pages on both sides, within the chunk. */
static size_t propose_around(uint64_t page, uint64_t *pages, size_t max)
{
    uint64_t low = page & ~(CHUNK_PAGES - 1), high = low + CHUNK_PAGES;
    size_t n = 0;

    for (uint64_t distance = 1; distance <= NEIGHBOURS_MAX && n < max; distance++) {
        if (page + distance < high) {
            pages[n++] = page + distance;
        }
        if (page >= low + distance && n < max) {
            pages[n++] = page - distance;
        }
    }
    return n;
}

size_t predictor_prefetch(struct predictor *predictor, uint64_t page, uint64_t *pages, size_t max)
{
    uint64_t end = predictor->n_chunks * CHUNK_PAGES;

    if (page >= end) {
        return 0;
    }
    struct stream stream = stream_find(predictor, page);
    stream_store(predictor, &stream);
    if (stream.kind >= FORWARD) {
        return propose_run(&stream, end, pages, max);
    }
    size_t few = neighbours(predictor, page);
    return propose_around(page, pages, few < max ? few : max);
}
