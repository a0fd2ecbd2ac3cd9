// SPDX-License-Identifier: GPL-2.0-or-later
#include "uffd-pager/slab_return.h"

#include "uffd-pager/homes.h"
#include "uffd-pager/install.h"

#define RETURN_CHUNKS 4096u /* looked at in one call */

/* Is there nothing on a sub-host that the guest could want? */
static bool return_is_idle(const struct engine *engine, uint64_t chunk)
{
    uint64_t page = chunk * CHUNK_PAGES;
    uint64_t end = page + CHUNK_PAGES < engine->map->n_pages ? page + CHUNK_PAGES
                                                             : engine->map->n_pages;

    for (; page < end; page++) {
        uint8_t byte = pagemap_get(engine->map, page);
        if (byte & PAGE_BUSY || byte == PAGE_REMOTE || byte == PAGE_CLEAN || byte == PAGE_LOST) {
            return false;
        }
    }
    return true;
}

/* Return: true if all of it is here, and it has a place all the same. */
static bool return_may(const struct engine *engine, uint64_t first, uint64_t end)
{
    bool any = false;

    for (uint64_t chunk = first; chunk < end; chunk++) {
        struct homes homes = homes_of(engine, chunk);
        if (homes.n && !return_is_idle(engine, chunk)) {
            return false;
        }
        any = any || homes.n;
    }
    return any;
}

static void return_slab(struct engine *engine, struct chunk_mover *mover, uint64_t first, uint64_t end)
{
    struct pagemap_slab *slab = pagemap_slab_of(engine->map, first);

    for (uint64_t chunk = first; chunk < end && !engine_over(engine); chunk++) {
        if (homes_of(engine, chunk).n && chunk_move(mover, chunk, 0, PAGEMAP_NO_SUBHOST) != 0) {
            return;
        }
    }
    /* What leaves again finds the place with the most room then. */
    for (unsigned copy = 0; copy < PAGEMAP_COPIES; copy++) {
        atomic_store(&slab->home[copy], (uint8_t)PAGEMAP_NO_SUBHOST);
    }
    stats_add(&engine->stats.slabs_returned, 1);
}

void slab_return(struct engine *engine, struct chunk_mover *mover, uint64_t *cursor)
{
    uint64_t chunks = (uint64_t)1 << engine->map->slab_shift;

    for (uint64_t seen = 0; seen < RETURN_CHUNKS && !engine_over(engine); seen += chunks) {
        uint64_t first = *cursor << engine->map->slab_shift;
        uint64_t end = first + chunks < engine->map->n_chunks ? first + chunks : engine->map->n_chunks;
        if (return_may(engine, first, end)) {
            return_slab(engine, mover, first, end);
        }
        *cursor = *cursor + 1 < engine->map->n_slabs ? *cursor + 1 : 0;
        if (*cursor == 0) {
            return;
        }
    }
}
