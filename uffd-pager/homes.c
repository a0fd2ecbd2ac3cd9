// SPDX-License-Identifier: GPL-2.0-or-later
#include "uffd-pager/homes.h"

const char *engine_redundancy_name(unsigned redundancy)
{
    static const char *const names[] = {[ENGINE_REDUNDANCY_NONE] = "none",
                                        [ENGINE_REDUNDANCY_REPLICA] = "replica",
                                        [ENGINE_REDUNDANCY_BACKUP] = "backup"};

    return redundancy < sizeof(names) / sizeof(names[0]) ? names[redundancy] : "";
}

unsigned homes_wanted(const struct engine *engine)
{
    unsigned stay = 0;

    if (engine->config.redundancy == ENGINE_REDUNDANCY_NONE) {
        return 1;
    }
    for (unsigned i = 0; i < engine->config.n_subhosts; i++) {
        stay += homes_stays(engine, i);
    }
    stay += engine->config.redundancy == ENGINE_REDUNDANCY_BACKUP;
    return stay > 1 ? 2 : 1;
}

/*
 * Page-out that is under way to both places goes on, and needs both answers.
 */
bool homes_drop(struct engine *engine, uint64_t chunk, uint8_t place)
{
    pthread_mutex_lock(&engine->move_lock);
    struct homes homes = homes_of(engine, chunk);
    bool moving = atomic_load_explicit(&engine->chunk_flags[chunk], memory_order_acquire) &
                  CHUNK_MOVING;
    uint8_t other = homes.n == 2 ? homes.place[homes.place[0] == place] : PAGEMAP_NO_SUBHOST;
    bool may = !moving && homes.n == 2 && homes_have(&homes, place) && homes_good(engine, other);
    if (may) {
        pagemap_set_home(engine->map, chunk, 0, other);
        pagemap_set_home(engine->map, chunk, 1, PAGEMAP_NO_SUBHOST);
    }
    pthread_mutex_unlock(&engine->move_lock);
    return may;
}

/* Would it be missed if the others went now? */
static bool homes_answers(const struct engine *engine, uint8_t place)
{
    uint64_t since = place == PAGEMAP_BACKUP
                         ? 0
                         : atomic_load_explicit(&engine->hosts[place].trouble_us,
                                                memory_order_relaxed);

    return homes_good(engine, place) && (!since || units_now_us() < since + LINK_TELL_US);
}

uint64_t homes_at_risk(const struct engine *engine, unsigned index)
{
    uint64_t pages = 0;

    for (uint64_t chunk = 0; chunk < engine->map->n_chunks; chunk++) {
        struct homes homes = homes_of(engine, chunk);
        struct pagemap_counts counts;
        bool alone = homes_have(&homes, (uint8_t)index);
        for (unsigned i = 0; i < homes.n; i++) {
            alone = alone && (homes.place[i] == index || !homes_answers(engine, homes.place[i]));
        }
        if (alone) {
            pagemap_count(engine->map, chunk * CHUNK_PAGES, CHUNK_PAGES, &counts);
            pages += counts.remote;
        }
    }
    return pages * PAGE_BYTES;
}
