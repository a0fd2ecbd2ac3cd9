// SPDX-License-Identifier: GPL-2.0-or-later
/* rdma_wire.c - private data and messages, to bytes and back */
#include "common/rdma_wire.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

#include "common/nbd.h"
#include "common/units.h"

#define RDMA_WIRE_MAGIC 0x534d5244u /* "SMRD" */

struct wire_head {
    uint32_t magic;
    uint16_t version;
    uint16_t zero;
} __attribute__((packed));

struct wire_message {
    uint16_t type;
    uint16_t zero;
    uint32_t error;
    uint64_t cookie;
    uint64_t offset;
    uint64_t address;
    uint32_t length;
    uint32_t rkey;
} __attribute__((packed));

_Static_assert(sizeof(struct wire_head) + RDMA_EXPORT_BYTES == RDMA_HELLO_BYTES, "wire layout");
_Static_assert(sizeof(struct wire_message) == RDMA_MESSAGE_BYTES, "wire layout");

static void encode_head(uint8_t *to)
{
    struct wire_head head = {.magic = htobe32(RDMA_WIRE_MAGIC),
                             .version = htobe16(RDMA_WIRE_VERSION)};

    memcpy(to, &head, sizeof(head));
}

static int decode_head(const void *from, size_t length, size_t whole)
{
    struct wire_head head;

    if (!from || length < sizeof(head)) {
        return -EPROTO;
    }
    memcpy(&head, from, sizeof(head));
    if (be32toh(head.magic) != RDMA_WIRE_MAGIC) {
        return -EPROTO;
    }
    if (be16toh(head.version) != RDMA_WIRE_VERSION) {
        return -EPROTONOSUPPORT;
    }
    return head.zero || length < whole ? -EPROTO : 0;
}

void rdma_encode_hello(uint8_t to[RDMA_HELLO_BYTES], const struct rdma_hello *hello)
{
    encode_head(to);
    memcpy(to + sizeof(struct wire_head), hello->export_hash, RDMA_EXPORT_BYTES);
}

int rdma_decode_hello(const void *from, size_t length, struct rdma_hello *hello)
{
    int err = decode_head(from, length, RDMA_HELLO_BYTES);

    if (!err) {
        memcpy(hello->export_hash, (const uint8_t *)from + sizeof(struct wire_head),
               RDMA_EXPORT_BYTES);
    }
    return err;
}

void rdma_encode_welcome(uint8_t to[RDMA_WELCOME_BYTES], const struct rdma_welcome *welcome)
{
    uint64_t size = htobe64(welcome->size);
    uint32_t slab = htobe32(welcome->slab_bytes);

    memset(to, 0, RDMA_WELCOME_BYTES);
    encode_head(to);
    memcpy(to + 8, &size, sizeof(size));
    memcpy(to + 16, &slab, sizeof(slab));
}

int rdma_decode_welcome(const void *from, size_t length, struct rdma_welcome *welcome)
{
    int err = decode_head(from, length, RDMA_WELCOME_BYTES);

    if (err) {
        return err;
    }
    memcpy(&welcome->size, (const uint8_t *)from + 8, sizeof(welcome->size));
    memcpy(&welcome->slab_bytes, (const uint8_t *)from + 16, sizeof(welcome->slab_bytes));
    welcome->size = be64toh(welcome->size);
    welcome->slab_bytes = be32toh(welcome->slab_bytes);
    if (welcome->size == 0 || welcome->size % PAGE_BYTES || welcome->size > (uint64_t)1 << 46 ||
        welcome->slab_bytes < RDMA_MIN_SLAB || welcome->slab_bytes > RDMA_MAX_SLAB ||
        welcome->slab_bytes % RDMA_MIN_SLAB) {
        return -EPROTO;
    }
    return 0;
}

void rdma_encode_refusal(uint8_t to[RDMA_REFUSAL_BYTES], int err)
{
    uint32_t error = htobe32((uint32_t)-err);

    encode_head(to);
    memcpy(to + 8, &error, sizeof(error));
}

int rdma_decode_refusal(const void *from, size_t length)
{
    uint32_t error;

    if (decode_head(from, length, RDMA_REFUSAL_BYTES) < 0) {
        return -ECONNREFUSED;
    }
    memcpy(&error, (const uint8_t *)from + 8, sizeof(error));
    switch (be32toh(error)) {
    case ENOENT:
    case ENOMEM:
    case EBUSY:
    case EPROTO:
    case EPROTONOSUPPORT:
        return -(int)be32toh(error);
    default:
        return -ECONNREFUSED;
    }
}

void rdma_encode_message(uint8_t to[RDMA_MESSAGE_BYTES], const struct rdma_message *message)
{
    struct wire_message wire = {
        .type = htobe16(message->type),
        .error = htobe32(message->error ? nbd_errno_to_wire(-message->error) : 0),
        .cookie = htobe64(message->cookie),
        .offset = htobe64(message->offset),
        .address = htobe64(message->address),
        .length = htobe32(message->length),
        .rkey = htobe32(message->rkey),
    };

    memcpy(to, &wire, sizeof(wire));
}

int rdma_decode_message(const void *from, size_t length, struct rdma_message *message)
{
    struct wire_message wire;

    if (length != sizeof(wire)) {
        return -EPROTO;
    }
    memcpy(&wire, from, sizeof(wire));
    uint16_t type = be16toh(wire.type) & (uint16_t)~RDMA_ANSWER;
    if (wire.zero || (type != RDMA_SLAB && type != RDMA_TRIM)) {
        return -EPROTO;
    }
    *message = (struct rdma_message){
        .type = be16toh(wire.type),
        .error = wire.error ? nbd_errno_from_wire(be32toh(wire.error)) : 0,
        .cookie = be64toh(wire.cookie),
        .offset = be64toh(wire.offset),
        .address = be64toh(wire.address),
        .length = be32toh(wire.length),
        .rkey = be32toh(wire.rkey),
    };
    return 0;
}
