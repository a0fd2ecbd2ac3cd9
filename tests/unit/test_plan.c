// SPDX-License-Identifier: GPL-2.0-or-later
/* The arithmetic of a plan: who gets how much, and who is named when it does not fit. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/units.h"
#include "split-migrate/plan.h"

static struct plan make(uint64_t ram, uint64_t present, uint64_t budget)
{
    return (struct plan){
        .ram = ram,
        .present = present,
        .budget = budget,
        .low_watermark = budget - budget / 8,
    };
}

static void add(struct plan *plan, const char *name, uint64_t free, uint64_t memory,
                uint64_t weight)
{
    plan->subhost[plan->n_subhosts++] =
        (struct plan_subhost){.name = name, .free = free, .memory = memory, .weight = weight};
}

/* What must hold of every plan that fits. */
static void check(const struct plan *plan)
{
    uint64_t shares = 0;
    uint64_t reserved = 0;

    for (unsigned i = 0; i < plan->n_subhosts; i++) {
        const struct plan_subhost *s = &plan->subhost[i];
        shares += s->share;
        reserved += s->reserve;
        assert_true(s->share <= s->reserve);
        assert_true(s->reserve <= s->free || s->reserve <= CHUNK_BYTES);
        assert_true(s->reserve <= s->limit && s->limit <= plan->ram);
        assert_true(!s->memory || s->limit <= s->memory);
        assert_true(s->reserve > 0 && s->reserve % CHUNK_BYTES == 0);
    }
    assert_int_equal(plan->main_bytes + shares, plan->present);
    assert_true(plan->main_bytes <= plan->low_watermark);
    assert_true(reserved >= plan->sub_bytes + plan->growth || reserved >= plan->ram);
}

static void fits_main(void **state)
{
    struct plan plan = make(4 * GIB, 100 * MIB, GIB);

    (void)state;
    add(&plan, "a", 8 * GIB, 0, 1);
    assert_int_equal(plan_make(&plan, NULL), 0);
    check(&plan);
    assert_int_equal(plan.main_bytes, 100 * MIB);
    assert_int_equal(plan.subhost[0].share, 0);
    assert_true(plan.subhost[0].reserve < 16 * MIB);
}

static void by_free_memory(void **state)
{
    struct plan plan = make(8 * GIB, 7 * GIB, GIB);

    (void)state;
    add(&plan, "small", 4 * GIB, 0, 1);
    add(&plan, "large", 8 * GIB, 0, 1);
    assert_int_equal(plan_make(&plan, NULL), 0);
    check(&plan);
    double ratio = (double)plan.subhost[1].share / (double)plan.subhost[0].share;
    assert_true(ratio > 1.95 && ratio < 2.05);
    assert_true(plan_weight(&plan, 1) > plan_weight(&plan, 0));
    assert_true(plan_weight(&plan, 0) + plan_weight(&plan, 1) <= 1000000);
}

static void by_weight(void **state)
{
    struct plan plan = make(8 * GIB, 7 * GIB, GIB);

    (void)state;
    add(&plan, "a", 8 * GIB, 0, 3);
    add(&plan, "b", 8 * GIB, 0, 1);
    add(&plan, "spare", 8 * GIB, 0, 0);
    assert_int_equal(plan_make(&plan, NULL), 0);
    check(&plan);
    double ratio = (double)plan.subhost[0].share / (double)plan.subhost[1].share;
    assert_true(ratio > 2.9 && ratio < 3.1);
    assert_true(plan.subhost[2].share <= CHUNK_BYTES);
}

static void full_passes_on(void **state)
{
    struct plan plan = make(8 * GIB, 7 * GIB, GIB);

    (void)state;
    add(&plan, "limited", 64 * GIB, GIB, 1000);
    add(&plan, "other", 4 * GIB, 0, 1);
    add(&plan, "spare", 4 * GIB, 0, 0);
    assert_int_equal(plan_make(&plan, NULL), 0);
    check(&plan);
    assert_int_equal(plan.subhost[0].limit, GIB);
    assert_true(plan.subhost[0].reserve >= GIB - 2 * CHUNK_BYTES);
    assert_true(plan.subhost[2].share > 0);
}

static void refusals(void **state)
{
    struct plan plan = make(8 * GIB, 7 * GIB, GIB);
    struct reason reason = {""};

    (void)state;
    add(&plan, "a", GIB, 0, 1);
    assert_int_equal(plan_make(&plan, &reason), -ENOSPC);
    assert_non_null(strstr(reason.text, "'a' has 1 GiB"));
    assert_non_null(strstr(reason.text, "6.6 GiB needed"));

    plan.n_subhosts = 0;
    add(&plan, "limited", 64 * GIB, 2 * GIB, 1);
    add(&plan, "b", GIB, 0, 1);
    assert_int_equal(plan_make(&plan, &reason), -ENOSPC);
    assert_non_null(strstr(reason.text, "'limited' may give 2 GiB, 'b' has 1 GiB"));

    plan.n_subhosts = 0;
    add(&plan, "good", 64 * GIB, 0, 1);
    add(&plan, "empty", MIB, 0, 1);
    assert_int_equal(plan_make(&plan, &reason), -ENOSPC);
    assert_non_null(strstr(reason.text, "sub-host 'empty' lacks memory: at least 2 MiB is needed "
                                        "and 1 MiB is free"));

    plan.n_subhosts = 1;
    plan.main_known = true;
    plan.main_free = 512 * MIB;
    assert_int_equal(plan_make(&plan, &reason), -ENOSPC);
    assert_non_null(strstr(reason.text, "main host lacks memory: 1 GiB are needed and 512 MiB are "
                                        "available"));
    plan.main_free = GIB;
    assert_int_equal(plan_make(&plan, &reason), 0);
}

static void shortfall(void **state)
{
    struct plan plan = make(8 * GIB, 2 * GIB, GIB);

    (void)state;
    add(&plan, "a", 2 * GIB, 0, 1);
    assert_int_equal(plan_make(&plan, NULL), 0);
    check(&plan);
    assert_int_equal(plan.shortfall, plan.ram - plan.budget - plan.subhost[0].reserve);
    plan = make(2 * GIB, 2 * GIB, GIB);
    add(&plan, "a", 4 * GIB, 0, 1);
    assert_int_equal(plan_make(&plan, NULL), 0);
    assert_int_equal(plan.growth, 0);
}

/* Whatever the numbers: a plan either fits in every respect or is refused. */
static void at_random(void **state)
{
    struct reason reason;
    unsigned fits = 0;

    (void)state;
    srandom(7);
    for (unsigned round = 0; round < 20000; round++) {
        uint64_t ram = CHUNK_BYTES * (uint64_t)(1 + random() % 5000);
        struct plan plan = make(ram, (uint64_t)random() * PAGE_BYTES % (ram + 1),
                                16 * MIB + CHUNK_BYTES * (uint64_t)(random() % 2000));
        unsigned n = (unsigned)(1 + random() % 20);
        uint64_t capacity = plan.low_watermark;
        for (unsigned i = 0; i < n; i++) {
            uint64_t free = (uint64_t)(random() % 3000) * MIB + CHUNK_BYTES;
            uint64_t memory = random() % 3 ? 0 : (uint64_t)(1 + random() % 1000) * CHUNK_BYTES;
            add(&plan, "x", free, memory, (uint64_t)(random() % 5));
            capacity += free;
        }
        int err = plan_make(&plan, &reason);
        assert_true(err == 0 || err == -ENOSPC);
        if (err == 0) {
            check(&plan);
            assert_true(plan.present <= capacity);
            fits++;
        }
    }
    assert_true(fits > 1000);
}

static void two_copies(void **state)
{
    struct plan plan = make(4 * GIB, 3 * GIB, GIB);
    struct reason reason = {""};

    (void)state;
    plan.copies = 2;
    add(&plan, "a", 8 * GIB, 0, 1);
    add(&plan, "b", 8 * GIB, 0, 1);
    assert_int_equal(plan_make(&plan, &reason), 0);
    check(&plan);
    for (unsigned i = 0; i < 2; i++) { /* each must be able to hold all of it */
        assert_true(plan.subhost[i].reserve >= plan.sub_bytes + plan.growth);
    }
    /* A large one does not help a small one: the copies of a page must be on two. */
    plan.subhost[1].free = GIB;
    assert_int_equal(plan_make(&plan, &reason), -ENOSPC);
    assert_non_null(strstr(reason.text, "for two copies"));
    plan.copies = 1;
    assert_int_equal(plan_make(&plan, &reason), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fits_main), cmocka_unit_test(by_free_memory),
        cmocka_unit_test(by_weight), cmocka_unit_test(full_passes_on),
        cmocka_unit_test(refusals),  cmocka_unit_test(shortfall),
        cmocka_unit_test(at_random),  cmocka_unit_test(two_copies),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
