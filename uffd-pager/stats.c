// SPDX-License-Identifier: GPL-2.0-or-later
#include "uffd-pager/stats.h"

#include <stddef.h>

static const struct {
    const char *name;
    size_t offset;
} stats_counters[] = {
    {"page_ins", offsetof(struct stats, page_ins)},
    {"prefetched", offsetof(struct stats, prefetched)},
    {"page_outs", offsetof(struct stats, page_outs)},
    {"clean_drops", offsetof(struct stats, clean_drops)},
    {"zero_drops", offsetof(struct stats, zero_drops)},
    {"zero_fills", offsetof(struct stats, zero_fills)},
    {"in_use", offsetof(struct stats, in_use)},
    {"wp_faults", offsetof(struct stats, wp_faults)},
    {"lost_pages", offsetof(struct stats, lost_pages)},
    {"discards", offsetof(struct stats, discards)},
    {"write_refusals", offsetof(struct stats, write_refusals)},
    {"install_errors", offsetof(struct stats, install_errors)},
    {"slabs_placed", offsetof(struct stats, slabs_placed)},
    {"chunks_moved", offsetof(struct stats, chunks_moved)},
    {"slabs_returned", offsetof(struct stats, slabs_returned)},
    {"slabs_given_back", offsetof(struct stats, slabs_given_back)},
    {"chunks_copied", offsetof(struct stats, chunks_copied)},
    {"fell_over", offsetof(struct stats, fell_over)},
    {"room_asked", offsetof(struct stats, room_asked)},
};

/* Limits told to others: 16 us to 1 s. */
#define STATS_BELOW_FIRST 4u
#define STATS_BELOW_LAST 20u

#define STATS_N_COUNTERS (sizeof(stats_counters) / sizeof(stats_counters[0]))

static _Atomic uint64_t *stats_counter(struct stats *stats, size_t i)
{
    return (_Atomic uint64_t *)((char *)stats + stats_counters[i].offset);
}

/* Values below STATS_STEPS have a bucket each; above, the three bits after the leading one choose. */
static unsigned stats_bucket(uint64_t us)
{
    if (us < STATS_STEPS) {
        return (unsigned)us;
    }
    unsigned log = 63u - (unsigned)__builtin_clzll(us);
    unsigned bucket = (log - 2) * STATS_STEPS + (unsigned)(us >> (log - 3) & (STATS_STEPS - 1));
    return bucket < STATS_BUCKETS ? bucket : STATS_BUCKETS - 1;
}

/* The largest value that falls into @bucket. */
static uint64_t stats_bucket_top(unsigned bucket)
{
    if (bucket < STATS_STEPS) {
        return bucket;
    }
    unsigned log = bucket / STATS_STEPS + 2;
    uint64_t step = bucket % STATS_STEPS;
    return ((STATS_STEPS + step + 1) << (log - 3)) - 1;
}

void stats_record(struct stats_histogram *histogram, uint64_t us)
{
    stats_add(&histogram->bucket[stats_bucket(us)], 1);
    stats_add(&histogram->sum, us);
    uint64_t max = atomic_load_explicit(&histogram->max, memory_order_relaxed);
    while (us > max && !atomic_compare_exchange_weak_explicit(
                           &histogram->max, &max, us, memory_order_relaxed, memory_order_relaxed)) {
    }
}

static uint64_t stats_percentile(const uint64_t *buckets, uint64_t count, unsigned percent)
{
    uint64_t rank = (count * percent + 99) / 100;
    uint64_t seen = 0;

    for (unsigned i = 0; i < STATS_BUCKETS; i++) {
        seen += buckets[i];
        if (seen && seen >= rank) {
            return stats_bucket_top(i);
        }
    }
    return 0;
}

/* [limit in us, how many were below it], for powers of two: what a Prometheus histogram wants. */
static json_t *stats_below_json(const uint64_t *buckets)
{
    json_t *array = json_array();
    uint64_t below = 0;
    unsigned i = 0;

    for (unsigned log = STATS_BELOW_FIRST; log <= STATS_BELOW_LAST; log++) {
        for (; i < (log - 2) * STATS_STEPS; i++) {
            below += buckets[i];
        }
        json_array_append_new(array, json_pack("[I,I]", (json_int_t)1 << log, (json_int_t)below));
    }
    return array;
}

static json_t *stats_histogram_json(struct stats_histogram *histogram)
{
    uint64_t buckets[STATS_BUCKETS];
    uint64_t count = 0;
    uint64_t max = atomic_load_explicit(&histogram->max, memory_order_relaxed);

    for (unsigned i = 0; i < STATS_BUCKETS; i++) {
        buckets[i] = atomic_load_explicit(&histogram->bucket[i], memory_order_relaxed);
        count += buckets[i];
    }
    uint64_t p50 = stats_percentile(buckets, count, 50);
    uint64_t p99 = stats_percentile(buckets, count, 99);
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:o}", "count", (json_int_t)count, "p50",
                     (json_int_t)(p50 < max ? p50 : max), "p99",
                     (json_int_t)(p99 < max ? p99 : max), "max", (json_int_t)max, "sum",
                     (json_int_t)atomic_load_explicit(&histogram->sum, memory_order_relaxed),
                     "buckets", stats_below_json(buckets));
}

void stats_report(struct stats *stats, json_t *object)
{
    for (size_t i = 0; i < STATS_N_COUNTERS; i++) {
        uint64_t value = atomic_load_explicit(stats_counter(stats, i), memory_order_relaxed);
        json_object_set_new(object, stats_counters[i].name, json_integer((json_int_t)value));
    }
    json_object_set_new(object, "fault_us", stats_histogram_json(&stats->fault_us));
}

void stats_reset(struct stats *stats)
{
    for (size_t i = 0; i < STATS_N_COUNTERS; i++) {
        atomic_store_explicit(stats_counter(stats, i), 0, memory_order_relaxed);
    }
    for (unsigned i = 0; i < STATS_BUCKETS; i++) {
        atomic_store_explicit(&stats->fault_us.bucket[i], 0, memory_order_relaxed);
    }
    atomic_store_explicit(&stats->fault_us.max, 0, memory_order_relaxed);
    atomic_store_explicit(&stats->fault_us.sum, 0, memory_order_relaxed);
}
