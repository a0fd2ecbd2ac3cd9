// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The rounds of a move, gone through as pace.h has them: each sends what was written during the one
 * before, and the last is the one that fits the downtime.  The guest is taken to write anywhere,
 * so that in a longer time it comes to the same pages again.
 */
#include "split-migrate/estimate.h"

#include <math.h>

#include "split-migrate/pace.h"

#define ESTIMATE_FIXED_MS 60.0  /* setting up, and the hand-over */
#define ESTIMATE_SWITCH_MS 15.0 /* of that, while the guest stands still: map, device state, start */
#define ESTIMATE_ROUNDS 30

void estimate_make(struct estimate *estimate, uint64_t present, uint64_t downtime_ms)
{
    double per_ms = (double)estimate->bandwidth / 1000;
    double memory = (double)present;
    double written = (double)estimate->dirty_rate < memory * 0.99 ? (double)estimate->dirty_rate
                                                                   : memory * 0.99;
    double send = memory;
    double total = ESTIMATE_FIXED_MS;
    struct pace pace;

    estimate->ends = false;
    if (!estimate->bandwidth) {
        return;
    }
    pace_begin(&pace, downtime_ms);
    for (unsigned round = 1; round <= ESTIMATE_ROUNDS; round++) {
        double took = send / per_ms;
        total += took;
        send = memory > 0 ? memory * (1 - pow(1 - written / memory, took / 1000)) : 0;
        pace_step(&pace, round, 0, 0, (uint64_t)(total * 1000));
        if (send <= per_ms * (double)pace.downtime_ms) {
            estimate->ends = true;
            estimate->total_ms = (uint64_t)(total + send / per_ms);
            estimate->downtime_ms = (uint64_t)(ESTIMATE_SWITCH_MS + send / per_ms);
            return;
        }
    }
}
