/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sweep.h - which pages leave local memory: a sweeping hand, idle marks, and probation
 *
 * The caller owns the pages and one bit for each, the idle mark: it was set
 * when the page was made inaccessible, and an access since would have cleared
 * it.  The sweep says which pages to mark and which to page out.
 */
#ifndef PREDICTOR_SWEEP_H
#define PREDICTOR_SWEEP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define SWEEP_WINDOW 64u /* pages looked at together; a step is about one aligned window */
#define SWEEP_LOOKS 32u  /* pages looked at for each that leaves, at most, over time */

struct sweep;

enum sweep_state {
    SWEEP_ABSENT,  /* not here, or somebody is changing it */
    SWEEP_IDLE,    /* marked, and not accessed since */
    SWEEP_TOUCHED, /* accessed since it was marked, or never marked */
};

struct sweep_view {
    uint64_t n_pages;                 /* at most 1 << 32 */
    const _Atomic uint16_t *resident; /* [n_pages / CHUNK_PAGES, rounded up]; 0: skip the chunk */
    /* The states of the window at @first (a page) will be asked next: see which marks are still true. NULL: they are. */
    void (*look)(void *opaque, uint64_t first);
    enum sweep_state (*state)(void *opaque, uint64_t page);
    void *opaque;
};

struct sweep_step {
    uint64_t first; /* page, a multiple of SWEEP_WINDOW */
    uint64_t watch; /* bit i: mark page first + i as idle, and see whether it is accessed */
    uint64_t leave; /* bit i: page it out */
};

/** sweep_new() - make one; @view is copied. Return: NULL if memory is out. */
struct sweep *sweep_new(const struct sweep_view *view);
void sweep_free(struct sweep *sweep);

/**
 * sweep_arrived() - @page was paged in or prefetched; any thread, no lock, no allocation
 * Return: whether it is time for sweep_probation(), as it is every so many pages.
 */
bool sweep_arrived(struct sweep *sweep, uint64_t page);

/**
 * sweep_probation() - pages that arrived a little while ago: shall they be seen to be used?
 * Return: false if there are none for now; else @step has pages to mark.  One thread at a time,
 * which may be another than that of sweep_next().
 */
bool sweep_probation(struct sweep *sweep, struct sweep_step *step);

/**
 * sweep_next() - take the next step
 * @local_pages: how many pages local memory holds: the length of probation follows from it
 * Return: false if a whole lap found no page.  One thread at a time.
 */
bool sweep_next(struct sweep *sweep, uint64_t local_pages, struct sweep_step *step);

/** sweep_bytes() - what a sweep over @n_pages pages takes, in bytes */
uint64_t sweep_bytes(uint64_t n_pages);

#endif
