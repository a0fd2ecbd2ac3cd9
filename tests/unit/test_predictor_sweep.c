// SPDX-License-Identifier: GPL-2.0-or-later
/* The sweep: second chance, probation, progress when all is in use; at the size of a 1 TiB guest. */
#include <pthread.h>
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
#include "predictor/replay.h"
#include "predictor/sweep.h"

#define N_PAGES (8 * CHUNK_PAGES)

struct guest {
    uint8_t state[N_PAGES]; /* enum sweep_state */
    _Atomic uint16_t resident[N_PAGES / CHUNK_PAGES];
    uint64_t looked, left;
};

static enum sweep_state guest_state(void *opaque, uint64_t page)
{
    struct guest *guest = opaque;

    assert_true(page < N_PAGES);
    guest->looked++;
    return (enum sweep_state)guest->state[page];
}

static struct sweep *guest_sweep(struct guest *guest)
{
    struct sweep_view view = {.n_pages = N_PAGES, .resident = guest->resident,
                              .state = guest_state, .opaque = guest};

    return sweep_new(&view);
}

static void guest_put(struct guest *guest, uint64_t page, enum sweep_state state)
{
    int change = (state != SWEEP_ABSENT) - (guest->state[page] != SWEEP_ABSENT);

    atomic_fetch_add(&guest->resident[page / CHUNK_PAGES], (uint16_t)change);
    guest->state[page] = (uint8_t)state;
}

/* Do what a step says; every page named must be in the state that fits. */
static void guest_step(struct guest *guest, const struct sweep_step *step)
{
    assert_int_equal(step->first % SWEEP_WINDOW, 0);
    assert_int_equal(step->watch & step->leave, 0);
    assert_true(step->watch | step->leave);
    for (unsigned i = 0; i < SWEEP_WINDOW; i++) {
        uint64_t page = step->first + i, bit = (uint64_t)1 << i;
        if (step->watch & bit) {
            assert_int_equal(guest->state[page], SWEEP_TOUCHED);
            guest_put(guest, page, SWEEP_IDLE);
        } else if (step->leave & bit) {
            assert_int_not_equal(guest->state[page], SWEEP_ABSENT);
            guest_put(guest, page, SWEEP_ABSENT);
            guest->left++;
        }
    }
}

/* Accesses show only when somebody looks: marks of what was accessed are wrong until then. */
struct mapped_guest {
    struct guest guest;
    bool mapped[N_PAGES];
};

static void mapped_look(void *opaque, uint64_t first)
{
    struct mapped_guest *mapped = opaque;

    assert_int_equal(first % SWEEP_WINDOW, 0);
    for (uint64_t page = first; page < first + SWEEP_WINDOW && page < N_PAGES; page++) {
        if (mapped->mapped[page] && mapped->guest.state[page] == SWEEP_IDLE) {
            guest_put(&mapped->guest, page, SWEEP_TOUCHED);
        }
    }
}

static void test_marks_are_looked_at_before_pages_leave(void **state)
{
    static struct mapped_guest mapped;
    struct sweep_view view = {.n_pages = N_PAGES, .resident = mapped.guest.resident,
                              .look = mapped_look, .state = guest_state, .opaque = &mapped};
    struct sweep *sweep = sweep_new(&view);
    struct sweep_step step;

    (void)state;
    for (uint64_t page = 0; page < N_PAGES; page += 3) {
        guest_put(&mapped.guest, page, SWEEP_IDLE);
        mapped.mapped[page] = page % 2 == 0;
        sweep_arrived(sweep, page);
    }
    while (mapped.guest.left < N_PAGES / 8 && sweep_next(sweep, 1000, &step)) {
        for (unsigned i = 0; i < SWEEP_WINDOW; i++) {
            assert_false(step.leave >> i & 1 && mapped.mapped[step.first + i]);
        }
        guest_step(&mapped.guest, &step);
    }
    assert_true(mapped.guest.left >= N_PAGES / 8);
    sweep_free(sweep);
}

static void test_untouched_pages_leave_touched_ones_stay(void **state)
{
    static struct guest guest;
    struct sweep *sweep = guest_sweep(&guest);
    struct sweep_step step;

    (void)state;
    assert_false(sweep_next(sweep, 1000, &step)); /* nothing is here */
    for (uint64_t page = 0; page < N_PAGES; page += 3) {
        guest_put(&guest, page, SWEEP_TOUCHED);
    }
    uint64_t total = (N_PAGES + 2) / 3;
    while (guest.left < total * 2 / 3) {
        assert_true(sweep_next(sweep, 1000, &step));
        guest_step(&guest, &step);
        for (uint64_t page = 0; page < N_PAGES; page += 9) { /* a third is in use all the time */
            if (guest.state[page] == SWEEP_IDLE) {
                guest.state[page] = SWEEP_TOUCHED;
            }
        }
    }
    for (uint64_t page = 0; page < N_PAGES; page += 9) {
        assert_int_equal(guest.state[page], SWEEP_TOUCHED);
    }
    sweep_free(sweep);
}

/* Of windows of chunk @chunk and of others: how many the first three laps name.  None leaves. */
static void name_three_laps(struct sweep *sweep, uint64_t chunk, uint64_t seen[3],
                            uint64_t other[3])
{
    struct sweep_step step;
    uint64_t before = 0;

    for (unsigned lap = 0; lap < 3; before = step.first) {
        assert_true(sweep_next(sweep, N_PAGES, &step));
        lap += step.first < before;
        if (lap < 3) {
            seen[lap] += step.first / CHUNK_PAGES == chunk;
            other[lap] += step.first / CHUNK_PAGES != chunk;
        }
    }
}

/* Every second lap leaves chunks alone into which a page came lately; the next takes them too. */
static void test_every_second_lap_passes_over_young_chunks(void **state)
{
    const uint64_t young = 3;

    (void)state;
    for (int came = 0; came < 2; came++) {
        static struct guest guest;
        guest = (struct guest){0};
        struct sweep *sweep = guest_sweep(&guest);
        uint64_t seen[3] = {0}, other[3] = {0};
        for (uint64_t page = 0; page < N_PAGES; page++) {
            guest_put(&guest, page, SWEEP_IDLE);
            if (came) {
                sweep_arrived(sweep, page);
            }
        }
        for (unsigned i = 0; i < CHUNK_PAGES && came; i++) {
            sweep_arrived(sweep, young * CHUNK_PAGES + i);
        }
        name_three_laps(sweep, young, seen, other);
        for (unsigned lap = 0; lap < 3; lap++) {
            assert_int_equal(seen[lap], came && lap == 1 ? 0 : CHUNK_PAGES / SWEEP_WINDOW);
            assert_true(other[lap] >= (N_PAGES - CHUNK_PAGES) / SWEEP_WINDOW - 1);
        }
        sweep_free(sweep);
    }
}

/* Marked soon after they came, both; but only what came together is on probation. */
static void test_pages_that_come_singly_are_left_to_the_hand(void **state)
{
    (void)state;
    for (int together = 0; together < 2; together++) {
        static struct guest guest;
        guest = (struct guest){0};
        struct sweep *sweep = guest_sweep(&guest);
        struct sweep_step step;
        uint64_t marked = 0;
        for (uint64_t i = 0; i < 1024; i++) { /* from above, so the hand's order is another */
            uint64_t single = N_PAGES - SWEEP_WINDOW * (i % 48 + 1) + i / 48;
            uint64_t page = together ? N_PAGES - 1 - i : single;
            guest_put(&guest, page, SWEEP_TOUCHED);
            sweep_arrived(sweep, page);
            while (sweep_probation(sweep, &step)) {
                marked += (uint64_t)__builtin_popcountll(step.watch);
                guest_step(&guest, &step);
            }
        }
        assert_true(marked > 512 && marked < 1024);
        while (sweep_next(sweep, 1024, &step) && !step.leave) {
            guest_step(&guest, &step);
        }
        assert_int_equal(step.first, N_PAGES - (together ? 1 : 48) * SWEEP_WINDOW);
        sweep_free(sweep);
    }
}

static void test_progress_when_all_is_in_use(void **state)
{
    static struct guest guest;
    struct sweep *sweep = guest_sweep(&guest);
    struct sweep_step step;

    (void)state;
    for (uint64_t page = 0; page < N_PAGES; page++) {
        guest_put(&guest, page, SWEEP_TOUCHED);
    }
    while (guest.left < N_PAGES / 2) {
        assert_true(sweep_next(sweep, 1000, &step));
        guest_step(&guest, &step);
        for (uint64_t page = 0; page < N_PAGES; page++) {
            if (guest.state[page] == SWEEP_IDLE) {
                guest.state[page] = SWEEP_TOUCHED;
            }
        }
        assert_true(guest.looked <= SWEEP_LOOKS * (guest.left + 3 * SWEEP_WINDOW) * 2);
    }
    sweep_free(sweep);
}

/* A scan of ten times what is free must not drive out what is used. */
static void test_arrivals_are_on_probation(void **state)
{
    static struct guest guest;
    struct sweep *sweep = guest_sweep(&guest);
    struct sweep_step step;
    uint64_t page = 0, here = 1000, kept = 0;

    (void)state;
    for (; page < 1000; page++) {
        guest_put(&guest, page, SWEEP_TOUCHED);
    }
    for (; page < N_PAGES; page++, here++) {
        guest_put(&guest, page, SWEEP_TOUCHED);
        sweep_arrived(sweep, page);
        while (sweep_probation(sweep, &step)) {
            guest_step(&guest, &step);
        }
        for (uint64_t before = guest.left; here > 1300; before = guest.left) {
            assert_true(sweep_next(sweep, 1300, &step));
            guest_step(&guest, &step);
            here -= guest.left - before;
        }
        for (uint64_t old = 0; old < 1000; old++) {
            if (guest.state[old] == SWEEP_IDLE) {
                guest.state[old] = SWEEP_TOUCHED;
            }
        }
    }
    for (page = 0; page < 1000; page++) {
        kept += guest.state[page] != SWEEP_ABSENT;
    }
    assert_true(kept > 950);
    sweep_free(sweep);
}

static void *arrive(void *arg)
{
    for (uint64_t i = 0; i < 200000; i++) {
        sweep_arrived(arg, i % N_PAGES);
    }
    return NULL;
}

static void test_arrivals_from_several_threads(void **state)
{
    static struct guest guest;
    struct sweep *sweep = guest_sweep(&guest);
    struct sweep_step step;
    pthread_t threads[2];
    uint64_t random = 9;

    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, arrive, sweep), 0);
    }
    for (unsigned i = 0; i < 20000; i++) {
        guest_put(&guest, policy_below(&random, N_PAGES), SWEEP_TOUCHED);
        if (sweep_probation(sweep, &step)) {
            guest_step(&guest, &step);
        }
        if (sweep_next(sweep, 2000, &step)) {
            guest_step(&guest, &step);
        }
    }
    for (unsigned i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_true(guest.left > 1000);
    sweep_free(sweep);
}

static enum sweep_state sparse_state(void *opaque, uint64_t page)
{
    const _Atomic uint16_t *resident = opaque;

    assert_true(resident[page / CHUNK_PAGES]); /* others are not looked at */
    return SWEEP_IDLE;
}

static void test_a_guest_of_1_tib(void **state)
{
    uint64_t n_pages = (uint64_t)1 << 28, n_chunks = n_pages / CHUNK_PAGES, left = 0;
    _Atomic uint16_t *resident = calloc(n_chunks, sizeof(*resident));
    struct sweep_view view = {.n_pages = n_pages, .resident = resident, .state = sparse_state,
                              .opaque = (void *)resident};
    struct sweep *sweep = sweep_new(&view);
    struct sweep_step step;

    (void)state;
    assert_true(sweep_bytes(n_pages) * 31 <= n_pages); /* a thirty-first of a byte a page */
    for (uint64_t chunk = 0; chunk < n_chunks; chunk += 4096) {
        resident[chunk] = CHUNK_PAGES;
    }
    while (left < 127 * CHUNK_PAGES) {
        assert_true(sweep_next(sweep, 65536, &step));
        assert_true(resident[step.first / CHUNK_PAGES]);
        left += (uint64_t)__builtin_popcountll(step.leave);
        if (step.first % CHUNK_PAGES == CHUNK_PAGES - SWEEP_WINDOW) {
            resident[step.first / CHUNK_PAGES] = 0;
        }
    }
    sweep_free(sweep);
    free((void *)resident);
}

/* Seeing faults and samples only it must come near to CLOCK, which sees all, and beat what it replaces. */
static void test_near_to_those_that_see_all(void **state)
{
    struct replay_options options = {.local_pages = 16384, .seed = 1};
    struct trace_shape shape = {.kind = "zipf", .n_pages = 65536, .cluster = 8,
                                .n_accesses = 600000, .tick_every = 8000, .seed = 5};
    struct replay_result sweep, clock, queue, aging;
    struct trace trace;

    (void)state;
    assert_int_equal(trace_generate(&trace, &shape), 0);
    assert_int_equal(replay_policy(&trace, "sweep", &options, &sweep), 0);
    assert_int_equal(replay_policy(&trace, "smemv", &options, &aging), 0);
    assert_int_equal(replay_oracle(&trace, "clock", &options, &clock), 0);
    assert_int_equal(replay_oracle(&trace, "fluidmem", &options, &queue), 0);
    assert_true(sweep.misses * 20 < clock.misses * 21);
    assert_true(sweep.misses * 10 < queue.misses * 9);
    assert_true(sweep.misses * 10 < aging.misses * 9);
    assert_true(sweep.sampled > 0 && sweep.sampled < SWEEP_LOOKS * sweep.page_outs);
    trace_free(&trace);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_marks_are_looked_at_before_pages_leave),
        cmocka_unit_test(test_untouched_pages_leave_touched_ones_stay),
        cmocka_unit_test(test_every_second_lap_passes_over_young_chunks),
        cmocka_unit_test(test_pages_that_come_singly_are_left_to_the_hand),
        cmocka_unit_test(test_progress_when_all_is_in_use),
        cmocka_unit_test(test_arrivals_are_on_probation),
        cmocka_unit_test(test_arrivals_from_several_threads),
        cmocka_unit_test(test_a_guest_of_1_tib),
        cmocka_unit_test(test_near_to_those_that_see_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
