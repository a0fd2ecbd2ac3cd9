// SPDX-License-Identifier: GPL-2.0-or-later
/* What QEMU is told in each round: more downtime up to the limit, and a rate that was seen. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "common/units.h"
#include "split-migrate/pace.h"

static void test_downtime(void **state)
{
    const uint64_t begin = 5000000;
    struct pace pace;

    (void)state;
    pace_begin(&pace, 120);
    assert_int_equal(pace.downtime_ms, 8);
    assert_false(pace_step(&pace, 0, 0, 0, begin));
    assert_false(pace_step(&pace, 1, 0, 0, begin + 3000000));
    /* The first round took 3.2 s. */
    assert_false(pace_step(&pace, 2, 0, 0, begin + 3200000));
    assert_false(pace_step(&pace, 9, 0, 0, begin + 3299999));
    assert_true(pace_step(&pace, 9, 0, 0, begin + 3300000));
    assert_int_equal(pace.downtime_ms, 16);
    assert_false(pace_step(&pace, 10, 0, 0, begin + 3399999));
    assert_true(pace_step(&pace, 10, 0, 0, begin + 3500000));
    assert_int_equal(pace.downtime_ms, 64);
    assert_true(pace_step(&pace, 10, 0, 0, begin + 9000000));
    assert_int_equal(pace.downtime_ms, 120);
    assert_false(pace_step(&pace, UINT64_MAX, 0, 0, begin + 99000000));
    pace_begin(&pace, 5);
    assert_int_equal(pace.downtime_ms, 5);
}

/* A first round of no time is no reason to allow everything at once. */
static void test_short(void **state)
{
    struct pace pace;

    (void)state;
    pace_begin(&pace, 300);
    assert_false(pace_step(&pace, 2, 0, 0, 1000000));
    assert_false(pace_step(&pace, 3, 0, 0, 1019999));
    assert_true(pace_step(&pace, 4, 0, 0, 1020000));
    assert_int_equal(pace.downtime_ms, 16);
}

static void test_rate(void **state)
{
    struct pace pace;

    (void)state;
    pace_begin(&pace, 300);
    pace_step(&pace, 1, 0, 0, 1);
    pace_step(&pace, 1, 1 * MIB, 10000, 1); /* too short to mean something */
    assert_int_equal(pace.rate, 0);
    pace_step(&pace, 1, 50 * MIB, 500000, 1);
    assert_int_equal(pace.rate, 100 * MIB);
    pace_step(&pace, 1, 50 * MIB, 500000, 1); /* nothing was to be sent */
    assert_int_equal(pace.rate, 100 * MIB);
    assert_int_equal(pace.bandwidth, 0);
    assert_true(pace_step(&pace, 2, 50 * MIB, 500000, 1));
    assert_int_equal(pace.bandwidth, 50 * MIB);

    /* However little downtime is allowed; and again when it turns out to be faster, or slower. */
    pace_begin(&pace, 20);
    assert_false(pace_step(&pace, 1, 80 * MIB, 1000000, 1));
    assert_true(pace_step(&pace, 3, 80 * MIB, 1000000, 1));
    assert_int_equal(pace.bandwidth, 40 * MIB);
    assert_false(pace_step(&pace, 4, 88 * MIB, 1100000, 1));
    assert_true(pace_step(&pace, 4, 168 * MIB, 1600000, 1));
    assert_int_equal(pace.bandwidth, 80 * MIB);
    assert_false(pace_step(&pace, 4, 168 * MIB, 1700000, 1)); /* zero pages: less by an eighth */
    assert_int_equal(pace.rate, 140 * MIB);
    assert_false(pace_step(&pace, 4, 168 * MIB, 1800000, 1));
    assert_true(pace_step(&pace, 4, 168 * MIB, 1900000, 1));
    assert_true(pace.bandwidth < 60 * MIB);
}

/* A limit is exceeded twofold at most. */
static void test_flow(void **state)
{
    struct pace pace;

    (void)state;
    pace_begin(&pace, 300);
    pace_step(&pace, 1, 0, 0, 1000000);
    pace_step(&pace, 1, 4 * MIB, 40000, 1100000); /* a burst tells nothing about it */
    assert_int_equal(pace.rate, 100 * MIB);
    assert_int_equal(pace.flow, 0);
    assert_true(pace_step(&pace, 2, 10 * MIB, 100000, 2000000));
    assert_int_equal(pace.flow, 10 * MIB);
    assert_int_equal(pace.bandwidth, 20 * MIB);
    pace_step(&pace, 3, 10 * MIB, 100000, 3000000); /* nothing was to be sent */
    assert_int_equal(pace.bandwidth, 20 * MIB);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_downtime),
        cmocka_unit_test(test_short),
        cmocka_unit_test(test_rate),
        cmocka_unit_test(test_flow),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
