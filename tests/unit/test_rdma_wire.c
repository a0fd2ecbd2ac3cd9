// SPDX-License-Identifier: GPL-2.0-or-later
/* rdma_wire.c: private data and messages survive the way, and nothing else is taken for them */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "common/nbd_rdma.h"
#include "common/rdma_wire.h"
#include "common/units.h"

static void hello_survives_padding(void **state)
{
    uint8_t data[56] = {0}; /* rdma_cm pads with zeros */
    struct rdma_hello hello, got;

    (void)state;
    for (unsigned i = 0; i < sizeof(hello.export_hash); i++) {
        hello.export_hash[i] = (uint8_t)(i * 7);
    }
    rdma_encode_hello(data, &hello);
    assert_int_equal(rdma_decode_hello(data, RDMA_HELLO_BYTES, &got), 0);
    assert_memory_equal(&got, &hello, sizeof(hello));
    assert_int_equal(rdma_decode_hello(data, sizeof(data), &got), 0);
}

static void hello_that_is_none_is_refused(void **state)
{
    uint8_t data[RDMA_HELLO_BYTES];
    struct rdma_hello hello = {{1}}, got;

    (void)state;
    for (size_t length = 0; length < sizeof(data); length++) {
        rdma_encode_hello(data, &hello);
        assert_int_equal(rdma_decode_hello(data, length, &got), -EPROTO);
    }
    assert_int_equal(rdma_decode_hello(NULL, 0, &got), -EPROTO);
    for (unsigned i = 0; i < 8; i++) { /* magic, version, zero */
        rdma_encode_hello(data, &hello);
        data[i] ^= 0x40;
        assert_int_equal(rdma_decode_hello(data, sizeof(data), &got),
                         i == 4 || i == 5 ? -EPROTONOSUPPORT : -EPROTO);
    }
}

static int welcome(uint64_t size, uint32_t slab)
{
    uint8_t data[RDMA_WELCOME_BYTES];
    struct rdma_welcome sent = {.size = size, .slab_bytes = slab}, got;

    rdma_encode_welcome(data, &sent);
    int err = rdma_decode_welcome(data, sizeof(data), &got);
    if (!err) {
        assert_true(got.size == size && got.slab_bytes == slab);
    }
    return err;
}

static void welcome_must_make_sense(void **state)
{
    uint8_t data[RDMA_WELCOME_BYTES] = {0};
    struct rdma_welcome got;

    (void)state;
    assert_int_equal(welcome(64 * GIB, 64u << 20), 0);
    assert_int_equal(welcome(PAGE_BYTES, RDMA_MIN_SLAB), 0);
    assert_int_equal(welcome((uint64_t)1 << 46, RDMA_MAX_SLAB), 0);
    assert_int_equal(welcome(0, 64u << 20), -EPROTO);
    assert_int_equal(welcome(PAGE_BYTES + 1, 64u << 20), -EPROTO);
    assert_int_equal(welcome(((uint64_t)1 << 46) + PAGE_BYTES, 64u << 20), -EPROTO);
    assert_int_equal(welcome(GIB, 0), -EPROTO);
    assert_int_equal(welcome(GIB, 6u << 20), 0);
    assert_int_equal(welcome(GIB, 3u << 20), -EPROTO);
    assert_int_equal(welcome(GIB, RDMA_MIN_SLAB / 2), -EPROTO);
    assert_int_equal(welcome(GIB, RDMA_MAX_SLAB * 2), -EPROTO);
    assert_int_equal(rdma_decode_welcome(data, sizeof(data), &got), -EPROTO);
}

static void refusal_names_only_known_errors(void **state)
{
    uint8_t data[RDMA_REFUSAL_BYTES];

    (void)state;
    rdma_encode_refusal(data, -ENOENT);
    assert_int_equal(rdma_decode_refusal(data, sizeof(data)), -ENOENT);
    rdma_encode_refusal(data, -ENOSYS);
    assert_int_equal(rdma_decode_refusal(data, sizeof(data)), -ECONNREFUSED);
    rdma_encode_refusal(data, 0);
    assert_int_equal(rdma_decode_refusal(data, sizeof(data)), -ECONNREFUSED);
    assert_int_equal(rdma_decode_refusal(data, 4), -ECONNREFUSED);
    assert_int_equal(rdma_decode_refusal(NULL, 0), -ECONNREFUSED);
}

static void messages_survive_and_others_do_not(void **state)
{
    uint8_t data[RDMA_MESSAGE_BYTES];
    struct rdma_message got, message = {.type = RDMA_SLAB | RDMA_ANSWER,
                                        .error = -ENOSPC,
                                        .cookie = UINT64_MAX - 3,
                                        .offset = (uint64_t)7 << 40,
                                        .address = 0x7f0123456000,
                                        .length = 64u << 20,
                                        .rkey = 0xdeadbeef};

    (void)state;
    rdma_encode_message(data, &message);
    assert_int_equal(rdma_decode_message(data, sizeof(data), &got), 0);
    assert_true(got.type == message.type && got.error == message.error &&
                got.cookie == message.cookie && got.offset == message.offset &&
                got.address == message.address && got.length == message.length &&
                got.rkey == message.rkey);
    assert_int_equal(rdma_decode_message(data, sizeof(data) - 1, &got), -EPROTO);
    assert_int_equal(rdma_decode_message(data, sizeof(data) + 1, &got), -EPROTO);
    data[2] = 1; /* must be zero */
    assert_int_equal(rdma_decode_message(data, sizeof(data), &got), -EPROTO);
    message.type = 3;
    rdma_encode_message(data, &message);
    assert_int_equal(rdma_decode_message(data, sizeof(data), &got), -EPROTO);
}

static void addresses(void **state)
{
    struct endpoint address;
    char text[ENDPOINT_TEXT_LEN];

    (void)state;
    assert_int_equal(nbd_rdma_parse("rdma:10.0.0.1:18515", &address, NULL), 0);
    assert_string_equal(nbd_rdma_format(&address, text), "rdma:10.0.0.1:18515");
    assert_int_equal(nbd_rdma_parse("rdma:[fe80::1]:1", &address, NULL), 0);
    assert_string_equal(nbd_rdma_format(&address, text), "rdma:[fe80::1]:1");
    assert_true(nbd_rdma_parse("tcp:10.0.0.1:18515", &address, NULL) < 0);
    assert_true(nbd_rdma_parse("rdma:10.0.0.1", &address, NULL) < 0);
    assert_true(nbd_rdma_parse("rdma:unix:/x", &address, NULL) < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hello_survives_padding),
        cmocka_unit_test(hello_that_is_none_is_refused),
        cmocka_unit_test(welcome_must_make_sense),
        cmocka_unit_test(refusal_names_only_known_errors),
        cmocka_unit_test(messages_survive_and_others_do_not),
        cmocka_unit_test(addresses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
