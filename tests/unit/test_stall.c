// SPDX-License-Identifier: GPL-2.0-or-later
/* A guest that writes faster than it can be sent is told from one that needs some more rounds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "common/units.h"
#include "split-migrate/stall.h"

#define SECOND 1000000u

/* One round of a second; @remaining: MiB at its beginning. */
static bool round_of(struct stall *stall, uint64_t round, uint64_t remaining, unsigned throttle)
{
    struct driver_progress progress = {
        .phase = DRIVER_MOVING,
        .ram_remaining = remaining * MIB,
        .rounds = round,
        .dirty_rate = 240 * MIB,
        .throttle = throttle,
    };

    bool news = stall_step(stall, &progress, round * 100 * MIB, round * SECOND);
    progress.ram_remaining /= 2; /* in the middle of it */
    return stall_step(stall, &progress, round * 100 * MIB, round * SECOND) || news;
}

static void test_converges(void **state)
{
    struct stall stall = {0};
    char text[STALL_TEXT];

    (void)state;
    assert_false(round_of(&stall, 1, 4000, 0));
    for (uint64_t round = 2; round < 20; round++) {
        assert_false(round_of(&stall, round, 4000 / round, 0));
    }
    assert_string_equal(stall_because(&stall, text, sizeof(text)), "");
}

static void test_stalls(void **state)
{
    struct stall stall = {0};
    char text[STALL_TEXT];

    (void)state;
    assert_false(round_of(&stall, 1, 10, 0));
    for (uint64_t round = 2; round < 6; round++) {
        assert_false(round_of(&stall, round, 500 + round, 0));
    }
    assert_true(round_of(&stall, 6, 480, 0));
    assert_true(stall.stalled);
    assert_string_equal(stall_because(&stall, text, sizeof(text)),
                        ", as the guest writes 240 MiB/s and 100 MiB/s can be sent");
    assert_false(round_of(&stall, 7, 500, 0)); /* said once */
    assert_true(round_of(&stall, 8, 500, 20));
    assert_string_equal(stall_because(&stall, text, sizeof(text)),
                        ", as the guest writes 240 MiB/s although it is slowed down by 20 % and 100 MiB/s can be sent");

    /* Slowed down enough: it goes on. */
    assert_false(round_of(&stall, 9, 300, 20));
    assert_false(stall.stalled);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_converges),
        cmocka_unit_test(test_stalls),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
