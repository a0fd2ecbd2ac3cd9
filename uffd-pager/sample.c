// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * sample.c - which memory an unsplit guest touches
 *
 * Each period QEMU zaps windows of 64 pages, in turn another part of each 2 MiB chunk that has contents.  What
 * is touched comes back into the page tables, in the kernel and in a microsecond or two, and nobody waits
 * for us.  At the period's end the page tables tell which pages that was (mapped.h).
 *
 * How many windows of a chunk are zapped in a period goes by what they cost: as many as keep the soft
 * faults below SAMPLE_COST of a vCPU's time, at least one.  Where one is too many already, sampling rests
 * for a while between two periods.
 *
 * The memory is registered for write-protect faults although nothing is protected: it keeps the kernel from mapping
 * a touched page's neighbours, too.  Nothing can fault to us, so nothing is left behind if we die.
 */
#include "uffd-pager/sample.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "predictor/page_heat.h"
#include "uffd-pager/mapped.h"
#include "uffd-pager/uffd_abi.h"

#define SAMPLE_RANGES 512u
#define SAMPLE_WINDOW (MAPPED_WINDOW * PAGE_BYTES)
#define SAMPLE_WINDOWS (unsigned)(CHUNK_BYTES / SAMPLE_WINDOW)
#define SAMPLE_COST 100u   /* one part of so many: 1 % */
#define SAMPLE_TOUCH_US 4u /* a soft fault, the zap before, what it drives out of the TLB, and KVM's share */

_Static_assert(CHUNK_BYTES / SAMPLE_WINDOW == 8, "windows of a chunk are bits of a byte");

struct sample {
    struct sample_config config;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stop; /* guarded by lock */
    _Atomic unsigned periods;
    _Atomic uint64_t accessed;
    /* The thread's: */
    unsigned share;   /* windows of a chunk in a period */
    unsigned turn;    /* the first of them */
    uint64_t touched; /* pages, in this period */
    uint8_t *zapped;  /* [chunks] bit i: window i, in this period */
    uint8_t *seen;    /* [chunks] */
    union {
        struct handoff_ranges ranges;
        uint8_t room[sizeof(struct handoff_ranges) + SAMPLE_RANGES * sizeof(struct handoff_range)];
    } zap;
};

/* ---- zapping ---- */

static int sample_zap_now(struct sample *sample)
{
    struct handoff_ranges *ranges = &sample->zap.ranges;
    uint32_t n = ranges->n;

    ranges->n = 0;
    return n ? sample->config.zap(sample->config.opaque, ranges->range, n) : 0;
}

/* Zap window @window of the chunk at @chunk of the block. */
static int sample_zap_window(struct sample *sample, const struct layout_block *block, uint64_t chunk,
                             unsigned window)
{
    struct handoff_ranges *ranges = &sample->zap.ranges;
    struct handoff_range *last = ranges->n ? &ranges->range[ranges->n - 1] : NULL;
    uint64_t offset = chunk + window * SAMPLE_WINDOW;
    uint64_t left = block->size - offset;
    uint64_t length = left < SAMPLE_WINDOW ? left : SAMPLE_WINDOW;

    sample->zapped[(block->flat + chunk) / CHUNK_BYTES] |= (uint8_t)(1u << window);
    if (last && last->block == block->index && last->offset + last->length == offset) {
        last->length += length;
        return 0;
    }
    ranges->range[ranges->n++] =
        (struct handoff_range){.block = block->index, .offset = offset, .length = length};
    return ranges->n == SAMPLE_RANGES ? sample_zap_now(sample) : 0;
}

static bool sample_has_data(const struct layout_block *block, uint64_t offset)
{
    off_t at = (off_t)(block->fd_offset + offset);
    off_t data = lseek(block->fd, at, SEEK_DATA);

    return data >= 0 && data < at + (off_t)SAMPLE_WINDOW;
}

/* The chunk at @chunk of the block has contents, the first of them at @data. */
static int sample_zap_chunk(struct sample *sample, const struct layout_block *block, uint64_t chunk,
                            uint64_t data)
{
    unsigned first = sample->turn + (unsigned)((block->flat + chunk) / CHUNK_BYTES) * 5;
    bool any = false;
    int err = 0;

    for (unsigned i = 0; i < sample->share && err == 0; i++) {
        unsigned window = (first + i) % SAMPLE_WINDOWS;
        uint64_t offset = chunk + window * SAMPLE_WINDOW;
        if (offset < block->size && sample_has_data(block, offset)) {
            err = sample_zap_window(sample, block, chunk, window);
            any = true;
        }
    }
    return any ? err
               : sample_zap_window(sample, block, chunk, (unsigned)((data - chunk) / SAMPLE_WINDOW));
}

/* Chunks are those of the flat RAM, in which a block begins at a chunk. */
static int sample_zap_block(struct sample *sample, const struct layout_block *block)
{
    int err = 0;

    for (uint64_t at = 0; at < block->size && err == 0;) {
        off_t found = lseek(block->fd, (off_t)(block->fd_offset + at), SEEK_DATA);
        if (found < 0 || (uint64_t)found >= block->fd_offset + block->size) {
            break;
        }
        uint64_t data = (uint64_t)found - block->fd_offset;
        uint64_t chunk = data - data % CHUNK_BYTES;
        err = sample_zap_chunk(sample, block, chunk, data);
        at = chunk + CHUNK_BYTES;
    }
    return err;
}

static int sample_zap_all(struct sample *sample)
{
    const struct layout *layout = sample->config.layout;
    int err = 0;

    memset(sample->zapped, 0, layout->flat_size / CHUNK_BYTES);
    sample->zap.ranges.n = 0;
    for (uint32_t i = 0; i < layout->n_blocks && err == 0; i++) {
        err = sample_zap_block(sample, &layout->block[i]);
    }
    sample->turn += sample->share;
    return err < 0 ? err : sample_zap_now(sample);
}

/* ---- looking ---- */

/* Return: the pages of the window that were touched. */
static unsigned sample_look_window(struct sample *sample, const struct layout_block *block,
                                   uint64_t flat)
{
    uint64_t left = block->flat + block->size - flat;
    unsigned n = left < SAMPLE_WINDOW ? (unsigned)(left / PAGE_BYTES) : MAPPED_WINDOW;
    uint64_t bits;

    if (mapped_window(sample->config.pagemap, layout_hva(block, flat), n, &bits) < 0) {
        return 0;
    }
    for (unsigned i = 0; i < n; i++) {
        page_heat_note(&sample->config.page_heat[flat / PAGE_BYTES + i], bits >> i & 1);
    }
    return (unsigned)__builtin_popcountll(bits);
}

static void sample_look_chunk(struct sample *sample, const struct layout_block *block,
                              uint64_t chunk)
{
    unsigned touched = 0;

    for (unsigned window = 0; window < SAMPLE_WINDOWS; window++) {
        if (sample->zapped[chunk] >> window & 1) {
            touched += sample_look_window(sample, block,
                                          chunk * CHUNK_BYTES + window * SAMPLE_WINDOW);
        }
    }
    sample->touched += touched;
    if (touched) {
        predictor_note(sample->config.predictor, chunk, PREDICTOR_READ);
        atomic_fetch_add(&sample->accessed, !sample->seen[chunk]);
        sample->seen[chunk] = 1;
    }
}

static void sample_look_all(struct sample *sample)
{
    const struct layout *layout = sample->config.layout;

    sample->touched = 0;
    for (uint32_t i = 0; i < layout->n_blocks; i++) {
        const struct layout_block *block = &layout->block[i];
        uint64_t end = (block->flat + block->size + CHUNK_BYTES - 1) / CHUNK_BYTES;
        for (uint64_t chunk = block->flat / CHUNK_BYTES; chunk < end; chunk++) {
            sample_look_chunk(sample, block, chunk);
        }
    }
}

/* ---- the thread ---- */

/* Return: false to end. */
static bool sample_wait(struct sample *sample, uint64_t until)
{
    struct timespec at = {.tv_sec = (time_t)(until / 1000000),
                          .tv_nsec = (long)(until % 1000000) * 1000};

    pthread_mutex_lock(&sample->lock);
    while (!sample->stop &&
           pthread_cond_timedwait(&sample->changed, &sample->lock, &at) != ETIMEDOUT) {
    }
    bool go = !sample->stop;
    pthread_mutex_unlock(&sample->lock);
    return go;
}

/* After a period that took @us.  Return: how long to rest, us. */
static uint64_t sample_pay(struct sample *sample, uint64_t us)
{
    uint64_t cost = sample->touched * SAMPLE_TOUCH_US * SAMPLE_COST;

    if (cost > us && sample->share > 1) {
        sample->share /= 2;
    } else if (cost * 2 < us && sample->share < SAMPLE_WINDOWS) {
        sample->share *= 2;
    }
    return cost > us ? cost - us : 0;
}

static void *sample_main(void *arg)
{
    struct sample *sample = arg;
    uint64_t period_us = (uint64_t)sample->config.period_ms * 1000;
    bool go = true;

    while (go) {
        uint64_t began_us = units_now_us();
        int err = sample_zap_all(sample);
        if (err < 0) {
            log_debug("sampling pauses: %s", strerror(-err));
        }
        go = sample_wait(sample, began_us + period_us);
        if (go && err == 0) {
            sample_look_all(sample);
            predictor_tick(sample->config.predictor);
            atomic_fetch_add(&sample->periods, 1);
            uint64_t now_us = units_now_us();
            uint64_t rest_us = sample_pay(sample, now_us - began_us);
            go = !rest_us || sample_wait(sample, now_us + rest_us);
        }
    }
    return NULL;
}

/* ---- life ---- */

int sample_clear(const struct layout *layout, int uffd)
{
    for (uint32_t i = 0; i < layout->n_blocks; i++) {
        int err = uffd_unregister(uffd, layout->block[i].hva, layout->block[i].size);
        if (err < 0 && err != -EINVAL) { /* EINVAL: nobody has ever used this userfaultfd */
            return err;
        }
    }
    return 0;
}

static int sample_register(const struct sample_config *config, struct reason *reason)
{
    int err = uffd_api(config->uffd);

    for (uint32_t i = 0; i < config->layout->n_blocks && err == 0; i++) {
        const struct layout_block *block = &config->layout->block[i];
        err = uffd_register(config->uffd, block->hva, block->size, UFFDIO_REGISTER_MODE_WP);
    }
    if (err < 0) {
        sample_clear(config->layout, config->uffd);
        return reason_set(reason, err, "the guest's memory cannot be watched: %s", strerror(-err));
    }
    return 0;
}

static struct sample *sample_new(const struct sample_config *config)
{
    struct sample *sample = calloc(1, sizeof(*sample));
    uint64_t n_chunks = config->layout->flat_size / CHUNK_BYTES;
    pthread_condattr_t attr;

    if (!sample) {
        return NULL;
    }
    sample->config = *config;
    sample->share = 1;
    sample->seen = calloc(n_chunks + 1, 1);
    sample->zapped = calloc(n_chunks + 1, 1);
    pthread_mutex_init(&sample->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&sample->changed, &attr);
    pthread_condattr_destroy(&attr);
    return sample;
}

static void sample_free(struct sample *sample)
{
    pthread_mutex_destroy(&sample->lock);
    pthread_cond_destroy(&sample->changed);
    free(sample->seen);
    free(sample->zapped);
    free(sample);
}

int sample_start(struct sample **result, const struct sample_config *config, struct reason *reason)
{
    struct sample *sample = sample_new(config);

    if (!sample || !sample->seen || !sample->zapped) {
        if (sample) {
            sample_free(sample);
        }
        return reason_set(reason, -ENOMEM, "out of memory");
    }
    int err = sample_register(config, reason);
    if (err < 0) {
        sample_free(sample);
        return err;
    }
    err = -pthread_create(&sample->thread, NULL, sample_main, sample);
    if (err < 0) {
        sample_clear(config->layout, config->uffd);
        sample_free(sample);
        return reason_set(reason, err, "cannot start a thread: %s", strerror(-err));
    }
    pthread_setname_np(sample->thread, "sample");
    *result = sample;
    return 0;
}

unsigned sample_periods(const struct sample *sample)
{
    return atomic_load(&sample->periods);
}

uint64_t sample_accessed(const struct sample *sample)
{
    return atomic_load(&sample->accessed);
}

void sample_stop(struct sample *sample)
{
    pthread_mutex_lock(&sample->lock);
    sample->stop = true;
    pthread_cond_signal(&sample->changed);
    pthread_mutex_unlock(&sample->lock);
    pthread_join(sample->thread, NULL);
    sample_clear(sample->config.layout, sample->config.uffd);
    sample_free(sample);
}
