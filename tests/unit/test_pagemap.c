// SPDX-License-Identifier: GPL-2.0-or-later
/* The page map: its file, hostile files, and the lock in a page's byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/pagemap.h"
#include "uffd-pager/install.h"

#define N_PAGES (3 * CHUNK_PAGES + 5)
#define TURNS 20000

static const uint8_t uuid[16] = {1, 2, 3};

static void test_file_survives(void **state)
{
    char path[] = "/dev/shm/test_pagemap.XXXXXX";
    struct pagemap map;
    struct pagemap again;
    struct reason reason;

    (void)state;
    close(mkstemp(path));
    assert_int_equal(pagemap_create(&map, path, uuid, N_PAGES, &reason), -EEXIST);
    unlink(path);
    assert_int_equal(pagemap_create(&map, path, uuid, N_PAGES, &reason), 0);
    assert_int_equal(map.n_chunks, 4);
    assert_int_equal(pagemap_get(&map, N_PAGES - 1), PAGE_UNTOUCHED);
    assert_int_equal(map.subhost[3], PAGEMAP_NO_SUBHOST);
    assert_int_equal(pagemap_home(&map, 3, 1), PAGEMAP_NO_SUBHOST);
    pagemap_unlock(&map, N_PAGES - 1, PAGE_REMOTE);
    map.subhost[3] = 7;
    pagemap_set_home(&map, 3, 1, PAGEMAP_BACKUP);
    map.history[0] = 99;
    assert_int_equal(map.n_slabs, 1);
    pagemap_set_slabs(&map, 2 * CHUNK_BYTES);
    assert_int_equal(map.n_slabs, 2);
    assert_int_equal(pagemap_slab_of(&map, 3)->home[0], PAGEMAP_NO_SUBHOST);
    pagemap_slab_of(&map, 3)->home[0] = 7;
    pagemap_close(&map);
    assert_int_equal(pagemap_open(&again, path, &reason), 0);
    assert_int_equal(pagemap_get(&again, N_PAGES - 1), PAGE_REMOTE);
    assert_int_equal(again.subhost[3], 7);
    assert_int_equal(pagemap_home(&again, 3, 0), 7);
    assert_int_equal(pagemap_home(&again, 3, 1), PAGEMAP_BACKUP);
    assert_int_equal(again.history[0], 99);
    assert_int_equal(again.n_slabs, 2);
    assert_int_equal(pagemap_slab_of(&again, 2)->home[0], 7);
    assert_memory_equal(again.header->uuid, uuid, sizeof(uuid));
    pagemap_close(&again);
    unlink(path);
}

/* Each field of the header that is wrong must be noticed; none may lead outside the file. */
static void test_damaged_files_are_refused(void **state)
{
    struct pagemap map;
    struct reason reason;

    (void)state;
    for (unsigned field = 0; field < 12; field++) {
        if (field == 8 || field == 9) {
            continue; /* the UUID */
        }
        for (unsigned change = 0; change < 4; change++) {
            static const uint64_t values[] = {0, 1, UINT64_MAX, (uint64_t)1 << 40};
            assert_int_equal(pagemap_create(&map, NULL, uuid, N_PAGES, &reason), 0);
            int fd = dup(map.fd);
            ((uint64_t *)map.header)[field] = values[change];
            munmap(map.header, pagemap_size(N_PAGES));
            close(map.fd);
            assert_true(pagemap_open_fd(&map, fd, true, &reason) < 0);
        }
    }
    int empty = memfd_create("empty", 0);
    assert_true(pagemap_open_fd(&map, empty, true, &reason) < 0);
}

static void test_counts(void **state)
{
    struct pagemap map;
    struct pagemap_counts counts;
    struct reason reason;

    (void)state;
    assert_int_equal(pagemap_create(&map, NULL, uuid, N_PAGES, &reason), 0);
    map.pages[0] = PAGE_LOCAL;
    map.pages[1] = PAGE_EVICTING;
    map.pages[2] = PAGE_FETCHING | PAGE_MISSED;
    map.pages[3] = PAGE_CLEAN;
    map.pages[4] = PAGE_LOST;
    pagemap_count(&map, 0, N_PAGES, &counts);
    assert_int_equal(counts.local, 2);
    assert_int_equal(counts.remote, 1);
    assert_int_equal(counts.clean, 1);
    assert_int_equal(counts.lost, 1);
    assert_int_equal(counts.busy, 2);
    assert_int_equal(counts.untouched, N_PAGES - 5);
    pagemap_count(&map, N_PAGES - 1, 100, &counts);
    assert_int_equal(counts.untouched, 1);
    pagemap_close(&map);
}

static void test_idle_marks(void **state)
{
    struct reason reason;
    struct pagemap map;

    (void)state;
    assert_int_equal(pagemap_create(&map, NULL, uuid, N_PAGES, &reason), 0);
    assert_false(pagemap_mark_idle(&map, 1)); /* UNTOUCHED */
    for (uint8_t stable = PAGE_LOCAL; stable <= PAGE_CLEAN; stable += PAGE_CLEAN - PAGE_LOCAL) {
        pagemap_unlock(&map, 1, stable);
        assert_true(pagemap_mark_idle(&map, 1));
        assert_true(pagemap_idle(&map, 1));
        assert_int_equal(pagemap_get(&map, 1), stable); /* the mark is no state */
        assert_false(pagemap_lock(&map, 1, PAGE_REMOTE));
        assert_true(pagemap_idle(&map, 1));
        assert_true(pagemap_lock(&map, 1, stable)); /* whoever takes the page ends it */
        assert_false(pagemap_idle(&map, 1));
        assert_int_equal(pagemap_get(&map, 1), stable | PAGE_BUSY);
        assert_false(pagemap_mark_idle(&map, 1));
        assert_true(page_missed(&map, 1));
        assert_true(page_release(&map, 1, stable));
        assert_int_equal(pagemap_get(&map, 1), stable);
    }
    pagemap_unlock(&map, 1, PAGE_REMOTE);
    assert_false(pagemap_mark_idle(&map, 1));
    pagemap_close(&map);
}

static void test_guesses(void **state)
{
    struct reason reason;
    struct pagemap map;

    (void)state;
    assert_int_equal(pagemap_create(&map, NULL, uuid, N_PAGES, &reason), 0);
    pagemap_unlock(&map, 1, PAGE_FETCHING);
    assert_true(page_missed(&map, 1));
    assert_true(page_release(&map, 1, PAGE_CLEAN | PAGE_IDLE | PAGE_GUESS));
    assert_int_equal(pagemap_get(&map, 1), PAGE_CLEAN); /* it is no state */
    assert_true(pagemap_idle(&map, 1) && pagemap_kept(&map, 1) == PAGE_GUESS);
    assert_true(pagemap_lock(&map, 1, PAGE_CLEAN)); /* page-out takes it, and cannot send it */
    assert_true(page_missed(&map, 1));
    page_retag(&map, 1, PAGE_LOCAL);
    assert_int_equal(pagemap_get(&map, 1), PAGE_EVICTING | PAGE_MISSED);
    assert_true(page_release(&map, 1, PAGE_LOCAL));
    assert_true(pagemap_kept(&map, 1) == PAGE_GUESS && !pagemap_idle(&map, 1));
    assert_true(pagemap_mark_idle(&map, 1));
    assert_true(pagemap_used(&map, 1)); /* told once */
    assert_false(pagemap_used(&map, 1));
    assert_false(pagemap_idle(&map, 1));
    assert_int_equal(map.pages[1], PAGE_LOCAL);
    map.pages[1] = PAGE_CLEAN | PAGE_REMARKS;
    assert_true(pagemap_used(&map, 1)); /* and was wanted all the same */
    assert_true(pagemap_lock(&map, 1, PAGE_CLEAN));
    assert_int_equal(pagemap_kept(&map, 1), PAGE_WANTED);
    assert_false(page_release(&map, 1, PAGE_REMOTE)); /* it goes with the page */
    assert_int_equal(map.pages[1], PAGE_REMOTE);
    pagemap_close(&map);
}

static void test_lock_and_missed(void **state)
{
    struct pagemap map;
    struct reason reason;

    (void)state;
    assert_int_equal(pagemap_create(&map, NULL, uuid, N_PAGES, &reason), 0);
    assert_false(pagemap_lock(&map, 9, PAGE_LOCAL));
    assert_false(page_missed(&map, 9));
    assert_true(pagemap_lock(&map, 9, PAGE_UNTOUCHED));
    assert_false(pagemap_lock(&map, 9, PAGE_UNTOUCHED));
    assert_false(page_release(&map, 9, PAGE_LOCAL));
    assert_true(pagemap_lock(&map, 9, PAGE_LOCAL));
    assert_true(page_missed(&map, 9));
    page_retag(&map, 9, PAGE_UNTOUCHED);
    assert_int_equal(pagemap_get(&map, 9), PAGE_ZEROING | PAGE_MISSED);
    assert_true(page_release(&map, 9, PAGE_REMOTE));
    assert_int_equal(pagemap_get(&map, 9), PAGE_REMOTE);
    pagemap_close(&map);
}

struct race {
    struct pagemap map;
    _Atomic unsigned left, told; /* words left on a busy page; releases that saw one */
    _Atomic bool over;
};

static void *race_owner(void *arg)
{
    struct race *race = arg;

    for (unsigned i = 0; i < TURNS; i++) {
        if (pagemap_lock(&race->map, 0, PAGE_LOCAL) && page_release(&race->map, 0, PAGE_LOCAL)) {
            race->told++;
        }
    }
    race->over = true;
    return NULL;
}

/* Word that is left on a busy page always reaches the one who unlocks it. */
static void test_no_word_is_lost(void **state)
{
    static struct race race;
    struct reason reason;
    pthread_t thread;
    uint8_t last = 0;

    (void)state;
    assert_int_equal(pagemap_create(&race.map, NULL, uuid, 1, &reason), 0);
    race.map.pages[0] = PAGE_LOCAL;
    assert_int_equal(pthread_create(&thread, NULL, race_owner, &race), 0);
    while (!race.over) {
        race.left += page_missed(&race.map, 0);
        last = pagemap_get(&race.map, 0);
        assert_true((last & ~(PAGE_BUSY | PAGE_MISSED)) == PAGE_LOCAL);
        assert_true(last & PAGE_BUSY || !(last & PAGE_MISSED));
    }
    pthread_join(thread, NULL);
    assert_int_equal(pagemap_get(&race.map, 0), PAGE_LOCAL);
    assert_true(race.told <= race.left);
    assert_true(race.left == 0 || race.told > 0);
    pagemap_close(&race.map);
}

/* A walk by extents sees every page that was touched, and makes nothing of the holes between. */
static void test_extents(void **state)
{
    const uint64_t n_pages = 64 * PAGE_BYTES;
    const uint64_t touched[] = {0, 5 * PAGE_BYTES + 7, 6 * PAGE_BYTES, n_pages - 1};
    struct pagemap map;
    struct reason reason;
    struct pagemap_counts counts;
    struct stat before;
    struct stat after;
    uint64_t end;
    unsigned seen = 0;

    (void)state;
    assert_int_equal(pagemap_create(&map, NULL, uuid, n_pages, &reason), 0);
    for (unsigned i = 0; i < 4; i++) {
        pagemap_unlock(&map, touched[i], PAGE_REMOTE);
    }
    assert_int_equal(fstat(map.fd, &before), 0);
    for (uint64_t page = 0; pagemap_extent(&map, &page, &end); page = end) {
        assert_true(page < end && end <= n_pages);
        for (uint64_t at = page; at < end; at++) {
            seen += pagemap_get(&map, at) == PAGE_REMOTE;
        }
    }
    assert_int_equal(seen, 4);
    pagemap_count(&map, 0, n_pages, &counts);
    assert_int_equal(counts.remote, 4);
    assert_int_equal(counts.untouched, n_pages - 4);
    pagemap_count(&map, 1, 6 * PAGE_BYTES - 1, &counts);
    assert_int_equal(counts.remote, 1);
    assert_int_equal(counts.untouched, 6 * PAGE_BYTES - 2);
    pagemap_count(&map, n_pages, 5, &counts);
    assert_int_equal(counts.untouched, 0);
    assert_int_equal(fstat(map.fd, &after), 0);
    assert_int_equal(after.st_blocks, before.st_blocks);
    pagemap_close(&map);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_file_survives),
        cmocka_unit_test(test_extents),   cmocka_unit_test(test_damaged_files_are_refused),
        cmocka_unit_test(test_counts),          cmocka_unit_test(test_lock_and_missed),
        cmocka_unit_test(test_idle_marks),
        cmocka_unit_test(test_guesses),
        cmocka_unit_test(test_no_word_is_lost),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
