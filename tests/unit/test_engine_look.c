// SPDX-License-Identifier: GPL-2.0-or-later
/* Marks of pages that are mapped again go, those of others stay; guesses that were right are told. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "uffd-pager/install.h"

#define N_PAGES (CHUNK_PAGES + 40) /* the last window is not whole */

struct fixture {
    struct engine engine;
    struct layout layout;
    struct pagemap map;
    volatile uint8_t *memory;
};

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    const uint8_t uuid[16] = {9};
    struct layout_block *block = &fixture->layout.block[0];
    struct reason reason;

    snprintf(block->idstr, sizeof(block->idstr), "ram");
    block->size = N_PAGES * PAGE_BYTES;
    block->page_size = PAGE_BYTES;
    block->fd = memfd_create("ram", MFD_CLOEXEC);
    if (ftruncate(block->fd, (off_t)block->size) < 0) {
        return -1;
    }
    fixture->memory = mmap(NULL, block->size, PROT_READ | PROT_WRITE, MAP_SHARED, block->fd, 0);
    block->hva = (uintptr_t)fixture->memory;
    fixture->layout.n_blocks = 1;
    if (fixture->memory == MAP_FAILED || layout_finish(&fixture->layout, &reason) < 0 ||
        pagemap_create(&fixture->map, NULL, uuid, 2 * CHUNK_PAGES, &reason) < 0) {
        return -1;
    }
    fixture->engine.layout = &fixture->layout;
    fixture->engine.map = &fixture->map;
    fixture->engine.predictor = predictor_new(NULL, 2, 1);
    fixture->engine.config.pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    for (uint64_t page = 0; page < N_PAGES; page++) {
        fixture->map.pages[page] = page % 2 ? PAGE_CLEAN : PAGE_LOCAL;
        assert_true(pagemap_mark_idle(&fixture->map, page));
    }
    *state = fixture;
    return fixture->engine.config.pagemap < 0 || !fixture->engine.predictor;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;

    munmap((void *)fixture->memory, N_PAGES * PAGE_BYTES);
    predictor_free(fixture->engine.predictor);
    pagemap_close(&fixture->map);
    layout_close(&fixture->layout);
    free(fixture);
    return 0;
}

static void marks_of_mapped_pages_go(void **state)
{
    struct fixture *fixture = *state;
    uint64_t touched[] = {3, 64, 127, N_PAGES - 1};

    for (unsigned i = 0; i < 4; i++) {
        fixture->memory[touched[i] * PAGE_BYTES] = 1; /* a write maps no neighbours */
    }
    assert_true(look_window(&fixture->engine, 0) == (uint64_t)1 << 3);
    assert_true(look_window(&fixture->engine, 64) == (1 | (uint64_t)1 << 63));
    assert_true(look_window(&fixture->engine, 128) == 0);
    assert_true(look_window(&fixture->engine, CHUNK_PAGES) == (uint64_t)1 << 39);
    assert_true(look_window(&fixture->engine, CHUNK_PAGES + 64) == 0); /* beyond the block */
    for (uint64_t page = 0; page < N_PAGES; page++) {
        bool was_touched = page == 3 || page == 64 || page == 127 || page == N_PAGES - 1;
        assert_int_equal(pagemap_idle(&fixture->map, page), !was_touched);
        assert_int_equal(pagemap_get(&fixture->map, page), page % 2 ? PAGE_CLEAN : PAGE_LOCAL);
    }
    assert_int_equal(fixture->engine.stats.in_use, 4);
    assert_int_equal(predictor_heat(fixture->engine.predictor, 0) > 0, 1);
}

static void guesses_are_told_once(void **state)
{
    struct fixture *fixture = *state;

    fixture->map.pages[7] |= PAGE_GUESS;
    fixture->map.pages[8] |= PAGE_GUESS;
    fixture->memory[7 * PAGE_BYTES] = 1;
    look_window(&fixture->engine, 0);
    assert_int_equal(pagemap_kept(&fixture->map, 7), 0);
    assert_int_equal(pagemap_kept(&fixture->map, 8), PAGE_GUESS);
}

static void without_page_tables_marks_stay(void **state)
{
    struct fixture *fixture = *state;
    int pagemap = fixture->engine.config.pagemap;

    fixture->memory[0] = 1;
    fixture->engine.config.pagemap = -1;
    assert_true(look_window(&fixture->engine, 0) == 0);
    assert_true(pagemap_idle(&fixture->map, 0));
    close(pagemap);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(marks_of_mapped_pages_go, setup, teardown),
        cmocka_unit_test_setup_teardown(guesses_are_told_once, setup, teardown),
        cmocka_unit_test_setup_teardown(without_page_tables_marks_stay, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
