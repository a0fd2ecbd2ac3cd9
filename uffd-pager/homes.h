/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * homes.h - in which places a chunk's copies are, and how many there should be
 *
 * A place is a sub-host's number or PAGEMAP_BACKUP (common/pagemap.h).  With `replica` a chunk is to
 * have two sub-hosts, with `backup` a sub-host and the backup.  When fewer than two sub-hosts are
 * left (lost, unwritable, or being emptied), a chunk makes do with one until there is another; a sub-host that is
 * merely silent, or full, is waited for.
 */
#ifndef UFFD_PAGER_HOMES_H
#define UFFD_PAGER_HOMES_H

#include "uffd-pager/engine_impl.h"

struct homes {
    uint8_t place[PAGEMAP_COPIES];
    unsigned n;
};

static inline bool homes_is_place(const struct engine *engine, uint8_t place)
{
    return place < engine->config.n_subhosts || (place == PAGEMAP_BACKUP && engine->backup);
}

/** homes_of() - the places that have all REMOTE and CLEAN pages of @chunk; any thread */
static inline struct homes homes_of(const struct engine *engine, uint64_t chunk)
{
    uint8_t first = pagemap_home(engine->map, chunk, 0);
    uint8_t second = pagemap_home(engine->map, chunk, 1);
    struct homes homes = {.n = 0};

    if (homes_is_place(engine, first)) {
        homes.place[homes.n++] = first;
    }
    if (second != first && homes_is_place(engine, second)) {
        homes.place[homes.n++] = second;
    }
    return homes;
}

static inline bool homes_have(const struct homes *homes, uint8_t place)
{
    return (homes->n > 0 && homes->place[0] == place) || (homes->n > 1 && homes->place[1] == place);
}

/** homes_good() - can the copies in @place be counted on?  Not if a sub-host is lost, or came back empty. */
static inline bool homes_good(const struct engine *engine, uint8_t place)
{
    return place == PAGEMAP_BACKUP ||
           (!link_host_lost(&engine->hosts[place]) &&
            !atomic_load_explicit(&engine->hosts[place].gone, memory_order_acquire));
}

/** homes_stays() - is sub-host @index one to count on, that takes pages, and not to be emptied?  Any thread. */
static inline bool homes_stays(const struct engine *engine, unsigned index)
{
    return homes_good(engine, (uint8_t)index) && !link_unwritable(&engine->hosts[index]) &&
           !atomic_load_explicit(&engine->hosts[index].draining, memory_order_relaxed);
}

/** homes_wanted() - how many places a chunk is to have now; any thread */
unsigned homes_wanted(const struct engine *engine);

/**
 * homes_drop() - @chunk is to have @place no more; what it has in its other one is good
 * Any thread, without move_lock.  Return: false if it is its only good place, or is on the move.
 */
bool homes_drop(struct engine *engine, uint64_t chunk, uint8_t place);

/** homes_at_risk() - bytes that are on sub-host @index and nowhere else; any thread, walks the map */
uint64_t homes_at_risk(const struct engine *engine, unsigned index);

#endif
