// SPDX-License-Identifier: GPL-2.0-or-later
/* Which pages come back unprotected: those of chunks whose pages are written while they are here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "uffd-pager/install.h"

static unsigned guessed(struct engine *engine, uint64_t chunk)
{
    unsigned n = 0;

    for (uint64_t page = chunk * CHUNK_PAGES; page < (chunk + 1) * CHUNK_PAGES; page++) {
        n += install_guess_written(engine, page);
    }
    return n;
}

static void test_written_chunks_are_learnt_and_unlearnt(void **state)
{
    _Atomic uint8_t flags[2] = {CHUNK_TRIM | CHUNK_FENCED, 0};
    struct engine *engine = calloc(1, sizeof(*engine));

    (void)state;
    assert_non_null(engine);
    engine->chunk_flags = flags;
    assert_int_equal(guessed(engine, 0), 0);
    for (unsigned i = 0; i < 100; i++) {
        install_learn(engine, i, true);
    }
    assert_int_equal(guessed(engine, 0), CHUNK_PAGES * 7 / 8); /* the others show what is so now */
    assert_int_equal(guessed(engine, 1), 0);
    assert_int_equal(flags[0] % CHUNK_WRITTEN, CHUNK_TRIM | CHUNK_FENCED);
    install_learn(engine, 0, false);
    assert_int_equal(guessed(engine, 0), 0);
    for (unsigned i = 0; i < 100; i++) {
        install_learn(engine, i, false);
    }
    assert_int_equal(flags[0], CHUNK_TRIM | CHUNK_FENCED);
    free(engine);
}

static void test_half_written_is_not_enough(void **state)
{
    _Atomic uint8_t flags[1] = {0};
    struct engine *engine = calloc(1, sizeof(*engine));

    (void)state;
    assert_non_null(engine);
    engine->chunk_flags = flags;
    for (unsigned i = 0; i < 1000; i++) {
        install_learn(engine, i % CHUNK_PAGES, i % 2);
        assert_int_equal(guessed(engine, 0), 0);
    }
    free(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_written_chunks_are_learnt_and_unlearnt),
        cmocka_unit_test(test_half_written_is_not_enough),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
