// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/layout.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Far above any machine, far below where sums could wrap. */
#define LAYOUT_MAX_BYTES ((uint64_t)1 << 46)

static int layout_compare(const void *a, const void *b)
{
    return strcmp(((const struct layout_block *)a)->idstr, ((const struct layout_block *)b)->idstr);
}

static int layout_check_block(const struct layout_block *block, struct reason *reason)
{
    struct stat st;

    if (block->page_size != PAGE_BYTES) {
        return reason_set(reason, -EINVAL,
                          "RAM block '%s' has pages of %llu bytes, but only 4096 can be split",
                          block->idstr, (unsigned long long)block->page_size);
    }
    if (!block->idstr[0] || !block->size || block->size % PAGE_BYTES || block->hva % PAGE_BYTES ||
        block->fd_offset % PAGE_BYTES || block->size > LAYOUT_MAX_BYTES ||
        block->hva > UINT64_MAX - block->size || block->fd_offset > LAYOUT_MAX_BYTES) {
        return reason_set(reason, -EINVAL, "RAM block '%s' has an impossible size or address",
                          block->idstr);
    }
    if (fstat(block->fd, &st) < 0 || !S_ISREG(st.st_mode) ||
        (uint64_t)st.st_size < block->fd_offset + block->size) {
        return reason_set(reason, -EINVAL, "RAM block '%s' is larger than the file behind it",
                          block->idstr);
    }
    return 0;
}

int layout_finish(struct layout *layout, struct reason *reason)
{
    uint64_t flat = 0;

    if (layout->n_blocks == 0) {
        return reason_set(reason, -EINVAL,
                          "the guest has no RAM in a shared memfd (memory-backend-memfd,share=on)");
    }
    qsort(layout->block, layout->n_blocks, sizeof(layout->block[0]), layout_compare);
    for (uint32_t i = 0; i < layout->n_blocks; i++) {
        struct layout_block *block = &layout->block[i];
        int err = layout_check_block(block, reason);
        if (err < 0) {
            return err;
        }
        if (i && strcmp(block->idstr, block[-1].idstr) == 0) {
            return reason_set(reason, -EINVAL, "RAM block '%s' was named twice", block->idstr);
        }
        block->flat = flat;
        flat += (block->size + CHUNK_BYTES - 1) & ~(CHUNK_BYTES - 1);
        if (flat > LAYOUT_MAX_BYTES) {
            return reason_set(reason, -EINVAL, "the guest's RAM is larger than 64 TiB");
        }
    }
    layout->flat_size = flat;
    return 0;
}

void layout_close(struct layout *layout)
{
    for (uint32_t i = 0; i < layout->n_blocks; i++) {
        if (layout->block[i].fd >= 0) {
            close(layout->block[i].fd);
        }
    }
    layout->n_blocks = 0;
}

const struct layout_block *layout_by_flat(const struct layout *layout, uint64_t flat)
{
    for (uint32_t i = 0; i < layout->n_blocks; i++) {
        const struct layout_block *block = &layout->block[i];
        if (flat >= block->flat && flat - block->flat < block->size) {
            return block;
        }
    }
    return NULL;
}

const struct layout_block *layout_by_hva(const struct layout *layout, uint64_t hva)
{
    for (uint32_t i = 0; i < layout->n_blocks; i++) {
        const struct layout_block *block = &layout->block[i];
        if (hva >= block->hva && hva - block->hva < block->size) {
            return block;
        }
    }
    return NULL;
}

const struct layout_block *layout_by_index(const struct layout *layout, uint32_t index)
{
    for (uint32_t i = 0; i < layout->n_blocks; i++) {
        if (layout->block[i].index == index) {
            return &layout->block[i];
        }
    }
    return NULL;
}
