// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The rounds of a move, gone through as pace.h has them: each sends what was written during the one
 * before.  QEMU switches over as soon as what is left of a round and what was written since it began fit,
 * which may be in the midst of it.  The guest is taken to write anywhere, so that in a longer time it comes
 * to the same pages again.
 */
#include "split-migrate/estimate.h"

#include <math.h>

#include "split-migrate/pace.h"

#define ESTIMATE_FIXED_MS 25.0 /* setting up, and the hand-over */
#define ESTIMATE_SWITCH_MS 6.0 /* of that, while the guest stands still: map, device state, start */
#define ESTIMATE_ROUNDS 30
#define ESTIMATE_STEPS 100 /* of a round */

/* How a move goes: times in ms, memory in bytes. */
struct rounds {
    double per_ms; /* what the link takes */
    double memory;
    double written; /* of it in a second */
    double total;   /* the time so far */
    struct pace pace;
};

static double rounds_dirtied(const struct rounds *rounds, double ms)
{
    return rounds->memory > 0
               ? rounds->memory * (1 - pow(1 - rounds->written / rounds->memory, ms / 1000))
               : 0;
}

/* It is @round and the link has been in use since the move was set up. Return: what QEMU finds to fit, as it is told. */
static double rounds_fit(struct rounds *rounds, unsigned round)
{
    const struct pace *pace = &rounds->pace;
    double busy = rounds->total - ESTIMATE_FIXED_MS;

    pace_step(&rounds->pace, round, (uint64_t)(rounds->per_ms * busy), (uint64_t)(busy * 1000),
              (uint64_t)(rounds->total * 1000));
    return (pace->bandwidth ? (double)pace->bandwidth / 1000 : rounds->per_ms) * (double)pace->downtime_ms;
}

/* A round that sends @send. Return: what is left when QEMU switches over in it, -1: it does not. */
static double rounds_go(struct rounds *rounds, unsigned round, double send)
{
    double began = rounds->total;
    double took = send / rounds->per_ms;

    for (unsigned i = 1; i <= ESTIMATE_STEPS; i++) {
        double part = (double)i / ESTIMATE_STEPS;
        double left = send * (1 - part) + rounds_dirtied(rounds, took * part);
        rounds->total = began + took * part;
        if (left <= rounds_fit(rounds, i < ESTIMATE_STEPS ? round : round + 1)) {
            return left;
        }
    }
    return -1;
}

void estimate_make(struct estimate *estimate, uint64_t present, uint64_t downtime_ms)
{
    struct rounds rounds = {.per_ms = (double)estimate->bandwidth / 1000,
                            .memory = (double)present,
                            .written = (double)estimate->dirty_rate,
                            .total = ESTIMATE_FIXED_MS};
    double send = rounds.memory;

    estimate->ends = false;
    if (!estimate->bandwidth) {
        return;
    }
    rounds.written = rounds.written < rounds.memory * 0.99 ? rounds.written : rounds.memory * 0.99;
    pace_begin(&rounds.pace, downtime_ms);
    rounds_fit(&rounds, 1); /* from now on it has patience */
    for (unsigned round = 1; round <= ESTIMATE_ROUNDS; round++) {
        double began = rounds.total;
        double left = rounds_go(&rounds, round, send);
        if (left >= 0) {
            estimate->ends = true;
            estimate->total_ms = (uint64_t)(rounds.total + left / rounds.per_ms);
            estimate->downtime_ms = (uint64_t)(ESTIMATE_SWITCH_MS + left / rounds.per_ms);
            return;
        }
        send = rounds_dirtied(&rounds, rounds.total - began);
    }
}
