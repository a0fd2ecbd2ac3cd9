// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/pack.h"

#include <endian.h>
#include <errno.h>
#include <lz4.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <zstd.h>

#include "common/racy.h"
#include "common/units.h"

#define PACK_ZSTD_LEVEL 1

struct packer {
    ZSTD_CCtx *zstd;
    void *lz4;
    uint8_t *copy; /* PACK_MOST bytes */
};

struct unpacker {
    ZSTD_DCtx *zstd;
};

enum pack_method pack_method_parse(const char *name)
{
    static const char *const names[] = {"none", "lz4", "zstd"};
    unsigned method = 0;

    while (method < PACK_METHODS && strcmp(names[method], name) != 0) {
        method++;
    }
    return (enum pack_method)method;
}

struct packer *packer_new(void)
{
    struct packer *packer = calloc(1, sizeof(*packer));

    if (!packer) {
        return NULL;
    }
    packer->zstd = ZSTD_createCCtx();
    packer->lz4 = malloc((size_t)LZ4_sizeofState());
    packer->copy = aligned_alloc(PAGE_BYTES, PACK_MOST);
    if (!packer->zstd || !packer->lz4 || !packer->copy) {
        packer_free(packer);
        return NULL;
    }
    madvise(packer->copy, PACK_MOST, MADV_DONTDUMP);
    return packer;
}

void packer_free(struct packer *packer)
{
    if (packer) {
        ZSTD_freeCCtx(packer->zstd);
        free(packer->lz4);
        free(packer->copy);
        free(packer);
    }
}

size_t packer_pack(struct packer *packer, enum pack_method method, const void *from, size_t length,
                   void *to)
{
    struct pack_head head = {.method = htobe32(method), .length = htobe32((uint32_t)length)};
    char *body = (char *)to + sizeof(head);
    size_t room = length - length / 8 - sizeof(head);
    size_t n = 0;

    racy_begin();
    memcpy(packer->copy, from, length);
    racy_end();
    if (method == PACK_LZ4) {
        int made = LZ4_compress_fast_extState(packer->lz4, (const char *)packer->copy, body,
                                              (int)length, (int)room, 1);
        n = made > 0 ? (size_t)made : 0;
    } else if (method == PACK_ZSTD) {
        n = ZSTD_compressCCtx(packer->zstd, body, room, packer->copy, length, PACK_ZSTD_LEVEL);
        n = ZSTD_isError(n) ? 0 : n;
    }
    memcpy(to, &head, sizeof(head));
    return n ? n + sizeof(head) : 0;
}

struct unpacker *unpacker_new(void)
{
    struct unpacker *unpacker = calloc(1, sizeof(*unpacker));

    if (unpacker && !(unpacker->zstd = ZSTD_createDCtx())) {
        unpacker_free(unpacker);
        return NULL;
    }
    return unpacker;
}

void unpacker_free(struct unpacker *unpacker)
{
    if (unpacker) {
        ZSTD_freeDCtx(unpacker->zstd);
        free(unpacker);
    }
}

uint32_t unpacker_length(const void *pack, size_t size)
{
    struct pack_head head;

    if (size <= sizeof(head)) {
        return 0;
    }
    memcpy(&head, pack, sizeof(head));
    uint32_t method = be32toh(head.method);
    uint32_t length = be32toh(head.length);
    bool good = (method == PACK_LZ4 || method == PACK_ZSTD) && length <= PACK_MOST &&
                length % PAGE_BYTES == 0;
    return good ? length : 0;
}

int unpacker_unpack(struct unpacker *unpacker, const void *pack, size_t size, void *to)
{
    uint32_t length = unpacker_length(pack, size);
    struct pack_head head;
    size_t made = 0;

    if (!length) {
        return -EINVAL;
    }
    memcpy(&head, pack, sizeof(head));
    const char *body = (const char *)pack + sizeof(head);
    size -= sizeof(head);
    racy_begin();
    if (be32toh(head.method) == PACK_LZ4) {
        int n = LZ4_decompress_safe(body, to, (int)size, (int)length);
        made = n > 0 ? (size_t)n : 0;
    } else {
        made = ZSTD_decompressDCtx(unpacker->zstd, to, length, body, size);
    }
    racy_end();
    return made == length ? 0 : -EINVAL;
}
