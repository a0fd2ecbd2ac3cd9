/* SPDX-License-Identifier: GPL-2.0-or-later */
/* memstat.h - a guest's memory in figures, from what its pager answers */
#ifndef SPLIT_MIGRATE_MEMSTAT_H
#define SPLIT_MIGRATE_MEMSTAT_H

#include <jansson.h>
#include <stdbool.h>

#include "common/pagemap.h"
#include "split-migrate/hosts.h"

struct memstat_subhost {
    char name[POLICY_NAME_LEN];
    uint64_t remote; /* bytes that are not on the main host, and there first: with a replica each counts once */
    uint64_t stored; /* all that is there: second copies, and copies of clean pages that are resident, too */
    uint64_t at_risk; /* there and nowhere else */
    bool connected;
};

/* Sizes in bytes; counters since the guest has arrived, rates in pages a second. */
struct memstat {
    char uuid[UUID_TEXT_LEN];
    char state[24];
    bool split;
    uint64_t ram, present, resident, resident_max;
    uint64_t budget, low_watermark, high_watermark;
    uint64_t remote; /* on all sub-hosts */
    uint64_t at_risk; /* on one sub-host and nowhere else */
    char redundancy[16];
    uint64_t page_ins, prefetched, page_outs, lost_pages;
    uint64_t page_in_rate, prefetch_rate, page_out_rate;
    uint64_t fault_p50_us, fault_p99_us, fault_max_us;
    unsigned n_subhosts;
    struct memstat_subhost subhost[PAGEMAP_MAX_SUBHOSTS];
    uint64_t taken_us; /* when, units_now_us() */
};

/** memstat_read() - from what `query-guest` returns; no rates */
void memstat_read(struct memstat *stat, const json_t *guest);

/** memstat_rates() - the rates of @stat since @before, which was the same guest */
void memstat_rates(struct memstat *stat, const struct memstat *before);

/**
 * memstat_measure() - ask twice, @ms apart, if the guest is split, else once
 * Return: 0; -errno with a sentence in @reason, -EINTR if the operator interrupts.
 */
int memstat_measure(struct pager *pager, unsigned ms, struct memstat *stat, struct reason *reason);

/** memstat_json() - a new object */
json_t *memstat_json(const struct memstat *stat);

#endif
