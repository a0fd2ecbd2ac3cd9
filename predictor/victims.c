// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * victims.c - the coldest chunks that have resident pages
 *
 * Two passes and no sort.  The first, in address order, adds up resident pages and chunks by heat;
 * from the sums follow the hottest heat that is needed and, for each colder one, where its chunks
 * stand in the result.  The second visits chunks in the seeded pseudo-random order from where the
 * last call ended (the hand) and puts each in its place, until all places are taken.  While enough
 * chunks are quite cold, which is usual, it ends early.
 *
 * Among equals the hand goes round all chunks before it takes one again.  Residence and heat change
 * under our feet: a place is only taken by a chunk that has that heat when it is visited, and places
 * that stay empty are closed up at the end.
 */
#include <string.h>

#include "predictor/policy.h"

struct places {
    uint64_t first[PREDICTOR_HEATS], end[PREDICTOR_HEATS]; /* places in the result, by heat */
    uint64_t next[PREDICTOR_HEATS];                        /* the next free one */
    unsigned hottest;                                      /* the last heat that is needed */
    uint64_t pages_wanted;                                 /* of that last heat */
    uint64_t free;                                         /* places not taken yet */
};

static uint16_t resident_pages(const _Atomic uint16_t *resident, uint64_t chunk)
{
    return atomic_load_explicit(&resident[chunk], memory_order_relaxed);
}

static void places_plan(struct places *places, const struct predictor *predictor,
                        const _Atomic uint16_t *resident, uint64_t want_pages, size_t max)
{
    uint64_t chunks[PREDICTOR_HEATS] = {0}, pages[PREDICTOR_HEATS] = {0}, at = 0;

    for (uint64_t i = 0; i < predictor->n_chunks; i++) {
        uint16_t n = resident_pages(resident, i);
        if (n) {
            uint8_t heat = policy_heat(predictor, i);
            chunks[heat]++;
            pages[heat] += n;
        }
    }
    memset(places, 0, sizeof(*places));
    for (unsigned heat = 0; heat < PREDICTOR_HEATS && want_pages && at < max; heat++) {
        uint64_t n = chunks[heat] < max - at ? chunks[heat] : max - at;
        places->first[heat] = places->next[heat] = at;
        places->end[heat] = at += n;
        places->hottest = heat;
        places->pages_wanted = want_pages;
        want_pages -= pages[heat] < want_pages ? pages[heat] : want_pages;
    }
    places->free = at;
}

/* Close up places that were not taken.  Return: how many were. */
static size_t places_close_up(const struct places *places, uint64_t *chunks)
{
    size_t used = 0;

    for (unsigned heat = 0; heat <= places->hottest; heat++) {
        size_t n = (size_t)(places->next[heat] - places->first[heat]);
        memmove(chunks + used, chunks + places->first[heat], n * sizeof(*chunks));
        used += n;
    }
    return used;
}

size_t predictor_victims(struct predictor *predictor, const _Atomic uint16_t *resident,
                         uint64_t want_pages, uint64_t *chunks, size_t max)
{
    struct places places;
    uint64_t n = predictor->n_chunks, end = predictor->hand;

    places_plan(&places, predictor, resident, want_pages, max);
    for (uint64_t step = 0, at = predictor->hand; step < n && places.free; step++) {
        uint64_t chunk = predictor->order[at];
        uint16_t pages = resident_pages(resident, chunk);
        uint8_t heat = policy_heat(predictor, chunk);

        at = at + 1 == n ? 0 : at + 1;
        if (!pages || heat > places.hottest || places.next[heat] == places.end[heat]) {
            continue;
        }
        chunks[places.next[heat]++] = chunk;
        places.free--;
        if (heat == places.hottest) {
            end = at;
            if (pages < places.pages_wanted) {
                places.pages_wanted -= pages;
            } else { /* enough of these */
                places.free -= places.end[heat] - places.next[heat];
                places.end[heat] = places.next[heat];
                places.pages_wanted = 0;
            }
        }
    }
    predictor->hand = end;
    return places_close_up(&places, chunks);
}
