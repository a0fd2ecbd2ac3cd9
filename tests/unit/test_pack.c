// SPDX-License-Identifier: GPL-2.0-or-later
/* Packs come back as they were; what is not a pack is refused, whatever it says of itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/pack.h"
#include "common/units.h"

static uint8_t from[PACK_MOST];
static uint8_t pack[PACK_MOST];
static uint8_t to[PACK_MOST + 1];

static void fill_text(size_t length)
{
    for (size_t i = 0; i < length; i++) {
        from[i] = (uint8_t)('a' + i * i % 97 % 7 + i / 5000);
    }
}

static void test_there_and_back(void **state)
{
    struct packer *packer = packer_new();
    struct unpacker *unpacker = unpacker_new();

    (void)state;
    for (unsigned method = PACK_LZ4; method < PACK_METHODS; method++) {
        for (size_t length = PAGE_BYTES; length <= PACK_MOST; length *= 2) {
            fill_text(length);
            size_t size = packer_pack(packer, (enum pack_method)method, from, length, pack);
            assert_in_range(size, sizeof(struct pack_head) + 1, length - length / 8);
            assert_int_equal(unpacker_length(pack, size), length);
            memset(to, 0x5a, sizeof(to));
            assert_int_equal(unpacker_unpack(unpacker, pack, size, to), 0);
            assert_memory_equal(to, from, length);
            assert_int_equal(to[length], 0x5a);
        }
    }
    packer_free(packer);
    unpacker_free(unpacker);
}

static void test_not_worth_it(void **state)
{
    struct packer *packer = packer_new();
    unsigned seed = 7;

    (void)state;
    for (size_t i = 0; i < PACK_MOST; i++) {
        from[i] = (uint8_t)rand_r(&seed);
    }
    assert_int_equal(packer_pack(packer, PACK_LZ4, from, PACK_MOST, pack), 0);
    assert_int_equal(packer_pack(packer, PACK_ZSTD, from, PAGE_BYTES, pack), 0);
    packer_free(packer);
}

static void set_head(uint32_t method, uint32_t length)
{
    struct pack_head head = {htobe32(method), htobe32(length)};

    memcpy(pack, &head, sizeof(head));
}

static void test_bad_heads(void **state)
{
    (void)state;
    set_head(PACK_LZ4, PAGE_BYTES);
    assert_int_equal(unpacker_length(pack, 9), PAGE_BYTES);
    for (size_t size = 0; size <= sizeof(struct pack_head); size++) {
        assert_int_equal(unpacker_length(pack, size), 0);
    }
    const uint32_t bad[][2] = {{PACK_NONE, PAGE_BYTES}, {PACK_METHODS, PAGE_BYTES}, {UINT32_MAX, PAGE_BYTES},
                               {PACK_ZSTD, 0},          {PACK_ZSTD, 4097},          {PACK_ZSTD, PACK_MOST + PAGE_BYTES},
                               {PACK_ZSTD, UINT32_MAX}, {PACK_LZ4, 0x80000000}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        set_head(bad[i][0], bad[i][1]);
        assert_int_equal(unpacker_length(pack, 100), 0);
    }
}

/* Cut, spoilt, or of another length than the head says: refused, and nothing beyond it is written. */
static void test_bad_bodies(void **state)
{
    struct packer *packer = packer_new();
    struct unpacker *unpacker = unpacker_new();
    unsigned seed = 11;

    (void)state;
    for (unsigned method = PACK_LZ4; method < PACK_METHODS; method++) {
        fill_text(4 * PAGE_BYTES);
        size_t size = packer_pack(packer, (enum pack_method)method, from, 4 * PAGE_BYTES, pack);
        memset(to, 0x5a, sizeof(to));
        for (size_t cut = sizeof(struct pack_head) + 1; cut < size; cut += 7) {
            assert_int_equal(unpacker_unpack(unpacker, pack, cut, to), -EINVAL);
        }
        set_head(method, 3 * PAGE_BYTES);
        assert_int_equal(unpacker_unpack(unpacker, pack, size, to), -EINVAL);
        set_head(method, 5 * PAGE_BYTES);
        assert_int_equal(unpacker_unpack(unpacker, pack, size, to), -EINVAL);
        set_head(method, 4 * PAGE_BYTES);
        for (unsigned i = 0; i < 2000; i++) {
            size_t at = sizeof(struct pack_head) + (size_t)rand_r(&seed) % (size - sizeof(struct pack_head));
            uint8_t was = pack[at];
            pack[at] = (uint8_t)rand_r(&seed);
            unpacker_unpack(unpacker, pack, size, to); /* it may be good by chance */
            assert_int_equal(to[5 * PAGE_BYTES], 0x5a);
            pack[at] = was;
        }
        assert_int_equal(unpacker_unpack(unpacker, pack, size, to), 0);
        assert_memory_equal(to, from, 4 * PAGE_BYTES);
    }
    packer_free(packer);
    unpacker_free(unpacker);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_there_and_back),
        cmocka_unit_test(test_not_worth_it),
        cmocka_unit_test(test_bad_heads),
        cmocka_unit_test(test_bad_bodies),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
