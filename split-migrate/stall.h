/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * stall.h - does a moving guest write faster than it can be sent?
 *
 * A round sends what was written during the round before.  If what there is to send at the
 * beginning of a round has not become less for some rounds, more rounds will not help.
 */
#ifndef SPLIT_MIGRATE_STALL_H
#define SPLIT_MIGRATE_STALL_H

#include <stdbool.h>
#include <stddef.h>

#include "split-migrate/driver.h"

#define STALL_TEXT 160 /* room for stall_because() */

struct stall {
    uint64_t round;
    uint64_t least;      /* bytes at the beginning of a round, the least so far */
    unsigned vain;       /* rounds since then */
    uint64_t dirty_rate; /* bytes/s, of late */
    uint64_t flow;       /* bytes/s that were sent, of late; 0: not known yet */
    uint64_t flow_us;
    uint64_t flow_sent;
    unsigned throttle; /* percent by which QEMU slows the guest down */
    bool stalled;
};

/**
 * stall_step() - how far it is
 * @sent: bytes the pager has sent since the migration began
 * Return: true if ->stalled has become true, or ->throttle has changed.
 */
bool stall_step(struct stall *stall, const struct driver_progress *progress, uint64_t sent,
                uint64_t now_us);

/** stall_because() - ", as the guest writes ... and ... can be sent", or "" if it is not stalled */
const char *stall_because(const struct stall *stall, char *text, size_t size);

#endif
