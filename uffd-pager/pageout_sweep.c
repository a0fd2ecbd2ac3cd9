// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * pageout_sweep.c - victims by page
 *
 * The sweep (predictor/sweep.h) goes through resident pages, 64 at a time.  Those it wants to know about are
 * handed to the watch thread, which marks them and takes their mapping away; those that were not accessed
 * since they were marked leave as a batch.  Pages that cannot leave now, because their sub-host takes
 * nothing or their chunk is fenced, are passed over: the hand comes again.
 */
#include "uffd-pager/pageout.h"

#define SWEEP_STEPS 1024u /* in a row without one that leaves; then the sub-hosts' answers come first */

/* engine.move_lock held: begin a batch of what is to leave, if it still may. */
static int sweep_leave_locked(struct pageout *pageout)
{
    struct engine *engine = pageout->engine;
    struct sweep_step *step = &pageout->step;
    const struct layout_block *block = layout_by_flat(engine->layout, step->first * PAGE_BYTES);
    int leaving = 0;
    struct pageout_to to;
    uint64_t chunk = page_chunk(step->first);
    bool may = block && pageout_is_candidate(pageout, chunk, place_any(pageout)) &&
               pageout_assign(pageout, chunk, &to);
    enum pageout_turn turn = may ? pageout_turn_of(pageout, &to) : PAGEOUT_SKIP;

    if (turn == PAGEOUT_WAIT) {
        return -1;
    }
    if (turn == PAGEOUT_GO) {
        uint64_t n = page_end(block) - step->first;
        n = n < PAGEOUT_BATCH_PAGES ? n : PAGEOUT_BATCH_PAGES;
        leaving = (int)batch_begin(pageout, &to, step->first, (unsigned)n, step->leave);
    }
    step->leave = 0;
    return leaving;
}

/* Begin a batch of what is to leave. Return: pages, 0 if none can, -1 to wait for answers first. */
static int sweep_leave(struct pageout *pageout)
{
    pthread_mutex_lock(&pageout->engine->move_lock);
    int leaving = sweep_leave_locked(pageout);
    pthread_mutex_unlock(&pageout->engine->move_lock);
    return leaving;
}

void sweep_fill(struct pageout *pageout)
{
    struct engine *engine = pageout->engine;
    struct sweep_step *step = &pageout->step;
    unsigned steps = 0;

    while (pageout->now_us >= pageout->idle_until_us && pageout_excess(pageout) > 0) {
        if (step->leave) {
            int leaving = sweep_leave(pageout);
            if (leaving < 0) {
                return;
            }
            steps = leaving ? 0 : steps;
            continue;
        }
        int64_t high = atomic_load_explicit(&engine->high, memory_order_relaxed);
        if (++steps > SWEEP_STEPS || !sweep_next(engine->sweep, (uint64_t)high, step)) {
            pageout->idle_until_us = pageout->used ? 0 : pageout->now_us + PAGEOUT_IDLE_US;
            return;
        }
        if (step->watch) {
            watch_push(engine, step->first, step->watch);
        }
    }
}
