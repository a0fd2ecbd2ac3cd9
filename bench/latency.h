/* SPDX-License-Identifier: GPL-2.0-or-later */
/* latency.h - a clock for the floors, and their line of JSON for what they have timed */
#ifndef BENCH_LATENCY_H
#define BENCH_LATENCY_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static inline uint64_t now_ns(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static inline int compare_latency(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* Sorts @took. */
static inline void print_latency(uint64_t *took, size_t n)
{
    qsort(took, n, sizeof(*took), compare_latency);
    printf("{\"count\": %zu, \"p50_ns\": %llu, \"p99_ns\": %llu, \"max_ns\": %llu}\n", n,
           (unsigned long long)took[n / 2], (unsigned long long)took[n - 1 - n / 100],
           (unsigned long long)took[n - 1]);
}

#endif
