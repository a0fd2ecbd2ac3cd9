// SPDX-License-Identifier: GPL-2.0-or-later
#include "uffd-pager/adapt.h"

#define ADAPT_BYTES (16u << 20) /* of a stretch ... */
#define ADAPT_US 20000u         /* ... and its length, at least */
#define ADAPT_REST 8
#define ADAPT_MOST_REST 128

void adapt_begin(struct adapt *adapt)
{
    *adapt = (struct adapt){.best = PACK_NONE, .now = PACK_NONE};
    for (unsigned i = 0; i < PACK_METHODS; i++) {
        adapt->way[i].rest = ADAPT_REST;
    }
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
        if (way->left == 0) {
            return (enum pack_method)i;
        }
        way->left--;
    }
    return adapt->best;
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
    if (adapt->bytes < ADAPT_BYTES || took < ADAPT_US) {
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
