// SPDX-License-Identifier: GPL-2.0-or-later
/* mover_queue.c - pages to send, by chunk and target; rounds.  Theory of operation: mover_internal.h. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "predictor/predictor.h"
#include "uffd-pager/mover_internal.h"

static bool bit_set(uint64_t *bits, uint64_t i)
{
    uint64_t mask = (uint64_t)1 << (i % 64);
    bool was = bits[i / 64] & mask;

    bits[i / 64] |= mask;
    return was;
}

static bool bit_clear(uint64_t *bits, uint64_t i)
{
    uint64_t mask = (uint64_t)1 << (i % 64);
    bool was = bits[i / 64] & mask;

    bits[i / 64] &= ~mask;
    return was;
}

void mover_notify(struct mover *mover)
{
    uint64_t one = 1;
    ssize_t ignored = write(mover->event, &one, sizeof(one));
    (void)ignored; /* it fails only if the main thread is woken already */
}

static void stream_wake(struct mover_stream *stream)
{
    uint64_t one = 1;
    ssize_t ignored = write(stream->wake, &one, sizeof(one));
    (void)ignored; /* as above */
}

/* Have one sleeping stream of the target look at the queue. */
static void queue_wake(struct mover *mover, struct mover_target *target)
{
    for (unsigned c = 0; c < mover->connections; c++) {
        struct mover_stream *stream = target->stream[c];
        if (stream->idle) {
            stream->idle = false;
            stream_wake(stream);
            return;
        }
    }
}

void mover_want_main(struct mover *mover)
{
    pthread_mutex_lock(&mover->lock);
    bool wanted = mover->main_wanted;
    mover->main_wanted = true;
    for (unsigned c = 0; c < mover->connections && !wanted; c++) {
        stream_wake(mover->target[MOVER_MAIN].stream[c]);
    }
    pthread_mutex_unlock(&mover->lock);
}

static struct mover_target *queue_target(struct mover *mover, unsigned kind, uint64_t chunk)
{
    unsigned subhost = mover->partition[chunk] & (uint8_t)~PREDICTOR_HOT;

    return &mover->target[kind == 0 ? MOVER_MAIN : 1 + subhost];
}

static void queue_chunk(struct mover *mover, unsigned kind, uint64_t chunk)
{
    struct mover_target *target = queue_target(mover, kind, chunk);

    if (mover->queued[kind][chunk]) {
        return;
    }
    mover->queued[kind][chunk] = 1;
    mover->link[kind][chunk] = MOVER_NO_CHUNK;
    if (target->tail == MOVER_NO_CHUNK) {
        target->head = (uint32_t)chunk;
    } else {
        mover->link[kind][target->tail] = (uint32_t)chunk;
    }
    target->tail = (uint32_t)chunk;
    queue_wake(mover, target);
}

/*
 * How fast pages go is known from the time in which there are any: QEMU hands them over in portions
 * if its bandwidth is limited.  mover.lock held.
 */
static void queue_time(struct mover *mover)
{
    struct mover_totals *totals = mover->totals;
    uint64_t since = atomic_load(&totals->busy_since_us);

    if (mover->outstanding && !since) {
        atomic_store(&totals->busy_since_us, units_now_us());
    } else if (!mover->outstanding && since) {
        atomic_store(&totals->busy_since_us, 0);
        atomic_fetch_add(&totals->busy_us, units_now_us() - since);
    }
}

/* A page goes again to where it is; a new one to where the partition wants it or its chunk. */
static unsigned queue_kind(const struct mover *mover, uint64_t page)
{
    uint8_t place = atomic_load_explicit(&mover->place[page], memory_order_relaxed);

    if (place == PAGE_UNTOUCHED) {
        bool hot = mover->hot[page / 64] >> page % 64 & 1;
        return hot || mover->partition[page / CHUNK_PAGES] & PREDICTOR_HOT ? 0 : 1;
    }
    return place == PAGE_LOCAL ? 0 : 1;
}

/* mover.lock held */
static void queue_page(struct mover *mover, uint64_t page)
{
    unsigned kind = queue_kind(mover, page);

    if (bit_set(mover->todo[kind], page)) {
        atomic_fetch_add(&mover->totals->pages_done, 1); /* handed over twice, sent once */
        return;
    }
    mover->outstanding++;
    queue_chunk(mover, kind, page / CHUNK_PAGES);
}

/* A page of the round to come; if it still waits in the current one, once is enough. mover.lock held. */
static void queue_defer(struct mover *mover, uint64_t page)
{
    if (bit_clear(mover->todo[0], page) || bit_clear(mover->todo[1], page)) {
        mover->outstanding--;
        atomic_fetch_add(&mover->totals->pages_done, 1);
    }
    if (bit_set(mover->next, page)) {
        atomic_fetch_add(&mover->totals->pages_done, 1);
    } else {
        mover->next_pages++;
    }
}

/* mover.lock held */
static void queue_run(struct mover *mover, uint64_t first, uint64_t count)
{
    for (uint64_t page = first; page < first + count; page++) {
        if (mover->deferring) {
            queue_defer(mover, page);
        } else {
            queue_page(mover, page);
        }
    }
    queue_time(mover);
    if (mover->totals->rounds >= 2) {
        for (uint64_t chunk = first / CHUNK_PAGES; chunk <= (first + count - 1) / CHUNK_PAGES;
             chunk++) {
            mover->history[chunk] |= 0x80;
        }
    }
}

/* mover.lock held */
static void queue_enter_round(struct mover *mover, uint32_t round)
{
    if (mover->totals->rounds && round == mover->round) {
        return;
    }
    mover->round = round;
    atomic_fetch_add(&mover->totals->rounds, 1);
    mover->deferring = mover->outstanding > 0 || mover->next_pages > 0;
}

static int queue_check_run(const struct mover *mover, const struct handoff_run *run,
                           const struct layout_block **block, struct reason *reason)
{
    *block = layout_by_index(&mover->layout, run->block);
    if (!*block) {
        return reason_set(reason, -EPROTO, "QEMU handed over pages of a RAM block that is not there");
    }
    uint64_t pages = (*block)->size / PAGE_BYTES;
    if (run->count == 0 || run->count > pages || run->page > pages - run->count) {
        return reason_set(reason, -EPROTO, "QEMU handed over pages beyond the end of RAM block '%s'",
                          (*block)->idstr);
    }
    return 0;
}

/*
 * In the first round no page has a place yet, so a hole is done with at once: a guest that has
 * far more memory than it ever used costs a SEEK_DATA a hole, not something a page.
 */
static void queue_first_round(struct mover *mover, const struct layout_block *block, uint64_t first,
                              uint64_t count)
{
    while (count) {
        bool data;
        uint64_t n = mover_data_extent(mover, block, first, count, &data);
        pthread_mutex_lock(&mover->lock);
        if (data) {
            queue_run(mover, first, n);
        } else {
            atomic_fetch_add(&mover->totals->zero_pages, n);
            atomic_fetch_add(&mover->totals->pages_done, n);
        }
        pthread_mutex_unlock(&mover->lock);
        first += n;
        count -= n;
    }
}

static void queue_later_round(struct mover *mover, uint64_t first, uint64_t count)
{
    pthread_mutex_lock(&mover->lock);
    queue_run(mover, first, count);
    pthread_mutex_unlock(&mover->lock);
}

int mover_hand_over(struct mover *mover, const struct handoff_runs *runs, struct reason *reason)
{
    int err = 0;

    pthread_mutex_lock(&mover->lock);
    if (mover->totals->rounds && runs->round < mover->round) {
        err = reason_set(reason, -EPROTO, "QEMU handed over pages of round %u after round %u",
                         runs->round, mover->round);
    } else {
        queue_enter_round(mover, runs->round);
    }
    pthread_mutex_unlock(&mover->lock);
    for (uint32_t i = 0; i < runs->n && !err; i++) {
        const struct layout_block *block;
        err = queue_check_run(mover, &runs->run[i], &block, reason);
        if (err) {
            break;
        }
        uint64_t first = block->flat / PAGE_BYTES + runs->run[i].page;
        if (mover->totals->rounds == 1) {
            queue_first_round(mover, block, first, runs->run[i].count);
        } else {
            queue_later_round(mover, first, runs->run[i].count);
        }
    }
    return err;
}

static bool queue_stalled(struct mover *mover)
{
    return mover->fault == MOVER_FAULT_STALL_ROUND_1 && mover->stalled;
}

bool mover_take(struct mover_stream *stream, uint64_t *chunk, uint64_t bits[MOVER_CHUNK_WORDS])
{
    struct mover *mover = stream->mover;
    struct mover_target *target = stream->target;
    unsigned kind = target == &mover->target[MOVER_MAIN] ? 0 : 1;

    pthread_mutex_lock(&mover->lock);
    bool found = target->head != MOVER_NO_CHUNK && !queue_stalled(mover);
    stream->idle = !found;
    if (found) {
        *chunk = target->head;
        target->head = mover->link[kind][*chunk];
        if (target->head == MOVER_NO_CHUNK) {
            target->tail = MOVER_NO_CHUNK;
        }
        mover->queued[kind][*chunk] = 0;
        uint64_t *todo = mover->todo[kind] + *chunk * MOVER_CHUNK_WORDS;
        memcpy(bits, todo, MOVER_CHUNK_WORDS * sizeof(*bits));
        memset(todo, 0, MOVER_CHUNK_WORDS * sizeof(*bits));
        mover->stalled = true;
    }
    pthread_mutex_unlock(&mover->lock);
    return found;
}

void mover_requeue(struct mover *mover, unsigned kind, uint64_t first, uint64_t count)
{
    pthread_mutex_lock(&mover->lock);
    for (uint64_t page = first; page < first + count; page++) {
        bit_set(mover->todo[kind], page);
        queue_chunk(mover, kind, page / CHUNK_PAGES);
    }
    pthread_mutex_unlock(&mover->lock);
}

/* Fault injection: the pages of @round begin to be done. */
static void done_fault(const struct mover *mover, uint64_t round)
{
    if ((mover->fault == MOVER_FAULT_EXIT_ROUND_1 && round == 1) ||
        (mover->fault == MOVER_FAULT_EXIT_ROUND_2 && round == 2)) {
        log_warn("ending here, as SPLIT_MIGRATE_FAULT wants");
        _exit(3);
    }
}

/* mover.lock held */
static void queue_adapt(struct mover *mover, uint64_t pages)
{
    uint64_t bytes = pages * PAGE_BYTES;

    if (adapt_step(&mover->adapt, bytes, mover_busy_us(mover->totals), atomic_load(&mover->under_way))) {
        atomic_store(&mover->pack_method, mover->adapt.now);
    }
    mover->since_sample += bytes;
    if (mover->since_sample >= MOVER_SAMPLE_BYTES) {
        mover->since_sample = 0;
        atomic_store(&mover->sample_due, true);
    }
}

void mover_sample(struct mover *mover, enum pack_method method, uint64_t length, uint64_t packed, uint64_t ns)
{
    pthread_mutex_lock(&mover->lock);
    adapt_sample(&mover->adapt, method, length, packed, ns);
    pthread_mutex_unlock(&mover->lock);
}

void mover_done(struct mover *mover, uint64_t pages, uint64_t zero)
{
    pthread_mutex_lock(&mover->lock);
    atomic_fetch_add(&mover->totals->zero_pages, zero);
    uint64_t before = atomic_fetch_add(&mover->totals->pages_done, pages);
    mover->outstanding -= pages;
    queue_time(mover);
    if (mover->adaptive) {
        queue_adapt(mover, pages - zero);
    }
    bool tell = mover->outstanding == 0 ||
                before / MOVER_REPORT_PAGES != (before + pages) / MOVER_REPORT_PAGES;
    uint64_t round = mover->totals->rounds - mover->deferring;
    pthread_mutex_unlock(&mover->lock);
    done_fault(mover, round);
    if (tell) {
        mover_notify(mover);
    }
}

bool mover_next_round(struct mover *mover)
{
    pthread_mutex_lock(&mover->lock);
    bool drained = mover->outstanding == 0;
    if (drained && mover->deferring) {
        mover->deferring = false;
        drained = mover->next_pages == 0;
        for (uint64_t word = 0; word < mover->n_pages / 64 && mover->next_pages; word++) {
            uint64_t bits = mover->next[word];
            mover->next[word] = 0;
            while (bits) {
                queue_page(mover, word * 64 + (uint64_t)__builtin_ctzll(bits));
                bits &= bits - 1;
                mover->next_pages--;
            }
        }
        queue_time(mover);
    }
    pthread_mutex_unlock(&mover->lock);
    return drained;
}

int mover_fail(struct mover *mover, int err, const char *fmt, ...)
{
    va_list args;

    pthread_mutex_lock(&mover->lock);
    if (!mover->failed && !mover->stop) {
        mover->failed = true;
        mover->err = err;
        va_start(args, fmt);
        vsnprintf(mover->reason.text, sizeof(mover->reason.text), fmt, args);
        va_end(args);
    }
    pthread_mutex_unlock(&mover->lock);
    mover_notify(mover);
    return err;
}
