// SPDX-License-Identifier: GPL-2.0-or-later
/* Victims: coldest first, no more than needed, rotation over equals; at the size of a 1 TiB guest. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "predictor/policy.h"

#define N 3000

static void random_history(struct predictor *p, uint64_t *random, unsigned levels)
{
    uint8_t *history = malloc(p->n_chunks);

    for (uint64_t i = 0; i < p->n_chunks; i++) {
        history[i] = (uint8_t)(policy_below(random, levels) * (256 / levels));
    }
    predictor_import(p, history);
    free(history);
}

/* One random case against what the header promises. */
static void check_case(uint64_t seed)
{
    static _Atomic uint16_t resident[N];
    static uint64_t chunks[N];
    static uint8_t taken[N];
    uint64_t random = seed, total = 0, sum = 0;
    struct predictor *p = predictor_new(NULL, N, seed);
    unsigned hottest = 0;

    random_history(p, &random, 1 + (unsigned)policy_below(&random, 256));
    for (unsigned i = 0; i < N; i++) {
        resident[i] = policy_below(&random, 3) ? (uint16_t)policy_below(&random, 513) : 0;
        total += resident[i];
    }
    uint64_t want = policy_below(&random, total + total / 4);
    size_t max = policy_below(&random, 2) ? N : policy_below(&random, 100);
    size_t n = predictor_victims(p, resident, want, chunks, max);
    assert_true(n <= max);
    memset(taken, 0, sizeof(taken));
    for (size_t i = 0; i < n; i++) {
        unsigned heat = predictor_heat(p, chunks[i]);
        assert_int_equal(taken[chunks[i]]++, 0);
        assert_true(resident[chunks[i]] > 0);
        assert_true(heat >= hottest); /* coldest first */
        assert_true(sum < want);      /* no more than needed */
        hottest = heat;
        sum += resident[chunks[i]];
    }
    assert_true(sum >= want || n == max || sum == total);
    for (unsigned i = 0; i < N && n < N; i++) {
        assert_true(taken[i] || !resident[i] || predictor_heat(p, i) >= hottest || n == 0);
    }
    predictor_free(p);
}

static void test_random_cases(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 300; seed++) {
        check_case(seed);
    }
}

/* Equals: nobody is taken twice before all were taken once. */
static void test_rotation(void **state)
{
    static _Atomic uint16_t resident[N];
    static unsigned taken[N];
    struct predictor *p = predictor_new(NULL, N, 5);
    uint64_t chunks[100];

    (void)state;
    for (unsigned i = 0; i < N; i++) {
        resident[i] = 512;
        taken[i] = 0;
    }
    for (unsigned call = 0; call < 2 * N / 100; call++) {
        assert_int_equal(predictor_victims(p, resident, 100 * 512, chunks, 100), 100);
        for (unsigned i = 0; i < 100; i++) {
            assert_true(taken[chunks[i]]++ <= call / (N / 100));
        }
    }
    for (unsigned i = 0; i < N; i++) {
        assert_int_equal(taken[i], 2);
    }
    predictor_free(p);
}

/* Rotation goes on although a few colder chunks are taken each time. */
static void test_rotation_above_colder(void **state)
{
    static _Atomic uint16_t resident[N];
    static unsigned taken[N];
    struct predictor *p = predictor_new(NULL, N, 6);
    uint8_t history[N];
    uint64_t chunks[30];

    (void)state;
    for (unsigned i = 0; i < N; i++) {
        resident[i] = 1;
        taken[i] = 0;
        history[i] = i < 10 ? 0 : 9;
    }
    predictor_import(p, history);
    for (unsigned call = 0; call < (N - 10) / 20; call++) {
        assert_int_equal(predictor_victims(p, resident, 30, chunks, 30), 30);
        for (unsigned i = 0; i < 30; i++) {
            assert_true(i < 10 ? chunks[i] < 10 : chunks[i] >= 10);
            taken[chunks[i]]++;
        }
    }
    for (unsigned i = 10; i < N; i++) {
        assert_true(taken[i] <= 1);
    }
    predictor_free(p);
}

/* Of equals, low addresses are not preferred: the mean address of victims is near the middle. */
static void test_no_address_bias(void **state)
{
    static _Atomic uint16_t resident[N];
    uint64_t chunks[50];
    double sum = 0;

    (void)state;
    for (unsigned i = 0; i < N; i++) {
        resident[i] = 7;
    }
    for (uint64_t seed = 0; seed < 200; seed++) {
        struct predictor *p = predictor_new(NULL, N, seed);
        assert_int_equal(predictor_victims(p, resident, 350, chunks, 50), 50);
        for (unsigned i = 0; i < 50; i++) {
            sum += (double)chunks[i];
        }
        predictor_free(p);
    }
    double mean = sum / (200 * 50); /* standard error: N / sqrt(12 * 10000), or 0.3 % of N */
    assert_true(mean > 0.48 * N && mean < 0.52 * N);
}

static void test_determinism(void **state)
{
    static _Atomic uint16_t resident[N];
    uint64_t random = 3, a[64], b[64];
    struct predictor *p = predictor_new(NULL, N, 11), *q = predictor_new(NULL, N, 11);

    (void)state;
    for (unsigned i = 0; i < N; i++) {
        resident[i] = (uint16_t)policy_below(&random, 513);
    }
    for (unsigned round = 0; round < 50; round++) {
        for (unsigned i = 0; i < 500; i++) {
            uint64_t chunk = policy_below(&random, N);
            predictor_note(p, chunk, PREDICTOR_READ);
            predictor_note(q, chunk, PREDICTOR_READ);
        }
        predictor_tick(p);
        predictor_tick(q);
        size_t n = predictor_victims(p, resident, 5000, a, 64);
        assert_int_equal(predictor_victims(q, resident, 5000, b, 64), n);
        assert_memory_equal(a, b, n * sizeof(*a));
    }
    predictor_free(p);
    predictor_free(q);
}

/* Time that this thread has had a CPU. */
static uint64_t own_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static void test_one_tebibyte(void **state)
{
    const uint64_t n_chunks = (uint64_t)1 << 19;
    struct predictor *p = predictor_new(NULL, n_chunks, 1);
    _Atomic uint16_t *resident = calloc(n_chunks, sizeof(*resident));
    uint64_t chunks[256], random = 1;

    (void)state;
    random_history(p, &random, 8);
    for (uint64_t i = 0; i < n_chunks; i++) {
        resident[i] = 512;
    }
    uint64_t begin = own_us();
    for (unsigned call = 0; call < 20; call++) {
        assert_int_equal(predictor_victims(p, resident, 128 * 512, chunks, 256), 128);
    }
    uint64_t us = (own_us() - begin) / 20;
    begin = own_us();
    predictor_tick(p);
    print_message("1 TiB: victims %lu us a call, tick %lu us\n", (unsigned long)us,
                  (unsigned long)(own_us() - begin));
    assert_true(us < 200000); /* a sort by mistake would show, a busy machine not */
    free(resident);
    predictor_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_cases),         cmocka_unit_test(test_rotation),
        cmocka_unit_test(test_rotation_above_colder), cmocka_unit_test(test_no_address_bias),
        cmocka_unit_test(test_determinism),          cmocka_unit_test(test_one_tebibyte),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
