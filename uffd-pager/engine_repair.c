// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_repair.c - make second copies where they are missing
 *
 * They are missing when a guest has just arrived (the move puts cold memory on one sub-host), and
 * when a sub-host is lost or comes back empty.  Each round:
 *
 *   drop    a place that cannot be counted on, or takes no pages, is taken off every chunk that has another
 *   tell    memory that is on one sub-host and nowhere else is told to the operator, before any is copied
 *   copy    chunk by chunk (chunk_move.c); half of the time belongs to the guest, but a chunk that
 *           page-out waits for comes first and at once (repair_hint())
 *
 * The page map has the new place only when all is there, so whoever dies in between, the next round,
 * of this worker or of the next, begins from what is true.  A sub-host that is dropped and comes back
 * is trimmed, and begins as an empty one.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "uffd-pager/backup.h"
#include "uffd-pager/chunk_move.h"
#include "uffd-pager/homes.h"
#include "uffd-pager/install.h"

#define REPAIR_HINTS 64u
#define REPAIR_ROUND_US 200000u
#define REPAIR_SCAN_PART 20u /* of the time may go into looking for work */
#define REPAIR_NAP_MAX_US 100000u
#define REPAIR_FENCE_US 10000000u

struct repair {
    struct engine *engine;
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stop; /* guarded by lock, as are hints */
    uint64_t hint[REPAIR_HINTS];
    unsigned n_hints;
    struct chunk_mover *mover; /* the rest: thread only */
    bool told;
};

void repair_hint(struct engine *engine, uint64_t chunk)
{
    struct repair *repair = engine->repair;
    bool known = false;

    if (!repair) {
        return;
    }
    pthread_mutex_lock(&repair->lock);
    for (unsigned i = 0; i < repair->n_hints; i++) {
        known = known || repair->hint[i] == chunk;
    }
    if (!known && repair->n_hints < REPAIR_HINTS) {
        repair->hint[repair->n_hints++] = chunk;
        pthread_cond_signal(&repair->changed);
    }
    pthread_mutex_unlock(&repair->lock);
}

static bool repair_next_hint(struct repair *repair, uint64_t *chunk)
{
    pthread_mutex_lock(&repair->lock);
    bool any = repair->n_hints > 0;
    if (any) {
        *chunk = repair->hint[--repair->n_hints];
    }
    pthread_mutex_unlock(&repair->lock);
    return any;
}

static bool repair_over(struct repair *repair)
{
    pthread_mutex_lock(&repair->lock);
    bool stop = repair->stop;
    pthread_mutex_unlock(&repair->lock);
    return stop || engine_over(repair->engine);
}

/* Until @us are over, or there is a hint, or an end. */
static void repair_wait(struct repair *repair, uint64_t us)
{
    struct timespec at;

    clock_gettime(CLOCK_MONOTONIC, &at);
    uint64_t ns = (uint64_t)at.tv_nsec + us * 1000;
    at.tv_sec += (time_t)(ns / 1000000000u);
    at.tv_nsec = (long)(ns % 1000000000u);
    pthread_mutex_lock(&repair->lock);
    while (!repair->stop && !repair->n_hints &&
           pthread_cond_timedwait(&repair->changed, &repair->lock, &at) == 0) {
    }
    pthread_mutex_unlock(&repair->lock);
}

/* ---- drop ---- */

static void repair_drop_host(struct engine *engine, unsigned index)
{
    for (uint64_t chunk = 0; chunk < engine->map->n_chunks; chunk++) {
        struct homes homes = homes_of(engine, chunk);
        if (homes_have(&homes, (uint8_t)index)) {
            homes_drop(engine, chunk, (uint8_t)index);
        }
    }
}

/*
 * One that has been dropped may be used again when its old copies are gone, and WRITEs of connections
 * that are no more cannot come.
 */
static void repair_clean(struct repair *repair, unsigned index)
{
    struct link_host *host = &repair->engine->hosts[index];

    if (!link_takes(host) || link_stale(host)) {
        return;
    }
    if (chunk_forget(repair->mover, index, 0, repair->engine->map->n_chunks) == 0) {
        atomic_store_explicit(&host->unclean, false, memory_order_release);
    }
}

static void repair_drop(struct repair *repair)
{
    struct engine *engine = repair->engine;

    for (unsigned i = 0; i < engine->config.n_subhosts; i++) {
        struct link_host *host = &engine->hosts[i];
        if (!homes_good(engine, (uint8_t)i) || link_unwritable(host)) {
            atomic_store_explicit(&host->unclean, true, memory_order_release);
            repair_drop_host(engine, i);
            atomic_store_explicit(&host->gone, false, memory_order_release);
        } else if (atomic_load(&host->unclean)) {
            repair_clean(repair, i);
        }
    }
}

/* ---- tell ---- */

static void repair_tell(struct repair *repair)
{
    struct engine *engine = repair->engine;
    uint64_t bytes = 0;
    char text[32];

    for (unsigned i = 0; i < engine->config.n_subhosts; i++) {
        uint64_t there = homes_at_risk(engine, i);
        link_note_risk(&engine->hosts[i], there);
        bytes += there;
    }
    if (bytes && !repair->told) {
        repair->told = true;
        log_warn("%s of the guest's memory is at risk: it is on one sub-host and nowhere else",
                 units_format_size(bytes, text, sizeof(text)));
        engine_event(engine, "MEMORY_AT_RISK", json_pack("{s:I}", "bytes", (json_int_t)bytes));
    } else if (!bytes && repair->told) {
        repair->told = false;
        log_info("no memory of the guest is at risk any more: it is in two places");
        engine_event(engine, "REDUNDANCY_RESTORED", json_object());
    }
    int err = engine->backup ? backup_failed(engine->backup) : 0;
    if (err) {
        log_error("the backup %s cannot be written: %s", engine->config.backup, strerror(-err));
        engine_event(engine, "BACKUP_FAILED", json_pack("{s:s}", "reason", strerror(-err)));
    }
}

/* ---- copy ---- */

static bool repair_may_take(const struct engine *engine, unsigned index)
{
    const struct link_host *host = &engine->hosts[index];

    return homes_stays(engine, index) && !atomic_load(&host->unclean) && !link_stale(host) &&
           link_takes(host) &&
           units_now_us() >= atomic_load_explicit(&host->fence_us, memory_order_acquire);
}

/*
 * A sub-host for another copy of @chunk: its slab's home, or the one with the most room.
 * @without: those that have refused.  Return: -1: none now.
 */
static int repair_target(struct engine *engine, uint64_t chunk, unsigned copy, const bool *without)
{
    uint8_t other = pagemap_home(engine->map, chunk, 1 - copy);
    uint8_t home = atomic_load(&pagemap_slab_of(engine->map, chunk)->home[copy]);
    uint64_t most = 0;
    int best = -1;

    if (home < engine->config.n_subhosts && home != other && !without[home] &&
        repair_may_take(engine, home)) {
        return home;
    }
    for (unsigned i = 0; i < engine->config.n_subhosts; i++) {
        struct link_host *host = &engine->hosts[i];
        if (i == other || without[i] || !repair_may_take(engine, i)) {
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

static bool repair_is_used(const struct engine *engine, uint64_t chunk)
{
    struct pagemap_counts counts;

    pagemap_count(engine->map, chunk * CHUNK_PAGES, CHUNK_PAGES, &counts);
    return counts.remote || counts.clean;
}

static bool repair_is_due(const struct engine *engine, uint64_t chunk)
{
    struct homes homes = homes_of(engine, chunk);
    bool stuck = homes.n == 1 && homes.place[0] != PAGEMAP_BACKUP &&
                 link_unwritable(&engine->hosts[homes.place[0]]);

    return homes.n > 0 && (homes.n < homes_wanted(engine) || stuck) && repair_is_used(engine, chunk);
}

/*
 * The copy that is missing is the second; but the backup is no first place if there can be another,
 * so it is both for a moment.
 */
static unsigned repair_copy(struct engine *engine, uint64_t chunk)
{
    unsigned copy = 1;

    pthread_mutex_lock(&engine->move_lock);
    if (pagemap_home(engine->map, chunk, 0) == PAGEMAP_BACKUP) {
        pagemap_set_home(engine->map, chunk, 1, PAGEMAP_BACKUP);
        copy = 0;
    }
    pthread_mutex_unlock(&engine->move_lock);
    return copy;
}

/* Return: 0, or -errno: not now. */
static int repair_chunk(struct repair *repair, uint64_t chunk)
{
    struct engine *engine = repair->engine;
    bool without[PAGEMAP_MAX_SUBHOSTS] = {false};
    unsigned copy = repair_copy(engine, chunk);
    bool to_backup = copy == 1 && engine->backup;
    int err = -ENOSPC;

    while (err == -ENOSPC) {
        int to = to_backup ? (int)PAGEMAP_BACKUP : repair_target(engine, chunk, copy, without);
        if (to < 0 || (to_backup && !backup_takes(engine->backup))) {
            return -ENOSPC;
        }
        err = chunk_move(repair->mover, chunk, copy, (uint8_t)to);
        if (!err) {
            atomic_store(&pagemap_slab_of(engine->map, chunk)->home[copy], (uint8_t)to);
        } else if (err == -ENOSPC && !to_backup) {
            without[to] = true;
        }
    }
    return err;
}

/* Return: false to end the round. */
static bool repair_hints(struct repair *repair)
{
    uint64_t chunk;
    int err = 0;

    while (!err && !repair_over(repair) && repair_next_hint(repair, &chunk)) {
        err = repair_is_due(repair->engine, chunk) ? repair_chunk(repair, chunk) : 0;
    }
    return !err && !repair_over(repair);
}

static void repair_round(struct repair *repair)
{
    struct engine *engine = repair->engine;
    int err = 0;

    for (uint64_t chunk = 0; chunk < engine->map->n_chunks && repair_hints(repair); chunk++) {
        uint64_t began = units_now_us();
        if (!repair_is_due(engine, chunk)) {
            continue;
        }
        err = repair_chunk(repair, chunk);
        if (err && err != -EBUSY && err != -EAGAIN) {
            return;
        }
        uint64_t took = units_now_us() - began;
        repair_wait(repair, took < REPAIR_NAP_MAX_US ? took : REPAIR_NAP_MAX_US);
        repair_drop(repair);
    }
}

static void *repair_main(void *arg)
{
    struct repair *repair = arg;

    while (!repair_over(repair)) {
        repair_drop(repair);
        uint64_t began = units_now_us();
        repair_tell(repair);
        uint64_t scan = (units_now_us() - began) * REPAIR_SCAN_PART;
        repair_round(repair);
        chunk_mover_rest(repair->mover);
        repair_wait(repair, scan > REPAIR_ROUND_US ? scan : REPAIR_ROUND_US);
    }
    return NULL;
}

/* ---- beginning and end ---- */

int repair_start(struct engine *engine, bool recover)
{
    pthread_condattr_t attr;

    if (engine->config.redundancy == ENGINE_REDUNDANCY_NONE) {
        return 0;
    }
    struct repair *repair = calloc(1, sizeof(*repair));
    if (!repair) {
        return -ENOMEM;
    }
    repair->engine = engine;
    pthread_mutex_init(&repair->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&repair->changed, &attr);
    pthread_condattr_destroy(&attr);
    engine->repair = repair;
    for (unsigned i = 0; recover && i < engine->config.n_subhosts; i++) {
        atomic_store(&engine->hosts[i].stale_us, units_now_us() + REPAIR_FENCE_US);
    }
    repair->mover = chunk_mover_new(engine);
    int err = repair->mover ? engine_thread(&repair->thread, "repair", 0, repair_main, repair)
                            : -ENOMEM;
    repair->started = err == 0;
    return err;
}

void repair_join(struct engine *engine)
{
    struct repair *repair = engine->repair;

    if (repair && repair->started) {
        pthread_mutex_lock(&repair->lock);
        repair->stop = true;
        pthread_cond_signal(&repair->changed);
        pthread_mutex_unlock(&repair->lock);
        pthread_join(repair->thread, NULL);
        repair->started = false;
    }
}

void repair_free(struct engine *engine)
{
    struct repair *repair = engine->repair;

    if (repair) {
        engine->repair = NULL;
        chunk_mover_free(repair->mover);
        pthread_mutex_destroy(&repair->lock);
        pthread_cond_destroy(&repair->changed);
        free(repair);
    }
}
