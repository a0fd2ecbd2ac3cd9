/* SPDX-License-Identifier: GPL-2.0-or-later */
/* policy.h - inside the predictor: its state, and what a policy is */
#ifndef PREDICTOR_POLICY_H
#define PREDICTOR_POLICY_H

#include <stdatomic.h>
#include <stdbool.h>

#include "predictor/predictor.h"

#define PREDICTOR_HEATS 256 /* values of predictor_heat() */

/* What was noted about a chunk in this period: a set of 1 << enum predictor_access. */
#define NOTED_FAULT (1u << PREDICTOR_FAULT)

/* A policy is two pure functions of a chunk's history byte and what was noted in this period. */
struct predictor_ops {
    const char *name;
    uint8_t (*age)(uint8_t history, uint8_t noted);  /* the history after the period's end */
    uint8_t (*heat)(uint8_t history, uint8_t noted); /* the heat before the period's end */
    bool sweeps; /* victims by page, see sweep.h; age and heat serve the partition */
};

extern const struct predictor_ops policy_sweep, policy_smemv, policy_fifo, policy_random;

/* Aging: what policy_smemv and policy_sweep have in common. */
uint8_t policy_smemv_age(uint8_t history, uint8_t noted);
uint8_t policy_smemv_heat(uint8_t history, uint8_t noted);

#define PREFETCH_STREAMS 4096
#define PREFETCH_ALL_USED 255

struct predictor {
    const struct predictor_ops *ops;
    uint64_t n_chunks;
    _Atomic uint8_t *noted;   /* [n_chunks] */
    _Atomic uint8_t *history; /* [n_chunks] */
    uint32_t *order;          /* [n_chunks] all chunks in the seeded pseudo-random order */
    uint64_t hand;            /* victims: where in order the next search begins */
    _Atomic uint64_t streams[PREFETCH_STREAMS]; /* prefetch.c: recent faults */
    _Atomic uint8_t used[PREFETCH_STREAMS]; /* share of guesses that were used; 255: all */
};

static inline uint8_t policy_heat(const struct predictor *predictor, uint64_t chunk)
{
    return predictor->ops->heat(
        atomic_load_explicit(&predictor->history[chunk], memory_order_relaxed),
        atomic_load_explicit(&predictor->noted[chunk], memory_order_relaxed));
}

/** policy_mix() - the finalizer of splitmix64: 64 bits to 64 bits, one to one, well mixed */
static inline uint64_t policy_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/** policy_below() - the next pseudo-random number from 0 to @bound - 1 (splitmix64) */
static inline uint64_t policy_below(uint64_t *state, uint64_t bound)
{
    uint64_t r = policy_mix(*state += 0x9e3779b97f4a7c15ull);

    return (uint64_t)((unsigned __int128)r * bound >> 64);
}

#endif
