/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pack.h - compressed pages on the wire: the payload of NBD_CMD_PACK (docs/protocols.md)
 *
 * A pack is a head and compressed bytes, which unpack to whole pages that follow each other.  The
 * memory a packer reads may be written by its guest meanwhile, so it is copied first: what comes
 * out is always well-formed.  An unpacker believes nothing: the head's length is what the caller
 * has room for, and the bytes must make exactly as much.
 */
#ifndef COMMON_PACK_H
#define COMMON_PACK_H

#include <stddef.h>
#include <stdint.h>

#define PACK_MOST (128u << 10) /* bytes in a pack, unpacked: they stay in the cache meanwhile */

enum pack_method { PACK_NONE, PACK_LZ4, PACK_ZSTD, PACK_METHODS };

/* Big-endian. */
struct pack_head {
    uint32_t method;
    uint32_t length; /* unpacked: whole pages, at most PACK_MOST */
} __attribute__((packed));

struct packer;   /* one thread's */
struct unpacker; /* likewise */

/** pack_method_parse() - "none", "lz4", "zstd". Return: PACK_METHODS if it is none of them. */
enum pack_method pack_method_parse(const char *name);

/** packer_new() - Return: NULL if there is no memory; packer_free() takes NULL, too */
struct packer *packer_new(void);
void packer_free(struct packer *packer);

/**
 * packer_pack() - pack @length bytes, at most PACK_MOST
 * @to: room for @length bytes
 * Return: bytes at @to, head included; 0 if they would not be an eighth less than @length.
 */
size_t packer_pack(struct packer *packer, enum pack_method method, const void *from, size_t length,
                   void *to);

/** unpacker_new() - Return: NULL if there is no memory; unpacker_free() takes NULL, too */
struct unpacker *unpacker_new(void);
void unpacker_free(struct unpacker *unpacker);

/**
 * unpacker_length() - what a pack of @size bytes says it unpacks to
 * Return: a number of whole pages' bytes from PAGE_BYTES to PACK_MOST, or 0 if its head is wrong.
 */
uint32_t unpacker_length(const void *pack, size_t size);

/** unpacker_unpack() - @to has room for unpacker_length(). Return: 0; -EINVAL, and @to is anything. */
int unpacker_unpack(struct unpacker *unpacker, const void *pack, size_t size, void *to);

#endif
