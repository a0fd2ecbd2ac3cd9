/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * layout.h - a guest's RAM blocks laid end to end: the flat RAM
 *
 * Blocks are sorted by idstr (bytewise); each begins at the next 2 MiB
 * boundary after the one before.  Source and destination thereby agree on
 * offsets without asking.  A sub-host region, the main host's incoming export
 * and the page map all use flat offsets.
 */
#ifndef COMMON_LAYOUT_H
#define COMMON_LAYOUT_H

#include <stdint.h>
#include <sys/types.h>

#include "common/handoff.h"
#include "common/log.h"
#include "common/units.h"

struct layout_block {
    char idstr[HANDOFF_IDSTR_LEN];
    uint32_t index;     /* QEMU's index of the hand-off */
    uint64_t hva;       /* in QEMU */
    uint64_t size;      /* bytes */
    uint64_t page_size; /* of the memfd */
    uint64_t fd_offset; /* of the block in its memfd */
    uint64_t flat;      /* where it begins in the flat RAM */
    int fd;             /* memfd, owned by the layout */
};

struct layout {
    struct layout_block block[HANDOFF_MAX_BLOCKS]; /* sorted by flat */
    uint32_t n_blocks;
    uint64_t flat_size; /* multiple of 2 MiB */
};

/**
 * layout_finish() - sort blocks and assign flat offsets
 * Checks sizes, alignment, page sizes (4 KiB only), overflow and duplicate idstrs; what came from
 * QEMU is not trusted.  Return: 0, or -EINVAL with a sentence in @reason.
 */
int layout_finish(struct layout *layout, struct reason *reason);

/** layout_close() - close the memfds */
void layout_close(struct layout *layout);

/** layout_by_flat() - the block that holds flat offset @flat, or NULL (gap or beyond the end) */
const struct layout_block *layout_by_flat(const struct layout *layout, uint64_t flat);

/** layout_by_hva() - the block mapped at @hva, or NULL */
const struct layout_block *layout_by_hva(const struct layout *layout, uint64_t hva);

/** layout_by_index() - the block QEMU calls @index, or NULL */
const struct layout_block *layout_by_index(const struct layout *layout, uint32_t index);

/** layout_hva() - QEMU's address of flat offset @flat, which must be in @block */
static inline uint64_t layout_hva(const struct layout_block *block, uint64_t flat)
{
    return block->hva + (flat - block->flat);
}

/** layout_file() - offset in the block's memfd of flat offset @flat, which must be in @block */
static inline off_t layout_file(const struct layout_block *block, uint64_t flat)
{
    return (off_t)(block->fd_offset + (flat - block->flat));
}

#endif
