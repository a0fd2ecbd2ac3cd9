/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pace.h - what QEMU is told while it moves a guest, so that it switches over soon and well
 *
 * QEMU switches over as soon as what is left fits the downtime limit, so a generous limit costs
 * guests that need little just as much: pages of the first round that are still on their way are
 * left, too, if they fit.  It begins with little.  Once the first round is over, a guest that writes
 * little needs hardly any time; for one that writes much short downtimes are not to be had, and more
 * rounds are the same pages once more.  So what is allowed doubles again and again after a small
 * part of the time the first round took, up to what the operator allows.
 *
 * What fits, QEMU judges by the rate of the last tenth of a second.  That is near zero when there
 * was little to send then (holes, or a guest that writes little), which would keep it from ever
 * switching over; and it is the operator's limit if there is one, which does not hold at the
 * switch-over.  So from the second round on it is told how fast the pager sends while it has
 * something to send, half of it, since the last pages are scattered; but no more than twice
 * what goes through in the long run, so that a limited move does not end in a flood.
 */
#ifndef SPLIT_MIGRATE_PACE_H
#define SPLIT_MIGRATE_PACE_H

#include <stdbool.h>
#include <stdint.h>

struct pace {
    uint64_t limit_ms;    /* what the operator allows */
    uint64_t downtime_ms; /* what QEMU is to be told */
    uint64_t bandwidth;   /* bytes/s, likewise; 0: nothing */
    uint64_t begun_us;    /* when the first and the second round began; 0: not yet */
    uint64_t second_us;
    uint64_t rate;         /* bytes/s while the pager sends, of late; 0: not known yet */
    uint64_t rate_busy_us; /* when it was last looked at */
    uint64_t rate_sent;
    uint64_t flow;        /* bytes/s whether it sends or not, the best seen; 0: not known yet */
    uint64_t flow_us;
    uint64_t flow_sent;
};

/** pace_begin() - from the beginning; what QEMU is to be told then is ->downtime_ms only */
void pace_begin(struct pace *pace, uint64_t limit_ms);

/**
 * pace_step() - how far it is
 * @rounds: of dirty pages, the first is 1
 * @sent: bytes the pager has sent since the migration began
 * @busy_us: for so long it had something to send
 * @now_us: the time
 * Return: true if QEMU must be told ->downtime_ms and ->bandwidth.
 */
bool pace_step(struct pace *pace, uint64_t rounds, uint64_t sent, uint64_t busy_us,
               uint64_t now_us);

#endif
