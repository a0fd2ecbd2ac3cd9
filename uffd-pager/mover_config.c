// SPDX-License-Identifier: GPL-2.0-or-later
/* mover_config.c - MOVER_CONFIG into tables and mappings */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "predictor/predictor.h"
#include "uffd-pager/mover_internal.h"
#include "uffd-pager/rdma_choice.h"

static int config_number(const json_t *object, const char *key, uint64_t most, uint64_t *to,
                         struct reason *reason)
{
    const json_t *value = json_object_get(object, key);
    json_int_t n = json_integer_value(value);

    if (!json_is_integer(value) || n < 0 || (uint64_t)n > most) {
        return reason_set(reason, -EINVAL, "the mover's configuration has no good '%s'", key);
    }
    *to = (uint64_t)n;
    return 0;
}

static int config_text(const json_t *object, const char *key, char *to, size_t size,
                       struct reason *reason)
{
    const char *text = json_string_value(json_object_get(object, key));

    if (!text || strlen(text) >= size) {
        return reason_set(reason, -EINVAL, "the mover's configuration has no good '%s'", key);
    }
    memcpy(to, text, strlen(text) + 1);
    return 0;
}

static int config_block(struct mover *mover, const json_t *object, int *fd, struct reason *reason)
{
    struct layout_block *block = &mover->layout.block[mover->layout.n_blocks];
    uint64_t index = 0;

    int err = config_number(object, "index", UINT32_MAX, &index, reason);
    if (!err) {
        err = config_text(object, "idstr", block->idstr, sizeof(block->idstr), reason);
    }
    if (!err) {
        err = config_number(object, "size", INT64_MAX, &block->size, reason);
    }
    if (!err) {
        err = config_number(object, "fd_offset", INT64_MAX, &block->fd_offset, reason);
    }
    if (err) {
        return err;
    }
    block->index = (uint32_t)index;
    block->page_size = PAGE_BYTES;
    block->fd = *fd;
    *fd = -1; /* the layout's now */
    mover->layout.n_blocks++;
    return 0;
}

/* Do we place blocks as the worker does? */
static int config_compare_flat(const struct mover *mover, const json_t *blocks,
                               struct reason *reason)
{
    const json_t *object;
    size_t i;

    json_array_foreach(blocks, i, object) {
        uint64_t index = 0;
        uint64_t flat = 0;
        int err = config_number(object, "index", UINT32_MAX, &index, reason);
        if (!err) {
            err = config_number(object, "flat", INT64_MAX, &flat, reason);
        }
        const struct layout_block *block = layout_by_index(&mover->layout, (uint32_t)index);
        if (!err && (!block || block->flat != flat)) {
            err = reason_set(reason, -EINVAL, "the worker and the mover differ in the RAM layout");
        }
        if (err) {
            return err;
        }
    }
    return 0;
}

static int config_layout(struct mover *mover, const json_t *config, struct handoff_frame *frame,
                         struct reason *reason)
{
    const json_t *blocks = json_object_get(config, "blocks");
    size_t n = json_array_size(blocks);
    uint64_t flat_size = 0;

    if (n == 0 || n > HANDOFF_MAX_BLOCKS || frame->n_fds != n + 1) {
        return reason_set(reason, -EINVAL, "the mover got %u descriptors for %zu RAM blocks",
                          frame->n_fds, n);
    }
    for (size_t i = 0; i < n; i++) {
        int err = config_block(mover, json_array_get(blocks, i), &frame->fds[i + 1], reason);
        if (err) {
            return err;
        }
    }
    int err = layout_finish(&mover->layout, reason);
    if (!err) {
        err = config_compare_flat(mover, blocks, reason);
    }
    if (!err) {
        err = config_number(config, "flat_size", INT64_MAX, &flat_size, reason);
    }
    if (!err && flat_size != mover->layout.flat_size) {
        err = reason_set(reason, -EINVAL, "the worker and the mover differ in the RAM's size");
    }
    mover->n_pages = mover->layout.flat_size / PAGE_BYTES;
    mover->n_chunks = mover->layout.flat_size / CHUNK_BYTES;
    if (!err && mover->n_chunks >= MOVER_NO_CHUNK) {
        err = reason_set(reason, -EINVAL, "the guest's RAM is too large for the mover");
    }
    return err;
}

static int config_map_memory(struct mover *mover, struct reason *reason)
{
    for (uint32_t i = 0; i < mover->layout.n_blocks; i++) {
        const struct layout_block *block = &mover->layout.block[i];
        void *base = mmap(NULL, block->size, PROT_READ, MAP_SHARED, block->fd,
                          (off_t)block->fd_offset);
        if (base == MAP_FAILED) {
            return reason_set(reason, -errno, "RAM block '%s' cannot be mapped: %m", block->idstr);
        }
        madvise(base, block->size, MADV_DONTDUMP);
        mover->memory[i].base = base;
    }
    return 0;
}

static int config_partition(struct mover *mover, int fd, struct reason *reason)
{
    uint64_t size = mover_partition_size(mover->n_chunks);
    struct stat st;

    if (fstat(fd, &st) < 0 || (uint64_t)st.st_size < size) {
        return reason_set(reason, -EINVAL, "the partition file is too short");
    }
    void *file = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (file == MAP_FAILED) {
        return reason_set(reason, -errno, "the partition file cannot be mapped: %m");
    }
    mover->partition_file = file;
    mover->partition_size = size;
    mover->totals = (struct mover_totals *)((char *)file + mover_totals_offset(mover->n_chunks));
    mover->hot = (const uint64_t *)((char *)file + mover_hot_offset(mover->n_chunks));
    mover->partition = malloc(mover->n_chunks);
    mover->history = malloc(mover->n_chunks);
    if (!mover->partition || !mover->history) {
        return reason_set(reason, -ENOMEM, "the mover is out of memory");
    }
    memcpy(mover->partition, file, mover->n_chunks);
    memcpy(mover->history, (uint8_t *)file + mover->n_chunks, mover->n_chunks);
    for (uint64_t chunk = 0; chunk < mover->n_chunks; chunk++) {
        if ((mover->partition[chunk] & ~PREDICTOR_HOT) >= mover->n_targets - 1) {
            return reason_set(reason, -EINVAL, "the partition names a sub-host that is not there");
        }
    }
    return 0;
}

static int config_target(struct mover *mover, unsigned i, const json_t *object,
                         struct reason *reason)
{
    struct mover_target *target = &mover->target[i];
    char address[ENDPOINT_TEXT_LEN];
    char name[64];
    int err = 0;

    target->head = target->tail = MOVER_NO_CHUNK;
    if (i == MOVER_MAIN) {
        snprintf(target->title, sizeof(target->title), "the main host");
    } else {
        err = config_text(object, "name", name, sizeof(name), reason);
        snprintf(target->title, sizeof(target->title), "sub-host '%s'", err ? "" : name);
    }
    if (!err) {
        err = config_text(object, "data", address, sizeof(address), reason);
    }
    if (!err) {
        err = endpoint_parse(address, &target->endpoint, reason);
    }
    if (!err) {
        err = config_text(object, "export", target->export_name, sizeof(target->export_name),
                          reason);
    }
    if (!err && i != MOVER_MAIN) {
        err = rdma_choice_parse(object, &target->rdma, &target->has_rdma, &target->tcp_will_do,
                                reason);
    }
    for (unsigned c = 0; c < mover->connections && !err; c++) {
        target->stream[c] = mover_stream_new(mover, target);
        if (!target->stream[c]) {
            err = reason_set(reason, -ENOMEM, "the mover is out of memory");
        }
    }
    return err;
}

/* Any destination that does not take packs gets its pages as they are. */
static int config_compress(struct mover *mover, const json_t *config, struct reason *reason)
{
    const char *name = json_string_value(json_object_get(config, "compress"));

    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    adapt_begin(&mover->adapt, processors > 0 ? (unsigned)processors : 1);
    if (!name) {
        return 0;
    }
    mover->adaptive = strcmp(name, "adaptive") == 0;
    enum pack_method method = mover->adaptive ? PACK_NONE : pack_method_parse(name);
    if (method == PACK_METHODS) {
        return reason_set(reason, -EINVAL,
                          "'compress' must be none, lz4, zstd or adaptive, and not '%.32s'", name);
    }
    mover->pack_method = method;
    mover->sample_due = mover->adaptive;
    mover->packing = mover->adaptive || method != PACK_NONE;
    return 0;
}

static int config_targets(struct mover *mover, const json_t *config, struct reason *reason)
{
    const json_t *main_host = json_object_get(config, "main");
    const json_t *subhosts = json_object_get(config, "subhosts");
    size_t n = json_array_size(subhosts);
    uint64_t connections = 0;
    uint64_t budget = 0;

    if (n == 0 || n > PAGEMAP_MAX_SUBHOSTS) {
        return reason_set(reason, -EINVAL, "there must be 1 to %u sub-hosts, not %zu",
                          PAGEMAP_MAX_SUBHOSTS, n);
    }
    int err = config_number(config, "connections", MOVER_MAX_CONNECTIONS, &connections, reason);
    if (!err) {
        err = config_number(config, "bandwidth", INT64_MAX, &mover->bandwidth, reason);
    }
    if (!err) {
        err = config_number(main_host, "budget", INT64_MAX, &budget, reason);
    }
    if (!err) {
        err = config_compress(mover, config, reason);
    }
    mover->main_limit = budget / PAGE_BYTES;
    mover->connections = connections ? (unsigned)connections : 1;
    mover->n_targets = 1 + (unsigned)n;
    mover->target = calloc(mover->n_targets, sizeof(*mover->target));
    if (!mover->target) {
        return reason_set(reason, -ENOMEM, "the mover is out of memory");
    }
    for (unsigned i = 0; i < mover->n_targets && !err; i++) {
        err = config_target(mover, i, i ? json_array_get(subhosts, i - 1) : main_host, reason);
    }
    /* A limited mover sends less at a time, so that the flow is even. */
    mover->batch_bytes = STREAM_BATCH_BYTES;
    if (mover->bandwidth && mover->bandwidth / 20 < STREAM_BATCH_BYTES) {
        mover->batch_bytes = mover->bandwidth / 20 < 16 * PAGE_BYTES
                                 ? 16 * PAGE_BYTES
                                 : (uint32_t)(mover->bandwidth / 20 & ~(PAGE_BYTES - 1));
    }
    return err;
}

static int config_tables(struct mover *mover, struct reason *reason)
{
    uint64_t words = mover->n_pages / 64;
    bool good = true;

    for (unsigned kind = 0; kind < 2; kind++) {
        mover->todo[kind] = calloc(words, sizeof(uint64_t));
        mover->link[kind] = calloc(mover->n_chunks, sizeof(uint32_t));
        mover->queued[kind] = calloc(mover->n_chunks, 1);
        good = good && mover->todo[kind] && mover->link[kind] && mover->queued[kind];
    }
    mover->next = calloc(words, sizeof(uint64_t));
    mover->place = calloc(mover->n_pages, 1);
    mover->place_dirty = calloc(mover->n_pages / PAGE_BYTES + 1, 1);
    good = good && mover->next && mover->place && mover->place_dirty;
    return good ? 0 : reason_set(reason, -ENOMEM, "the mover is out of memory");
}

static int config_apply(struct mover *mover, const json_t *config, struct handoff_frame *frame,
                        struct reason *reason)
{
    int err = config_layout(mover, config, frame, reason);
    if (!err) {
        err = config_targets(mover, config, reason);
    }
    if (!err) {
        err = config_partition(mover, frame->fds[0], reason);
    }
    if (!err) {
        err = config_tables(mover, reason);
    }
    if (!err) {
        err = config_map_memory(mover, reason);
    }
    for (unsigned i = 0; i < mover->n_targets && !err; i++) {
        mover->target[i].bytes = i == MOVER_MAIN ? &mover->totals->main_bytes
                                                 : &mover->totals->subhost_bytes[i - 1];
    }
    return err;
}

int mover_configure(struct mover *mover, struct handoff_frame *frame, struct reason *reason)
{
    json_error_t error;
    json_t *config = json_loadb((const char *)frame->body.bytes, frame->header.length, 0, &error);

    if (!config) {
        handoff_frame_close(frame);
        return reason_set(reason, -EINVAL, "the mover's configuration is not JSON: %s", error.text);
    }
    int err = config_apply(mover, config, frame, reason);
    json_decref(config);
    handoff_frame_close(frame);
    return err;
}

void mover_release(struct mover *mover)
{
    for (unsigned i = 0; mover->target && i < mover->n_targets; i++) {
        for (unsigned c = 0; c < mover->connections; c++) {
            mover_stream_free(mover->target[i].stream[c]);
        }
    }
    for (uint32_t i = 0; i < mover->layout.n_blocks; i++) {
        if (mover->memory[i].base) {
            munmap(mover->memory[i].base, mover->layout.block[i].size);
        }
    }
    layout_close(&mover->layout);
    if (mover->partition_file) {
        munmap(mover->partition_file, mover->partition_size);
    }
    for (unsigned kind = 0; kind < 2; kind++) {
        free(mover->todo[kind]);
        free(mover->link[kind]);
        free(mover->queued[kind]);
    }
    free(mover->next);
    free((void *)mover->place);
    free((void *)mover->place_dirty);
    free(mover->partition);
    free(mover->history);
    free(mover->target);
}
