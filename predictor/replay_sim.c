// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * replay_sim.c - paging, simulated: a policy as the pager would use it
 *
 * A miss brings one page, then what the prefetch asks for as far as there is room.  When local memory is
 * full, pages leave until a 64th of it is free: whole chunks, the predictor's victims first, or what the
 * sweep says.  Page-ins are always noted.  Of other accesses the chunk policies see those to pages that
 * are watched in this period, or all; the sweep sees the first to a page that it has had marked.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/units.h"
#include "predictor/policy.h"
#include "predictor/replay_impl.h"

#define MAX_VICTIMS 64

static void sim_mark(struct sim *sim, const struct sweep_step *step)
{
    for (uint64_t pages = step->watch; pages; pages &= pages - 1) {
        uint8_t *flags = &sim->page[step->first + (unsigned)__builtin_ctzll(pages)];
        *flags |= PAGE_MARKED;
    }
}

static void sim_page_in(struct sim *sim, uint64_t page, uint8_t flags)
{
    sim->page[page] = PAGE_HERE | flags;
    atomic_fetch_add(&sim->in_chunk[page / CHUNK_PAGES], 1);
    sim->resident++;
    if (sim->sweep && sweep_arrived(sim->sweep, page)) {
        struct sweep_step step;
        while (sweep_probation(sim->sweep, &step)) {
            sim_mark(sim, &step);
        }
    }
}

/*
 * What the pager knows of a guess: it was marked when it came.  Whether an access cleared that, it
 * sees when it looks at the page, or pages it out.
 */
static void sim_tell(struct sim *sim, uint64_t page, bool leaves)
{
    bool used = !(sim->page[page] & PAGE_MARKED);

    if (sim->page[page] & PAGE_UNTOLD && (used || leaves)) {
        predictor_prefetch_outcome(sim->predictor, page, used);
        sim->page[page] &= (uint8_t)~PAGE_UNTOLD;
    }
}

static void sim_page_out(struct sim *sim, uint64_t page)
{
    uint8_t *flags = &sim->page[page];

    sim->result->page_outs++;
    sim->result->sent += (*flags & PAGE_DIRTY) != 0;
    sim->result->wasted += (*flags & PAGE_UNUSED) != 0;
    sim_tell(sim, page, true);
    *flags = PAGE_KNOWN | (*flags & PAGE_UNUSED ? 0 : PAGE_USED);
    atomic_fetch_sub(&sim->in_chunk[page / CHUNK_PAGES], 1);
    sim->resident--;
}

static void sim_page_out_chunk(struct sim *sim, uint64_t chunk)
{
    for (uint64_t page = chunk * CHUNK_PAGES; page < (chunk + 1) * CHUNK_PAGES; page++) {
        if (sim->page[page] & PAGE_HERE) {
            sim_page_out(sim, page);
        } else {
            sim->page[page] &= (uint8_t)~PAGE_USED;
        }
    }
}

static void sim_sweep(struct sim *sim)
{
    struct sweep_step step;

    if (!sweep_next(sim->sweep, sim->options->local_pages, &step)) {
        return;
    }
    for (unsigned i = 0; i < SWEEP_WINDOW; i++) {
        uint64_t bit = (uint64_t)1 << i;
        if (step.leave & bit && sim->page[step.first + i] & PAGE_HERE) {
            sim_page_out(sim, step.first + i);
        }
    }
    sim_mark(sim, &step);
}

static void sim_make_room(struct sim *sim)
{
    uint64_t local = sim->options->local_pages, spare = local / 64 ? local / 64 : 1;
    uint64_t chunks[MAX_VICTIMS];

    if (sim->resident < local) {
        return;
    }
    while (sim->resident + spare > local) {
        uint64_t want = sim->resident + spare - local;
        if (sim->sweep) {
            sim_sweep(sim);
            continue;
        }
        size_t n = predictor_victims(sim->predictor, sim->in_chunk, want, chunks, MAX_VICTIMS);
        for (size_t i = 0; i < n; i++) {
            sim_page_out_chunk(sim, chunks[i]);
        }
    }
}

static void sim_prefetch(struct sim *sim, uint64_t page)
{
    uint64_t pages[MAX_PREFETCH];
    unsigned max = sim->options->prefetch < MAX_PREFETCH ? sim->options->prefetch : MAX_PREFETCH;
    size_t n = max ? prefetch_propose(sim, page, pages, max) : 0;
    bool guesses = sim->sweep && sim->options->prefetcher == REPLAY_PAGER &&
                   predictor_prefetch_guesses(sim->predictor, page);
    uint8_t flags = PAGE_UNUSED | (guesses ? PAGE_MARKED | PAGE_UNTOLD : 0);

    for (size_t i = 0; i < n && sim->resident < sim->options->local_pages; i++) {
        if (pages[i] < sim->trace->n_pages && !(sim->page[pages[i]] & PAGE_HERE) &&
            (!sim->options->fresh || sim->page[pages[i]] & PAGE_KNOWN)) {
            sim_page_in(sim, pages[i], flags);
            sim->result->prefetched++;
        }
    }
}

static bool sim_watched(const struct sim *sim, uint64_t page)
{
    unsigned watch = sim->options->watch;

    return !watch || policy_mix(page ^ policy_mix(sim->period)) % CHUNK_PAGES < watch;
}

static void sim_miss(struct sim *sim, uint64_t page)
{
    bool fill = sim->options->fresh && !(sim->page[page] & PAGE_KNOWN);

    sim->result->misses += !fill;
    predictor_note(sim->predictor, page / CHUNK_PAGES, PREDICTOR_FAULT);
    sim_make_room(sim);
    sim_page_in(sim, page, fill ? PAGE_DIRTY : 0);
    if (!fill) {
        sim_prefetch(sim, page);
    }
}

static void sim_access(struct sim *sim, uint64_t page, bool written)
{
    if (!(sim->page[page] & PAGE_HERE)) {
        sim_miss(sim, page);
    } else if (!sim->sweep && sim_watched(sim, page)) {
        predictor_note(sim->predictor, page / CHUNK_PAGES,
                       written ? PREDICTOR_WRITE : PREDICTOR_READ);
    }
    if (sim->page[page] & PAGE_UNUSED) {
        prefetch_used(sim, page);
    }
    sim->result->sampled += (sim->page[page] & PAGE_MARKED) != 0;
    sim->page[page] &= (uint8_t) ~(PAGE_UNUSED | PAGE_MARKED);
    if (written) {
        sim->page[page] |= PAGE_DIRTY;
    }
}

static enum sweep_state sim_state(void *opaque, uint64_t page)
{
    struct sim *sim = opaque;

    if (!(sim->page[page] & PAGE_HERE)) {
        return SWEEP_ABSENT;
    }
    sim_tell(sim, page, false);
    return sim->page[page] & PAGE_MARKED ? SWEEP_IDLE : SWEEP_TOUCHED;
}

static bool sim_new(struct sim *sim, const char *policy)
{
    sim->n_chunks = (sim->trace->n_pages + CHUNK_PAGES - 1) / CHUNK_PAGES;
    sim->predictor = predictor_new(policy, sim->n_chunks, sim->options->seed);
    sim->page = calloc(sim->n_chunks + 1, CHUNK_PAGES);
    sim->in_chunk = calloc(sim->n_chunks + 1, sizeof(*sim->in_chunk));
    if (!sim->predictor || !sim->page || !sim->in_chunk) {
        return false;
    }
    if (predictor_sweeps(sim->predictor)) {
        struct sweep_view view = {.n_pages = sim->n_chunks * CHUNK_PAGES,
                                  .resident = sim->in_chunk,
                                  .state = sim_state,
                                  .opaque = sim};
        sim->sweep = sweep_new(&view);
        return sim->sweep != NULL;
    }
    return true;
}

int replay_policy(const struct trace *trace, const char *policy,
                  const struct replay_options *options, struct replay_result *result)
{
    struct sim sim = {.trace = trace, .options = options, .result = result};
    int err = -ENOMEM;

    memset(result, 0, sizeof(*result));
    if (sim_new(&sim, policy)) {
        err = 0;
        for (size_t i = 0; i < trace->n; i++) {
            if (trace->event[i] == TRACE_TICK) {
                predictor_tick(sim.predictor);
                sim.period++;
            } else {
                sim_access(&sim, trace->event[i] >> 1, trace->event[i] & 1);
            }
        }
        for (uint64_t i = 0; i < sim.n_chunks * CHUNK_PAGES; i++) {
            result->wasted += (sim.page[i] & PAGE_UNUSED) != 0;
        }
    }
    predictor_free(sim.predictor);
    sweep_free(sim.sweep);
    free(sim.page);
    free(sim.in_chunk);
    return err;
}
