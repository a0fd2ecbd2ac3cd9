// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_drain.c - empty a sub-host while the guest runs
 *
 * A sub-host that is being drained gets no more pages (place_takes()), and this thread moves the
 * chunks it has to others, one at a time (chunk_move.c).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "uffd-pager/chunk_move.h"
#include "uffd-pager/engine_impl.h"

#define DRAIN_PAUSE_MAX_US 100000u
#define DRAIN_RETRY_MS 500

struct drain {
    struct engine *engine;
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stop;                  /* guarded by lock */
    struct chunk_mover *mover;  /* the rest: thread only */
    uint64_t *emptied;          /* bitmap of sub-hosts: nothing is left, all was trimmed */
    bool told_full;
};

static void drain_nap(uint64_t us)
{
    struct timespec nap = {.tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000};

    nanosleep(&nap, NULL);
}

static bool drain_wanted(const struct engine *engine, unsigned index)
{
    return atomic_load_explicit(&engine->hosts[index].draining, memory_order_acquire);
}

/* ---- where to ---- */

static bool drain_may_take(const struct engine *engine, unsigned index)
{
    const struct link_host *host = &engine->hosts[index];

    return !drain_wanted(engine, index) &&
           !atomic_load_explicit(&host->trouble_us, memory_order_relaxed) &&
           units_now_us() >= atomic_load_explicit(&host->fence_us, memory_order_acquire);
}

/* The sub-host with the most room of those that stay; -1: none. @without: those that have refused. */
static int drain_target(struct drain *drain, uint64_t chunk, const bool *without)
{
    struct engine *engine = drain->engine;
    uint8_t home = atomic_load(&pagemap_slab_of(engine->map, chunk)->home[0]);
    uint64_t most = 0;
    int best = -1;

    if (home < engine->config.n_subhosts && !without[home] && drain_may_take(engine, home)) {
        return home;
    }
    for (unsigned i = 0; i < engine->config.n_subhosts; i++) {
        struct link_host *host = &engine->hosts[i];
        if (without[i] || !drain_may_take(engine, i)) {
            continue;
        }
        link_ask_room(host); /* for the next one: an answer of the last second will do for this */
        uint64_t room = atomic_load(&host->room_us) ? atomic_load(&host->room) : LINK_ROOM_UNKNOWN;
        room = room == LINK_ROOM_UNKNOWN ? 1 : room;
        if (room >= most) {
            best = (int)i;
            most = room;
        }
    }
    return best;
}

static int drain_move(struct drain *drain, uint64_t chunk, unsigned from)
{
    struct engine *engine = drain->engine;
    bool without[PAGEMAP_MAX_SUBHOSTS] = {false};
    int to;

    while ((to = drain_target(drain, chunk, without)) >= 0) {
        int err = chunk_move(drain->mover, chunk, 0, (uint8_t)to);
        if (!err) {
            atomic_store(&pagemap_slab_of(engine->map, chunk)->home[0], (uint8_t)to);
        }
        if (err != -ENOSPC) {
            return err;
        }
        without[to] = true;
    }
    if (!drain->told_full) {
        drain->told_full = true;
        log_error("sub-host '%s' cannot be emptied: the others have no room",
                  engine->config.subhost[from].name);
        engine_event(engine, "DRAIN_STALLED",
                     json_pack("{s:s, s:s}", "subhost", engine->config.subhost[from].name, "reason",
                               "the other sub-hosts have no room"));
    }
    return -ENOSPC;
}

/* ---- the thread ---- */

static void drain_trim_all(struct drain *drain, unsigned index)
{
    int err = chunk_trim_all(drain->mover, index);

    if (!err) {
        drain->emptied[index / 64] |= (uint64_t)1 << (index % 64);
        log_info("sub-host '%s' is empty", drain->engine->config.subhost[index].name);
        engine_event(drain->engine, "SUBHOST_EMPTY",
                     json_pack("{s:s}", "subhost", drain->engine->config.subhost[index].name));
    }
}

/* Return: true if all of it was moved. */
static bool drain_subhost(struct drain *drain, unsigned index)
{
    struct engine *engine = drain->engine;
    bool all = true;

    /* What page-out has begun by now is seen; what it begins from now on goes elsewhere. */
    pthread_mutex_lock(&engine->move_lock);
    pthread_mutex_unlock(&engine->move_lock);
    for (uint64_t chunk = 0; chunk < engine->map->n_chunks; chunk++) {
        if (engine_over(engine) || !drain_wanted(engine, index)) {
            return false;
        }
        if (atomic_load(&engine->map->subhost[chunk]) == index) {
            uint64_t began = units_now_us();
            int err = drain_move(drain, chunk, index);
            uint64_t took = units_now_us() - began;
            /* Half of the time, and of the sub-hosts, belongs to the guest. */
            drain_nap(took < DRAIN_PAUSE_MAX_US ? took : DRAIN_PAUSE_MAX_US);
            all = all && !err;
            if (err == -ENOSPC || err == -ENOTCONN) {
                return false;
            }
        }
    }
    if (all) {
        drain->told_full = false;
        drain_trim_all(drain, index);
    }
    return all;
}

/* Return: true if something is still to be done. */
static bool drain_round(struct drain *drain)
{
    bool more = false;

    for (unsigned i = 0; i < drain->engine->config.n_subhosts; i++) {
        uint64_t bit = (uint64_t)1 << (i % 64);
        if (!drain_wanted(drain->engine, i)) {
            drain->emptied[i / 64] &= ~bit;
        } else if (!(drain->emptied[i / 64] & bit)) {
            drain_subhost(drain, i);
            more = more || !(drain->emptied[i / 64] & bit);
        }
    }
    return more;
}

static void *drain_main(void *arg)
{
    struct drain *drain = arg;

    pthread_mutex_lock(&drain->lock);
    while (!drain->stop) {
        pthread_mutex_unlock(&drain->lock);
        bool more = drain_round(drain);
        if (!more) {
            chunk_mover_rest(drain->mover);
        }
        pthread_mutex_lock(&drain->lock);
        struct timespec at;
        clock_gettime(CLOCK_REALTIME, &at);
        at.tv_sec += (at.tv_nsec + DRAIN_RETRY_MS * 1000000L) / 1000000000L;
        at.tv_nsec = (at.tv_nsec + DRAIN_RETRY_MS * 1000000L) % 1000000000L;
        if (drain->stop) {
            break;
        }
        if (more) {
            pthread_cond_timedwait(&drain->changed, &drain->lock, &at);
        } else {
            pthread_cond_wait(&drain->changed, &drain->lock);
        }
    }
    pthread_mutex_unlock(&drain->lock);
    return NULL;
}

static void drain_free(struct drain *drain)
{
    chunk_mover_free(drain->mover);
    pthread_mutex_destroy(&drain->lock);
    pthread_cond_destroy(&drain->changed);
    free(drain->emptied);
    free(drain);
}

int drain_start(struct engine *engine)
{
    struct drain *drain = calloc(1, sizeof(*drain));
    int err = -ENOMEM;

    if (!drain) {
        return err;
    }
    drain->engine = engine;
    pthread_mutex_init(&drain->lock, NULL);
    pthread_cond_init(&drain->changed, NULL);
    drain->mover = chunk_mover_new(engine);
    drain->emptied = calloc(PAGEMAP_MAX_SUBHOSTS / 64 + 1, sizeof(*drain->emptied));
    if (drain->mover && drain->emptied) {
        err = engine_thread(&drain->thread, "drain", 0, drain_main, drain);
    }
    if (err < 0) {
        drain_free(drain);
        return err;
    }
    drain->started = true;
    engine->drain = drain;
    return 0;
}

void drain_join(struct engine *engine)
{
    struct drain *drain = engine->drain;

    if (drain) {
        pthread_mutex_lock(&drain->lock);
        drain->stop = true;
        pthread_cond_signal(&drain->changed);
        pthread_mutex_unlock(&drain->lock);
        pthread_join(drain->thread, NULL);
        drain_free(drain);
        engine->drain = NULL;
    }
}

int engine_drain(struct engine *engine, unsigned subhost, bool drain, struct reason *reason)
{
    unsigned others = 0;

    for (unsigned i = 0; i < engine->config.n_subhosts; i++) {
        others += i != subhost && !drain_wanted(engine, i);
    }
    if (drain && !others) {
        return reason_set(reason, -ENOSPC, "the guest has no other sub-host that could take its pages");
    }
    atomic_store_explicit(&engine->hosts[subhost].draining, drain, memory_order_release);
    pthread_mutex_lock(&engine->drain->lock);
    pthread_cond_signal(&engine->drain->changed);
    pthread_mutex_unlock(&engine->drain->lock);
    return 0;
}
