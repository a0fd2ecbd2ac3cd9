// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "common/nbd.h"
#include "common/nbd_client.h"

static void test_errno_to_wire(void **state)
{
    (void)state;
    assert_int_equal(nbd_errno_to_wire(0), 0);
    assert_int_equal(nbd_errno_to_wire(EPERM), NBD_EPERM);
    assert_int_equal(nbd_errno_to_wire(EROFS), NBD_EPERM);
    assert_int_equal(nbd_errno_to_wire(EIO), NBD_EIO);
    assert_int_equal(nbd_errno_to_wire(ENOMEM), NBD_ENOMEM);
    assert_int_equal(nbd_errno_to_wire(EINVAL), NBD_EINVAL);
    assert_int_equal(nbd_errno_to_wire(ENOSPC), NBD_ENOSPC);
    assert_int_equal(nbd_errno_to_wire(EDQUOT), NBD_ENOSPC);
    assert_int_equal(nbd_errno_to_wire(EOVERFLOW), NBD_EOVERFLOW);
    assert_int_equal(nbd_errno_to_wire(ENOTSUP), NBD_ENOTSUP);
    assert_int_equal(nbd_errno_to_wire(ESHUTDOWN), NBD_ESHUTDOWN);
    assert_int_equal(nbd_errno_to_wire(EXDEV), NBD_EIO);
}

static void test_errno_round_trip(void **state)
{
    static const int listed[] = {EPERM,  EIO,       ENOMEM,  EINVAL,
                                 ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN};

    (void)state;
    for (size_t i = 0; i < sizeof(listed) / sizeof(listed[0]); i++) {
        assert_int_equal(nbd_errno_from_wire(nbd_errno_to_wire(listed[i])), -listed[i]);
    }
    assert_int_equal(nbd_errno_from_wire(0), 0);
    assert_int_equal(nbd_errno_from_wire(4711), -EIO);
    assert_int_equal(nbd_errno_from_wire(UINT32_MAX), -EIO);
}

/* The bytes as the protocol document has them. */
static void test_request_bytes(void **state)
{
    static const uint8_t expected[28] = {
        0x25, 0x60, 0x95, 0x13, 0x00, 0x02, 0x00, 0x06, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06,
        0x07, 0x08, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x21, 0x22, 0x23, 0x24};
    struct nbd_request request;

    (void)state;
    nbd_encode_request(&request, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE, 0x0102030405060708,
                       0x1112131415161718, 0x21222324);
    assert_memory_equal(&request, expected, sizeof(expected));
}

static void test_reply_bytes(void **state)
{
    static const uint8_t wire[16] = {0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 1, 2, 3, 4, 5, 6, 7, 8};
    struct nbd_simple_reply reply;
    uint64_t cookie = 0;
    int error = 1;

    (void)state;
    memcpy(&reply, wire, sizeof(reply));
    assert_int_equal(nbd_decode_simple_reply(&reply, &cookie, &error), 0);
    assert_true(cookie == 0x0102030405060708);
    assert_int_equal(error, -ENOSPC);
    reply.error = 0;
    assert_int_equal(nbd_decode_simple_reply(&reply, &cookie, &error), 0);
    assert_int_equal(error, 0);
    reply.magic ^= 1;
    assert_int_equal(nbd_decode_simple_reply(&reply, &cookie, &error), -EPROTO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_errno_to_wire),
        cmocka_unit_test(test_errno_round_trip),
        cmocka_unit_test(test_request_bytes),
        cmocka_unit_test(test_reply_bytes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
