// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * prefetch.c - which pages to fetch after a page-in, before they are asked for
 *
 * A small table remembers, by chunk, the last page-in and how long a run it continues.  A page-in a
 * little further in the same direction lengthens the run; each step doubles the window fetched ahead,
 * so a scan soon costs one fault per window.  "A little" is the window fetched last time, because a
 * scan faults next behind it.  A run goes on across the border of a chunk.
 *
 * The first page-in in a chunk fetches a few pages on both sides, nearest first.  A chunk that is
 * paged in at scattered places gets fewer: neighbours did not help there.
 *
 * The table is a hash without chains and without locks: an entry is one 64-bit word, the later writer
 * wins.  A lost entry costs a prefetch, not correctness.
 */
#include <stdbool.h>

#include "common/units.h"
#include "predictor/policy.h"

#define NEIGHBOURS 8         /* fetched around the first page-in of a chunk */
#define NEIGHBOURS_SCATTER 2 /* and where page-ins were scattered */
#define RUN_MAX 6            /* the window ahead ends growing at 4 << RUN_MAX pages */

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
    return stream->kind >= FORWARD ? 4u << stream->run : NEIGHBOURS;
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

size_t predictor_prefetch(struct predictor *predictor, uint64_t page, uint64_t *pages, size_t max)
{
    uint64_t end = predictor->n_chunks * CHUNK_PAGES;
    uint64_t low = page & ~(CHUNK_PAGES - 1), high = low + CHUNK_PAGES;
    size_t n = 0;

    if (page >= end) {
        return 0;
    }
    struct stream stream = stream_find(predictor, page);
    stream_store(predictor, &stream);
    if (stream.kind == FORWARD || stream.kind == BACKWARD) {
        uint64_t room = stream.kind == FORWARD ? end - 1 - page : page;
        uint64_t window = stream_window(&stream) < room ? stream_window(&stream) : room;
        for (; n < window && n < max; n++) {
            pages[n] = stream.kind == FORWARD ? page + 1 + n : page - 1 - n;
        }
        return n;
    }
    size_t few = stream.kind == SCATTERED ? NEIGHBOURS_SCATTER : NEIGHBOURS;
    for (uint64_t distance = 1; distance <= NEIGHBOURS && n < few; distance++) {
        if (page + distance < high && n < few && n < max) {
            pages[n++] = page + distance;
        }
        if (page >= low + distance && n < few && n < max) {
            pages[n++] = page - distance;
        }
    }
    return n;
}
