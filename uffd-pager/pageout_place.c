// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * pageout_place.c - which sub-host a slab goes to
 *
 * A slab gets a home when the first page of it is to leave that has no place: of the guest's
 * sub-hosts a few (the policy's choices, 2) are drawn at random, asked how much room they have for
 * this guest, and the one with the most, by weight, is taken: the power of d choices.  Nobody else
 * is asked, so sub-hosts and guests need no central node that knows them all, and a thousand guests
 * do not run to the same empty host.
 *
 * Page-out never waits for an answer: the sub-hosts' threads ask (link_ask_room()), other victims
 * leave meanwhile.  An answer serves for a short while; a sub-host that refuses a WRITE all the
 * same is left alone for a time (batch_refused()), and the next choice is made without it.  Its
 * chunks stay where they are; the slab's further chunks go to its next home.
 *
 * With redundancy a slab has two homes: another sub-host, chosen in the same way without the first, or
 * the backup.
 */
#include <stdlib.h>

#include "uffd-pager/pageout.h"

#define PLACE_FRESH_US 500000u /* how long an answer serves */
#define PLACE_WAIT_US 700000u  /* who has not answered by then is not chosen */

bool place_any(const struct pageout *pageout)
{
    const struct engine *engine = pageout->engine;
    unsigned wanted = homes_wanted(engine);
    unsigned n = engine->backup && backup_takes(engine->backup);

    for (unsigned i = 0; i < engine->config.n_subhosts && n < wanted; i++) {
        n += place_takes(pageout, &pageout->hosts[i]);
    }
    return n >= wanted;
}

static uint64_t place_random(struct pageout *pageout)
{
    /* xorshift64: who is drawn need not be a secret */
    pageout->seed ^= pageout->seed << 13;
    pageout->seed ^= pageout->seed >> 7;
    pageout->seed ^= pageout->seed << 17;
    return pageout->seed;
}

/* Those that take pages; ones of weight 0 only if there are no others. */
static unsigned place_candidates(const struct pageout *pageout, uint8_t *list)
{
    const struct engine_config *config = &pageout->engine->config;
    unsigned n = 0;

    for (int spare = 0; spare < 2 && n == 0; spare++) {
        for (unsigned i = 0; i < config->n_subhosts; i++) {
            if ((config->subhost[i].weight == 0) == (spare == 1) &&
                (int)i != pageout->pick.without &&
                place_takes(pageout, &pageout->hosts[i])) {
                list[n++] = (uint8_t)i;
            }
        }
    }
    return n;
}

static bool place_fresh(const struct pageout *pageout, const struct link_host *host)
{
    uint64_t told = atomic_load_explicit(&host->room_us, memory_order_acquire);

    return told && pageout->now_us < told + PLACE_FRESH_US;
}

/* Draw the sub-hosts and ask them. */
static void place_draw(struct pageout *pageout)
{
    struct pageout_pick *pick = &pageout->pick;
    uint8_t list[PAGEMAP_MAX_SUBHOSTS];
    unsigned n = place_candidates(pageout, list);

    pick->n = 0;
    while (n > 0 && pick->n < pageout->engine->config.choices) {
        unsigned at = (unsigned)(place_random(pageout) % n);
        uint8_t index = list[at];
        list[at] = list[--n];
        pick->host[pick->n++] = index;
        if (!place_fresh(pageout, &pageout->engine->hosts[index])) {
            link_ask_room(&pageout->engine->hosts[index]);
        }
    }
    pick->since_us = pick->n ? pageout->now_us : 0;
}

/* One that does not tell comes last. */
bool place_better(const struct engine_config *config, unsigned a, uint64_t room, unsigned b,
                  uint64_t best)
{
    uint64_t weight_a = config->subhost[a].weight ? config->subhost[a].weight : 1;
    uint64_t weight_b = config->subhost[b].weight ? config->subhost[b].weight : 1;

    if (room == LINK_ROOM_UNKNOWN || best == LINK_ROOM_UNKNOWN) {
        return best == LINK_ROOM_UNKNOWN && room != LINK_ROOM_UNKNOWN && room >= CHUNK_BYTES;
    }
    return (unsigned __int128)room * weight_a > (unsigned __int128)best * weight_b;
}

/* Return: the best of those drawn; NULL: not known yet, or none has room. */
static struct pageout_host *place_decide(struct pageout *pageout)
{
    struct pageout_pick *pick = &pageout->pick;
    struct engine *engine = pageout->engine;
    int best = -1;
    uint64_t most = 0;

    for (unsigned i = 0; i < pick->n; i++) {
        struct link_host *host = &engine->hosts[pick->host[i]];
        if (!place_fresh(pageout, host)) {
            if (pageout->now_us < pick->since_us + PLACE_WAIT_US) {
                return NULL;
            }
            continue;
        }
        uint64_t room = atomic_load_explicit(&host->room, memory_order_relaxed);
        if (room < PAGE_BYTES) { /* as if it had refused a WRITE */
            pageout->hosts[pick->host[i]].full_us = pageout->now_us + PAGEOUT_FULL_US;
            continue;
        }
        if (!place_takes(pageout, &pageout->hosts[pick->host[i]])) {
            continue;
        }
        if (best < 0 || place_better(&engine->config, pick->host[i], room, (unsigned)best, most)) {
            best = pick->host[i];
            most = room;
        }
    }
    pick->since_us = 0;
    return best < 0 ? NULL : &pageout->hosts[best];
}

/* Home @copy of the slab, or a new one, which is not sub-host @without (-1: any). Return: NULL: none now. */
static struct pageout_host *place_home_of(struct pageout *pageout, struct pagemap_slab *slab,
                                          unsigned copy, int without)
{
    struct engine *engine = pageout->engine;
    uint8_t home = atomic_load_explicit(&slab->home[copy], memory_order_relaxed);

    if (home < engine->config.n_subhosts && home != without &&
        place_takes(pageout, &pageout->hosts[home])) {
        return &pageout->hosts[home];
    }
    if (!pageout->pick.since_us || pageout->pick.without != without) {
        pageout->pick.without = without;
        place_draw(pageout);
    }
    struct pageout_host *host = pageout->pick.since_us ? place_decide(pageout) : NULL;
    if (host) {
        atomic_store_explicit(&slab->home[copy], (uint8_t)(host - pageout->hosts),
                              memory_order_relaxed);
        stats_add(&engine->stats.slabs_placed, 1);
    }
    return host;
}

bool place_chunk(struct pageout *pageout, uint64_t chunk, struct pageout_to *to)
{
    struct engine *engine = pageout->engine;
    struct pagemap_slab *slab = pagemap_slab_of(engine->map, chunk);
    unsigned wanted = homes_wanted(engine);

    to->n = 0;
    if (engine->backup && !backup_takes(engine->backup)) {
        return false;
    }
    if (!engine->backup || wanted == 2) {
        to->host[0] = place_home_of(pageout, slab, 0, -1);
        to->n = to->host[0] != NULL;
    }
    if (engine->backup && to->n == wanted - 1) {
        to->host[to->n++] = NULL;
    } else if (to->n && wanted == 2) {
        to->host[1] = place_home_of(pageout, slab, 1, (int)(to->host[0] - pageout->hosts));
        to->n += to->host[1] != NULL;
    }
    return to->n == wanted;
}

void place_tell(struct pageout *pageout, bool wanted)
{
    struct engine *engine = pageout->engine;
    bool full = false;
    bool takes = false;

    for (unsigned i = 0; i < engine->config.n_subhosts; i++) {
        bool refuses = pageout->now_us < pageout->hosts[i].full_us;
        full = full || refuses;
        takes = takes || (!refuses && !link_unwritable(&engine->hosts[i]));
    }
    full = full && !takes;
    if (full && wanted && !pageout->full_told) {
        pageout->full_told = true;
        log_error("page-out has stopped: no sub-host has room for the guest");
        engine_event(engine, "SUBHOSTS_FULL",
                     json_pack("{s:s}", "reason", "no sub-host has room for the guest"));
    } else if (pageout->full_told && !wanted && !full) {
        pageout->full_told = false;
        log_info("page-out goes on: the guest is within its limits again");
        engine_event(engine, "SUBHOSTS_ROOM",
                     json_pack("{s:s}", "reason", "the guest is within its limits again"));
    }
}

static void place_home(struct engine *engine, uint64_t slab)
{
    uint64_t first = slab << engine->map->slab_shift;
    uint64_t end = first + ((uint64_t)1 << engine->map->slab_shift);
    unsigned chunks[PAGEMAP_MAX_SUBHOSTS] = {0};
    unsigned best = 0;

    for (uint64_t chunk = first; chunk < end && chunk < engine->map->n_chunks; chunk++) {
        uint8_t index = atomic_load_explicit(&engine->map->subhost[chunk], memory_order_relaxed);
        if (index < engine->config.n_subhosts && ++chunks[index] > chunks[best]) {
            best = index;
        }
    }
    if (chunks[best]) {
        atomic_store_explicit(&engine->map->slab[slab].home[0], (uint8_t)best,
                              memory_order_relaxed);
    }
}

static bool place_is_used(const struct engine *engine, uint64_t chunk)
{
    uint64_t page = chunk * CHUNK_PAGES;
    uint64_t end = page + CHUNK_PAGES < engine->map->n_pages ? page + CHUNK_PAGES
                                                             : engine->map->n_pages;

    for (; page < end; page++) {
        uint8_t state = page_state(pagemap_get(engine->map, page));
        if (state == PAGE_REMOTE || state == PAGE_CLEAN) {
            return true;
        }
    }
    return false;
}

static void place_forget(struct engine *engine, uint64_t first, uint64_t end)
{
    for (uint64_t chunk = first; chunk < end; chunk++) {
        atomic_store_explicit(&engine->map->subhost[chunk], (uint8_t)PAGEMAP_NO_SUBHOST,
                              memory_order_relaxed);
    }
}

/*
 * The mover has named a sub-host for every chunk; where none of its pages went, choose later.
 * This is in the guest's downtime: what the guest never had is not looked at.
 */
static void place_forget_unused(struct engine *engine)
{
    uint64_t chunk = 0;
    uint64_t end;

    for (uint64_t page = 0; pagemap_extent(engine->map, &page, &end); page = end) {
        uint64_t used = page / CHUNK_PAGES;
        place_forget(engine, chunk, used);
        for (chunk = used; chunk * CHUNK_PAGES < end; chunk++) {
            if (!place_is_used(engine, chunk)) {
                place_forget(engine, chunk, chunk + 1);
            }
        }
    }
    place_forget(engine, chunk, engine->map->n_chunks);
}

void place_begin(struct engine *engine, bool fresh)
{
    if (fresh) {
        place_forget_unused(engine);
    }
    for (uint64_t slab = 0; slab < engine->map->n_slabs; slab++) {
        uint8_t home = atomic_load_explicit(&engine->map->slab[slab].home[0], memory_order_relaxed);
        if (home >= engine->config.n_subhosts) {
            place_home(engine, slab);
        }
    }
}
