// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_watch.c - is a page in use?  Asked only before it may be paged out
 *
 * A pager does not see accesses to pages that are mapped.  So page-out has the pages that it may want to take
 * next marked as idle (PAGE_IDLE) and unmapped (QEMU zaps them; they stay in the memfd).  One that is
 * touched is mapped again by the kernel; when page-out comes again it looks (engine_look.c), and what is
 * still unmapped leaves.
 *
 * QEMU answers a zap when it is done, so this has a thread of its own.  A touch between mark and zap goes
 * unseen; if QEMU does not zap, all pages seem to be in use, and if its page tables cannot be looked at, none:
 * pages then leave in the order of the hand, which is worse a choice and nothing else.  Without
 * page-out nothing is asked and nothing costs.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/urgent.h"
#include "uffd-pager/install.h"

#define WATCH_WINDOWS 512u /* of 64 pages, that wait to be marked */
#define WATCH_RANGES 256u

struct watch_window {
    uint64_t first, mask;
};

struct watch {
    struct engine *engine;
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t pushed;
    bool stop, kicked; /* guarded by lock, as are the next two */
    unsigned n;
    struct watch_window waiting[WATCH_WINDOWS];
    struct watch_window window[WATCH_WINDOWS]; /* the thread's */
    union {
        struct handoff_ranges ranges;
        uint8_t room[sizeof(struct handoff_ranges) + WATCH_RANGES * sizeof(struct handoff_range)];
    } zap;
};

void watch_push(struct engine *engine, uint64_t first, uint64_t mask)
{
    struct watch *watch = engine->watch;

    pthread_mutex_lock(&watch->lock);
    if (watch->n < WATCH_WINDOWS) {
        watch->waiting[watch->n++] = (struct watch_window){.first = first, .mask = mask};
        if (watch->n == 1) {
            pthread_cond_signal(&watch->pushed);
        }
    }
    pthread_mutex_unlock(&watch->lock);
}

/* New pages are only asked about while memory is short. */
static bool watch_is_short(const struct engine *engine)
{
    int64_t high = atomic_load_explicit(&engine->high, memory_order_relaxed);

    return atomic_load_explicit(&engine->resident, memory_order_relaxed) >= high - high / 8;
}

void watch_kick(struct engine *engine)
{
    struct watch *watch = engine->watch;

    if (!watch_is_short(engine)) { /* to wake the thread for nothing would cost a fault more than itself */
        return;
    }
    pthread_mutex_lock(&watch->lock);
    watch->kicked = true;
    pthread_cond_signal(&watch->pushed);
    pthread_mutex_unlock(&watch->lock);
}

/* Wait for windows or a kick, and take all windows. Return: how many, -1 to end. */
static int watch_pop(struct watch *watch)
{
    pthread_mutex_lock(&watch->lock);
    while (watch->n == 0 && !watch->kicked && !watch->stop) {
        pthread_cond_wait(&watch->pushed, &watch->lock);
    }
    int n = watch->stop ? -1 : (int)watch->n;
    memcpy(watch->window, watch->waiting, watch->n * sizeof(watch->window[0]));
    watch->n = 0;
    watch->kicked = false;
    pthread_mutex_unlock(&watch->lock);
    return n;
}

static void watch_zap(struct watch *watch)
{
    struct engine *engine = watch->engine;
    struct handoff_ranges *ranges = &watch->zap.ranges;

    if (ranges->n && !engine_over(engine) && engine->config.pagemap >= 0) {
        int err = engine->config.zap(engine->config.opaque, ranges->range, ranges->n);
        if (err < 0) {
            log_debug("pages are chosen blindly: %s", strerror(-err));
        }
    }
    ranges->n = 0;
}

static void watch_add(struct watch *watch, const struct layout_block *block, uint64_t page,
                      uint64_t n)
{
    struct handoff_ranges *ranges = &watch->zap.ranges;
    struct handoff_range *last = ranges->n ? &ranges->range[ranges->n - 1] : NULL;
    uint64_t offset = page * PAGE_BYTES - block->flat;

    if (last && last->block == block->index && last->offset + last->length == offset) {
        last->length += n * PAGE_BYTES;
        return;
    }
    if (ranges->n == WATCH_RANGES) {
        watch_zap(watch);
    }
    ranges->range[ranges->n++] = (struct handoff_range){
        .block = block->index, .offset = offset, .length = n * PAGE_BYTES};
}

/*
 * Each range that is zapped interrupts all vCPUs.  Of a window that the hand has come to it is one, with
 * what is in between: that is unmapped already, or is looked at before.  Others in a window of arrivals may be
 * in use, and are left alone.
 */
static void watch_mark(struct watch *watch, const struct watch_window *window, bool whole)
{
    struct engine *engine = watch->engine;
    const struct layout_block *block = layout_by_flat(engine->layout, window->first * PAGE_BYTES);
    uint64_t marked = 0;

    if (whole) {
        look_window(engine, window->first);
    }
    for (unsigned i = 0; block && i < SWEEP_WINDOW; i++) {
        uint64_t page = window->first + i;
        if (window->mask >> i & 1 && page < page_end(block) &&
            pagemap_mark_idle(engine->map, page)) {
            marked |= (uint64_t)1 << i;
        }
    }
    while (marked) {
        unsigned from = (unsigned)__builtin_ctzll(marked);
        unsigned to = whole ? 63 - (unsigned)__builtin_clzll(marked) : from;
        watch_add(watch, block, window->first + from, to - from + 1);
        marked = whole ? 0 : marked & (marked - 1);
    }
}

static void watch_arrived(struct watch *watch)
{
    struct engine *engine = watch->engine;
    struct sweep_step step;

    while (watch_is_short(engine) && !engine_over(engine) &&
           sweep_probation(engine->sweep, &step)) {
        watch_mark(watch, &(struct watch_window){.first = step.first, .mask = step.watch}, false);
    }
}

static void *watch_main(void *arg)
{
    struct watch *watch = arg;
    int n;

    unhurried_thread();
    while ((n = watch_pop(watch)) >= 0) {
        for (int i = 0; i < n; i++) {
            watch_mark(watch, &watch->window[i], true);
        }
        watch_arrived(watch);
        watch_zap(watch);
    }
    return NULL;
}

int watch_start(struct engine *engine)
{
    if (!engine->sweep) {
        return 0;
    }
    struct watch *watch = calloc(1, sizeof(*watch));
    if (!watch) {
        return -ENOMEM;
    }
    watch->engine = engine;
    pthread_mutex_init(&watch->lock, NULL);
    pthread_cond_init(&watch->pushed, NULL);
    engine->watch = watch;
    int err = engine_thread(&watch->thread, "watch", 0, watch_main, watch);
    watch->started = err == 0;
    return err;
}

void watch_join(struct engine *engine)
{
    struct watch *watch = engine->watch;

    if (watch && watch->started) {
        pthread_mutex_lock(&watch->lock);
        watch->stop = true;
        pthread_cond_signal(&watch->pushed);
        pthread_mutex_unlock(&watch->lock);
        pthread_join(watch->thread, NULL);
        watch->started = false;
    }
}

void watch_free(struct engine *engine)
{
    struct watch *watch = engine->watch;

    if (watch) {
        pthread_mutex_destroy(&watch->lock);
        pthread_cond_destroy(&watch->pushed);
        engine->watch = NULL;
        free(watch);
    }
}
