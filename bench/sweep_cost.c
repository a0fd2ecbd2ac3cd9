// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * sweep_cost.c - what it costs to choose a page that leaves: ns a page in a guest of 1 GiB and in one of
 * 1 TiB, with 1 GiB resident in both, scattered by chunks in the large one; medians of five
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "common/units.h"
#include "predictor/sweep.h"

#define RESIDENT_CHUNKS 512u
#define ROUNDS 5
#define PAGES 1000000u

struct guest {
    uint8_t *idle; /* [pages] */
    _Atomic uint16_t *resident;
    uint64_t n_chunks, every;
};

static enum sweep_state guest_state(void *opaque, uint64_t page)
{
    const struct guest *guest = opaque;

    return guest->idle[page] ? SWEEP_IDLE : SWEEP_TOUCHED;
}

static double now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

/* All pages are watched, then leave, and come back touched at once. */
static double cost(uint64_t n_chunks)
{
    struct guest guest = {.idle = calloc(n_chunks, CHUNK_PAGES),
                          .resident = calloc(n_chunks, sizeof(*guest.resident)),
                          .n_chunks = n_chunks,
                          .every = n_chunks / RESIDENT_CHUNKS};
    struct sweep_view view = {.n_pages = n_chunks * CHUNK_PAGES, .resident = guest.resident,
                              .state = guest_state, .opaque = &guest};
    struct sweep *sweep = sweep_new(&view);
    double results[ROUNDS];

    if (!guest.idle || !guest.resident || !sweep) {
        exit(1);
    }
    for (uint64_t chunk = 0; chunk < n_chunks; chunk += guest.every) {
        guest.resident[chunk] = CHUNK_PAGES;
    }
    for (unsigned round = 0; round < ROUNDS; round++) {
        uint64_t left = 0;
        double began = now_ns();
        while (left < PAGES) {
            struct sweep_step step;
            if (!sweep_next(sweep, RESIDENT_CHUNKS * CHUNK_PAGES, &step)) {
                exit(1);
            }
            for (unsigned i = 0; i < SWEEP_WINDOW; i++) {
                guest.idle[step.first + i] = step.watch >> i & 1;
            }
            left += (uint64_t)__builtin_popcountll(step.leave);
        }
        results[round] = (now_ns() - began) / PAGES;
    }
    qsort(results, ROUNDS, sizeof(results[0]), compare);
    sweep_free(sweep);
    free(guest.idle);
    free((void *)guest.resident);
    return results[ROUNDS / 2];
}

int main(void)
{
    double small = cost(RESIDENT_CHUNKS), large = cost(RESIDENT_CHUNKS << 10);

    printf("%.2f %.2f\n", small, large);
    return 0;
}
