// SPDX-License-Identifier: GPL-2.0-or-later
/* On a simulated link the fastest way of compressing is found, and trials cost little. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "common/units.h"
#include "uffd-pager/adapt.h"

/* Move @gib GiB; each way brings @rate MiB/s across. Return: how long it takes, in ms. */
static uint64_t move(const unsigned rate[PACK_METHODS], unsigned gib, struct adapt *adapt)
{
    uint64_t us = 0;

    for (uint64_t mib = 0; mib < gib * 1024u; mib++) {
        us += 1000000u / rate[adapt->now];
        adapt_step(adapt, MIB, us, 8 * MIB);
    }
    return us / 1000;
}

static void expect(const unsigned rate[PACK_METHODS], enum pack_method best)
{
    struct adapt adapt;
    uint64_t ideal = 4u * 1024 * 1000 / rate[best];

    adapt_begin(&adapt);
    assert_int_equal(adapt.now, PACK_NONE);
    uint64_t took = move(rate, 4, &adapt);
    assert_int_equal(adapt.best, best);
    assert_true(took < ideal + ideal / 10);
}

static void test_best(void **state)
{
    (void)state;
    expect((unsigned[]){1000, 600, 300}, PACK_NONE);
    expect((unsigned[]){110, 220, 330}, PACK_ZSTD);
    expect((unsigned[]){400, 700, 350}, PACK_LZ4);
    expect((unsigned[]){500, 499, 498}, PACK_NONE);
}

/* Text, then random bytes, then text. */
static void test_changes(void **state)
{
    const unsigned text[] = {110, 250, 400};
    const unsigned noise[] = {110, 105, 90};
    struct adapt adapt;

    (void)state;
    adapt_begin(&adapt);
    move(text, 2, &adapt);
    assert_int_equal(adapt.best, PACK_ZSTD);
    uint64_t took = move(noise, 2, &adapt);
    assert_int_equal(adapt.best, PACK_NONE);
    assert_true(took < 2u * 1024 * 1000 / 110 * 11 / 10);
    move(text, 4, &adapt);
    assert_int_equal(adapt.best, PACK_ZSTD);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_best),
        cmocka_unit_test(test_changes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
