// SPDX-License-Identifier: GPL-2.0-or-later
#include "uffd-pager/blocks.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static uint64_t blocks_inode(const struct layout_block *block)
{
    struct stat st;

    return fstat(block->fd, &st) == 0 ? st.st_ino : 0;
}

/* The block of @layout that is the one described, or NULL. */
static const struct layout_block *blocks_find(const struct layout *layout, const char *idstr,
                                              uint64_t size, uint64_t inode)
{
    for (uint32_t i = 0; i < layout->n_blocks; i++) {
        const struct layout_block *block = &layout->block[i];
        if (strcmp(block->idstr, idstr) == 0 && block->size == size &&
            blocks_inode(block) == inode) {
            return block;
        }
    }
    return NULL;
}

static void blocks_unpaged(struct worker *worker, const struct layout *now, uint64_t ours)
{
    uint64_t all = 0;

    for (uint32_t i = 0; i < now->n_blocks; i++) {
        all += now->block[i].size;
    }
    if (all - ours != worker->unpaged) {
        worker->unpaged = all - ours;
        log_info("%llu MiB of RAM were plugged after the guest was split: they stay on this host, "
                 "beyond its budget",
                 (unsigned long long)(worker->unpaged / MIB));
    }
}

void blocks_number(struct worker *worker)
{
    pthread_mutex_lock(&worker->zap_lock);
    for (uint32_t i = 0; i < worker->layout.n_blocks; i++) {
        worker->qemu_index[i] = worker->layout.block[i].index;
    }
    pthread_mutex_unlock(&worker->zap_lock);
}

void blocks_remember(struct worker *worker)
{
    struct session *session = &worker->session;

    session->n_blocks = worker->layout.n_blocks;
    for (uint32_t i = 0; i < session->n_blocks; i++) {
        const struct layout_block *from = &worker->layout.block[i];
        struct session_block *to = &session->block[i];
        memcpy(to->idstr, from->idstr, sizeof(to->idstr));
        to->size = from->size;
        to->inode = blocks_inode(from);
    }
}

int blocks_follow(struct worker *worker, const struct layout *now, struct reason *reason)
{
    const struct layout *layout = &worker->layout;
    uint32_t index[HANDOFF_MAX_BLOCKS];
    uint64_t ours = 0;

    for (uint32_t i = 0; i < layout->n_blocks; i++) {
        const struct layout_block *block = &layout->block[i];
        const struct layout_block *same =
            worker->qemu_index[i] == BLOCKS_GONE
                ? NULL
                : blocks_find(now, block->idstr, block->size, blocks_inode(block));
        if (same && (same->hva != block->hva || same->fd_offset != block->fd_offset)) {
            return reason_set(reason, -EINVAL, "RAM block '%s' of guest %s has moved",
                              block->idstr, worker->uuid_text);
        }
        index[i] = same ? same->index : BLOCKS_GONE;
        ours += same ? same->size : 0;
    }
    if (!ours) {
        return reason_set(reason, -EINVAL, "guest %s has come with other memory",
                          worker->uuid_text);
    }
    pthread_mutex_lock(&worker->zap_lock);
    memcpy(worker->qemu_index, index, layout->n_blocks * sizeof(index[0]));
    pthread_mutex_unlock(&worker->zap_lock);
    blocks_unpaged(worker, now, ours);
    return 0;
}

void blocks_retire(struct worker *worker)
{
    for (uint32_t i = 0; i < worker->layout.n_blocks; i++) {
        const struct layout_block *block = &worker->layout.block[i];
        if (worker->qemu_index[i] != BLOCKS_GONE || worker->retired[i]) {
            continue;
        }
        worker->retired[i] = true;
        int err = engine_discard(worker->engine, block->flat, block->size);
        if (err) {
            log_warn("the memory of RAM block '%s', which was unplugged, cannot be freed: %s",
                     block->idstr, strerror(-err));
        } else {
            log_info("RAM block '%s' was unplugged: its %llu MiB are freed", block->idstr,
                     (unsigned long long)(block->size / MIB));
        }
    }
}

int blocks_resume(struct worker *worker, struct reason *reason)
{
    const struct session *session = &worker->session;
    struct layout *layout = &worker->layout;
    struct layout now = *layout;
    bool kept[HANDOFF_MAX_BLOCKS] = {false};
    uint64_t flat = 0;
    uint64_t ours = 0;

    layout->n_blocks = 0;
    for (uint32_t i = 0; i < session->n_blocks; i++) {
        const struct session_block *from = &session->block[i];
        const struct layout_block *block = blocks_find(&now, from->idstr, from->size, from->inode);
        if (block) {
            struct layout_block *to = &layout->block[layout->n_blocks++];
            *to = *block;
            to->flat = flat;
            ours += block->size;
            kept[block - now.block] = true;
        }
        flat += (from->size + CHUNK_BYTES - 1) & ~(CHUNK_BYTES - 1);
    }
    layout->flat_size = flat;
    for (uint32_t i = 0; i < now.n_blocks; i++) {
        if (!kept[i]) {
            close(now.block[i].fd);
        }
    }
    blocks_number(worker);
    blocks_unpaged(worker, &now, ours);
    return layout->n_blocks ? 0
                            : reason_set(reason, -EINVAL, "guest %s has come with other memory",
                                         worker->uuid_text);
}

const struct layout_block *blocks_of_qemu(const struct worker *worker, uint32_t index)
{
    for (uint32_t i = 0; i < worker->layout.n_blocks; i++) {
        if (worker->qemu_index[i] == index) {
            return &worker->layout.block[i];
        }
    }
    return NULL;
}

static uint32_t blocks_number_of(const struct worker *worker, uint32_t index)
{
    for (uint32_t i = 0; i < worker->layout.n_blocks; i++) {
        if (worker->layout.block[i].index == index) {
            return worker->qemu_index[i];
        }
    }
    return BLOCKS_GONE;
}

uint32_t blocks_to_qemu(const struct worker *worker, struct handoff_range *ranges, uint32_t n)
{
    uint32_t left = 0;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t number = blocks_number_of(worker, ranges[i].block);
        if (number != BLOCKS_GONE) {
            ranges[left] = ranges[i];
            ranges[left++].block = number;
        }
    }
    return left;
}
