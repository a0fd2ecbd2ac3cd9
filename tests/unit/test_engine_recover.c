// SPDX-License-Identifier: GPL-2.0-or-later
/* What a dead worker leaves behind: every state, busy or not, with and without data in the memfd. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "uffd-pager/pageout.h"

#define N_PAGES (2 * CHUNK_PAGES)
#define FD_OFFSET (3 * PAGE_BYTES)

struct fixture {
    struct engine engine;
    struct layout layout;
    struct pagemap map;
};

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    const uint8_t uuid[16] = {9};
    struct layout_block *block = &fixture->layout.block[0];
    struct reason reason;

    snprintf(block->idstr, sizeof(block->idstr), "ram");
    block->hva = 0x7f0000000000;
    block->size = N_PAGES * PAGE_BYTES;
    block->page_size = PAGE_BYTES;
    block->fd_offset = FD_OFFSET;
    block->fd = memfd_create("ram", 0);
    fixture->layout.n_blocks = 1;
    if (ftruncate(block->fd, (off_t)(block->size + FD_OFFSET)) < 0 ||
        layout_finish(&fixture->layout, &reason) < 0 ||
        pagemap_create(&fixture->map, NULL, uuid, N_PAGES, &reason) < 0) {
        return -1;
    }
    fixture->engine.layout = &fixture->layout;
    fixture->engine.map = &fixture->map;
    fixture->engine.config.n_subhosts = 1;
    fixture->engine.chunk_flags = calloc(2, 1);
    fixture->engine.trim = trim_new();
    fixture->map.subhost[0] = 0; /* chunk 1 has none */
    *state = fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;

    free((void *)fixture->engine.chunk_flags);
    trim_free(fixture->engine.trim);
    pagemap_close(&fixture->map);
    layout_close(&fixture->layout);
    free(fixture);
    return 0;
}

static uint8_t outcome(struct fixture *fixture, uint64_t page, uint8_t byte, bool data)
{
    char one = 1;
    struct reason reason;

    assert_int_equal(fallocate(fixture->layout.block[0].fd,
                               FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                               (off_t)(N_PAGES * PAGE_BYTES + FD_OFFSET)),
                     0);
    for (uint64_t i = 0; i < N_PAGES; i++) {
        fixture->map.pages[i] = PAGE_REMOTE;
    }
    fixture->engine.chunk_flags[0] = fixture->engine.chunk_flags[1] = 0;
    trim_free(fixture->engine.trim);
    fixture->engine.trim = trim_new();
    fixture->map.pages[page] = byte;
    if (data) {
        assert_int_equal(pwrite(fixture->layout.block[0].fd, &one, 1,
                                (off_t)(page * PAGE_BYTES + FD_OFFSET)),
                         1);
    }
    assert_int_equal(recover_map(&fixture->engine, &reason), 0);
    for (uint64_t i = 0; i < N_PAGES; i++) {
        assert_true(i == page || fixture->map.pages[i] == PAGE_REMOTE);
    }
    bool has_subhost = page < CHUNK_PAGES;
    bool sends = page_state(byte) == PAGE_LOCAL || page_state(byte) == PAGE_UNTOUCHED;
    assert_int_equal(fixture->engine.chunk_flags[page / CHUNK_PAGES] & CHUNK_FENCED,
                     byte & PAGE_BUSY && sends && has_subhost ? CHUNK_FENCED : 0);
    assert_int_equal(trim_bit(&fixture->engine, page),
                     fixture->map.pages[page] == PAGE_UNTOUCHED && has_subhost);
    return fixture->map.pages[page];
}

static void test_the_table(void **state)
{
    static const struct {
        uint8_t byte, with_data, hole;
    } rows[] = {
        {PAGE_UNTOUCHED, PAGE_LOCAL, PAGE_UNTOUCHED}, {PAGE_ZEROING, PAGE_LOCAL, PAGE_UNTOUCHED},
        {PAGE_LOCAL, PAGE_LOCAL, PAGE_UNTOUCHED},     {PAGE_EVICTING, PAGE_LOCAL, PAGE_REMOTE},
        {PAGE_REMOTE, PAGE_LOCAL, PAGE_REMOTE},       {PAGE_FETCHING, PAGE_LOCAL, PAGE_REMOTE},
        {PAGE_CLEAN, PAGE_CLEAN, PAGE_REMOTE},        {PAGE_DROPPING, PAGE_LOCAL, PAGE_REMOTE},
        {PAGE_LOST, PAGE_LOST, PAGE_LOST},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        for (unsigned missed = 0; missed < 2; missed++) {
            uint8_t byte = rows[i].byte;
            if (missed && !(byte & PAGE_BUSY)) {
                continue;
            }
            byte |= missed ? PAGE_MISSED : 0;
            assert_int_equal(outcome(*state, 77, byte, true), rows[i].with_data);
            assert_int_equal(outcome(*state, 77, byte, false), rows[i].hole);
        }
    }
}

/* At the edges of the block, and where no sub-host can have the page. */
static void test_edges(void **state)
{
    assert_int_equal(outcome(*state, 0, PAGE_LOCAL, true), PAGE_LOCAL);
    assert_int_equal(outcome(*state, N_PAGES - 1, PAGE_EVICTING, true), PAGE_LOCAL);
    assert_int_equal(outcome(*state, N_PAGES - 1, PAGE_EVICTING, false), PAGE_UNTOUCHED);
}

static void test_percentiles(void **state)
{
    static struct stats stats;
    json_t *object = json_object();

    (void)state;
    for (uint64_t us = 1; us <= 1000; us++) {
        stats_record(&stats.fault_us, us);
    }
    stats_record(&stats.fault_us, UINT64_MAX);
    stats_report(&stats, object);
    json_t *fault = json_object_get(object, "fault_us");
    json_int_t p50 = json_integer_value(json_object_get(fault, "p50"));
    json_int_t p99 = json_integer_value(json_object_get(fault, "p99"));
    assert_int_equal(json_integer_value(json_object_get(fault, "count")), 1001);
    assert_true(p50 >= 500 && p50 <= 500 * 9 / 8);
    assert_true(p99 >= 990 && p99 <= 990 * 9 / 8);
    stats_reset(&stats);
    stats_report(&stats, object);
    fault = json_object_get(object, "fault_us");
    assert_int_equal(json_integer_value(json_object_get(fault, "count")), 0);
    assert_int_equal(json_integer_value(json_object_get(fault, "max")), 0);
    json_decref(object);
}

static void test_room(void **state)
{
    struct fixture *fixture = *state;
    struct engine *engine = &fixture->engine;
    struct reason reason;
    _Atomic uint16_t counts[2] = {0};

    pthread_mutex_init(&engine->limit_lock, NULL);
    engine->chunk_resident = counts;
    assert_true(room_set(engine, 10 * PAGE_BYTES, 9 * PAGE_BYTES, 8 * PAGE_BYTES, &reason) < 0);
    assert_int_equal(room_set(engine, 10 * PAGE_BYTES, 4 * PAGE_BYTES, 8 * PAGE_BYTES, &reason), 0);
    for (unsigned i = 0; i < 10; i++) {
        assert_true(i < 8 ? room_take_spare(engine, 1) : !room_take_spare(engine, 1));
        assert_true(i < 8 || room_take(engine, 1));
    }
    assert_false(room_take(engine, 0));
    assert_int_equal(counts[1], 10);
    room_force(engine, 0);
    assert_int_equal(engine->resident, 11);
    /* A lower budget: at first nothing more, then half of what is freed. */
    assert_int_equal(room_set(engine, 5 * PAGE_BYTES, 1 * PAGE_BYTES, 2 * PAGE_BYTES, &reason), 0);
    assert_int_equal(engine->limit, 11);
    assert_false(room_take(engine, 0));
    room_give(engine, 1, 4);
    room_freed(engine, 4);
    assert_int_equal(engine->limit, 9);
    assert_true(room_take(engine, 0) && room_take(engine, 0));
    assert_false(room_take(engine, 0));
    room_stuck(engine, "test");
    assert_true(room_take(engine, 0));
    room_give(engine, 1, 6);
    room_freed(engine, 6);
    assert_false(engine->stuck);
    pthread_mutex_destroy(&engine->limit_lock);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_the_table, setup, teardown),
        cmocka_unit_test_setup_teardown(test_edges, setup, teardown),
        cmocka_unit_test_setup_teardown(test_room, setup, teardown),
        cmocka_unit_test(test_percentiles),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
