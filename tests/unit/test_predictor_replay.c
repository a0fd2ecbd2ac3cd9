// SPDX-License-Identifier: GPL-2.0-or-later
/* predictor-replay's parts: the trace format, Belady's optimum against exhaustive search, policies. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "predictor/policy.h"
#include "predictor/replay.h"

static int read_text(struct trace *trace, const char *text, uint64_t tick)
{
    struct reason reason = {.text = ""};
    FILE *file = fmemopen((void *)(uintptr_t)text, strlen(text), "r");
    int err = trace_read(trace, file, tick, &reason);

    fclose(file);
    assert_true(!err == !reason.text[0]);
    return err;
}

static void test_format(void **state)
{
    static const char *const bad[] = {"x\n",    "1 r\n",  "1 w w\n",      "tick 1\n", "-1\n",
                                      "+1\n",   "1w\n",   "2147483647\n", "\n",       "99999999999999999999\n",
                                      "tick\n", "0x\n"};
    struct trace trace;

    (void)state;
    assert_int_equal(read_text(&trace, "# a\n17\n 18 w # b\ntick\r\n\n0x12\n2147483646", 1), 0);
    assert_int_equal(trace.n, 5);
    assert_int_equal(trace.n_accesses, 4);
    assert_int_equal(trace.n_ticks, 1);
    assert_int_equal(trace.n_touched, 3);
    assert_int_equal(trace.event[1], 18 << 1 | 1);
    assert_int_equal(trace.event[2], TRACE_TICK);
    assert_int_equal(trace.event[3], 18 << 1);
    assert_int_equal(trace.n_pages, 2147483647);
    trace_free(&trace);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(read_text(&trace, bad[i], 1), -EINVAL);
    }
    assert_int_equal(read_text(&trace, "1\n2\n3\n4\n5\n", 2), 0);
    assert_int_equal(trace.n_ticks, 2);
    assert_int_equal(trace.event[2], TRACE_TICK);
    trace_free(&trace);
}

static int read_bytes(struct trace *trace, const void *bytes, size_t n)
{
    struct reason reason = {.text = ""};
    FILE *file = fmemopen((void *)(uintptr_t)bytes, n, "r");
    int err = trace_read(trace, file, 0, &reason);

    fclose(file);
    assert_true(!err == !reason.text[0]);
    return err;
}

static void test_binary_format(void **state)
{
    /* 16, 17 written, 16, 512 */
    static const char good[] = TRACE_MAGIC "\x40\x05\x06\xc0\x0f";
    static const char below_zero[] = TRACE_MAGIC "\x06", cut[] = TRACE_MAGIC "\x40\xc0";
    static const char too_long[] = TRACE_MAGIC "\x80\x80\x80\x80\x80\x80\x80\x80\x01";
    struct trace trace;

    (void)state;
    assert_int_equal(read_bytes(&trace, good, sizeof(good) - 1), 0);
    assert_int_equal(trace.n, 4);
    assert_int_equal(trace.event[0], 16 << 1);
    assert_int_equal(trace.event[1], 17 << 1 | 1);
    assert_int_equal(trace.event[2], 16 << 1);
    assert_int_equal(trace.event[3], 512 << 1);
    trace_free(&trace);
    assert_int_equal(read_bytes(&trace, below_zero, sizeof(below_zero) - 1), -EINVAL);
    assert_int_equal(read_bytes(&trace, cut, sizeof(cut) - 1), -EINVAL);
    assert_int_equal(read_bytes(&trace, too_long, sizeof(too_long) - 1), -EINVAL);
    assert_int_equal(read_bytes(&trace, "SMTRACE", 7), -EINVAL);
}

static void test_prefetchers(void **state)
{
    struct replay_options options = {.local_pages = 2048, .prefetch = 32, .seed = 1};
    struct replay_result result[4];
    struct trace trace = {0};

    (void)state;
    for (unsigned i = 0; i < 4 * 8192; i++) { /* a scan, four times over */
        assert_int_equal(trace_add(&trace, (i % 8192) << 1), 0);
    }
    for (unsigned kind = REPLAY_PAGER; kind <= REPLAY_CHUNK; kind++) {
        options.prefetcher = (enum replay_prefetcher)kind;
        assert_int_equal(replay_policy(&trace, "sweep", &options, &result[kind]), 0);
        assert_true(result[kind].misses + result[kind].prefetched >= 8192);
    }
    assert_true(result[REPLAY_PAGER].misses * 10 < 4 * 8192);
    assert_true(result[REPLAY_LEAP].misses * 4 < 4 * 8192);
    assert_true(result[REPLAY_CHUNK].misses * 50 < 4 * 8192);
    assert_true(result[REPLAY_RECORDED].misses < 3 * 8192); /* the first time there is no record */
    trace_free(&trace);
}

static void test_generate(void **state)
{
    static const char *const kinds[] = {"zipf", "scan", "phase"};
    struct trace_shape shape = {.n_pages = 5000, .cluster = 64, .n_accesses = 20000,
                                .tick_every = 100, .seed = 3};

    (void)state;
    for (unsigned k = 0; k < 3; k++) {
        struct trace a, b;
        struct reason reason;
        shape.kind = kinds[k];
        assert_int_equal(trace_generate(&a, &shape), 0);
        assert_int_equal(a.n_accesses, 20000);
        assert_int_equal(a.n_ticks, 200);
        assert_true(a.n_pages <= 5000 && a.n_touched > 1000);
        FILE *file = tmpfile(); /* written and read again it is the same */
        trace_write(&a, file);
        rewind(file);
        assert_int_equal(trace_read(&b, file, 0, &reason), 0);
        fclose(file);
        assert_int_equal(a.n, b.n);
        assert_memory_equal(a.event, b.event, a.n * sizeof(*a.event));
        trace_free(&b);
        assert_int_equal(trace_generate(&b, &shape), 0);
        assert_memory_equal(a.event, b.event, a.n * sizeof(*a.event));
        trace_free(&a);
        trace_free(&b);
    }
    struct trace trace;
    shape.kind = "zip";
    assert_int_equal(trace_generate(&trace, &shape), -ENOENT);
}

/* The fewest misses of any choice of victims, by trying all of them. */
static unsigned fewest_misses(const struct trace *trace, size_t at, unsigned set, unsigned local)
{
    while (at < trace->n && (set & 1u << (trace->event[at] >> 1))) {
        at++;
    }
    if (at == trace->n) {
        return 0;
    }
    unsigned page = 1u << (trace->event[at] >> 1), best = UINT32_MAX;
    if ((unsigned)__builtin_popcount(set) < local) {
        return 1 + fewest_misses(trace, at + 1, set | page, local);
    }
    for (unsigned victim = 1; victim <= set; victim <<= 1) {
        if (set & victim) {
            unsigned misses = fewest_misses(trace, at + 1, (set & ~victim) | page, local);
            best = misses < best ? misses : best;
        }
    }
    return 1 + best;
}

static void test_optimum(void **state)
{
    uint64_t random = 12;

    (void)state;
    for (unsigned round = 0; round < 300; round++) {
        struct trace trace = {0};
        struct replay_result result;
        unsigned local = 1 + (unsigned)policy_below(&random, 4);
        struct replay_options options = {.local_pages = local};
        for (unsigned i = 0; i < 14; i++) {
            assert_int_equal(trace_add(&trace, (uint32_t)policy_below(&random, 6) << 1), 0);
        }
        assert_int_equal(replay_optimum(&trace, &options, &result), 0);
        assert_int_equal(result.misses, fewest_misses(&trace, 0, 0, local));
        trace_free(&trace);
    }
}

static void test_policies(void **state)
{
    static const char *const kinds[] = {"zipf", "scan", "phase"};
    struct replay_options options = {.local_pages = 4096, .seed = 1};
    struct trace_shape shape = {.n_pages = 32768, .cluster = 512, .n_accesses = 100000,
                                .tick_every = 500, .seed = 4};

    (void)state;
    for (unsigned k = 0; k < 3; k++) {
        struct trace trace;
        struct replay_result best, result, again;
        shape.kind = kinds[k];
        assert_int_equal(trace_generate(&trace, &shape), 0);
        assert_int_equal(replay_optimum(&trace, &options, &best), 0);
        for (const char *const *name = predictor_names(); *name; name++) {
            options.prefetch = 0;
            assert_int_equal(replay_policy(&trace, *name, &options, &result), 0);
            assert_true(result.misses >= best.misses && result.misses <= trace.n_accesses);
            assert_true(result.misses - result.page_outs <= options.local_pages);
            assert_true(result.sent <= result.page_outs && !result.prefetched && !result.wasted);
            options.prefetch = 32;
            assert_int_equal(replay_policy(&trace, *name, &options, &result), 0);
            assert_true(result.wasted <= result.prefetched);
            assert_int_equal(replay_policy(&trace, *name, &options, &again), 0);
            assert_memory_equal(&result, &again, sizeof(result));
        }
        for (const char *const *name = replay_oracles(); *name; name++) {
            options.prefetch = 0;
            assert_int_equal(replay_oracle(&trace, *name, &options, &result), 0);
            assert_true(result.misses >= best.misses && result.misses <= trace.n_accesses);
            assert_true(result.misses - result.page_outs <= options.local_pages);
            assert_true(result.sent <= result.page_outs && !result.prefetched);
            options.fresh = true; /* nothing else changes than what a first access counts for */
            assert_int_equal(replay_oracle(&trace, *name, &options, &again), 0);
            assert_int_equal(again.misses + trace.n_touched, result.misses);
            options.fresh = false;
        }
        options.prefetch = 0;
        options.local_pages = 32768; /* enough for all: only first touches miss */
        assert_int_equal(replay_policy(&trace, NULL, &options, &result), 0);
        assert_int_equal(result.misses, trace.n_touched);
        options.local_pages = 4096;
        trace_free(&trace);
    }
}

/* Where chunks differ in popularity, aging must beat the policies that do not look. */
static void test_aging_earns_its_keep(void **state)
{
    struct replay_options options = {.local_pages = 16384, .seed = 1};
    struct trace_shape shape = {.kind = "zipf", .n_pages = 65536, .cluster = 512,
                                .n_accesses = 300000, .tick_every = 500, .seed = 5};
    struct replay_result aging, fifo, chance;
    struct trace trace;

    (void)state;
    assert_int_equal(trace_generate(&trace, &shape), 0);
    assert_int_equal(replay_policy(&trace, "smemv", &options, &aging), 0);
    assert_int_equal(replay_policy(&trace, "fifo", &options, &fifo), 0);
    assert_int_equal(replay_policy(&trace, "random", &options, &chance), 0);
    assert_true(aging.misses * 10 < fifo.misses * 9);
    assert_true(aging.misses * 10 < chance.misses * 9);
    trace_free(&trace);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_format),  cmocka_unit_test(test_generate),
        cmocka_unit_test(test_binary_format), cmocka_unit_test(test_prefetchers),
        cmocka_unit_test(test_optimum), cmocka_unit_test(test_policies),
        cmocka_unit_test(test_aging_earns_its_keep),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
