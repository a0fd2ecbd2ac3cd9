// SPDX-License-Identifier: GPL-2.0-or-later
/* On a simulated link the fastest way of compressing is found, and trials cost little. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "common/units.h"
#include "uffd-pager/adapt.h"

/* One thread packs 64 KiB into @packed bytes, at @speed MiB/s. */
static void sample(struct adapt *adapt, enum pack_method method, unsigned packed, unsigned speed)
{
    adapt_sample(adapt, method, 64 * KIB, packed, 64 * KIB * 1000 / speed * 1000000 / MIB);
}

/*
 * Move @gib GiB; each way brings @rate MiB/s across.  Samples promise as much of both ways as there
 * could be.  Return: how long it takes, in ms.
 */
static uint64_t move(const unsigned rate[PACK_METHODS], unsigned gib, struct adapt *adapt)
{
    uint64_t us = 0;

    for (uint64_t mib = 0; mib < gib * 1024u; mib++) {
        us += 1000000u / rate[adapt->now];
        sample(adapt, PACK_LZ4, 8 * KIB, 100000);
        sample(adapt, PACK_ZSTD, 1 * KIB, 100000);
        adapt_step(adapt, MIB, us, 8 * MIB);
    }
    return us / 1000;
}

static void expect(const unsigned rate[PACK_METHODS], enum pack_method best)
{
    struct adapt adapt;
    uint64_t ideal = 4u * 1024 * 1000 / rate[best];

    adapt_begin(&adapt, 2);
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
    adapt_begin(&adapt, 2);
    move(text, 2, &adapt);
    assert_int_equal(adapt.best, PACK_ZSTD);
    uint64_t took = move(noise, 2, &adapt);
    assert_int_equal(adapt.best, PACK_NONE);
    assert_true(took < 2u * 1024 * 1000 / 110 * 11 / 10);
    move(text, 4, &adapt);
    assert_int_equal(adapt.best, PACK_ZSTD);
}

/* 1 GiB at @rate, with the same samples all the time. Return: was anything but plain tried? */
static bool tried(unsigned rate, unsigned packed, unsigned lz4_speed, unsigned zstd_speed)
{
    struct adapt adapt;
    uint64_t us = 0;

    adapt_begin(&adapt, 2);
    for (unsigned mib = 0; mib < 1024 && adapt.now == PACK_NONE; mib++) {
        us += 1000000u / rate;
        sample(&adapt, PACK_LZ4, packed, lz4_speed);
        sample(&adapt, PACK_ZSTD, packed, zstd_speed);
        adapt_step(&adapt, MIB, us, 8 * MIB);
    }
    return adapt.now != PACK_NONE;
}

/* What cannot win is not tried: two threads that pack more slowly than the link, or random bytes. */
static void test_samples(void **state)
{
    (void)state;
    assert_false(tried(1100, 16 * KIB, 500, 250));
    assert_true(tried(900, 16 * KIB, 500, 250));
    assert_true(tried(110, 16 * KIB, 500, 250));
    assert_false(tried(110, 0, 500, 250));
    assert_false(tried(110, 62 * KIB, 500, 250));
    assert_true(tried(110, 56 * KIB, 500, 250));
}

/* A trial that turns out to be far slower ends before it has brought what a trial brings. */
static void test_hopeless(void **state)
{
    const unsigned rate[] = {1000, 50, 50};
    struct adapt adapt;

    (void)state;
    adapt_begin(&adapt, 2);
    assert_true(move(rate, 1, &adapt) < 2000);
    assert_int_equal(adapt.best, PACK_NONE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_best),
        cmocka_unit_test(test_changes),
        cmocka_unit_test(test_samples),
        cmocka_unit_test(test_hopeless),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
