// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_quiet.c - work in the background, at the lowest priority
 *
 *   - After the start of a guest that has just arrived its hot pages are in the memfds but not mapped:
 *     each first touch would be a MINOR fault.  They are mapped here, hottest chunks first.
 *   - Access sampling: a rotating share of the resident chunks is zapped each period (QEMU does it);
 *     what is touched then raises a MINOR fault, which is noted, and the rest of that chunk is mapped
 *     here, so that sampling costs a chunk one fault or a few.
 *   - The predictor's period ends when all chunks have had their turn, or each second without
 *     sampling; its history is saved in the page map, so a worker that follows a dead one has it.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "uffd-pager/install.h"

#define QUIET_TICK_US 1000000u
#define QUIET_STEP_PAGES 64u /* busy together; a fault on them waits for the ioctl */
#define QUIET_SHARE 8u       /* periods of a full rotation */
#define QUIET_RANGES 256u
#define QUIET_MAP_US 20000u

struct quiet {
    struct engine *engine;
    pthread_t thread;
    bool started;
    bool premap;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stop;     /* guarded by lock */
    uint64_t hand; /* the next chunk to be sampled */
    union {
        struct handoff_ranges ranges;
        uint8_t room[sizeof(struct handoff_ranges) + QUIET_RANGES * sizeof(struct handoff_range)];
    } zap;
};

static bool quiet_wait(struct quiet *quiet, uint64_t us)
{
    struct timespec at;
    uint64_t until = units_now_us() + us;

    at.tv_sec = (time_t)(until / 1000000);
    at.tv_nsec = (long)(until % 1000000) * 1000;
    pthread_mutex_lock(&quiet->lock);
    if (!quiet->stop) {
        pthread_cond_timedwait(&quiet->changed, &quiet->lock, &at);
    }
    bool go = !quiet->stop;
    pthread_mutex_unlock(&quiet->lock);
    return go && !engine_over(quiet->engine);
}

void quiet_note(struct engine *engine, uint64_t chunk)
{
    predictor_note(engine->predictor, chunk, PREDICTOR_READ);
    if (atomic_load_explicit(&engine->chunk_flags[chunk], memory_order_relaxed) & CHUNK_SAMPLED &&
        atomic_fetch_and_explicit(&engine->chunk_flags[chunk], (uint8_t)~CHUNK_SAMPLED,
                                  memory_order_relaxed) &
            CHUNK_SAMPLED) {
        atomic_fetch_or_explicit(&engine->chunk_flags[chunk], CHUNK_MAP, memory_order_release);
        atomic_fetch_add_explicit(&engine->map_chunks, 1, memory_order_release);
    }
}

/* ---- mapping ---- */

/* Map the run of resident pages at @page. Return: the page after what was looked at. */
static uint64_t quiet_map_run(struct engine *engine, const struct layout_block *block,
                              uint64_t page, uint64_t end)
{
    uint8_t state = pagemap_get(engine->map, page);
    uint64_t n = 0;

    if ((state != PAGE_LOCAL && state != PAGE_CLEAN) || pagemap_idle(engine->map, page)) {
        return page + 1;
    }
    while (page + n < end && n < QUIET_STEP_PAGES && !pagemap_idle(engine->map, page + n) &&
           pagemap_lock(engine->map, page + n, state)) {
        n++;
    }
    if (n) {
        install_resident(engine, block, page, n, state);
    }
    return page + (n ? n : 1);
}

static void quiet_map_chunk(struct engine *engine, uint64_t chunk)
{
    const struct layout_block *block = layout_by_flat(engine->layout, chunk * CHUNK_BYTES);
    uint64_t end = (chunk + 1) * CHUNK_PAGES;

    if (!block) {
        return;
    }
    end = end < page_end(block) ? end : page_end(block);
    for (uint64_t page = chunk * CHUNK_PAGES; page < end && !engine_over(engine);) {
        page = quiet_map_run(engine, block, page, end);
    }
}

static void quiet_premap(struct engine *engine)
{
    for (int heat = 255; heat >= 0; heat--) {
        for (uint64_t chunk = 0; chunk < engine->map->n_chunks && !engine_over(engine); chunk++) {
            /* The history of the map is still as it came with the guest. */
            if (atomic_load_explicit(&engine->map->history[chunk], memory_order_relaxed) == heat &&
                atomic_load_explicit(&engine->chunk_resident[chunk], memory_order_relaxed)) {
                quiet_map_chunk(engine, chunk);
            }
        }
    }
}

static void quiet_map_sampled(struct engine *engine)
{
    for (uint64_t chunk = 0; chunk < engine->map->n_chunks &&
                             atomic_load_explicit(&engine->map_chunks, memory_order_acquire);
         chunk++) {
        if (atomic_load_explicit(&engine->chunk_flags[chunk], memory_order_relaxed) & CHUNK_MAP) {
            atomic_fetch_and_explicit(&engine->chunk_flags[chunk], (uint8_t)~CHUNK_MAP,
                                      memory_order_acq_rel);
            atomic_fetch_sub_explicit(&engine->map_chunks, 1, memory_order_relaxed);
            quiet_map_chunk(engine, chunk);
        }
    }
}

/* ---- sampling ---- */

static bool quiet_zap(struct quiet *quiet)
{
    struct engine *engine = quiet->engine;

    if (quiet->zap.ranges.n == 0) {
        return true;
    }
    int err = engine->config.zap(engine->config.opaque, quiet->zap.ranges.range,
                                 quiet->zap.ranges.n);
    quiet->zap.ranges.n = 0;
    return err == 0;
}

static bool quiet_sample_chunk(struct quiet *quiet, uint64_t chunk)
{
    struct engine *engine = quiet->engine;
    const struct layout_block *block = layout_by_flat(engine->layout, chunk * CHUNK_BYTES);

    if (!block || !atomic_load_explicit(&engine->chunk_resident[chunk], memory_order_relaxed)) {
        return true;
    }
    atomic_fetch_or_explicit(&engine->chunk_flags[chunk], CHUNK_SAMPLED, memory_order_relaxed);
    uint64_t offset = chunk * CHUNK_BYTES - block->flat;
    uint64_t length = block->size - offset < CHUNK_BYTES ? block->size - offset : CHUNK_BYTES;
    struct handoff_ranges *ranges = &quiet->zap.ranges;
    struct handoff_range *last = ranges->n ? &ranges->range[ranges->n - 1] : NULL;
    if (last && last->block == block->index && last->offset + last->length == offset) {
        last->length += length;
        return true;
    }
    ranges->range[ranges->n++] =
        (struct handoff_range){.block = block->index, .offset = offset, .length = length};
    return ranges->n < QUIET_RANGES || quiet_zap(quiet);
}

/* One period: the next share of all chunks. */
static void quiet_sample(struct quiet *quiet)
{
    struct engine *engine = quiet->engine;
    uint64_t share = (engine->map->n_chunks + QUIET_SHARE - 1) / QUIET_SHARE;
    bool good = true;

    quiet->zap.ranges.n = 0;
    for (uint64_t i = 0; i < share && good && quiet->hand < engine->map->n_chunks; i++) {
        good = quiet_sample_chunk(quiet, quiet->hand++);
    }
    good = good && quiet_zap(quiet);
    if (!good) {
        log_debug("sampling pauses: the guest's process does not zap now");
    }
}

static void quiet_tick(struct engine *engine)
{
    predictor_tick(engine->predictor);
    predictor_export(engine->predictor, (uint8_t *)engine->map->history);
}

static void *quiet_main(void *arg)
{
    struct quiet *quiet = arg;
    struct engine *engine = quiet->engine;
    bool samples = engine->config.sample_period_ms && engine->config.zap;
    uint64_t period = samples ? (uint64_t)engine->config.sample_period_ms * 1000 : QUIET_TICK_US;
    uint64_t next = units_now_us() + period;

    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 19);
    if (quiet->premap) {
        quiet_premap(engine);
    }
    while (quiet_wait(quiet, samples && period > QUIET_MAP_US ? QUIET_MAP_US : period)) {
        if (atomic_load_explicit(&engine->map_chunks, memory_order_relaxed)) {
            quiet_map_sampled(engine);
        }
        if (units_now_us() < next) {
            continue;
        }
        next = units_now_us() + period;
        if (samples) {
            quiet_sample(quiet);
        }
        if (!samples || quiet->hand >= engine->map->n_chunks) {
            quiet->hand = 0;
            quiet_tick(engine);
        }
    }
    return NULL;
}

int quiet_start(struct engine *engine, bool premap)
{
    struct quiet *quiet = calloc(1, sizeof(*quiet));
    pthread_condattr_t attr;

    if (!quiet) {
        return -ENOMEM;
    }
    quiet->engine = engine;
    quiet->premap = premap;
    pthread_mutex_init(&quiet->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&quiet->changed, &attr);
    pthread_condattr_destroy(&attr);
    engine->quiet = quiet;
    int err = engine_thread(&quiet->thread, "quiet", 0, quiet_main, quiet);
    quiet->started = err == 0;
    return err;
}

void quiet_join(struct engine *engine)
{
    struct quiet *quiet = engine->quiet;

    if (quiet && quiet->started) {
        pthread_mutex_lock(&quiet->lock);
        quiet->stop = true;
        pthread_cond_signal(&quiet->changed);
        pthread_mutex_unlock(&quiet->lock);
        pthread_join(quiet->thread, NULL);
        quiet->started = false;
    }
}

void quiet_free(struct engine *engine)
{
    struct quiet *quiet = engine->quiet;

    if (quiet) {
        pthread_mutex_destroy(&quiet->lock);
        pthread_cond_destroy(&quiet->changed);
        engine->quiet = NULL;
        free(quiet);
    }
}
