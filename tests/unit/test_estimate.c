// SPDX-License-Identifier: GPL-2.0-or-later
/* Rounds until what is left fits the downtime; or none that ends. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "common/units.h"
#include "split-migrate/estimate.h"

static struct estimate estimate_of(uint64_t present, uint64_t bandwidth, uint64_t dirty_rate,
                                   uint64_t downtime_ms)
{
    struct estimate estimate = {.bandwidth = bandwidth, .dirty_rate = dirty_rate};

    estimate_make(&estimate, present, downtime_ms);
    return estimate;
}

static void test_estimates(void **state)
{
    (void)state;
    struct estimate idle = estimate_of(4 * GIB, 128 * MIB, 0, 300);
    assert_true(idle.ends);
    assert_in_range(idle.total_ms, 32000, 32200);
    assert_in_range(idle.downtime_ms, 1, 40);

    /* A tenth of the link: the second round sends a tenth of the first, and so on. */
    struct estimate light = estimate_of(1 * GIB, 100 * MIB, 10 * MIB, 300);
    assert_true(light.ends);
    assert_in_range(light.total_ms, 10240 * 110 / 100, 10240 * 113 / 100);
    assert_true(light.downtime_ms <= 160);

    /* It writes more than that: the last round is as much as fits, which QEMU judges by half of the rate. */
    struct estimate busy = estimate_of(700 * MIB, 400 * MIB, 109 * MIB, 300);
    assert_true(busy.ends);
    assert_in_range(busy.downtime_ms, 145, 165); /* 134 if it were asked at the end of rounds only */
    assert_in_range(busy.total_ms, 2200, 2500);
    /* What may be waited for grows while a round goes on: it need not be the whole limit in the end. */
    struct estimate some = estimate_of(700 * MIB, 400 * MIB, 39 * MIB, 300);
    assert_true(some.ends);
    assert_in_range(some.downtime_ms, 15, 60);

    struct estimate nothing = estimate_of(0, 100 * MIB, 0, 300);
    assert_true(nothing.ends && nothing.total_ms < 200);
    assert_false(estimate_of(1 * GIB, 100 * MIB, 200 * MIB, 300).ends);
    assert_false(estimate_of(1 * GIB, 0, 0, 300).ends);
    /* It writes to all of its memory all the time, but all of it fits the downtime. */
    assert_true(estimate_of(10 * MIB, 100 * MIB, 200 * MIB, 2000).ends);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_estimates)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
