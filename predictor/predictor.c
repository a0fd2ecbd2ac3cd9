// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * predictor.c - the predictor's state, and its life by periods
 *
 * Within a period, any thread may note accesses: a bit in the chunk's byte, set without a lock.
 * predictor_tick() takes the bytes away one by one and ages the history by the policy.  A note
 * that arrives during the tick counts for one period or the other, never for none.
 */
#include <stdlib.h>
#include <string.h>

#include "predictor/policy.h"

static const struct predictor_ops *const policies[] = {&policy_sweep, &policy_smemv, &policy_fifo,
                                                &policy_random};

#define N_POLICIES (sizeof(policies) / sizeof(policies[0]))

const char *const *predictor_names(void)
{
    static const char *const names[] = {"sweep", "smemv", "fifo", "random", NULL};

    _Static_assert(sizeof(names) / sizeof(names[0]) == N_POLICIES + 1, "a policy without a name");
    return names;
}

static const struct predictor_ops *find_policy(const char *name)
{
    for (size_t i = 0; i < N_POLICIES; i++) {
        if (!name || !strcmp(name, policies[i]->name)) {
            return policies[i];
        }
    }
    return NULL;
}

static void shuffle(uint32_t *order, uint64_t n, uint64_t seed)
{
    uint64_t state = seed;

    for (uint64_t i = 0; i < n; i++) {
        uint64_t j = policy_below(&state, i + 1);
        order[i] = order[j];
        order[j] = (uint32_t)i;
    }
}

struct predictor *predictor_new(const char *policy, uint64_t n_chunks, uint64_t seed)
{
    const struct predictor_ops *ops = find_policy(policy);
    struct predictor *predictor;

    if (!ops || n_chunks > UINT32_MAX || !(predictor = calloc(1, sizeof(*predictor)))) {
        return NULL;
    }
    predictor->ops = ops;
    predictor->n_chunks = n_chunks;
    predictor->noted = calloc(n_chunks + 1, sizeof(*predictor->noted));
    predictor->history = calloc(n_chunks + 1, sizeof(*predictor->history));
    predictor->order = calloc(n_chunks + 1, sizeof(*predictor->order));
    if (!predictor->noted || !predictor->history || !predictor->order) {
        predictor_free(predictor);
        return NULL;
    }
    shuffle(predictor->order, n_chunks, seed);
    for (unsigned i = 0; i < PREFETCH_STREAMS; i++) { /* without a sweep nobody tells: stay low */
        predictor->used[i] = ops->sweeps ? PREFETCH_ALL_USED / 2 + 1 : PREFETCH_ALL_USED / 4;
    }
    return predictor;
}

void predictor_free(struct predictor *predictor)
{
    if (predictor) {
        free(predictor->noted);
        free(predictor->history);
        free(predictor->order);
        free(predictor);
    }
}

bool predictor_sweeps(const struct predictor *predictor)
{
    return predictor->ops->sweeps;
}

void predictor_note(struct predictor *predictor, uint64_t chunk, enum predictor_access kind)
{
    uint8_t bit = (uint8_t)(1u << kind);

    if (chunk < predictor->n_chunks &&
        !(atomic_load_explicit(&predictor->noted[chunk], memory_order_relaxed) & bit)) {
        atomic_fetch_or_explicit(&predictor->noted[chunk], bit, memory_order_relaxed);
    }
}

void predictor_tick(struct predictor *predictor)
{
    for (uint64_t i = 0; i < predictor->n_chunks; i++) {
        uint8_t noted = atomic_load_explicit(&predictor->noted[i], memory_order_relaxed);
        uint8_t history = atomic_load_explicit(&predictor->history[i], memory_order_relaxed);

        if (noted) {
            noted = atomic_exchange_explicit(&predictor->noted[i], 0, memory_order_relaxed);
        } else if (!history) {
            continue; /* cold stays cold, in every policy */
        }
        atomic_store_explicit(&predictor->history[i], predictor->ops->age(history, noted),
                              memory_order_relaxed);
    }
}

uint8_t predictor_heat(const struct predictor *predictor, uint64_t chunk)
{
    return chunk < predictor->n_chunks ? policy_heat(predictor, chunk) : 0;
}

void predictor_export(const struct predictor *predictor, uint8_t *history)
{
    for (uint64_t i = 0; i < predictor->n_chunks; i++) {
        history[i] = policy_heat(predictor, i);
    }
}

void predictor_import(struct predictor *predictor, const uint8_t *history)
{
    for (uint64_t i = 0; i < predictor->n_chunks; i++) {
        atomic_store_explicit(&predictor->noted[i], 0, memory_order_relaxed);
        atomic_store_explicit(&predictor->history[i], history[i], memory_order_relaxed);
    }
}
