// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * replay_sim.c - paging, simulated: a policy as the pager would use it, and Belady's optimum
 *
 * The policy: all pages are remote at first.  A miss brings one page, then what the prefetch asks for
 * as far as there is room.  When local memory is full, whole chunks are paged out, the predictor's
 * victims first, until a 64th of it is free.  Page-ins are always noted; other accesses if the page is
 * watched in this period, as a sampler watches some pages of each chunk.
 *
 * The optimum: 4 KiB pages, no prefetch, always the page whose next use is farthest away; nobody can
 * do better without prefetching.  Next uses are found by one walk backwards; the farthest is the top
 * of a heap, into which every access puts an entry; outdated entries are dropped when they surface.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/units.h"
#include "predictor/policy.h"
#include "predictor/replay.h"

#define PAGE_RESIDENT 1u
#define PAGE_DIRTY 2u
#define PAGE_UNUSED 4u /* prefetched and not used yet */

#define MAX_VICTIMS 64
#define MAX_PREFETCH 512

struct sim {
    struct predictor *predictor;
    const struct trace *trace;
    const struct replay_options *options;
    struct replay_result *result;
    uint8_t *page;               /* [n_chunks * CHUNK_PAGES] flags */
    _Atomic uint16_t *in_chunk;  /* [n_chunks] resident pages */
    uint64_t n_chunks, resident, period;
};

static void sim_page_in(struct sim *sim, uint64_t page, uint8_t flags)
{
    sim->page[page] = PAGE_RESIDENT | flags;
    atomic_fetch_add(&sim->in_chunk[page / CHUNK_PAGES], 1);
    sim->resident++;
}

static void sim_page_out_chunk(struct sim *sim, uint64_t chunk)
{
    uint8_t *page = &sim->page[chunk * CHUNK_PAGES];

    for (unsigned i = 0; i < CHUNK_PAGES; i++) {
        if (page[i] & PAGE_RESIDENT) {
            sim->result->page_outs++;
            sim->result->sent += (page[i] & PAGE_DIRTY) != 0;
            sim->result->wasted += (page[i] & PAGE_UNUSED) != 0;
            sim->resident--;
        }
        page[i] = 0;
    }
    atomic_store(&sim->in_chunk[chunk], 0);
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
    size_t n = predictor_prefetch(sim->predictor, page, pages, max);

    for (size_t i = 0; i < n && sim->resident < sim->options->local_pages; i++) {
        if (pages[i] < sim->trace->n_pages && !sim->page[pages[i]]) {
            sim_page_in(sim, pages[i], PAGE_UNUSED);
            sim->result->prefetched++;
        }
    }
}

static bool sim_watched(const struct sim *sim, uint64_t page)
{
    unsigned watch = sim->options->watch;

    return !watch || policy_mix(page ^ policy_mix(sim->period)) % CHUNK_PAGES < watch;
}

static void sim_access(struct sim *sim, uint64_t page, bool written)
{
    uint64_t chunk = page / CHUNK_PAGES;

    if (!sim->page[page]) {
        sim->result->misses++;
        predictor_note(sim->predictor, chunk, PREDICTOR_FAULT);
        sim_make_room(sim);
        sim_page_in(sim, page, 0);
        sim_prefetch(sim, page);
    } else if (sim_watched(sim, page)) {
        predictor_note(sim->predictor, chunk, written ? PREDICTOR_WRITE : PREDICTOR_READ);
    }
    sim->page[page] &= (uint8_t)~PAGE_UNUSED;
    if (written) {
        sim->page[page] |= PAGE_DIRTY;
    }
}

int replay_policy(const struct trace *trace, const char *policy,
                  const struct replay_options *options, struct replay_result *result)
{
    struct sim sim = {.trace = trace, .options = options, .result = result};
    int err = -ENOMEM;

    memset(result, 0, sizeof(*result));
    sim.n_chunks = (trace->n_pages + CHUNK_PAGES - 1) / CHUNK_PAGES;
    sim.predictor = predictor_new(policy, sim.n_chunks, options->seed);
    sim.page = calloc(sim.n_chunks + 1, CHUNK_PAGES);
    sim.in_chunk = calloc(sim.n_chunks + 1, sizeof(*sim.in_chunk));
    if (sim.predictor && sim.page && sim.in_chunk) {
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
    free(sim.page);
    free(sim.in_chunk);
    return err;
}

/* ---- Belady's optimum ------------------------------------------------------------------------ */

struct heap {
    uint64_t *entry; /* next use << 32 | page; the greatest first */
    size_t n;
};

static void heap_push(struct heap *heap, uint64_t entry)
{
    size_t i = heap->n++;

    while (i > 0 && heap->entry[(i - 1) / 2] < entry) {
        heap->entry[i] = heap->entry[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap->entry[i] = entry;
}

static uint64_t heap_pop(struct heap *heap)
{
    uint64_t top = heap->entry[0], last = heap->entry[--heap->n];
    size_t i = 0;

    for (size_t child; (child = 2 * i + 1) < heap->n; i = child) {
        child += child + 1 < heap->n && heap->entry[child + 1] > heap->entry[child];
        if (heap->entry[child] <= last) {
            break;
        }
        heap->entry[i] = heap->entry[child];
    }
    heap->entry[i] = last;
    return top;
}

/* next[i]: the event that uses the same page again, or UINT32_MAX. */
static void find_next_uses(const struct trace *trace, uint32_t *next, uint32_t *of_page)
{
    memset(of_page, 0xff, trace->n_pages * sizeof(*of_page));
    for (size_t i = trace->n; i-- > 0;) {
        if (trace->event[i] != TRACE_TICK) {
            uint32_t page = trace->event[i] >> 1;
            next[i] = of_page[page];
            of_page[page] = (uint32_t)i;
        }
    }
}

static void optimum_run(const struct trace *trace, uint64_t local_pages, const uint32_t *next,
                        uint32_t *of_page, uint8_t *flags, struct heap *heap,
                        struct replay_result *result)
{
    uint64_t resident = 0;

    for (size_t i = 0; i < trace->n; i++) {
        uint32_t page = trace->event[i] >> 1;
        if (trace->event[i] == TRACE_TICK) {
            continue;
        }
        if (!flags[page]) {
            result->misses++;
            while (resident >= local_pages) {
                uint64_t entry = heap_pop(heap);
                uint32_t victim = (uint32_t)entry;
                if (flags[victim] && of_page[victim] == entry >> 32) {
                    result->page_outs++;
                    result->sent += (flags[victim] & PAGE_DIRTY) != 0;
                    flags[victim] = 0;
                    resident--;
                }
            }
            resident++;
        }
        flags[page] |= PAGE_RESIDENT | (trace->event[i] & 1 ? PAGE_DIRTY : 0);
        of_page[page] = next[i];
        heap_push(heap, (uint64_t)next[i] << 32 | page);
    }
}

int replay_optimum(const struct trace *trace, uint64_t local_pages, struct replay_result *result)
{
    uint32_t *next = calloc(trace->n + 1, sizeof(*next));
    uint32_t *of_page = calloc(trace->n_pages + 1, sizeof(*of_page));
    uint8_t *flags = calloc(trace->n_pages + 1, 1);
    struct heap heap = {.entry = calloc(trace->n + 1, sizeof(*heap.entry))};
    int err = -ENOMEM;

    memset(result, 0, sizeof(*result));
    if (next && of_page && flags && heap.entry) {
        err = 0;
        find_next_uses(trace, next, of_page);
        optimum_run(trace, local_pages, next, of_page, flags, &heap, result);
    }
    free(next);
    free(of_page);
    free(flags);
    free(heap.entry);
    return err;
}
