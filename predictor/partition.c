// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * partition.c - which pages go to the main host, and which sub-host every chunk belongs to
 *
 * 0. Hot pages: where it is known by page what was in use (page_heat.h), pages by the falling share of
 *    looks that found them so, as long as they fit; of equals those in the hottest chunks.  Hot pages
 *    of most programs are strewn: whole chunks would bring as many cold ones along, and leave hot ones behind.
 *    Where the pages of a chunk do not differ (page_heat.c) they stay together.
 * 1. Hot chunks: what is left of chunks by falling heat, those of equal heat in the seeded pseudo-random order, go to the
 *    main host as long as they fit.  One that does not fit any more is passed over and smaller ones
 *    after it may still go, so the main host ends up at most 511 pages short of full.
 * 2. Cold: the rest, biggest first (the small ones fill the gaps), each to the sub-host whose filling
 *    relative to its weight would be least, of those that have room for it.
 * 3. Hot chunks get their sub-host, for the day they are paged out, by the same rule; where no room is
 *    left, by weight alone, because nothing is stored there yet.
 * 4. Empty chunks likewise, by count.  They are never hot: nothing in them was touched, and what
 *    appears in them while the guest moves must not overrun the main host.
 *
 * Where sub-hosts take memory by slabs, whole (RDMA), the chunks of a slab go to the sub-host of the first
 * of them as long as it has room: strewn, each slab would take its room on every sub-host.  If the guest
 * does not fit in this way, it is divided chunk by chunk.  Nor are single pages hot there: the slabs would
 * take their room all the same.
 *
 * A sub-host of weight 0 is taken only when no other has room.  Chunks are not cut, so a guest that
 * leaves no slack anywhere may be refused although its pages, counted singly, would fit.
 *
 * Source: step 1 is S-memV's split by a histogram of 8-bit histories (sorting by counting finds the
 * same threshold).  It takes ties in address order, which favours whatever the guest's kernel puts
 * low in memory; it has one sub-host.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/units.h"
#include "predictor/page_heat.h"
#include "predictor/policy.h"

#define MAX_SUBHOSTS 127
#define SORT_KEYS (CHUNK_PAGES + 1)

struct split {
    const struct predictor *predictor;
    const struct predictor_partition *want;
    uint8_t *out;
    uint64_t *hot;  /* bits by page */
    uint64_t left;  /* pages that the main host may still hold */
    uint32_t *rest; /* [n_chunks] pages present that are not hot by themselves */
    uint8_t *heat;   /* [n_chunks] as it was when the split began */
    uint8_t *home;   /* [n_chunks] of each slab: its sub-host + 1, 0: none yet */
    uint32_t slab_chunks;
    uint32_t *order; /* [n_chunks] the order of the step under way */
    uint64_t room[MAX_SUBHOSTS];
    uint64_t load[MAX_SUBHOSTS]; /* what weights apply to: pages, or chunks in step 4 */
};

/* Falling heat; ties keep the pseudo-random order. */
static uint64_t key_heat(const struct split *split, uint64_t chunk)
{
    return UINT8_MAX - split->heat[chunk];
}

/* Falling size; ties keep the pseudo-random order. */
static uint64_t key_size(const struct split *split, uint64_t chunk)
{
    uint64_t pages = split->rest[chunk];

    return pages < CHUNK_PAGES ? CHUNK_PAGES - pages : 0;
}

/* Sort the seeded order by a small key into split->order, by counting: stable, two passes. */
static void split_sort(struct split *split, uint64_t (*key)(const struct split *, uint64_t))
{
    uint64_t n = split->predictor->n_chunks, start[SORT_KEYS] = {0}, at = 0;

    for (uint64_t i = 0; i < n; i++) {
        start[key(split, i)]++;
    }
    for (unsigned k = 0; k < SORT_KEYS; k++) {
        uint64_t count = start[k];
        start[k] = at;
        at += count;
    }
    for (uint64_t i = 0; i < n; i++) {
        uint32_t chunk = split->predictor->order[i];
        split->order[start[key(split, chunk)]++] = chunk;
    }
}

static void split_keys(const struct split *split, uint64_t chunk, uint8_t keys[CHUNK_PAGES])
{
    page_heat_keys(split->want->page_heat + chunk * CHUNK_PAGES,
                   split->want->present[chunk] >= CHUNK_PAGES - CHUNK_PAGES / 8, keys);
}

/* The least key whose pages all fit.  Return: PREDICTOR_HEATS if those of the highest do not. */
static unsigned split_threshold(const struct split *split)
{
    uint64_t count[PREDICTOR_HEATS] = {0}, sum = 0;
    unsigned key = PREDICTOR_HEATS;

    for (uint64_t chunk = 0; chunk < split->predictor->n_chunks; chunk++) {
        uint8_t keys[CHUNK_PAGES];
        if (!split->want->present[chunk]) {
            continue;
        }
        split_keys(split, chunk, keys);
        for (uint64_t i = 0; i < CHUNK_PAGES; i++) {
            count[keys[i]]++;
        }
    }
    while (key > 1 && sum + count[key - 1] <= split->left) {
        sum += count[--key];
    }
    return key;
}

/* Take pages of @chunk that were in use at least as often as key @low says, but less than @high, as long as there is room. */
static void split_hot_pages(struct split *split, uint64_t chunk, unsigned low, unsigned high)
{
    uint8_t keys[CHUNK_PAGES];

    if (!split->rest[chunk] || !split->left) {
        return;
    }
    split_keys(split, chunk, keys);
    for (uint64_t i = 0; i < CHUNK_PAGES && split->rest[chunk] && split->left; i++) {
        uint64_t page = chunk * CHUNK_PAGES + i;
        if (keys[i] >= low && keys[i] < high) {
            split->hot[page / 64] |= (uint64_t)1 << page % 64;
            split->rest[chunk]--;
            split->left--;
        }
    }
}

/* Steps 0 and 1. */
static void split_hot(struct split *split, bool by_page)
{
    uint64_t n = split->predictor->n_chunks;

    split->left = split->want->main_pages;
    memcpy(split->rest, split->want->present, n * sizeof(*split->rest));
    split_sort(split, key_heat);
    unsigned least = by_page ? split_threshold(split) : 0;
    for (uint64_t i = 0; i < n && by_page; i++) {
        split_hot_pages(split, split->order[i], least, PREDICTOR_HEATS);
    }
    for (uint64_t i = 0; i < n && least > 1; i++) {
        split_hot_pages(split, split->order[i], least - 1, least);
    }
    for (uint64_t i = 0; i < n; i++) {
        uint32_t chunk = split->order[i], pages = split->rest[chunk];
        split->out[chunk] = 0;
        if (split->want->present[chunk] && pages <= split->left) {
            split->out[chunk] = PREDICTOR_HOT;
            split->left -= pages;
        }
    }
}

/* Whether sub-host @a, with @add more, is filled less relative to its weight than @b would be. */
static bool less_filled(const struct split *split, unsigned a, unsigned b, uint64_t add)
{
    const uint32_t *weight = split->want->sub_weight;
    unsigned __int128 weight_a = weight[a] ? weight[a] : 1, weight_b = weight[b] ? weight[b] : 1;

    return (split->load[a] + add) * weight_b < (split->load[b] + add) * weight_a;
}

/* The sub-host for a chunk that needs @room there and counts @add. Return: -1 if none has room. */
static int split_choose(const struct split *split, uint64_t room, uint64_t add)
{
    int best = -1;

    for (unsigned i = 0; i < split->want->n_subhosts; i++) {
        bool spare = !split->want->sub_weight[i];
        bool best_spare = best >= 0 && !split->want->sub_weight[best];
        if (split->room[i] < room) {
            continue;
        }
        if (best < 0 || best_spare > spare ||
            (best_spare == spare && less_filled(split, i, (unsigned)best, add))) {
            best = (int)i;
        }
    }
    return best;
}

/* The same for @chunk, whose slab may have a sub-host already. */
static int split_choose_near(const struct split *split, uint32_t chunk, uint64_t room, uint64_t add)
{
    uint8_t *home = &split->home[chunk / split->slab_chunks];

    if (*home && split->room[*home - 1] >= room) {
        return *home - 1;
    }
    int best = split_choose(split, room, add);
    if (best >= 0 && !*home && split->slab_chunks > 1) {
        *home = (uint8_t)(best + 1);
    }
    return best;
}

/* Give the chunks with this flag, hot or cold, their sub-host.  Cold ones must fit. */
static int split_place(struct split *split, uint8_t flag)
{
    for (uint64_t i = 0; i < split->predictor->n_chunks; i++) {
        // NOLINTNEXTLINE(clang-analyzer-core.NullDereference): predictor_split() has checked order
        uint32_t chunk = split->order[i];
        uint32_t pages = flag ? split->want->present[chunk] : split->rest[chunk];
        if (!split->want->present[chunk] || (split->out[chunk] & PREDICTOR_HOT) != flag) {
            continue;
        }
        int sub = split_choose_near(split, chunk, pages, pages);
        if (sub < 0) {
            if (!flag) {
                return -ENOSPC;
            }
            sub = split_choose_near(split, chunk, 0, pages);
        }
        split->out[chunk] = (uint8_t)(flag | (unsigned)sub);
        split->load[sub] += pages;
        split->room[sub] -= split->room[sub] < pages ? split->room[sub] : pages;
    }
    return 0;
}

static void split_place_empty(struct split *split)
{
    for (unsigned i = 0; i < split->want->n_subhosts; i++) {
        split->load[i] = 0;
    }
    for (uint64_t i = 0; i < split->predictor->n_chunks; i++) {
        uint32_t chunk = split->order[i];
        if (!split->want->present[chunk]) {
            int sub = split_choose_near(split, chunk, 1, 1);
            sub = sub < 0 ? split_choose_near(split, chunk, 0, 1) : sub;
            split->out[chunk] = (uint8_t)sub;
            split->load[sub]++;
        }
    }
}

/* Steps 2 to 4. */
static int split_cold(struct split *split, uint32_t slab_chunks)
{
    split->slab_chunks = slab_chunks;
    memset(split->home, 0, split->predictor->n_chunks + 1);
    for (unsigned i = 0; i < split->want->n_subhosts; i++) {
        split->room[i] = split->want->sub_pages[i];
        split->load[i] = 0;
    }
    split_sort(split, key_size);
    int err = split_place(split, 0);
    if (!err) {
        err = split_place(split, PREDICTOR_HOT);
        split_place_empty(split);
    }
    return err;
}

int predictor_split(struct predictor *predictor, const struct predictor_partition *partition,
                    uint8_t *out, uint64_t *hot)
{
    struct split split = {.predictor = predictor, .want = partition, .out = out, .hot = hot};
    bool by_page = partition->page_heat && partition->slab_chunks <= 1;
    int err = -ENOMEM;

    if (partition->n_subhosts < 1 || partition->n_subhosts > MAX_SUBHOSTS) {
        return -EINVAL;
    }
    split.heat = malloc(predictor->n_chunks + 1);
    split.order = calloc(predictor->n_chunks + 1, sizeof(*split.order));
    split.home = malloc(predictor->n_chunks + 1);
    split.rest = calloc(predictor->n_chunks + 1, sizeof(*split.rest));
    if (split.heat && split.order && split.home && split.rest) {
        predictor_export(predictor, split.heat);
        split_hot(&split, by_page);
        err = split_cold(&split, partition->slab_chunks > 1 ? partition->slab_chunks : 1);
        if (err && partition->slab_chunks > 1) {
            split_hot(&split, false);
            err = split_cold(&split, 1);
        }
    }
    free(split.heat);
    free(split.order);
    free(split.home);
    free(split.rest);
    return err;
}
