// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/pace.h"

#define PACE_STEP_MS 50
#define PACE_RATE_ROUNDS 2    /* it is known by then how fast it can go */
#define PACE_MEASURE_US 20000 /* a stretch long enough to mean something */

/* A stretch in which zero pages were looked for says little, so the rate falls slowly. */
static void pace_measure(struct pace *pace, uint64_t sent, uint64_t busy_us)
{
    if (sent < pace->sent || busy_us < pace->busy_us) {
        pace->sent = sent;
        pace->busy_us = busy_us;
    } else if (busy_us - pace->busy_us >= PACE_MEASURE_US) {
        uint64_t rate = (sent - pace->sent) * 1000000 / (busy_us - pace->busy_us);
        uint64_t before = pace->rate - pace->rate / 8;
        pace->rate = rate > before ? rate : before;
        pace->sent = sent;
        pace->busy_us = busy_us;
    }
}

static uint64_t pace_downtime(const struct pace *pace, uint64_t rounds)
{
    return rounds <= pace->limit_ms / PACE_STEP_MS ? rounds * PACE_STEP_MS : pace->limit_ms;
}

void pace_begin(struct pace *pace, uint64_t limit_ms)
{
    *pace = (struct pace){.limit_ms = limit_ms};
    pace->downtime_ms = pace_downtime(pace, 1);
}

bool pace_step(struct pace *pace, uint64_t rounds, uint64_t sent, uint64_t busy_us)
{
    uint64_t downtime_ms = pace_downtime(pace, rounds ? rounds : 1);

    pace_measure(pace, sent, busy_us);
    uint64_t bandwidth = rounds >= PACE_RATE_ROUNDS ? pace->rate / 4 * 3 : 0;
    bool changed = bandwidth > pace->bandwidth + pace->bandwidth / 4 ||
                   bandwidth < pace->bandwidth - pace->bandwidth / 4;
    if (downtime_ms <= pace->downtime_ms && !changed) {
        return false;
    }
    pace->downtime_ms = downtime_ms > pace->downtime_ms ? downtime_ms : pace->downtime_ms;
    pace->bandwidth = bandwidth;
    return true;
}
