// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_drain.c - take memory away from sub-hosts while the guest runs
 *
 * Two reasons: the operator wants a sub-host empty (engine_drain()); or a sub-host is short of memory
 * itself and asks for slabs back (`wanted` of region-query, see link_host.c).  For both, one thread moves
 * chunks to the guest's other sub-hosts, one at a time (chunk_move.c).  A sub-host that is being drained gets
 * no more pages (place_takes()); one that is short refuses new ones by itself.
 *
 * Which sub-hosts are drained is in the page map's header: the next worker goes on.  What a sub-host has asked
 * for is not: it asks again.
 *
 * For a slab the pager chooses the place as page-out does (pageout_place.c).  If no sub-host has room, a drain
 * waits and the operator is told; a slab that was asked for is fetched to this host if there is room below
 * the low watermark, else the sub-host is told that it cannot have it (`region-refuse`).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "uffd-pager/chunk_move.h"
#include "uffd-pager/chunk_pull.h"
#include "uffd-pager/pageout.h"
#include "uffd-pager/slab_return.h"

#define DRAIN_PAUSE_MAX_US 100000u
#define DRAIN_RETRY_MS 500
#define DRAIN_RETURN_MS 2000 /* between two looks at slabs that are not needed any more (slab_return.h) */
#define DRAIN_FRESH_US 500000u /* how long an answer about room serves */
#define DRAIN_ROOM_US 700000u  /* how long one is waited for */
#define DRAIN_NAP_US 1000u
#define DRAIN_REFUSAL_US 10000000u
#define DRAIN_GIVEN_US 5000000u /* what was lent by RDMA is freed some time after the last TRIM */

struct drain {
    struct engine *engine;
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stop, kicked;        /* guarded by lock */
    _Atomic uint64_t *given_us; /* [n_slabs] when it was given back */
    _Atomic uint8_t *wanted;  /* [n_slabs] number of the sub-host that wants the slab back, plus 1; 0: none */
    struct chunk_mover *mover; /* the rest: thread only */
    uint64_t *emptied;        /* bitmap of sub-hosts: nothing is left, all was trimmed */
    bool told_full;
    uint64_t cursor; /* of slab_return() */
    uint64_t refusal_us; /* nothing is said of another one before */
    unsigned seed;
};

static void drain_nap(uint64_t us)
{
    struct timespec nap = {.tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000};

    nanosleep(&nap, NULL);
}

static bool drain_is_asked(const struct engine *engine, unsigned index)
{
    return atomic_load_explicit(&engine->hosts[index].draining, memory_order_acquire);
}

static bool drain_is_on(const struct engine *engine, uint64_t chunk, unsigned index)
{
    return pagemap_home(engine->map, chunk, 0) == index ||
           pagemap_home(engine->map, chunk, 1) == index;
}

/* ---- where to ---- */

static bool drain_may_take(const struct engine *engine, unsigned index)
{
    const struct link_host *host = &engine->hosts[index];

    return !drain_is_asked(engine, index) &&
           link_takes(host) &&
           !atomic_load_explicit(&host->unclean, memory_order_acquire) &&
           units_now_us() >= atomic_load_explicit(&host->fence_us, memory_order_acquire);
}

/* Is it only for now that it takes nothing? */
static bool drain_may_take_later(const struct engine *engine, unsigned index)
{
    return !drain_is_asked(engine, index) && !drain_may_take(engine, index) &&
           !link_host_lost(&engine->hosts[index]) && !link_unwritable(&engine->hosts[index]);
}

/* Return: false if it does not say in time. */
static bool drain_room(struct engine *engine, unsigned index, uint64_t *room)
{
    struct link_host *host = &engine->hosts[index];
    uint64_t since = units_now_us();
    uint64_t fresh = since - DRAIN_FRESH_US;

    while (atomic_load_explicit(&host->room_us, memory_order_acquire) < fresh) {
        if (engine_over(engine) || units_now_us() > since + DRAIN_ROOM_US) {
            return false;
        }
        link_ask_room(host);
        drain_nap(DRAIN_NAP_US);
    }
    *room = atomic_load_explicit(&host->room, memory_order_relaxed);
    return true;
}

/*
 * Of a few sub-hosts drawn at random the one with the most room, by weight; those without are crossed out.
 * Return: its number; -ENOSPC: none has room; -EAGAIN: none now.
 */
static int drain_draw(struct drain *drain, bool *without)
{
    const struct engine_config *config = &drain->engine->config;
    uint8_t list[PAGEMAP_MAX_SUBHOSTS];
    unsigned n = 0, drawn = 0;
    uint64_t most = 0;
    int best = -1;
    bool later = false;

    for (unsigned i = 0; i < config->n_subhosts; i++) {
        if (!without[i] && drain_may_take(drain->engine, i)) {
            list[n++] = (uint8_t)i;
        }
        later = later || (!without[i] && drain_may_take_later(drain->engine, i));
    }
    while (n > 0 && drawn < config->choices) {
        unsigned at = (unsigned)rand_r(&drain->seed) % n;
        unsigned index = list[at];
        uint64_t room;
        bool told = drain_room(drain->engine, index, &room);
        list[at] = list[--n];
        if (!told || room < PAGE_BYTES) {
            later = later || !told;
            without[index] = true;
            continue;
        }
        drawn++;
        if (best < 0 || place_better(config, index, room, (unsigned)best, most)) {
            best = (int)index;
            most = room;
        }
    }
    return best >= 0 ? best : later ? -EAGAIN : -ENOSPC;
}

/* A sub-host for the chunk's slab.  @without: those that are not asked.  Return: as drain_draw(). */
static int drain_target(struct drain *drain, uint64_t chunk, unsigned copy, bool *without)
{
    struct engine *engine = drain->engine;
    uint8_t home = atomic_load(&pagemap_slab_of(engine->map, chunk)->home[copy]);

    if (home < engine->config.n_subhosts && !without[home] && drain_may_take(engine, home)) {
        return home;
    }
    return drain_draw(drain, without);
}

/* Return: 0; -ENOSPC: no other sub-host has room; other -errno: later. */
static int drain_move(struct drain *drain, uint64_t chunk, unsigned from)
{
    const struct pagemap *map = drain->engine->map;
    bool without[PAGEMAP_MAX_SUBHOSTS] = {false};
    unsigned copy = pagemap_home(map, chunk, 0) == from ? 0 : 1;
    uint8_t other = pagemap_home(map, chunk, 1 - copy);
    int to;

    /* With no other sub-host that stays, one copy must do until there is (homes.h). */
    if (homes_wanted(drain->engine) == 1 && homes_drop(drain->engine, chunk, (uint8_t)from)) {
        return 0;
    }
    without[from] = true;
    if (other < drain->engine->config.n_subhosts) {
        without[other] = true;
    }
    while ((to = drain_target(drain, chunk, copy, without)) >= 0) {
        int err = chunk_move(drain->mover, chunk, copy, (uint8_t)to);
        if (!err) {
            atomic_store(&pagemap_slab_of(map, chunk)->home[copy], (uint8_t)to);
        }
        if (err != -ENOSPC) {
            return err;
        }
        without[to] = true;
    }
    return to;
}

/* ---- a sub-host that is to be empty ---- */

static void drain_tell_stalled(struct drain *drain, unsigned index)
{
    struct engine *engine = drain->engine;

    if (!drain->told_full) {
        drain->told_full = true;
        log_error("sub-host '%s' cannot be emptied: the others have no room",
                  engine->config.subhost[index].name);
        engine_event(engine, "DRAIN_STALLED",
                     json_pack("{s:s, s:s}", "subhost", engine->config.subhost[index].name, "reason",
                               "the other sub-hosts have no room"));
    }
}

static void drain_tell_empty(struct drain *drain, unsigned index)
{
    struct engine *engine = drain->engine;

    drain->emptied[index / 64] |= (uint64_t)1 << (index % 64);
    log_info("sub-host '%s' is empty", engine->config.subhost[index].name);
    engine_event(engine, "SUBHOST_EMPTY",
                 json_pack("{s:s}", "subhost", engine->config.subhost[index].name));
}

static void drain_subhost(struct drain *drain, unsigned index)
{
    struct engine *engine = drain->engine;
    bool all = true;

    /* What page-out has begun by now is seen; what it begins from now on goes elsewhere. */
    pthread_mutex_lock(&engine->move_lock);
    pthread_mutex_unlock(&engine->move_lock);
    for (uint64_t chunk = 0; chunk < engine->map->n_chunks; chunk++) {
        if (engine_over(engine) || !drain_is_asked(engine, index)) {
            return;
        }
        if (drain_is_on(engine, chunk, index)) {
            uint64_t began = units_now_us();
            int err = drain_move(drain, chunk, index);
            uint64_t took = units_now_us() - began;
            /* Half of the time, and of the sub-hosts, belongs to the guest. */
            drain_nap(took < DRAIN_PAUSE_MAX_US ? took : DRAIN_PAUSE_MAX_US);
            all = all && !err;
            if (err == -ENOSPC) {
                drain_tell_stalled(drain, index);
            }
            if (err == -ENOSPC || err == -ENOTCONN) {
                return;
            }
        }
    }
    if (all && chunk_forget(drain->mover, index, 0, engine->map->n_chunks) == 0 &&
        !engine_over(engine)) {
        drain->told_full = false;
        drain_tell_empty(drain, index);
    }
}

/* ---- a slab that a sub-host wants back ---- */

void drain_kick(struct engine *engine)
{
    struct drain *drain = engine->drain;

    pthread_mutex_lock(&drain->lock);
    drain->kicked = true;
    pthread_cond_signal(&drain->changed);
    pthread_mutex_unlock(&drain->lock);
}

void drain_want(struct engine *engine, unsigned index, uint64_t offset, uint64_t length)
{
    struct drain *drain = engine->drain;
    uint64_t bytes = CHUNK_BYTES << engine->map->slab_shift;
    bool news = false;

    /* Its slabs are of our size, or it does not know ours. */
    for (uint64_t slab = offset / bytes;
         slab < engine->map->n_slabs && slab * bytes < offset + length; slab++) {
        uint64_t given = atomic_load(&drain->given_us[slab]);
        if (given && units_now_us() < given + DRAIN_GIVEN_US) {
            continue;
        }
        news |= atomic_exchange(&drain->wanted[slab], (uint8_t)(index + 1)) != index + 1;
    }
    if (news) {
        drain_kick(engine);
    }
}

/* With a backup there is a place that is never full. */
static bool drain_leave_to_backup(struct drain *drain, uint64_t chunk, unsigned from)
{
    const struct pagemap *map = drain->engine->map;

    return (pagemap_home(map, chunk, 0) == PAGEMAP_BACKUP ||
            pagemap_home(map, chunk, 1) == PAGEMAP_BACKUP) &&
           homes_drop(drain->engine, chunk, (uint8_t)from);
}

/* Fetch what no other sub-host has room for. */
static int drain_bring_back(struct drain *drain, uint64_t chunk, unsigned from)
{
    uint8_t home = (uint8_t)from;
    int err = chunk_move(drain->mover, chunk, 0, PAGEMAP_NO_SUBHOST);

    if (!err) { /* what leaves again is to find another place */
        atomic_compare_exchange_strong(&pagemap_slab_of(drain->engine->map, chunk)->home[0], &home,
                                       (uint8_t)PAGEMAP_NO_SUBHOST);
    }
    return err;
}

static void drain_refuse(struct drain *drain, uint64_t slab, unsigned from)
{
    struct engine *engine = drain->engine;
    struct reason reason = {""};
    const char *why = "no other sub-host of the guest has room, and its main host has none either";

    if (units_now_us() > drain->refusal_us) {
        drain->refusal_us = units_now_us() + DRAIN_REFUSAL_US;
        log_warn("sub-host '%s' is short of memory, but cannot be relieved: %s",
                 engine->config.subhost[from].name, why);
    }
    int err = pull_tell(chunk_mover_puller(drain->mover), from, "region-refuse",
                        json_pack("{s:I, s:s}", "offset",
                                  (json_int_t)((slab << engine->map->slab_shift) * CHUNK_BYTES),
                                  "reason", why),
                        &reason);
    if (err) {
        log_debug("sub-host '%s': %s", engine->config.subhost[from].name, reason.text);
    }
}

/* Return: 0: it has the slab, or its refusal; -EAGAIN: later. */
static int drain_slab(struct drain *drain, uint64_t slab, unsigned from)
{
    struct engine *engine = drain->engine;
    uint64_t first = slab << engine->map->slab_shift;
    uint64_t end = first + ((uint64_t)1 << engine->map->slab_shift);

    end = end < engine->map->n_chunks ? end : engine->map->n_chunks;
    for (uint64_t chunk = first; chunk < end; chunk++) {
        if (engine_over(engine)) {
            return -EAGAIN;
        }
        if (!drain_is_on(engine, chunk, from)) {
            continue;
        }
        int err = drain_move(drain, chunk, from);
        if (err == -ENOSPC && drain_leave_to_backup(drain, chunk, from)) {
            err = 0;
        }
        err = err == -ENOSPC ? drain_bring_back(drain, chunk, from) : err;
        if (err == -ENOSPC) {
            drain_refuse(drain, slab, from);
            return 0;
        }
        if (err) {
            return -EAGAIN;
        }
    }
    if (chunk_forget(drain->mover, from, first, end) < 0) {
        return -EAGAIN;
    }
    atomic_store(&drain->given_us[slab], units_now_us());
    stats_add(&engine->stats.slabs_given_back, 1);
    return 0;
}

/* ---- the thread ---- */

/* Return: true if something is still to be done. */
static bool drain_round(struct drain *drain)
{
    struct engine *engine = drain->engine;
    bool more = pull_settle(chunk_mover_puller(drain->mover));

    for (uint64_t slab = 0; slab < engine->map->n_slabs; slab++) {
        uint8_t wanted = atomic_load_explicit(&drain->wanted[slab], memory_order_acquire);
        if (wanted && drain_slab(drain, slab, wanted - 1u) == 0) {
            atomic_compare_exchange_strong(&drain->wanted[slab], &wanted, 0);
        }
        more = more || atomic_load_explicit(&drain->wanted[slab], memory_order_acquire);
    }
    for (unsigned i = 0; i < engine->config.n_subhosts; i++) {
        uint64_t bit = (uint64_t)1 << (i % 64);
        if (!drain_is_asked(engine, i)) {
            drain->emptied[i / 64] &= ~bit;
        } else if (!(drain->emptied[i / 64] & bit)) {
            drain_subhost(drain, i);
            more = more || !(drain->emptied[i / 64] & bit);
        }
    }
    return chunk_tidy(drain->mover) || more;
}

/* The lock is held. */
static void drain_wait(struct drain *drain, unsigned ms)
{
    struct timespec at;

    clock_gettime(CLOCK_REALTIME, &at);
    at.tv_sec += ms / 1000;
    at.tv_nsec += (long)(ms % 1000) * 1000000;
    at.tv_sec += at.tv_nsec / 1000000000;
    at.tv_nsec %= 1000000000;
    if (!drain->stop && !drain->kicked) {
        pthread_cond_timedwait(&drain->changed, &drain->lock, &at);
    }
}

static void *drain_main(void *arg)
{
    struct drain *drain = arg;

    pthread_mutex_lock(&drain->lock);
    while (!drain->stop) {
        drain->kicked = false;
        pthread_mutex_unlock(&drain->lock);
        bool more = drain_round(drain);
        if (!more) {
            slab_return(drain->engine, drain->mover, &drain->cursor);
            chunk_mover_rest(drain->mover);
        }
        pthread_mutex_lock(&drain->lock);
        drain_wait(drain, more ? DRAIN_RETRY_MS : DRAIN_RETURN_MS);
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
    free((void *)drain->wanted);
    free((void *)drain->given_us);
    free(drain);
}

int drain_prepare(struct engine *engine)
{
    struct drain *drain = calloc(1, sizeof(*drain));

    if (!drain) {
        return -ENOMEM;
    }
    drain->engine = engine;
    drain->seed = (unsigned)units_now_us();
    pthread_mutex_init(&drain->lock, NULL);
    pthread_cond_init(&drain->changed, NULL);
    drain->wanted = calloc(engine->map->n_slabs, sizeof(*drain->wanted));
    drain->given_us = calloc(engine->map->n_slabs, sizeof(*drain->given_us));
    drain->emptied = calloc(PAGEMAP_MAX_SUBHOSTS / 64 + 1, sizeof(*drain->emptied));
    drain->mover = chunk_mover_new(engine);
    engine->drain = drain;
    return drain->wanted && drain->given_us && drain->emptied && drain->mover ? 0 : -ENOMEM;
}

int drain_start(struct engine *engine)
{
    struct drain *drain = engine->drain;
    pull_recover(engine);
    for (unsigned i = 0; i < engine->config.n_subhosts; i++) {
        if (pagemap_bit(engine->map->header->draining, i)) {
            log_info("sub-host '%s' is being emptied", engine->config.subhost[i].name);
            atomic_store(&engine->hosts[i].draining, true);
        }
    }
    int err = engine_thread(&drain->thread, "drain", 0, drain_main, drain);
    drain->started = err == 0;
    return err;
}

void drain_join(struct engine *engine)
{
    struct drain *drain = engine->drain;

    if (drain && drain->started) {
        pthread_mutex_lock(&drain->lock);
        drain->stop = true;
        pthread_cond_signal(&drain->changed);
        pthread_mutex_unlock(&drain->lock);
        pthread_join(drain->thread, NULL);
        drain->started = false;
    }
}

void drain_end(struct engine *engine)
{
    if (engine->drain) {
        drain_free(engine->drain);
        engine->drain = NULL;
    }
}

int engine_drain(struct engine *engine, unsigned subhost, bool drain, struct reason *reason)
{
    unsigned others = 0;

    for (unsigned i = 0; i < engine->config.n_subhosts; i++) {
        others += i != subhost && !drain_is_asked(engine, i);
    }
    if (drain && !others) {
        return reason_set(reason, -ENOSPC, "the guest has no other sub-host that could take its pages");
    }
    pagemap_set_bit(engine->map->header->draining, subhost, drain);
    atomic_store_explicit(&engine->hosts[subhost].draining, drain, memory_order_release);
    drain_kick(engine);
    return 0;
}
