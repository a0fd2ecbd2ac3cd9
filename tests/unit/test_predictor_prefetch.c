// SPDX-License-Identifier: GPL-2.0-or-later
/* Prefetch: scans are run ahead of, scattered page-ins are not; bounds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/units.h"
#include "predictor/policy.h"

#define CHUNKS 64
#define PAGES (CHUNKS * CHUNK_PAGES)
#define MAX 256

/* Page-ins of a walk over all memory, with everything that is proposed fetched at once. */
static unsigned faults_of_scan(bool backward, size_t max)
{
    struct predictor *p = predictor_new(NULL, CHUNKS, 1);
    static bool resident[PAGES];
    uint64_t pages[MAX];
    unsigned faults = 0;

    memset(resident, 0, sizeof(resident));
    for (uint64_t i = 0; i < PAGES; i++) {
        uint64_t page = backward ? PAGES - 1 - i : i;
        if (resident[page]) {
            continue;
        }
        faults++;
        resident[page] = true;
        size_t n = predictor_prefetch(p, page, pages, max);
        for (size_t k = 0; k < n; k++) {
            resident[pages[k]] = true;
        }
    }
    predictor_free(p);
    return faults;
}

static void test_scan(void **state)
{
    (void)state;
    for (int backward = 0; backward < 2; backward++) {
        assert_true(faults_of_scan(backward, MAX) < PAGES / 200);
        assert_true(faults_of_scan(backward, 16) < PAGES / 15);
        assert_int_equal(faults_of_scan(backward, 0), PAGES);
    }
}

static void test_first_page_in(void **state)
{
    struct predictor *p = predictor_new(NULL, CHUNKS, 1);
    uint64_t pages[MAX];

    (void)state;
    size_t n = predictor_prefetch(p, 1000, pages, MAX);
    assert_true(n > 0 && n <= 16);
    for (size_t i = 1; i < n; i++) { /* nearest first */
        assert_true(llabs((long long)pages[i] - 1000) >= llabs((long long)pages[i - 1] - 1000));
    }
    predictor_free(p);
}

/* Pages that random page-ins fetch, if one of @used guesses in ten is right. */
static uint64_t fetched_at_random(unsigned used)
{
    struct predictor *p = predictor_new(NULL, CHUNKS, 1);
    uint64_t pages[MAX], random = 5, chance = 7, total = 0;

    for (unsigned i = 0; i < 20000; i++) {
        uint64_t page = policy_below(&random, PAGES);
        size_t n = predictor_prefetch(p, page, pages, MAX);
        bool guesses = predictor_prefetch_guesses(p, page);
        total += n;
        for (size_t k = 0; k < n && guesses; k++) {
            predictor_prefetch_outcome(p, pages[k], policy_below(&chance, 10) < used);
        }
    }
    predictor_free(p);
    return total;
}

/* As many as the share that is used is worth; a try now and then if it is none. */
static void test_scattered(void **state)
{
    uint64_t before = 0;

    (void)state;
    for (unsigned used = 0; used <= 10; used += 2) {
        uint64_t now = fetched_at_random(used);
        assert_true(now > before);
        before = now;
    }
    assert_true(fetched_at_random(0) < 20000);
    assert_true(fetched_at_random(10) > 20000 * 12);
}

/* One chunk's guesses fail, the other's do not: each gets its own. */
static void test_each_chunk_by_itself(void **state)
{
    struct predictor *p = predictor_new(NULL, CHUNKS, 1);
    uint64_t pages[MAX];

    (void)state;
    for (unsigned i = 0; i < 500; i++) {
        predictor_prefetch_outcome(p, 3 * CHUNK_PAGES + i, false);
        predictor_prefetch_outcome(p, 4 * CHUNK_PAGES + i, true);
    }
    assert_true(predictor_prefetch(p, 3 * CHUNK_PAGES + 200, pages, MAX) <= 2);
    assert_int_equal(predictor_prefetch(p, 4 * CHUNK_PAGES + 300, pages, MAX), 16);
    assert_true(predictor_prefetch_guesses(p, 4 * CHUNK_PAGES + 300));
    predictor_free(p);
}

/* A policy that marks no pages is never told, so its guesses stay small. */
static void test_few_guesses_if_nobody_tells(void **state)
{
    struct predictor *p = predictor_new("smemv", CHUNKS, 1);
    uint64_t pages[MAX];

    (void)state;
    assert_int_equal(predictor_prefetch(p, 1000, pages, MAX), 2);
    predictor_free(p);
}

/* What continues a run is no guess. */
static void test_runs_are_no_guesses(void **state)
{
    struct predictor *p = predictor_new(NULL, CHUNKS, 1);
    uint64_t pages[MAX], page = 5000;

    (void)state;
    for (unsigned i = 0; i < 3; i++) {
        size_t n = predictor_prefetch(p, page, pages, MAX);
        assert_int_equal(predictor_prefetch_guesses(p, page), i == 0);
        page = i ? pages[n - 1] + 1 : page + 1;
    }
    predictor_free(p);
}

static void test_bounds(void **state)
{
    struct predictor *p = predictor_new(NULL, CHUNKS, 1);
    uint64_t pages[MAX + 1], random = 6;

    (void)state;
    for (unsigned i = 0; i < 200000; i++) {
        uint64_t near = policy_below(&random, 3) ? policy_below(&random, 40) : PAGES - 40;
        uint64_t page = policy_below(&random, 4) ? policy_below(&random, PAGES) : near;
        size_t max = policy_below(&random, MAX + 1);
        pages[max] = 0xdead;
        size_t n = predictor_prefetch(p, page, pages, max);
        assert_true(n <= max);
        assert_int_equal(pages[max], 0xdead);
        for (size_t k = 0; k < n; k++) {
            assert_true(pages[k] < PAGES && pages[k] != page);
        }
    }
    assert_int_equal(predictor_prefetch(p, PAGES, pages, MAX), 0);
    assert_int_equal(predictor_prefetch(p, UINT64_MAX, pages, MAX), 0);
    predictor_free(p);
}

/* No page twice in one answer, and the same answers for the same past. */
static void test_determinism(void **state)
{
    struct predictor *p = predictor_new(NULL, CHUNKS, 1), *q = predictor_new(NULL, CHUNKS, 1);
    uint64_t a[MAX], b[MAX], random = 8, page = 0;

    (void)state;
    for (unsigned i = 0; i < 20000; i++) {
        page = policy_below(&random, 5) ? (page + 3) % PAGES : policy_below(&random, PAGES);
        size_t n = predictor_prefetch(p, page, a, MAX);
        assert_int_equal(predictor_prefetch(q, page, b, MAX), n);
        assert_memory_equal(a, b, n * sizeof(*a));
        for (size_t k = 1; k < n; k++) {
            assert_true(a[k] != a[k - 1] && (k < 2 || a[k] != a[k - 2]));
        }
    }
    predictor_free(p);
    predictor_free(q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scan),      cmocka_unit_test(test_first_page_in),
        cmocka_unit_test(test_scattered), cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_determinism),
        cmocka_unit_test(test_each_chunk_by_itself),
        cmocka_unit_test(test_few_guesses_if_nobody_tells),
        cmocka_unit_test(test_runs_are_no_guesses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
