/* SPDX-License-Identifier: GPL-2.0-or-later */
/* stats.h - the engine's counters and its latency histogram; any thread may add */
#ifndef UFFD_PAGER_STATS_H
#define UFFD_PAGER_STATS_H

#include <jansson.h>
#include <stdatomic.h>
#include <stdint.h>

/* Log-scale: 8 buckets to each power of two, so a percentile is at most 12.5 % too high. */
#define STATS_STEPS 8u
#define STATS_BUCKETS (STATS_STEPS * 30u)

struct stats_histogram {
    _Atomic uint64_t bucket[STATS_BUCKETS];
    _Atomic uint64_t max;
    _Atomic uint64_t sum;
};

struct stats {
    _Atomic uint64_t page_ins;
    _Atomic uint64_t prefetched;
    _Atomic uint64_t page_outs;
    _Atomic uint64_t clean_drops;
    _Atomic uint64_t zero_drops;
    _Atomic uint64_t zero_fills;
    _Atomic uint64_t in_use; /* pages that were asked about, and had been accessed */
    _Atomic uint64_t wp_faults;
    _Atomic uint64_t lost_pages;
    _Atomic uint64_t discards;
    _Atomic uint64_t write_refusals;
    _Atomic uint64_t install_errors;
    _Atomic uint64_t slabs_placed; /* homes chosen */
    _Atomic uint64_t chunks_moved; /* from one sub-host to another */
    _Atomic uint64_t slabs_returned; /* because all of it is here */
    _Atomic uint64_t slabs_given_back; /* that a sub-host short of memory has asked for */
    _Atomic uint64_t chunks_copied; /* second copies made in the background */
    _Atomic uint64_t fell_over;    /* page-ins answered by the other place */
    _Atomic uint64_t room_asked;   /* questions to sub-hosts for that */
    struct stats_histogram fault_us; /* page-in faults, from event to wake */
};

static inline void stats_add(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/** stats_record() - one value of a histogram */
void stats_record(struct stats_histogram *histogram, uint64_t us);

/** stats_report() - add everything to @object */
void stats_report(struct stats *stats, json_t *object);

/** stats_reset() - begin again */
void stats_reset(struct stats *stats);

#endif
