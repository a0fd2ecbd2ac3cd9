/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * rdma_wire.h - what travels beside the pages when a region is used over RDMA
 *
 * docs/protocols.md describes it.  Three layouts ride in rdma_cm's private data, which has room for
 * 56 bytes and may come padded with zeros: the client's hello, and the server's welcome or refusal.
 * Messages are SENDs of exactly one struct rdma_message.  Everything is big-endian, and checked
 * before use on both sides.  Nothing here needs an RDMA library.
 */
#ifndef COMMON_RDMA_WIRE_H
#define COMMON_RDMA_WIRE_H

#include <stddef.h>
#include <stdint.h>

#define RDMA_WIRE_VERSION 1u
#define RDMA_EXPORT_BYTES 32u  /* SHA-256 of the export's name, ticket included */
#define RDMA_MESSAGES 8u       /* requests a client may have without an answer */
#define RDMA_MIN_SLAB (2u << 20)
#define RDMA_MAX_SLAB (1u << 30)

enum rdma_message_type {
    RDMA_SLAB = 1,  /* register the slab at @offset; answered with address, rkey, length */
    RDMA_TRIM = 2,  /* [offset, offset + length) is not wanted any more */
    RDMA_ANSWER = 0x8000, /* set in an answer's type */
};

struct rdma_hello {
    uint8_t export_hash[RDMA_EXPORT_BYTES];
};

struct rdma_welcome {
    uint64_t size;       /* of the region */
    uint32_t slab_bytes; /* a multiple of RDMA_MIN_SLAB */
};

struct rdma_message {
    uint16_t type;
    int error;        /* answers: 0 or -errno */
    uint64_t cookie;  /* the request's, in its answer */
    uint64_t offset;  /* in the region */
    uint64_t address; /* SLAB's answer: where the slab begins for READ and WRITE ... */
    uint32_t length;
    uint32_t rkey;    /* ... and the key to it */
};

#define RDMA_HELLO_BYTES 40u
#define RDMA_WELCOME_BYTES 24u
#define RDMA_REFUSAL_BYTES 12u
#define RDMA_MESSAGE_BYTES 40u

void rdma_encode_hello(uint8_t to[RDMA_HELLO_BYTES], const struct rdma_hello *hello);
/** rdma_decode_hello() - Return: 0, -EPROTO, or -EPROTONOSUPPORT for another version */
int rdma_decode_hello(const void *from, size_t length, struct rdma_hello *hello);

void rdma_encode_welcome(uint8_t to[RDMA_WELCOME_BYTES], const struct rdma_welcome *welcome);
/** rdma_decode_welcome() - also checks that the sizes make sense. Return: as above. */
int rdma_decode_welcome(const void *from, size_t length, struct rdma_welcome *welcome);

void rdma_encode_refusal(uint8_t to[RDMA_REFUSAL_BYTES], int err);
/** rdma_decode_refusal() - Return: the -errno of the refusal; -ECONNREFUSED if it does not say */
int rdma_decode_refusal(const void *from, size_t length);

void rdma_encode_message(uint8_t to[RDMA_MESSAGE_BYTES], const struct rdma_message *message);
/** rdma_decode_message() - Return: 0 or -EPROTO */
int rdma_decode_message(const void *from, size_t length, struct rdma_message *message);

#endif
