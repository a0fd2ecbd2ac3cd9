/* SPDX-License-Identifier: GPL-2.0-or-later */
/* replay_impl.h - what the parts of the simulated paging share */
#ifndef PREDICTOR_REPLAY_IMPL_H
#define PREDICTOR_REPLAY_IMPL_H

#include "predictor/predictor.h"
#include "predictor/replay.h"
#include "predictor/sweep.h"

/* Flags of a page */
#define PAGE_HERE 1u
#define PAGE_DIRTY 2u
#define PAGE_UNUSED 4u /* prefetched and not used yet */
#define PAGE_MARKED 8u /* idle since the sweep had it marked */
#define PAGE_KNOWN 16u /* was here before */
#define PAGE_USED 32u  /* was used when it was here last */
#define PAGE_UNTOLD 64u /* a guess, marked when it came; whether it is used was not told yet */

#define MAX_PREFETCH 512
#define LEAP_HISTORY 32

struct sim {
    struct predictor *predictor;
    struct sweep *sweep; /* NULL: the predictor chooses chunks */
    const struct trace *trace;
    const struct replay_options *options;
    struct replay_result *result;
    uint8_t *page;              /* [n_chunks * CHUNK_PAGES] flags */
    _Atomic uint16_t *in_chunk; /* [n_chunks] resident pages */
    uint64_t n_chunks, resident, period;
    int64_t leap_delta[LEAP_HISTORY]; /* between the last page-ins */
    unsigned leap_n;
    uint64_t leap_last, leap_hits;
};

/** prefetch_propose() - pages to fetch after a page-in of @page. Return: how many. */
size_t prefetch_propose(struct sim *sim, uint64_t page, uint64_t *pages, size_t max);

/** prefetch_used() - a page that was prefetched is used for the first time */
void prefetch_used(struct sim *sim, uint64_t page);

#endif
