// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/stall.h"

#include <stdio.h>

#define STALL_ROUNDS 4
#define STALL_FIRST_ROUND 2 /* what the first one sends is not what the guest wrote */
#define STALL_FLOW_US 1000000u

static void stall_flow(struct stall *stall, uint64_t sent, uint64_t now_us)
{
    if (!stall->flow_us || sent < stall->flow_sent) {
        stall->flow_us = now_us;
        stall->flow_sent = sent;
    } else if (now_us - stall->flow_us >= STALL_FLOW_US) {
        stall->flow = (sent - stall->flow_sent) * 1000000 / (now_us - stall->flow_us);
        stall->flow_us = now_us;
        stall->flow_sent = sent;
    }
}

/* A tenth less is less. */
static void stall_round(struct stall *stall, uint64_t remaining)
{
    if (!stall->least || remaining < stall->least - stall->least / 10) {
        stall->least = remaining;
        stall->vain = 0;
    } else {
        stall->vain++;
    }
}

bool stall_step(struct stall *stall, const struct driver_progress *progress, uint64_t sent,
                uint64_t now_us)
{
    bool before = stall->stalled;
    unsigned throttle = stall->throttle;

    stall_flow(stall, sent, now_us);
    stall->dirty_rate = progress->dirty_rate;
    stall->throttle = progress->throttle;
    if (progress->rounds > stall->round && progress->rounds >= STALL_FIRST_ROUND) {
        stall->round = progress->rounds;
        stall_round(stall, progress->ram_remaining);
    }
    stall->stalled = stall->vain >= STALL_ROUNDS && stall->dirty_rate && stall->flow;
    return (stall->stalled && !before) || stall->throttle != throttle;
}

const char *stall_because(const struct stall *stall, char *text, size_t size)
{
    char writes[32];
    char sends[32];
    char slowed[48] = "";

    if (!stall->stalled) {
        return "";
    }
    if (stall->throttle) {
        snprintf(slowed, sizeof(slowed), " although it is slowed down by %u %%", stall->throttle);
    }
    snprintf(text, size, ", as the guest writes %s/s%s and %s/s can be sent",
             units_format_size(stall->dirty_rate, writes, sizeof(writes)), slowed,
             units_format_size(stall->flow, sends, sizeof(sends)));
    return text;
}
