// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/pace.h"

#define PACE_FIRST_MS 8
#define PACE_PATIENCE 32      /* it doubles when so small a part of the first round is over ... */
#define PACE_PATIENCE_US 20000u /* ... but not sooner */
#define PACE_RATE_ROUNDS 2  /* it is known by then how fast it can go */
#define PACE_RATE_US 20000u /* stretches long enough to mean something */
#define PACE_FLOW_US 300000u

/* A stretch in which zero pages were looked for says little, so the rate falls slowly. */
static void pace_rate(struct pace *pace, uint64_t sent, uint64_t busy_us)
{
    if (sent < pace->rate_sent || busy_us < pace->rate_busy_us) {
        pace->rate_sent = sent;
        pace->rate_busy_us = busy_us;
    } else if (busy_us - pace->rate_busy_us >= PACE_RATE_US) {
        uint64_t rate = (sent - pace->rate_sent) * 1000000 / (busy_us - pace->rate_busy_us);
        uint64_t before = pace->rate - pace->rate / 8;
        pace->rate = rate > before ? rate : before;
        pace->rate_sent = sent;
        pace->rate_busy_us = busy_us;
    }
}

static void pace_flow(struct pace *pace, uint64_t sent, uint64_t now_us)
{
    if (!pace->flow_us || sent < pace->flow_sent) {
        pace->flow_us = now_us;
        pace->flow_sent = sent;
    } else if (now_us - pace->flow_us >= PACE_FLOW_US) {
        uint64_t flow = (sent - pace->flow_sent) * 1000000 / (now_us - pace->flow_us);
        pace->flow = flow > pace->flow ? flow : pace->flow;
        pace->flow_us = now_us;
        pace->flow_sent = sent;
    }
}

static uint64_t pace_bandwidth(const struct pace *pace, uint64_t rounds)
{
    uint64_t rate = pace->rate / 2;

    if (rounds < PACE_RATE_ROUNDS) {
        return 0;
    }
    return pace->flow && rate > 2 * pace->flow ? 2 * pace->flow : rate;
}

static uint64_t pace_downtime(struct pace *pace, uint64_t rounds, uint64_t now_us)
{
    uint64_t ms = PACE_FIRST_MS;

    if (!pace->begun_us) {
        pace->begun_us = now_us;
    }
    if (rounds >= 2 && !pace->second_us) {
        pace->second_us = now_us;
    }
    if (pace->second_us) {
        uint64_t step_us = (pace->second_us - pace->begun_us) / PACE_PATIENCE;
        uint64_t past_us = now_us - pace->second_us;
        step_us = step_us > PACE_PATIENCE_US ? step_us : PACE_PATIENCE_US;
        for (; past_us >= step_us && ms < pace->limit_ms; past_us -= step_us) {
            ms *= 2;
        }
    }
    return ms < pace->limit_ms ? ms : pace->limit_ms;
}

void pace_begin(struct pace *pace, uint64_t limit_ms)
{
    *pace = (struct pace){.limit_ms = limit_ms};
    pace->downtime_ms = PACE_FIRST_MS < limit_ms ? PACE_FIRST_MS : limit_ms;
}

bool pace_step(struct pace *pace, uint64_t rounds, uint64_t sent, uint64_t busy_us,
               uint64_t now_us)
{
    uint64_t downtime_ms = pace_downtime(pace, rounds, now_us);

    pace_rate(pace, sent, busy_us);
    pace_flow(pace, sent, now_us);
    uint64_t bandwidth = pace_bandwidth(pace, rounds);
    bool changed = bandwidth > pace->bandwidth + pace->bandwidth / 4 ||
                   bandwidth < pace->bandwidth - pace->bandwidth / 4;
    if (downtime_ms <= pace->downtime_ms && !changed) {
        return false;
    }
    pace->downtime_ms = downtime_ms > pace->downtime_ms ? downtime_ms : pace->downtime_ms;
    pace->bandwidth = bandwidth;
    return true;
}
