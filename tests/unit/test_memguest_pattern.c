// SPDX-License-Identifier: GPL-2.0-or-later
/* The test guest's page contents, visiting order and popularity: a checker has to be right itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/guest/pattern.h"

static void test_every_bit_counts(void **state)
{
    uint64_t words[PATTERN_WORDS];

    (void)state;
    pattern_fill(words, 7, 12345, 6);
    assert_true(pattern_check(words, 7, 12345, 6));
    assert_false(pattern_check(words, 8, 12345, 6));
    assert_false(pattern_check(words, 7, 12346, 6));
    assert_false(pattern_check(words, 7, 12345, 5));
    assert_false(pattern_is_zero(words));
    for (unsigned bit = 0; bit < PATTERN_BYTES * 8; bit++) {
        words[bit / 64] ^= 1ull << bit % 64;
        assert_false(pattern_check(words, 7, 12345, 6));
        words[bit / 64] ^= 1ull << bit % 64;
    }
    memset(words, 0, sizeof(words));
    assert_true(pattern_is_zero(words));
    words[PATTERN_WORDS - 1] = 1;
    assert_false(pattern_is_zero(words));
}

static void test_origin(void **state)
{
    uint64_t words[PATTERN_WORDS], x = 1;

    (void)state;
    for (unsigned round = 0; round < 500; round++) {
        uint32_t page = (uint32_t)pattern_mix(x++), generation = (uint32_t)pattern_mix(x++);
        uint32_t found_page, found_generation;
        pattern_fill(words, round, page, generation);
        unsigned i = (unsigned)(pattern_mix(x++) % PATTERN_WORDS);
        pattern_origin(words[i], i, round, &found_page, &found_generation);
        assert_int_equal(found_page, page);
        assert_int_equal(found_generation, generation);
        assert_true(pattern_unmix(pattern_mix(x)) == x);
    }
}

static void test_permutation(void **state)
{
    static uint8_t seen[70000];
    static const uint32_t sizes[] = {1, 2, 3, 4, 5, 16, 17, 255, 256, 257, 1000, 65536, 65537, 70000};

    (void)state;
    for (unsigned s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        memset(seen, 0, sizeof(seen));
        for (uint32_t i = 0; i < sizes[s]; i++) {
            uint32_t j = pattern_permute(i, sizes[s], 0x1234567890ull + s);
            assert_true(j < sizes[s]);
            assert_int_equal(seen[j]++, 0);
        }
    }
}

/* The share of accesses that the hot pages get is nine tenths. */
static void test_zipf(void **state)
{
    static uint32_t quantiles[PATTERN_QUANTILES + 1];
    static const double hot[] = {0.01, 0.1, 0.3, 0.5};

    (void)state;
    for (unsigned h = 0; h < 4; h++) {
        const uint32_t n = 300000;
        unsigned in_hot = 0;
        pattern_zipf(quantiles, n, hot[h]);
        for (uint64_t i = 0; i < 100000; i++) {
            uint32_t rank = pattern_draw(quantiles, pattern_mix(i + 1));
            assert_true(rank < n);
            in_hot += rank < hot[h] * n;
        }
        assert_in_range(in_hot, 89000, 91000);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_bit_counts),
        cmocka_unit_test(test_origin),
        cmocka_unit_test(test_permutation),
        cmocka_unit_test(test_zipf),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
