// SPDX-License-Identifier: GPL-2.0-or-later
/* The predictor's history: aging arithmetic, notes, determinism, what travels. */
#include <pthread.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "predictor/policy.h"

static void test_names(void **state)
{
    const char *const *names = predictor_names();

    (void)state;
    assert_string_equal(names[0], "sweep");
    for (; *names; names++) {
        struct predictor *p = predictor_new(*names, 10, 1);
        assert_non_null(p);
        assert_string_equal(p->ops->name, *names);
        predictor_free(p);
    }
    assert_null(predictor_new("lru", 10, 1));
    assert_null(predictor_new(NULL, (uint64_t)UINT32_MAX + 1, 1));
    struct predictor *p = predictor_new(NULL, 10, 1);
    assert_string_equal(p->ops->name, "sweep");
    assert_true(predictor_sweeps(p));
    predictor_free(p);
    p = predictor_new("smemv", 10, 1);
    assert_false(predictor_sweeps(p));
    predictor_free(p);
    predictor_free(NULL);
}

static void test_aging(void **state)
{
    static const uint8_t expected[] = {0x80, 0xc0, 0x60, 0xb0, 0x58, 0x2c, 0x16, 0x0b,
                                       0x05, 0x02, 0x01, 0x00, 0x00};
    struct predictor *p = predictor_new("smemv", 2, 1);

    (void)state;
    for (unsigned i = 0; i < sizeof(expected); i++) {
        if (i == 0 || i == 1 || i == 3) {
            predictor_note(p, 1, PREDICTOR_READ);
            assert_true(predictor_heat(p, 1) >= 0x80); /* at once, not at the next tick */
        }
        predictor_tick(p);
        assert_int_equal(predictor_heat(p, 1), expected[i]);
        assert_int_equal(predictor_heat(p, 0), 0);
    }
    predictor_free(p);
}

/* Against the rule of the paper, page by page and OR'ed, over random accesses. */
static void test_aging_is_or_of_pages(void **state)
{
    enum { CHUNKS = 8, PAGES = 16 };
    uint8_t pages[CHUNKS][PAGES] = {{0}};
    struct predictor *p = predictor_new("smemv", CHUNKS, 1);
    uint64_t random = 42;

    (void)state;
    for (unsigned period = 0; period < 200; period++) {
        for (unsigned c = 0; c < CHUNKS; c++) {
            for (unsigned i = 0; i < PAGES; i++) {
                bool accessed = policy_below(&random, 8 * (c + 1)) == 0;
                if (accessed) {
                    predictor_note(p, c, (enum predictor_access)policy_below(&random, 3));
                }
                pages[c][i] = (uint8_t)((accessed ? 0x80 : 0) | pages[c][i] >> 1);
            }
        }
        predictor_tick(p);
        for (unsigned c = 0; c < CHUNKS; c++) {
            uint8_t all = 0;
            for (unsigned i = 0; i < PAGES; i++) {
                all |= pages[c][i];
            }
            assert_int_equal(predictor_heat(p, c), all);
        }
    }
    predictor_free(p);
}

static void test_fifo(void **state)
{
    struct predictor *p = predictor_new("fifo", 3, 1);

    (void)state;
    predictor_note(p, 0, PREDICTOR_FAULT);
    predictor_tick(p);
    predictor_note(p, 1, PREDICTOR_FAULT);
    predictor_note(p, 0, PREDICTOR_READ); /* does not count */
    predictor_note(p, 0, PREDICTOR_WRITE);
    predictor_tick(p);
    assert_true(predictor_heat(p, 1) > predictor_heat(p, 0));
    assert_true(predictor_heat(p, 0) > predictor_heat(p, 2));
    for (unsigned i = 0; i < 300; i++) {
        predictor_tick(p);
    }
    assert_int_equal(predictor_heat(p, 1), 0);
    predictor_free(p);
}

static void test_out_of_range(void **state)
{
    struct predictor *p = predictor_new(NULL, 4, 1);

    (void)state;
    predictor_note(p, 4, PREDICTOR_READ);
    predictor_note(p, UINT64_MAX, PREDICTOR_FAULT);
    predictor_tick(p);
    assert_int_equal(predictor_heat(p, 4), 0);
    assert_int_equal(predictor_heat(p, UINT64_MAX), 0);
    predictor_free(p);
}

static void test_export_import(void **state)
{
    enum { N = 1000 };
    struct predictor *from = predictor_new(NULL, N, 1), *to = predictor_new(NULL, N, 2);
    uint8_t history[N], again[N];
    uint64_t random = 7;

    (void)state;
    for (unsigned period = 0; period < 12; period++) {
        for (unsigned i = 0; i < N / 4; i++) {
            predictor_note(from, policy_below(&random, N), PREDICTOR_READ);
            predictor_note(to, policy_below(&random, N), PREDICTOR_READ);
        }
        if (period < 11) { /* the last period is still open: its notes travel too */
            predictor_tick(from);
        }
    }
    predictor_export(from, history);
    predictor_import(to, history);
    predictor_export(to, again);
    assert_memory_equal(history, again, N);
    for (unsigned i = 0; i < N; i++) {
        assert_int_equal(predictor_heat(from, i), predictor_heat(to, i));
    }
    predictor_free(from);
    predictor_free(to);
}

static void test_order_is_a_permutation(void **state)
{
    enum { N = 5000 };
    struct predictor *a = predictor_new(NULL, N, 99), *b = predictor_new(NULL, N, 99);
    struct predictor *c = predictor_new(NULL, N, 100);
    uint8_t seen[N] = {0};
    unsigned in_place = 0, alike = 0;

    (void)state;
    assert_memory_equal(a->order, b->order, N * sizeof(*a->order));
    for (unsigned i = 0; i < N; i++) {
        assert_true(a->order[i] < N);
        assert_int_equal(seen[a->order[i]]++, 0);
        in_place += a->order[i] == i;
        alike += a->order[i] == c->order[i];
    }
    assert_true(in_place < 20 && alike < 20); /* one each is expected */
    predictor_free(a);
    predictor_free(b);
    predictor_free(c);
}

static void *note_all(void *arg)
{
    struct predictor *p = arg;

    for (unsigned round = 0; round < 200; round++) {
        for (uint64_t i = 0; i < p->n_chunks; i++) {
            predictor_note(p, i, (enum predictor_access)(i % 3));
        }
    }
    return NULL;
}

/* Notes from threads while periods end: none may be lost over a whole period. */
static void test_notes_from_threads(void **state)
{
    struct predictor *p = predictor_new(NULL, 1000, 1);
    pthread_t thread[2];

    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&thread[i], NULL, note_all, p), 0);
    }
    for (unsigned i = 0; i < 50; i++) {
        predictor_tick(p);
    }
    for (unsigned i = 0; i < 2; i++) {
        pthread_join(thread[i], NULL);
    }
    note_all(p);
    predictor_tick(p);
    for (unsigned i = 0; i < 1000; i++) {
        assert_true(predictor_heat(p, i) >= 0x80);
    }
    predictor_free(p);
}

static void test_no_chunks(void **state)
{
    struct predictor *p = predictor_new(NULL, 0, 1);
    uint64_t out[4];
    _Atomic uint16_t none[1] = {0};

    (void)state;
    assert_non_null(p);
    predictor_note(p, 0, PREDICTOR_READ);
    predictor_tick(p);
    assert_int_equal(predictor_victims(p, none, 10, out, 4), 0);
    assert_int_equal(predictor_prefetch(p, 0, out, 4), 0);
    predictor_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_aging),
        cmocka_unit_test(test_aging_is_or_of_pages),
        cmocka_unit_test(test_fifo),
        cmocka_unit_test(test_out_of_range),
        cmocka_unit_test(test_export_import),
        cmocka_unit_test(test_order_is_a_permutation),
        cmocka_unit_test(test_notes_from_threads),
        cmocka_unit_test(test_no_chunks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
