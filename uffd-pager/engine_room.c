// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_room.c - how much of the guest may be resident
 *
 * engine.limit is the budget, except when the budget was lowered below what is resident, or the
 * guest had to be let over it: then it is what was resident, and half of what page-out frees lowers
 * it, the other half is for faults, so that the guest goes on meanwhile.  While page-out cannot make
 * room (engine.stuck) there is no limit.
 */
#include <errno.h>
#include <inttypes.h>

#include "uffd-pager/engine_impl.h"

#define ROOM_WINDOW_US 1000000u
#define ROOM_WINDOW_PAGES 2048 /* freed within the window: page-out works again */
#define ROOM_TELL_US 30000000u

static int64_t room_count(struct engine *engine, uint64_t chunk)
{
    int64_t now = atomic_fetch_add_explicit(&engine->resident, 1, memory_order_acq_rel) + 1;

    atomic_fetch_add_explicit(&engine->chunk_resident[chunk], 1, memory_order_relaxed);
    if (now > atomic_load_explicit(&engine->high, memory_order_relaxed)) {
        pageout_kick(engine);
    }
    return now;
}

static bool room_take_below(struct engine *engine, uint64_t chunk, int64_t limit)
{
    int64_t now = atomic_load_explicit(&engine->resident, memory_order_acquire);

    do {
        if (now >= limit) {
            return false;
        }
    } while (!atomic_compare_exchange_weak_explicit(&engine->resident, &now, now + 1,
                                                    memory_order_acq_rel, memory_order_acquire));
    atomic_fetch_add_explicit(&engine->chunk_resident[chunk], 1, memory_order_relaxed);
    if (now + 1 > atomic_load_explicit(&engine->high, memory_order_relaxed)) {
        pageout_kick(engine);
    }
    return true;
}

bool room_take(struct engine *engine, uint64_t chunk)
{
    if (room_take_below(engine, chunk,
                        atomic_load_explicit(&engine->limit, memory_order_relaxed))) {
        return true;
    }
    if (atomic_load_explicit(&engine->stuck, memory_order_relaxed)) {
        room_count(engine, chunk);
        return true;
    }
    pageout_kick(engine);
    return false;
}

bool room_take_spare(struct engine *engine, uint64_t chunk)
{
    int64_t high = atomic_load_explicit(&engine->high, memory_order_relaxed);
    int64_t limit = atomic_load_explicit(&engine->limit, memory_order_relaxed);

    return room_take_below(engine, chunk, high < limit ? high : limit);
}

void room_force(struct engine *engine, uint64_t chunk)
{
    room_count(engine, chunk);
}

void room_give(struct engine *engine, uint64_t chunk, unsigned n)
{
    atomic_fetch_sub_explicit(&engine->chunk_resident[chunk], n, memory_order_relaxed);
    atomic_fetch_sub_explicit(&engine->resident, n, memory_order_acq_rel);
}

/* A few pages now and then do not mean that the guest can be held to its budget again. */
static bool room_recovered(struct engine *engine, unsigned n, int64_t resident, int64_t budget)
{
    uint64_t now = units_now_us();

    if (now > engine->window_us + ROOM_WINDOW_US) {
        engine->window_us = now;
        engine->window_pages = 0;
    }
    engine->window_pages += n;
    return resident <= budget || engine->window_pages >= ROOM_WINDOW_PAGES;
}

void room_freed(struct engine *engine, unsigned n)
{
    atomic_store_explicit(&engine->freed_us, units_now_us(), memory_order_relaxed);
    pthread_mutex_lock(&engine->limit_lock);
    int64_t resident = atomic_load_explicit(&engine->resident, memory_order_acquire);
    int64_t budget = atomic_load_explicit(&engine->budget, memory_order_relaxed);
    int64_t limit = atomic_load_explicit(&engine->limit, memory_order_relaxed);
    if (atomic_load_explicit(&engine->stuck, memory_order_relaxed) &&
        room_recovered(engine, n, resident, budget)) {
        atomic_store_explicit(&engine->stuck, false, memory_order_release);
        limit = resident + n;
        log_info("page-out makes room again");
    }
    limit -= (n + 1) / 2;
    if (limit < budget || resident <= budget) { /* once under the budget, never over it again */
        limit = budget;
    }
    atomic_store_explicit(&engine->limit, limit, memory_order_relaxed);
    pthread_mutex_unlock(&engine->limit_lock);
    if (atomic_load_explicit(&engine->parked, memory_order_acquire)) {
        fault_kick(engine);
    }
}

void room_stuck(struct engine *engine, const char *why)
{
    uint64_t now = units_now_us();

    if (atomic_exchange_explicit(&engine->stuck, true, memory_order_acq_rel)) {
        return;
    }
    pthread_mutex_lock(&engine->limit_lock);
    bool tell = !engine->stuck_told_us || now > engine->stuck_told_us + ROOM_TELL_US;
    engine->stuck_told_us = tell ? now : engine->stuck_told_us;
    pthread_mutex_unlock(&engine->limit_lock);
    if (tell) {
        log_error("the guest goes over its budget: %s", why);
        engine_event(engine, "OVER_BUDGET", json_pack("{s:s}", "reason", why));
    }
    fault_kick(engine);
}

int room_set(struct engine *engine, uint64_t budget, uint64_t low, uint64_t high,
             struct reason *reason)
{
    if (!budget || low > high || high > budget || budget > INT64_MAX) {
        return reason_set(reason, -EINVAL,
                          "the limits must be low %" PRIu64 " <= high %" PRIu64
                          " <= budget %" PRIu64,
                          low, high, budget);
    }
    int64_t pages = (int64_t)(budget / PAGE_BYTES);
    pthread_mutex_lock(&engine->limit_lock);
    int64_t resident = atomic_load_explicit(&engine->resident, memory_order_acquire);
    atomic_store_explicit(&engine->budget, pages, memory_order_relaxed);
    atomic_store_explicit(&engine->low, (int64_t)(low / PAGE_BYTES), memory_order_relaxed);
    atomic_store_explicit(&engine->high, (int64_t)(high / PAGE_BYTES), memory_order_relaxed);
    atomic_store_explicit(&engine->limit, pages > resident ? pages : resident,
                          memory_order_relaxed);
    pthread_mutex_unlock(&engine->limit_lock);
    return 0;
}
