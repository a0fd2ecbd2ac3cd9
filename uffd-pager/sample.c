// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * sample.c - which memory an unsplit guest touches
 *
 * Each period QEMU zaps a window of 64 pages of each 2 MiB chunk that has contents (in a thread of its own
 * here, for it waits for QEMU).  A window that is touched then raises a MINOR fault, upon which all of it that is in
 * the memfd is mapped again, so a chunk costs one short fault a period.  It is another window each time: what is
 * touched all over is seen at once, a single hot page within some periods.  To zap whole chunks showed it at
 * once, too, but vCPUs then waited while 512 pages at a time were mapped again, for a tenth of their time and more.
 *
 * Periods become longer where faults would still take more than SAMPLE_COST of a vCPU's time.
 *
 * Faults on holes are not registered: the kernel answers them as if we were not there.  Stopping unregisters,
 * which wakes whoever waits, so nothing is left behind.
 */
#include "uffd-pager/sample.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "common/urgent.h"
#include "uffd-pager/uffd_abi.h"

#define SAMPLE_EVENTS 32u
#define SAMPLE_RANGES 512u
#define SAMPLE_WINDOW (64 * PAGE_BYTES)
#define SAMPLE_COST 66u     /* one part of so many: 1.5 % */
#define SAMPLE_WAKE_US 15u /* of a fault, before we read it and after we answered */

struct sample {
    struct sample_config config;
    pthread_t fault_thread, zap_thread;
    int quit; /* eventfd: faults are no more served */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stop; /* guarded by lock */
    uint64_t round;            /* zap thread only: which windows */
    _Atomic uint64_t cost_us;  /* what vCPUs have waited for us, about */
    _Atomic unsigned periods;
    _Atomic uint64_t accessed;
    uint8_t *seen; /* [chunks]; fault thread only */
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

/* The window of @chunk, a place in the file, that is zapped this time; @data: where the chunk has contents. */
static off_t sample_window(const struct sample *sample, const struct layout_block *block, off_t chunk,
                           off_t data, off_t end)
{
    uint64_t mixed = (sample->round + (uint64_t)chunk / CHUNK_BYTES) * 5;
    off_t from = chunk + (off_t)(mixed * SAMPLE_WINDOW % CHUNK_BYTES);
    off_t found = from < end ? lseek(block->fd, from, SEEK_DATA) : -1;

    data = found >= 0 && found < end ? found : data;
    return data - (data - chunk) % (off_t)SAMPLE_WINDOW;
}

static int sample_zap_window(struct sample *sample, const struct layout_block *block, off_t from,
                             off_t to)
{
    struct handoff_ranges *ranges = &sample->zap.ranges;

    ranges->range[ranges->n++] =
        (struct handoff_range){.block = block->index,
                               .offset = (uint64_t)from - block->fd_offset,
                               .length = (uint64_t)(to - from)};
    return ranges->n == SAMPLE_RANGES ? sample_zap_now(sample) : 0;
}

/* Chunks are those of the flat RAM, in which a block begins at a chunk. */
static int sample_zap_block(struct sample *sample, const struct layout_block *block)
{
    off_t base = (off_t)block->fd_offset;
    off_t end = base + (off_t)block->size;
    int err = 0;

    for (off_t at = base; at < end && err == 0;) {
        off_t data = lseek(block->fd, at, SEEK_DATA);
        if (data < 0 || data >= end) {
            break;
        }
        off_t chunk = data - (data - base) % (off_t)CHUNK_BYTES;
        at = chunk + (off_t)CHUNK_BYTES < end ? chunk + (off_t)CHUNK_BYTES : end;
        off_t from = sample_window(sample, block, chunk, data, at);
        off_t to = from + (off_t)SAMPLE_WINDOW < at ? from + (off_t)SAMPLE_WINDOW : at;
        err = sample_zap_window(sample, block, from, to);
    }
    return err;
}

static int sample_zap_all(struct sample *sample)
{
    const struct layout *layout = sample->config.layout;
    int err = 0;

    sample->zap.ranges.n = 0;
    sample->round++;
    for (uint32_t i = 0; i < layout->n_blocks && err == 0; i++) {
        err = sample_zap_block(sample, &layout->block[i]);
    }
    return err < 0 ? err : sample_zap_now(sample);
}

/* Wait to the end of the period that began at @began_us. Return: false to end. */
static bool sample_wait(struct sample *sample, uint64_t began_us)
{
    uint64_t until = began_us + (uint64_t)sample->config.period_ms * 1000;
    bool go = true;

    pthread_mutex_lock(&sample->lock);
    while (go && units_now_us() < until) {
        struct timespec at = {.tv_sec = (time_t)(until / 1000000),
                              .tv_nsec = (long)(until % 1000000) * 1000};
        int rc = pthread_cond_timedwait(&sample->changed, &sample->lock, &at);
        uint64_t paid = began_us + atomic_load(&sample->cost_us) * SAMPLE_COST;
        until = rc == ETIMEDOUT && paid > until ? paid : until;
        go = !sample->stop;
    }
    go = !sample->stop;
    pthread_mutex_unlock(&sample->lock);
    return go;
}

static void *sample_zap_main(void *arg)
{
    struct sample *sample = arg;

    do {
        uint64_t began_us = units_now_us();
        atomic_store(&sample->cost_us, 0);
        int err = sample_zap_all(sample);
        if (err < 0) {
            log_debug("sampling pauses: %s", strerror(-err));
        }
        bool go = sample_wait(sample, began_us);
        if (!go) {
            break;
        }
        if (err == 0) {
            predictor_tick(sample->config.predictor);
            atomic_fetch_add(&sample->periods, 1);
        }
    } while (true);
    return NULL;
}

/* ---- faults ---- */

/* Map [from, to) of @block as far as it is in the file. */
static void sample_map(struct sample *sample, const struct layout_block *block, off_t from, off_t to)
{
    while (from < to) {
        uint64_t done;
        uint64_t start = block->hva + (uint64_t)(from - (off_t)block->fd_offset);
        int err = uffd_continue(sample->config.uffd, start, (uint64_t)(to - from), false, &done);
        from += (off_t)done;
        if (err == -EEXIST) {
            from += (off_t)PAGE_BYTES;
        } else if (err == -EFAULT) {
            from = lseek(block->fd, from, SEEK_DATA);
            from = from < 0 ? to : from;
        } else if (err < 0) {
            return;
        }
    }
}

static void sample_fault(struct sample *sample, uint64_t address)
{
    const struct layout_block *block = layout_by_hva(sample->config.layout, address);

    if (!block) {
        return;
    }
    uint64_t flat = block->flat + (address - block->hva);
    uint64_t chunk = flat / CHUNK_BYTES;
    uint64_t first = flat & ~(SAMPLE_WINDOW - 1);
    uint64_t end = first + SAMPLE_WINDOW;
    uint64_t began_us = units_now_us();
    end = end < block->flat + block->size ? end : block->flat + block->size;
    predictor_note(sample->config.predictor, chunk, PREDICTOR_READ);
    if (!sample->seen[chunk]) {
        sample->seen[chunk] = 1;
        atomic_fetch_add(&sample->accessed, 1);
    }
    sample_map(sample, block, layout_file(block, flat), layout_file(block, flat) + (off_t)PAGE_BYTES);
    sample_map(sample, block, layout_file(block, first),
               (off_t)(block->fd_offset + (end - block->flat)));
    /* Mapped in between by another fault: then nobody has woken this one. */
    uffd_wake(sample->config.uffd, address, PAGE_BYTES);
    atomic_fetch_add(&sample->cost_us, units_now_us() - began_us + SAMPLE_WAKE_US);
}

static void *sample_fault_main(void *arg)
{
    struct sample *sample = arg;
    struct pollfd pollfd[2] = {{.fd = sample->config.uffd, .events = POLLIN},
                               {.fd = sample->quit, .events = POLLIN}};

    urgent_thread(); /* a vCPU waits for each of these */
    while (poll(pollfd, 2, -1) >= 0 || errno == EINTR) {
        struct uffd_msg messages[SAMPLE_EVENTS];
        if (pollfd[1].revents) {
            break;
        }
        ssize_t n = read(sample->config.uffd, messages, sizeof(messages));
        for (size_t i = 0; n > 0 && i < (size_t)n / sizeof(messages[0]); i++) {
            if (messages[i].event == UFFD_EVENT_PAGEFAULT) {
                sample_fault(sample, messages[i].arg.pagefault.address & ~(PAGE_BYTES - 1));
            }
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
        /*
         * UFFDIO_UNREGISTER wakes who waits only where MISSING was registered (fs/userfaultfd.c,
         * userfaultfd_unregister): a MINOR fault that nobody has answered would wait for ever.
         */
        uffd_wake(uffd, layout->block[i].hva, layout->block[i].size);
    }
    return 0;
}

static int sample_register(const struct sample_config *config, struct reason *reason)
{
    int flags = fcntl(config->uffd, F_GETFL);
    int err = uffd_api(config->uffd);

    if (flags >= 0) {
        fcntl(config->uffd, F_SETFL, flags | O_NONBLOCK);
    }
    for (uint32_t i = 0; i < config->layout->n_blocks && err == 0; i++) {
        const struct layout_block *block = &config->layout->block[i];
        err = uffd_register(config->uffd, block->hva, block->size, UFFDIO_REGISTER_MODE_MINOR);
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
    pthread_condattr_t attr;

    if (!sample) {
        return NULL;
    }
    sample->config = *config;
    sample->seen = calloc(config->layout->flat_size / CHUNK_BYTES + 1, 1);
    sample->quit = eventfd(0, EFD_CLOEXEC);
    pthread_mutex_init(&sample->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&sample->changed, &attr);
    pthread_condattr_destroy(&attr);
    return sample;
}

static void sample_free(struct sample *sample)
{
    if (sample->quit >= 0) {
        close(sample->quit);
    }
    pthread_mutex_destroy(&sample->lock);
    pthread_cond_destroy(&sample->changed);
    free(sample->seen);
    free(sample);
}

static void sample_end_faults(struct sample *sample)
{
    uint64_t one = 1;
    ssize_t ignored;

    /* First nobody can fault any more, then nobody need answer. */
    sample_clear(sample->config.layout, sample->config.uffd);
    ignored = write(sample->quit, &one, sizeof(one));
    (void)ignored;
    pthread_join(sample->fault_thread, NULL);
}

int sample_start(struct sample **result, const struct sample_config *config, struct reason *reason)
{
    struct sample *sample = sample_new(config);

    if (!sample || !sample->seen || sample->quit < 0) {
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
    err = -pthread_create(&sample->fault_thread, NULL, sample_fault_main, sample);
    if (err == 0) {
        pthread_setname_np(sample->fault_thread, "sample-fault");
        err = -pthread_create(&sample->zap_thread, NULL, sample_zap_main, sample);
        if (err < 0) {
            sample_end_faults(sample);
        }
    }
    if (err < 0) {
        sample_clear(config->layout, config->uffd);
        sample_free(sample);
        return reason_set(reason, err, "cannot start a thread: %s", strerror(-err));
    }
    pthread_setname_np(sample->zap_thread, "sample-zap");
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
    pthread_join(sample->zap_thread, NULL);
    sample_end_faults(sample);
    sample_free(sample);
}
