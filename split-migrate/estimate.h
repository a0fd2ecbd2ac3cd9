/* SPDX-License-Identifier: GPL-2.0-or-later */
/* estimate.h - how long a move will take, from a bandwidth and from what the guest writes */
#ifndef SPLIT_MIGRATE_ESTIMATE_H
#define SPLIT_MIGRATE_ESTIMATE_H

#include <stdbool.h>
#include <stdint.h>

struct estimate {
    uint64_t bandwidth;  /* bytes/s; 0: not known, and nothing below is */
    uint64_t dirty_rate; /* bytes/s of pages that the guest writes, each counted once in a second */
    bool ends;           /* false: the guest writes faster than it can be sent */
    uint64_t total_ms;
    uint64_t downtime_ms; /* at most about this */
};

/**
 * estimate_make() - fill what follows ->dirty_rate
 * @present: bytes of the guest that exist
 * @downtime_ms: the most that is allowed
 */
void estimate_make(struct estimate *estimate, uint64_t present, uint64_t downtime_ms);

#endif
