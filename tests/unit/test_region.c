// SPDX-License-Identifier: GPL-2.0-or-later
/* The region's pages and their accounting, alone and under several threads. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/nbd.h"
#include "common/racy.h"
#include "common/units.h"
#include "subhost-server/quota.h"
#include "subhost-server/region.h"
#include "subhost-server/store.h"

#define P PAGE_BYTES

static struct quota quota;

static struct region *make(uint64_t size, uint64_t reserve, uint64_t limit)
{
    struct region *region;
    struct reason reason;

    assert_int_equal(region_new(&region, &quota, size, reserve, limit, &reason), 0);
    return region;
}

static int setup(void **state)
{
    (void)state;
    quota_init(&quota, 64 * MIB);
    return 0;
}

static int teardown(void **state)
{
    struct quota_status status;

    (void)state;
    quota_status(&quota, &status);
    quota_destroy(&quota);
    return status.stored == 0 && status.reserved == 0 && status.free == status.memory ? 0 : -1;
}

/* Odd values by the way of region_fill(), where it is offered. */
static int put(struct region *region, uint64_t offset, uint32_t length, uint8_t value)
{
    void *memory;
    int err = region_write_begin(region, offset, length, value % 2, &memory);

    if (!err && !memory) {
        uint8_t *bytes = malloc(length);
        memset(bytes, value, length);
        int fill = region_fill(region, offset, length, bytes);
        free(bytes);
        err = region_write_end(region, offset, length, !fill);
        err = err ? err : fill;
    } else if (!err) {
        racy_begin();
        memset(memory, value, length);
        racy_end();
        err = region_write_end(region, offset, length, true);
    }
    return err;
}

static uint64_t stored(const struct region *region)
{
    return atomic_load(&region_claim(region)->stored);
}

/* What is charged is what the kernel says it takes. */
static void assert_exact(const struct region *region, uint64_t expected)
{
    assert_int_equal(stored(region), expected);
    assert_int_equal(region_allocated(region), expected);
}

static void test_holes_take_nothing(void **state)
{
    struct region *region = make(8 * MIB, 0, 8 * MIB);
    const void *memory = region;
    struct nbd_extent extents[4];
    size_t n = 4;

    (void)state;
    assert_int_equal(region_read_begin(region, false, 0, 8 * MIB, &memory), 0);
    assert_null(memory);
    assert_int_equal(region_read_begin(region, true, P, 1, &memory), -EIO);
    assert_int_equal(region_status(region, false, 100, 8 * MIB - 200, extents, &n), 0);
    assert_int_equal(n, 1);
    assert_int_equal(extents[0].length, 8 * MIB - 200);
    assert_int_equal(extents[0].flags, NBD_STATE_HOLE | NBD_STATE_ZERO);
    assert_exact(region, 0);
    region_unref(region);
}

static void test_partial_page_rest_is_zero(void **state)
{
    struct region *region = make(8 * MIB, 0, 8 * MIB);
    const void *memory;

    (void)state;
    assert_int_equal(put(region, 3 * P + 100, 50, 0xaa), 0);
    assert_exact(region, P);
    assert_int_equal(region_read_begin(region, true, 3 * P, P, &memory), 0);
    const uint8_t *bytes = memory;
    for (unsigned i = 0; i < P; i++) {
        assert_int_equal(bytes[i], i >= 100 && i < 150 ? 0xaa : 0);
    }
    region_read_end(region, 3 * P, P);
    region_unref(region);
}

static void test_unfinished_write_is_taken_back(void **state)
{
    struct region *region = make(8 * MIB, 0, 8 * MIB);
    const void *readable;
    void *memory;

    (void)state;
    assert_int_equal(put(region, 0, P, 1), 0);
    assert_int_equal(region_write_begin(region, 0, 4 * P, false, &memory), 0);
    assert_int_equal(stored(region), 4 * P);
    assert_int_equal(region_write_end(region, 0, 4 * P, false), 0);
    assert_exact(region, P);
    assert_int_equal(region_read_begin(region, true, P, P, &readable), -EIO);
    /* Two writers on one fresh page: the one that finishes makes it exist. */
    assert_int_equal(region_write_begin(region, 8 * P, P, false, &memory), 0);
    assert_int_equal(put(region, 8 * P, 10, 7), 0);
    assert_int_equal(region_write_end(region, 8 * P, P, false), 0);
    assert_exact(region, 2 * P);
    assert_int_equal(region_read_begin(region, true, 8 * P, P, &readable), 0);
    region_read_end(region, 8 * P, P);
    region_unref(region);
}

static void test_trim_waits_for_readers(void **state)
{
    struct region *region = make(8 * MIB, 0, 8 * MIB);
    const void *memory, *other;

    (void)state;
    assert_int_equal(put(region, 0, 2 * P, 5), 0);
    assert_int_equal(region_read_begin(region, true, 0, 2 * P, &memory), 0);
    assert_int_equal(region_trim(region, 0, P), 0);
    /* The page is gone for whoever comes now, and still there for the one who reads. */
    assert_int_equal(region_read_begin(region, true, 0, P, &other), -EIO);
    assert_int_equal(*(const uint8_t *)memory, 5);
    assert_int_equal(stored(region), 2 * P);
    region_read_end(region, 0, 2 * P);
    assert_exact(region, P);
    region_unref(region);
}

static void test_write_after_deferred_trim(void **state)
{
    struct region *region = make(8 * MIB, 0, 8 * MIB);
    const void *memory;

    (void)state;
    assert_int_equal(put(region, 0, 2 * P, 5), 0);
    assert_int_equal(region_read_begin(region, true, 0, 2 * P, &memory), 0);
    assert_int_equal(region_trim(region, 0, 2 * P), 0);
    assert_int_equal(put(region, 10, 1, 9), 0);
    region_read_end(region, 0, 2 * P);
    assert_exact(region, P);
    assert_int_equal(region_read_begin(region, true, 0, P, &memory), 0);
    const uint8_t *bytes = memory;
    assert_int_equal(bytes[9], 0);
    assert_int_equal(bytes[10], 9);
    assert_int_equal(bytes[11], 0);
    region_read_end(region, 0, P);
    region_unref(region);
}

static void test_zero_takes_no_memory(void **state)
{
    struct region *region = make(8 * MIB, 0, 8 * MIB);
    const void *memory;
    struct nbd_extent extents[8];
    size_t n = 8;

    (void)state;
    assert_int_equal(put(region, 0, 4 * P, 5), 0);
    assert_int_equal(region_zero(region, P + 1, 2 * P), 0); /* page 1 but a byte, page 2, a byte of 3 */
    assert_exact(region, 3 * P);
    assert_int_equal(region_zero(region, 10 * P + 5, 10), 0);
    assert_exact(region, 3 * P);
    assert_int_equal(region_status(region, true, 0, 12 * P, extents, &n), 0);
    static const struct nbd_extent expected[] = {
        {2 * P, 0}, {P, NBD_STATE_ZERO},    {P, 0},
        {6 * P, NBD_STATE_HOLE}, {P, NBD_STATE_ZERO}, {P, NBD_STATE_HOLE}};
    assert_int_equal(n, 6);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(extents[i].length, expected[i].length);
        assert_int_equal(extents[i].flags, expected[i].flags);
    }
    assert_int_equal(region_read_begin(region, true, P, P, &memory), 0);
    assert_int_equal(((const uint8_t *)memory)[0], 5);
    assert_int_equal(((const uint8_t *)memory)[1], 0);
    region_read_end(region, P, P);
    region_unref(region);
}

/* What is lent has a writer nobody sees: a TRIM clears it, and it is given back as a whole. */
static void test_lent_and_taken_back(void **state)
{
    struct region *region = make(6 * MIB, 0, 6 * MIB);
    uint8_t page[P];
    void *memory;
    const void *there;

    (void)state;
    assert_int_equal(region_write_begin(region, 2 * MIB, 4 * MIB, false, &memory), 0);
    region_lend(region, 2 * MIB, 4 * MIB);
    assert_exact(region, 4 * MIB);
    racy_begin();
    memset(memory, 7, 4 * MIB);
    racy_end();
    assert_false(region_lent_trimmed(region));
    assert_int_equal(region_trim(region, 0, 6 * MIB), 0);
    assert_true(region_lent_trimmed(region));
    assert_false(region_lent_trimmed(region));
    memset(page, 0, sizeof(page));
    assert_memory_equal(memory, page, sizeof(page));
    assert_exact(region, 4 * MIB);

    /* Somebody reads in the second chunk: what he has stays. */
    assert_int_equal(region_read_begin(region, true, 4 * MIB, P, &there), 0);
    region_take_back(region, 2 * MIB, 4 * MIB);
    region_read_end(region, 4 * MIB, P);
    assert_exact(region, 2 * MIB);
    assert_int_equal(region_trim(region, 4 * MIB, 2 * MIB), 0);
    assert_exact(region, 0);
    /* The pages that were lent go on to exist. */
    assert_int_equal(region_read_begin(region, true, 2 * MIB, P, &there), 0);
    assert_null(there);
    assert_int_equal(region_read_begin(region, true, 0, P, &there), -EIO);
    assert_int_equal(put(region, 2 * MIB, P, 4), 0);
    assert_exact(region, P);
    region_unref(region);
}

static void test_limit_changes_nothing(void **state)
{
    struct region *region = make(16 * MIB, 0, 4 * P);
    const void *memory;

    (void)state;
    assert_int_equal(put(region, CHUNK_BYTES - 2 * P, 2 * P, 1), 0);
    assert_int_equal(region_zero(region, CHUNK_BYTES, P), 0);
    /* Over two chunks: neither changes. */
    assert_int_equal(put(region, CHUNK_BYTES - P, 6 * P, 2), -ENOSPC);
    assert_exact(region, 2 * P);
    assert_int_equal(region_read_begin(region, true, CHUNK_BYTES - P, P, &memory), 0);
    assert_int_equal(*(const uint8_t *)memory, 1);
    region_read_end(region, CHUNK_BYTES - P, P);
    assert_int_equal(region_read_begin(region, true, CHUNK_BYTES + P, P, &memory), -EIO);
    assert_int_equal(put(region, CHUNK_BYTES - P, 3 * P, 2), 0);
    assert_exact(region, 4 * P);
    assert_int_equal(put(region, 0, 1, 2), -ENOSPC);
    region_unref(region);
}

static void test_reservations(void **state)
{
    struct region *a = make(64 * MIB, 48 * MIB, 64 * MIB), *b, *c;
    struct quota_status status;
    struct reason reason;

    (void)state;
    assert_int_equal(region_new(&b, &quota, 64 * MIB, 17 * MIB, 64 * MIB, &reason), -ENOSPC);
    assert_string_equal(reason.text, "cannot reserve 17 MiB: this sub-host has 16 MiB left to give");
    b = make(64 * MIB, 0, 64 * MIB);
    assert_int_equal(put(b, 0, 16 * MIB, 1), 0);
    assert_int_equal(put(b, 16 * MIB, 1, 1), -ENOSPC); /* a's reservation is untouchable */
    assert_int_equal(put(a, 0, 32 * MIB, 1), 0);
    assert_int_equal(put(a, 32 * MIB, 16 * MIB, 1), 0);
    assert_int_equal(put(a, 48 * MIB, 1, 1), -ENOSPC);
    quota_status(&quota, &status);
    assert_int_equal(status.stored, 64 * MIB);
    assert_int_equal(status.reserved, 48 * MIB);
    assert_int_equal(status.free, 0);
    assert_int_equal(region_trim(b, 0, 4 * MIB), 0);
    assert_int_equal(put(a, 48 * MIB, 4 * MIB, 1), 0);
    assert_exact(a, 52 * MIB);
    assert_exact(b, 12 * MIB);
    region_kill(b);
    assert_exact(b, 0);
    assert_int_equal(put(b, 0, 1, 1), -ESHUTDOWN);
    c = make(MIB, MIB, MIB);
    region_unref(c);
    region_unref(b);
    region_unref(a);
}

static void test_kill_under_a_writer(void **state)
{
    struct region *region = make(8 * MIB, MIB, 8 * MIB);
    struct quota_status status;
    void *memory;

    (void)state;
    assert_int_equal(region_write_begin(region, 0, 4 * P, false, &memory), 0);
    memset(memory, 1, 2 * P);
    region_kill(region);
    memset((uint8_t *)memory + 2 * P, 1, 2 * P);
    assert_int_equal(region_write_end(region, 0, 4 * P, true), -ESHUTDOWN);
    assert_exact(region, 0);
    quota_status(&quota, &status);
    assert_int_equal(status.free, status.memory);
    region_unref(region);
}

static void test_bad_sizes(void **state)
{
    struct region *region;
    struct reason reason;

    (void)state;
    assert_int_equal(region_new(&region, &quota, 0, 0, 0, &reason), -EINVAL);
    assert_int_equal(region_new(&region, &quota, P + 1, 0, P, &reason), -EINVAL);
    assert_int_equal(region_new(&region, &quota, UINT64_MAX & ~(P - 1), 0, P, &reason), -EINVAL);
    assert_int_equal(region_new(&region, &quota, P, 2 * P, P, &reason), -EINVAL);
}

/* ---- random operations beside a model that is too simple to be wrong ---- */

#define MODEL_PAGES 1200 /* over two chunks and a bit */
#define MODEL_SIZE (MODEL_PAGES * P)
#define MODEL_LIMIT (700 * P)

struct model {
    uint8_t bytes[MODEL_SIZE];
    bool exists[MODEL_PAGES];
    bool stored[MODEL_PAGES];
};

static uint64_t model_stored(const struct model *model)
{
    uint64_t n = 0;

    for (size_t i = 0; i < MODEL_PAGES; i++) {
        n += model->stored[i];
    }
    return n * P;
}

static int model_write(struct model *model, uint64_t offset, uint32_t length, uint8_t value)
{
    uint64_t fresh = 0;

    for (uint64_t p = offset / P; p <= (offset + length - 1) / P; p++) {
        fresh += !model->stored[p];
    }
    if (model_stored(model) + fresh * P > MODEL_LIMIT) {
        return -ENOSPC;
    }
    for (uint64_t p = offset / P; p <= (offset + length - 1) / P; p++) {
        model->exists[p] = model->stored[p] = true;
    }
    memset(model->bytes + offset, value, length);
    return 0;
}

static void model_clear(struct model *model, uint64_t offset, uint32_t length, bool exist)
{
    for (uint64_t p = 0; p < MODEL_PAGES; p++) {
        bool whole = p * P >= offset && (p + 1) * P <= offset + length;
        bool touched = (p + 1) * P > offset && p * P < offset + length;
        if (whole) {
            memset(model->bytes + p * P, 0, P);
            model->stored[p] = false;
        }
        if (exist ? touched : whole) {
            model->exists[p] = exist;
        }
    }
    if (exist) {
        memset(model->bytes + offset, 0, length);
    }
}

/* Read by pieces as the server does, and compare. */
static void compare(struct region *region, const struct model *model, uint64_t offset,
                    uint32_t length)
{
    const void *memory;
    bool whole = true, strict_ok = true;

    for (uint64_t p = offset / P; p <= (offset + length - 1) / P; p++) {
        whole &= model->stored[p];
        strict_ok &= model->exists[p];
    }
    assert_int_equal(region_read_begin(region, false, offset, length, &memory), 0);
    assert_int_equal(memory != NULL, whole);
    if (memory) {
        assert_memory_equal(memory, model->bytes + offset, length);
        region_read_end(region, offset, length);
    }
    assert_int_equal(region_read_begin(region, true, offset, length, &memory), strict_ok ? 0 : -EIO);
    if (memory) {
        region_read_end(region, offset, length);
    }
    struct nbd_extent extents[7];
    uint64_t at = offset, end = offset + length;
    while (at < end) {
        size_t n = 7;
        assert_int_equal(region_status(region, false, at, (uint32_t)(end - at), extents, &n), 0);
        assert_true(n >= 1);
        for (size_t i = 0; i < n; at += extents[i++].length) {
            assert_true(extents[i].length > 0 && at + extents[i].length <= end);
            for (uint64_t p = at / P; p <= (at + extents[i].length - 1) / P; p++) {
                uint32_t flags = model->stored[p]   ? 0
                                 : model->exists[p] ? NBD_STATE_ZERO
                                                    : NBD_STATE_ZERO | NBD_STATE_HOLE;
                assert_int_equal(extents[i].flags, flags);
            }
        }
    }
}

static void test_random_against_model(void **state)
{
    struct region *region = make(MODEL_SIZE, 0, MODEL_LIMIT);
    struct model *model = calloc(1, sizeof(*model));
    const char *given = getenv("SEED");
    unsigned seed = given ? (unsigned)strtoul(given, NULL, 10) : 20180702;

    (void)state;
    printf("SEED=%u\n", seed);
    for (int step = 0; step < 4000; step++) {
        uint64_t offset = (uint64_t)rand_r(&seed) % MODEL_SIZE;
        uint32_t most = rand_r(&seed) % 3 ? 3 * P : 300 * P;
        uint32_t length = 1 + (uint32_t)rand_r(&seed) % most;
        if (rand_r(&seed) % 2) {
            offset -= offset % P;
            length = (uint32_t)((length + P - 1) / P * P);
        }
        if (length > MODEL_SIZE - offset) {
            length = (uint32_t)(MODEL_SIZE - offset);
        }
        uint8_t value = (uint8_t)(1 + rand_r(&seed) % 255);
        switch (rand_r(&seed) % 6) {
        case 0:
        case 1:
            assert_int_equal(put(region, offset, length, value),
                             model_write(model, offset, length, value));
            break;
        case 2:
            assert_int_equal(region_trim(region, offset, length), 0);
            model_clear(model, offset, length, false);
            break;
        case 3:
            assert_int_equal(region_zero(region, offset, length), 0);
            model_clear(model, offset, length, true);
            break;
        default:
            compare(region, model, offset, length);
        }
        assert_exact(region, model_stored(model));
    }
    compare(region, model, 0, MODEL_SIZE);
    free(model);
    region_unref(region);
}

/* ---- several threads on the same pages ---- */

#define N_THREADS 4
#define SHARED_PAGES 40

struct worker {
    pthread_t thread;
    struct region *region;
    unsigned seed;
};

static void *hammer(void *arg)
{
    struct worker *worker = arg;
    unsigned *seed = &worker->seed;
    const void *readable;
    void *memory;

    for (int i = 0; i < 3000; i++) {
        uint64_t page = (uint64_t)rand_r(seed) % SHARED_PAGES;
        uint32_t n = 1 + (uint32_t)rand_r(seed) % 3;
        uint64_t offset = CHUNK_BYTES - SHARED_PAGES / 2 * P + page * P + (rand_r(seed) % 2) * 100;
        uint32_t length = n * (uint32_t)P;
        switch (rand_r(seed) % 5) {
        case 0:
            put(worker->region, offset, length, (uint8_t)i);
            break;
        case 1: /* a payload that does not arrive whole */
            if (region_write_begin(worker->region, offset, length, i % 2, &memory) == 0) {
                racy_begin();
                if (memory) {
                    memset(memory, i, length / 2);
                }
                racy_end();
                region_write_end(worker->region, offset, length, false);
            }
            break;
        case 2:
            region_trim(worker->region, offset, length);
            break;
        case 3:
            region_zero(worker->region, offset, length);
            break;
        default:
            if (region_read_begin(worker->region, rand_r(seed) % 2, offset, length, &readable) == 0 &&
                readable) {
                region_read_end(worker->region, offset, length);
            }
        }
    }
    return NULL;
}

static void test_threads_keep_accounts(void **state)
{
    struct region *region = make(8 * MIB, 2 * P, 30 * P); /* a limit that is hit */
    struct worker workers[N_THREADS];

    (void)state;
    for (unsigned i = 0; i < N_THREADS; i++) {
        workers[i] = (struct worker){.region = region, .seed = i + 1};
        assert_int_equal(pthread_create(&workers[i].thread, NULL, hammer, &workers[i]), 0);
    }
    for (unsigned i = 0; i < N_THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
    }
    assert_exact(region, stored(region));
    assert_true(stored(region) <= 30 * P);
    /* With nobody at work, stored pages are those that block_status calls data. */
    struct nbd_extent extents[512];
    size_t n = 512;
    uint64_t data = 0;
    assert_int_equal(region_status(region, false, 0, 8 * MIB, extents, &n), 0);
    for (size_t i = 0; i < n; i++) {
        data += extents[i].flags == 0 ? extents[i].length : 0;
    }
    assert_int_equal(data, stored(region));
    assert_int_equal(region_trim(region, 0, 8 * MIB), 0);
    assert_exact(region, 0);
    region_unref(region);
}

static void test_kill_under_threads(void **state)
{
    (void)state;
    for (int round = 0; round < 10; round++) {
        struct region *region = make(8 * MIB, 2 * P, 8 * MIB);
        struct worker workers[N_THREADS];
        for (unsigned i = 0; i < N_THREADS; i++) {
            workers[i] = (struct worker){.region = region, .seed = i + 100};
            assert_int_equal(pthread_create(&workers[i].thread, NULL, hammer, &workers[i]), 0);
        }
        region_kill(region);
        for (unsigned i = 0; i < N_THREADS; i++) {
            pthread_join(workers[i].thread, NULL);
        }
        assert_exact(region, 0);
        region_unref(region);
    }
}

/* ---- names and tickets ---- */

static int try_open(struct store *store, const char *name, bool *strict)
{
    struct store_opened opened;
    int err = store_open(store, name, strlen(name), &opened);

    *strict = opened.strict;
    if (!err) {
        region_unref(opened.region);
    }
    return err;
}

static void test_names(void **state)
{
    struct store store;
    struct reason reason;
    bool strict;
    int owner;

    (void)state;
    store_init(&store, 64 * MIB);
    struct store_request plain = {.name = "plain", .size = MIB, .limit = MIB, .owner = &owner};
    struct store_request guarded = {
        .name = "guarded", .ticket = "s3cret", .size = MIB, .limit = MIB, .owner = &owner};
    assert_int_equal(store_create(&store, &plain, &reason), 0);
    assert_int_equal(store_create(&store, &plain, &reason), -EEXIST);
    assert_int_equal(store_create(&store, &guarded, &reason), 0);
    static const struct {
        const char *name;
        int err;
        bool strict;
    } opens[] = {
        {"plain", 0, false},          {"plain/strict", 0, true},
        {"plain.x", -ENOENT, false},  {"plain.", -ENOENT, false},
        {"guarded", -ENOENT, false},  {"guarded.s3cret", 0, false},
        {"guarded.", -ENOENT, false}, {"guarded.s3cret/strict", 0, true},
        {"guarded.s3cre", -ENOENT, false}, {"guarded.s3cretx", -ENOENT, false},
        {"", -ENOENT, false},         {"/strict", -ENOENT, false},
        {".", -ENOENT, false},        {".s3cret", -ENOENT, false},
        {"plai", -ENOENT, false},     {"plainn", -ENOENT, false},
    };
    for (size_t i = 0; i < sizeof(opens) / sizeof(opens[0]); i++) {
        assert_int_equal(try_open(&store, opens[i].name, &strict), opens[i].err);
        assert_true(opens[i].err || strict == opens[i].strict);
    }
    assert_int_equal(store_keep(&store, "guarded", NULL, NULL, &reason), -EACCES);
    assert_int_equal(store_keep(&store, "guarded", "s3cret", NULL, &reason), 0);
    assert_int_equal(store_keep(&store, "guarded", "s3cret", NULL, &reason), 0);
    assert_int_equal(store_keep(&store, "nobody", NULL, NULL, &reason), -ENOENT);
    assert_int_equal(store_keep(&store, "guarded", "s3cret", "a b", &reason), -EINVAL);
    assert_int_equal(store_keep(&store, "guarded", "s3cret", "other", &reason), 0);
    assert_int_equal(store_keep(&store, "guarded", "s3cret", NULL, &reason), -EKEYEXPIRED);
    assert_int_equal(try_open(&store, "guarded.s3cret", &strict), -EKEYEXPIRED);
    assert_int_equal(try_open(&store, "guarded.other", &strict), 0);
    assert_int_equal(store_delete(&store, "guarded", "s3cret", &store, &reason), -EKEYEXPIRED);
    assert_int_equal(store_keep(&store, "guarded", "other", "s3cret", &reason), 0);
    store_delete_owned(&store, &owner);
    assert_int_equal(store_count(&store), 1);
    assert_int_equal(store_delete(&store, "guarded", "wrong", NULL, &reason), -EACCES);
    assert_int_equal(store_delete(&store, "guarded", "s3cret", NULL, &reason), 0);
    static const char *const bad[] = {"", "a.b", "a/b", "a b", "\xff"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct store_request request = {.name = bad[i], .size = MIB, .limit = MIB};
        assert_int_equal(store_create(&store, &request, &reason), -EINVAL);
    }
    store_destroy(&store);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_holes_take_nothing),
        TEST(test_partial_page_rest_is_zero),
        TEST(test_unfinished_write_is_taken_back),
        TEST(test_trim_waits_for_readers),
        TEST(test_write_after_deferred_trim),
        TEST(test_zero_takes_no_memory),
        TEST(test_lent_and_taken_back),
        TEST(test_limit_changes_nothing),
        TEST(test_reservations),
        TEST(test_kill_under_a_writer),
        TEST(test_bad_sizes),
        TEST(test_random_against_model),
        TEST(test_threads_keep_accounts),
        TEST(test_kill_under_threads),
        TEST(test_names),
    };

    log_init("test_region", LOG_LEVEL_WARN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
