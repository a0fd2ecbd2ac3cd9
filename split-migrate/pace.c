// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/pace.h"

#define PACE_STEP_MS 50
#define PACE_RATE_ROUNDS 3      /* it is known by then how fast it can go */
#define PACE_MEASURE_US 100000u /* a stretch long enough to mean something */

static void pace_measure(struct pace *pace, uint64_t transferred, uint64_t now_us)
{
    if (!pace->measured_us || transferred < pace->measured_bytes) {
        pace->measured_us = now_us;
        pace->measured_bytes = transferred;
    } else if (now_us - pace->measured_us >= PACE_MEASURE_US) {
        uint64_t rate =
            (transferred - pace->measured_bytes) * 1000000 / (now_us - pace->measured_us);
        pace->rate = rate > pace->rate ? rate : pace->rate;
        pace->measured_us = now_us;
        pace->measured_bytes = transferred;
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

bool pace_step(struct pace *pace, uint64_t rounds, uint64_t transferred, uint64_t now_us)
{
    uint64_t downtime_ms = pace_downtime(pace, rounds ? rounds : 1);

    pace_measure(pace, transferred, now_us);
    uint64_t bandwidth = rounds >= PACE_RATE_ROUNDS ? pace->rate / 2 : 0;
    if (downtime_ms <= pace->downtime_ms && bandwidth <= pace->bandwidth + pace->bandwidth / 4) {
        return false;
    }
    pace->downtime_ms = downtime_ms > pace->downtime_ms ? downtime_ms : pace->downtime_ms;
    pace->bandwidth = bandwidth;
    return true;
}
