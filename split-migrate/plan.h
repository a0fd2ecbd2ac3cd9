/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * plan.h - how much of a guest goes to which host: arithmetic only
 *
 * Theory of operation
 * -------------------
 * The main host gets the hottest pages up to its low watermark, so that the
 * guest's first page-ins find room without anything being paged out.  What is
 * present beyond that, and some growth while the guest moves, is spread over
 * the sub-hosts in proportion to weight times room.  A sub-host that is full
 * passes its share on; those with weight 0 come in when the others are full.
 *
 * If there are to be two copies of each page, twice as much is reserved, and at most half of it on one
 * sub-host, since a page's copies must be on two.
 *
 * Shares are rounded up to chunks, since the predictor does not divide a chunk
 * between sub-hosts, and each gets a chunk more for what rounding moves about.
 */
#ifndef SPLIT_MIGRATE_PLAN_H
#define SPLIT_MIGRATE_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "common/log.h"
#include "common/pagemap.h"

struct plan_subhost {
    const char *name;
    uint64_t free;   /* what it can reserve now */
    uint64_t memory; /* the policy's limit; 0: none */
    uint64_t weight;
    uint64_t share;   /* result: bytes of the guest planned for it */
    uint64_t reserve; /* result: bytes to reserve: share, growth, rounding */
    uint64_t limit;   /* result: most its region may store */
};

struct plan {
    uint64_t ram;     /* flat bytes */
    uint64_t present; /* bytes that exist */
    uint64_t budget;
    uint64_t low_watermark;
    uint64_t main_free; /* the main host's available memory */
    bool main_known;    /* false: the main host was not asked */
    unsigned copies;  /* of each page, on different sub-hosts; 0 means 1 */
    unsigned n_subhosts;
    struct plan_subhost subhost[PAGEMAP_MAX_SUBHOSTS];

    uint64_t main_bytes; /* result: bytes of the guest planned for the main host */
    uint64_t main_need;  /* result: what the main host must have: it may fill up to the budget */
    uint64_t growth;     /* result: bytes planned for what the guest touches while it moves */
    uint64_t sub_bytes;  /* result: sum of shares */
    uint64_t shortfall;  /* result: bytes nobody guarantees if the guest touches all its memory */
};

/**
 * plan_make() - fill in the results
 * Return: 0, or -ENOSPC with a sentence in @reason that names the host that lacks memory, how much
 * is needed and how much there is.
 */
int plan_make(struct plan *plan, struct reason *reason);

/** plan_weight() - sub-host @i's share as a weight for the predictor, 0 to 1000000 */
uint64_t plan_weight(const struct plan *plan, unsigned i);

#endif
