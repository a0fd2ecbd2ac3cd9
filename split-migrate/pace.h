/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pace.h - what QEMU is told while it moves a guest, so that it switches over soon and well
 *
 * QEMU switches over as soon as what is left fits the downtime limit, so a generous limit costs
 * guests that need little just as much.  It begins with little, and each round allows more, up to
 * what the operator allows.
 *
 * What fits, QEMU judges by the rate of the last tenth of a second, which is near zero when there
 * was little to send then (holes, or a guest that writes little), and that would keep it from ever
 * switching over.  From the third round on it is told half of the best rate that was seen.  (A
 * limit of the bandwidth does not hold at the switch-over.)
 */
#ifndef SPLIT_MIGRATE_PACE_H
#define SPLIT_MIGRATE_PACE_H

#include <stdbool.h>
#include <stdint.h>

struct pace {
    uint64_t limit_ms;    /* what the operator allows */
    uint64_t downtime_ms; /* what QEMU is to be told */
    uint64_t bandwidth;   /* bytes/s, likewise; 0: nothing */
    uint64_t rate;        /* bytes/s, the best seen; 0: none yet */
    uint64_t measured_us; /* when it was last looked at, and where transferred stood */
    uint64_t measured_bytes;
};

/** pace_begin() - from the beginning; what QEMU is to be told then is ->downtime_ms only */
void pace_begin(struct pace *pace, uint64_t limit_ms);

/**
 * pace_step() - how far it is
 * @rounds: of dirty pages, the first is 1
 * @transferred: bytes since the migration began
 * @now_us: the time
 * Return: true if QEMU must be told ->downtime_ms and ->bandwidth.
 */
bool pace_step(struct pace *pace, uint64_t rounds, uint64_t transferred, uint64_t now_us);

#endif
