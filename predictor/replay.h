/* SPDX-License-Identifier: GPL-2.0-or-later */
/* replay.h - inside predictor-replay: traces, and paging simulated over them */
#ifndef PREDICTOR_REPLAY_H
#define PREDICTOR_REPLAY_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "common/log.h"

#define TRACE_MAGIC "SMTRACE1" /* a binary trace begins with it */
#define TRACE_TICK UINT32_MAX /* an event: the period ends */
#define TRACE_MAX_PAGE ((1u << 31) - 2)

/* An event is TRACE_TICK, or page number << 1 | written. */
struct trace {
    uint32_t *event;
    size_t n, allocated;
    uint64_t n_accesses, n_ticks;
    uint64_t n_pages;   /* highest page number + 1 */
    uint64_t n_touched; /* different pages */
};

/** trace_add() - append an event. Return: 0 or -ENOMEM. */
int trace_add(struct trace *trace, uint32_t event);

/**
 * trace_read() - read a trace, text or binary (predictor-replay(1) has the formats)
 * @tick_every: end a period after so many accesses if the trace itself has no ticks
 * Return: 0; -EINVAL or -ENOMEM with a sentence in @reason.
 */
int trace_read(struct trace *trace, FILE *file, uint64_t tick_every, struct reason *reason);
void trace_write(const struct trace *trace, FILE *file);
void trace_free(struct trace *trace);

struct trace_shape {
    const char *kind; /* zipf, scan or phase */
    uint32_t n_pages;
    uint32_t cluster; /* pages of like popularity that lie side by side */
    uint64_t n_accesses;
    uint64_t tick_every;
    uint64_t seed;
};

/** trace_generate() - make a trace. Return: 0, -ENOENT if the kind is unknown, -ENOMEM. */
int trace_generate(struct trace *trace, const struct trace_shape *shape);

struct replay_result {
    uint64_t misses;    /* page-ins that were waited for */
    uint64_t page_outs; /* pages that left the local memory */
    uint64_t sent;      /* of those, changed since they came: their contents had to travel */
    uint64_t prefetched;
    uint64_t wasted; /* prefetched and never used */
    uint64_t sampled; /* accesses that cleared a mark, each a soft fault */
};

enum replay_prefetcher {
    REPLAY_PAGER,    /* predictor_prefetch(), as the pager does */
    REPLAY_LEAP,     /* the majority stride of the last page-ins */
    REPLAY_RECORDED, /* what was used of the chunk when it was here last */
    REPLAY_CHUNK,    /* the rest of the chunk, as S-memV does */
};

struct replay_options {
    uint64_t local_pages;
    unsigned prefetch; /* pages after a page-in, at most */
    enum replay_prefetcher prefetcher;
    unsigned watch; /* pages of each chunk whose accesses are seen in a period; 0: all */
    bool fresh;     /* a page's first access finds zeros and is no page-in */
    uint64_t seed;
};

/** replay_policy() - page @trace by @policy of the predictor. Return: 0 or -ENOMEM. */
int replay_policy(const struct trace *trace, const char *policy,
                  const struct replay_options *options, struct replay_result *result);

/**
 * replay_oracle() - page @trace by a policy that sees every access, page by page, as no pager can
 * @policy: of replay_oracles()
 * Return: 0 or -ENOMEM.
 */
int replay_oracle(const struct trace *trace, const char *policy,
                  const struct replay_options *options, struct replay_result *result);
const char *const *replay_oracles(void);

/** replay_optimum() - page @trace as Belady's algorithm would, page by page. Return: 0 or -ENOMEM. */
int replay_optimum(const struct trace *trace, const struct replay_options *options,
                   struct replay_result *result);

#endif
