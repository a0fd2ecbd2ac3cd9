// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_quiet.c - access history by chunk, in the background, at the lowest priority
 *
 * A rotating share of the resident chunks is looked at each period and then zapped (QEMU does it): what
 * is mapped when its turn comes again was touched meanwhile (engine_look.c).  The predictor's period ends
 * when all chunks have had their turn, or each second without sampling; its history is saved in the
 * page map, so a worker that follows a dead one has it.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "uffd-pager/install.h"

#define QUIET_TICK_US 1000000u
#define QUIET_SHARE 8u /* periods of a full rotation */
#define QUIET_RANGES 256u

struct quiet {
    struct engine *engine;
    pthread_t thread;
    bool started;
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
    while (!quiet->stop &&
           pthread_cond_timedwait(&quiet->changed, &quiet->lock, &at) != ETIMEDOUT) {
    }
    bool go = !quiet->stop;
    pthread_mutex_unlock(&quiet->lock);
    return go && !engine_over(quiet->engine);
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
    uint64_t touched = 0;

    if (!block || !atomic_load_explicit(&engine->chunk_resident[chunk], memory_order_relaxed)) {
        return true;
    }
    for (uint64_t page = chunk * CHUNK_PAGES; page < (chunk + 1) * CHUNK_PAGES; page += SWEEP_WINDOW) {
        touched |= page < page_end(block) ? look_window(engine, page) : 0;
    }
    if (!touched) {
        return true;
    }
    predictor_note(engine->predictor, chunk, PREDICTOR_READ);
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
    bool samples =
        engine->config.sample_period_ms && engine->config.zap && engine->config.pagemap >= 0;
    uint64_t period = samples ? (uint64_t)engine->config.sample_period_ms * 1000 : QUIET_TICK_US;

    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 19);
    while (quiet_wait(quiet, period)) {
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

int quiet_start(struct engine *engine)
{
    struct quiet *quiet = calloc(1, sizeof(*quiet));
    pthread_condattr_t attr;

    if (!quiet) {
        return -ENOMEM;
    }
    quiet->engine = engine;
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
