// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * fuzz_rdma.c - what the other end of an RDMA connection may say: private data and messages
 *
 * The first byte of the input chooses the layout.  What is taken for sound must be within the bounds
 * that whoever uses it relies on, and must say the same after another trip over the wire.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/rdma_wire.h"
#include "common/units.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect(int truth)
{
    if (!truth) {
        abort();
    }
}

static void hello(const uint8_t *data, size_t size)
{
    uint8_t again[RDMA_HELLO_BYTES];
    struct rdma_hello hello;
    int err = rdma_decode_hello(data, size, &hello);

    expect(err == 0 || err == -EPROTO || err == -EPROTONOSUPPORT);
    if (!err) {
        rdma_encode_hello(again, &hello);
        expect(size >= sizeof(again) && memcmp(again, data, sizeof(again)) == 0);
    }
}

static void welcome(const uint8_t *data, size_t size)
{
    uint8_t again[RDMA_WELCOME_BYTES];
    struct rdma_welcome welcome, same;
    int err = rdma_decode_welcome(data, size, &welcome);

    expect(err == 0 || err == -EPROTO || err == -EPROTONOSUPPORT);
    if (!err) {
        expect(welcome.size > 0 && welcome.size % PAGE_BYTES == 0 && welcome.size <= 1ull << 46);
        expect(welcome.slab_bytes >= RDMA_MIN_SLAB && welcome.slab_bytes <= RDMA_MAX_SLAB &&
               welcome.slab_bytes % RDMA_MIN_SLAB == 0);
        rdma_encode_welcome(again, &welcome);
        expect(rdma_decode_welcome(again, sizeof(again), &same) == 0);
        expect(same.size == welcome.size && same.slab_bytes == welcome.slab_bytes);
    }
}

static void refusal(const uint8_t *data, size_t size)
{
    int err = rdma_decode_refusal(data, size);

    expect(err < 0 && err > -4096);
}

static void message(const uint8_t *data, size_t size)
{
    uint8_t again[RDMA_MESSAGE_BYTES];
    struct rdma_message message, same;
    int err = rdma_decode_message(data, size, &message);

    expect(err == 0 || err == -EPROTO);
    if (!err) {
        expect(size == RDMA_MESSAGE_BYTES && message.error <= 0);
        rdma_encode_message(again, &message);
        expect(rdma_decode_message(again, sizeof(again), &same) == 0);
        expect(memcmp(again + 8, data + 8, sizeof(again) - 8) == 0); /* all but the error's number */
        expect(same.type == message.type && !same.error == !message.error);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const layouts[])(const uint8_t *, size_t) = {hello, welcome, refusal, message};

    if (size > 0) {
        /* A block of its own, so that a read beyond the end is seen. */
        size_t length = size - 1;
        uint8_t *copy = malloc(length ? length : 1);
        expect(copy != NULL);
        memcpy(copy, data + 1, length);
        layouts[data[0] % 4](copy, length);
        free(copy);
    }
    return 0;
}
