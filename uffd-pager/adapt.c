// SPDX-License-Identifier: GPL-2.0-or-later
#include "uffd-pager/adapt.h"

#define ADAPT_BYTES (16u << 20) /* of a stretch ... */
#define ADAPT_US 20000u         /* ... and its length, at least */
#define ADAPT_REST 8
#define ADAPT_WHOLE 1000 /* adapt_way.wire of what cannot be packed */
#define ADAPT_GAIN 16    /* less than this part more is not worth a trial */
#define ADAPT_MOST_REST 128

void adapt_begin(struct adapt *adapt, unsigned threads)
{
    *adapt = (struct adapt){.best = PACK_NONE, .now = PACK_NONE, .threads = threads};
    for (unsigned i = 0; i < PACK_METHODS; i++) {
        adapt->way[i].rest = ADAPT_REST;
        adapt->way[i].wire = ADAPT_WHOLE;
    }
}

void adapt_sample(struct adapt *adapt, enum pack_method method, uint64_t length, uint64_t packed,
                  uint64_t ns)
{
    struct adapt_way *way = &adapt->way[method];
    uint64_t speed = length * 1000000000u / (ns ? ns : 1);
    unsigned wire = packed ? (unsigned)(packed * ADAPT_WHOLE / length) : ADAPT_WHOLE;

    way->wire = way->speed ? (way->wire * 3 + wire) / 4 : wire;
    way->speed = way->speed ? (way->speed * 3 + speed) / 4 : speed;
}

/* Could this way be faster than the best one? */
static bool adapt_promises(const struct adapt *adapt, unsigned method)
{
    const struct adapt_way *way = &adapt->way[method];
    const struct adapt_way *best = &adapt->way[adapt->best];
    uint64_t by_link = best->rate * best->wire / (way->wire ? way->wire : 1);
    uint64_t by_processors = way->speed * adapt->threads;
    uint64_t bound = by_link < by_processors ? by_link : by_processors;

    return method == PACK_NONE || bound > best->rate + best->rate / ADAPT_GAIN;
}

/* The way in use has been measured: which is the best now? */
static void adapt_judge(struct adapt *adapt)
{
    struct adapt_way *now = &adapt->way[adapt->now];

    if (adapt->now == adapt->best) {
        /* It may have become slower than another was. */
        for (unsigned i = 0; i < PACK_METHODS; i++) {
            if (adapt->way[i].rate > adapt->way[adapt->best].rate) {
                adapt->best = (enum pack_method)i;
            }
        }
        return;
    }
    if (now->rate > adapt->way[adapt->best].rate) {
        adapt->best = adapt->now;
        now->rest = ADAPT_REST;
    } else {
        now->rest = now->rest * 2 < ADAPT_MOST_REST ? now->rest * 2 : ADAPT_MOST_REST;
    }
    now->left = now->rest;
}

/* The best one, unless it is time to try another. */
static enum pack_method adapt_choose(struct adapt *adapt)
{
    for (unsigned i = 0; i < PACK_METHODS; i++) {
        struct adapt_way *way = &adapt->way[i];
        if (i == adapt->best || i == adapt->now) {
            continue;
        }
        if (way->left) {
            way->left--;
        } else if (adapt_promises(adapt, i)) {
            return (enum pack_method)i;
        }
    }
    return adapt->best;
}

/* A trial that has become hopeless: the best way would have brought twice as much by now. */
static bool adapt_hopeless(const struct adapt *adapt, uint64_t took)
{
    uint64_t stretch_us = ADAPT_BYTES * UINT64_C(1000000) / (adapt->way[adapt->best].rate + 1);

    return adapt->now != adapt->best && took > stretch_us && adapt->bytes < ADAPT_BYTES / 2;
}

bool adapt_step(struct adapt *adapt, uint64_t bytes, uint64_t busy_us, uint64_t under_way)
{
    if (adapt->skip) {
        adapt->skip -= bytes < adapt->skip ? bytes : adapt->skip;
        adapt->bytes = 0;
        adapt->begun_us = busy_us;
        return false;
    }
    adapt->bytes += bytes;
    uint64_t took = busy_us - adapt->begun_us;
    if ((adapt->bytes < ADAPT_BYTES || took < ADAPT_US) && !adapt_hopeless(adapt, took)) {
        return false;
    }
    adapt->way[adapt->now].rate = adapt->bytes * 1000000 / took;
    enum pack_method before = adapt->now;
    adapt_judge(adapt);
    adapt->now = adapt_choose(adapt);
    adapt->bytes = 0;
    adapt->begun_us = busy_us;
    adapt->skip = adapt->now == before ? 0 : under_way;
    return adapt->now != before;
}
