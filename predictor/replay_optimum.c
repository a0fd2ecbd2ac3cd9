// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * replay_optimum.c - Belady's optimum
 *
 * 4 KiB pages, no prefetch, always the page whose next use is farthest away; nobody can do better
 * without prefetching.  Next uses are found by one walk backwards; the farthest is the top of a heap,
 * into which every access puts an entry; outdated entries are dropped when they surface.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "predictor/replay_impl.h"

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

static void optimum_run(const struct trace *trace, uint64_t local_pages, bool fresh,
                        const uint32_t *next, uint32_t *of_page, uint8_t *flags, struct heap *heap,
                        struct replay_result *result)
{
    uint64_t resident = 0;

    for (size_t i = 0; i < trace->n; i++) {
        uint32_t page = trace->event[i] >> 1;
        if (trace->event[i] == TRACE_TICK) {
            continue;
        }
        if (!(flags[page] & PAGE_HERE)) {
            bool fill = fresh && !(flags[page] & PAGE_KNOWN);
            result->misses += !fill;
            flags[page] = fill ? PAGE_DIRTY : 0;
            while (resident >= local_pages) {
                uint64_t entry = heap_pop(heap);
                uint32_t victim = (uint32_t)entry;
                if (flags[victim] & PAGE_HERE && of_page[victim] == entry >> 32) {
                    result->page_outs++;
                    result->sent += (flags[victim] & PAGE_DIRTY) != 0;
                    flags[victim] = PAGE_KNOWN;
                    resident--;
                }
            }
            resident++;
        }
        flags[page] |= PAGE_HERE | (trace->event[i] & 1 ? PAGE_DIRTY : 0);
        of_page[page] = next[i];
        heap_push(heap, (uint64_t)next[i] << 32 | page);
    }
}

int replay_optimum(const struct trace *trace, const struct replay_options *options,
                   struct replay_result *result)
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
        optimum_run(trace, options->local_pages, options->fresh, next, of_page, flags, &heap, result);
    }
    free(next);
    free(of_page);
    free(flags);
    free(heap.entry);
    return err;
}
