// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * pageout_trim.c - discarded pages: free what the sub-host holds of them
 *
 * Whoever makes a page UNTOUCHED that may have a copy there sets the page's bit while it owns the page.
 * The bit stays until the sub-host has acknowledged the TRIM, and as long as it is
 * set the page is not paged out: the guest may have written it anew, and no TRIM may take that away.
 * A TRIM whose connection broke is sent again on the next one; the chunk is fenced meanwhile
 * (CHUNK_FENCED), so that the first one cannot come late.
 *
 * Bits exist for chunks that have some, in a hash table under a lock: they are few, and most of the time there
 * are none.  CHUNK_TRIM says so without the lock.  It is set before the page is unlocked, so who then
 * owns the page sees it.
 */
#include <errno.h>
#include <stdlib.h>

#include "uffd-pager/pageout.h"

#define TRIM_BUCKETS 1024u

struct trim_chunk {
    struct trim_chunk *next;
    uint64_t chunk;
    unsigned n; /* bits that are set */
    uint64_t bit[CHUNK_PAGES / 64];
};

struct trim {
    pthread_mutex_t lock;
    struct trim_chunk *bucket[TRIM_BUCKETS];
};

struct trim *trim_new(void)
{
    struct trim *trim = calloc(1, sizeof(*trim));

    if (trim) {
        pthread_mutex_init(&trim->lock, NULL);
    }
    return trim;
}

void trim_free(struct trim *trim)
{
    for (unsigned i = 0; trim && i < TRIM_BUCKETS; i++) {
        while (trim->bucket[i]) {
            struct trim_chunk *next = trim->bucket[i]->next;
            free(trim->bucket[i]);
            trim->bucket[i] = next;
        }
    }
    if (trim) {
        pthread_mutex_destroy(&trim->lock);
    }
    free(trim);
}

/* With the lock: where the chunk's bits are, or are to be linked. */
static struct trim_chunk **trim_find(struct trim *trim, uint64_t chunk)
{
    struct trim_chunk **at = &trim->bucket[chunk % TRIM_BUCKETS];

    while (*at && (*at)->chunk != chunk) {
        at = &(*at)->next;
    }
    return at;
}

static bool trim_has(const struct trim_chunk *bits, uint64_t page)
{
    return bits && bits->bit[page % CHUNK_PAGES / 64] >> (page % 64) & 1;
}

/* With the lock: the chunk has no bits any more. */
static void trim_unlink(struct engine *engine, struct trim_chunk **at)
{
    struct trim_chunk *bits = *at;

    *at = bits->next;
    atomic_fetch_and_explicit(&engine->chunk_flags[bits->chunk], (uint8_t)~CHUNK_TRIM,
                              memory_order_acq_rel);
    atomic_fetch_sub_explicit(&engine->trim_chunks, 1, memory_order_relaxed);
    free(bits);
}

void engine_want_trim(struct engine *engine, uint64_t page)
{
    uint64_t chunk = page_chunk(page);

    pthread_mutex_lock(&engine->trim->lock);
    struct trim_chunk **at = trim_find(engine->trim, chunk);
    if (!*at && (*at = calloc(1, sizeof(**at))) != NULL) {
        (*at)->chunk = chunk;
        atomic_fetch_or_explicit(&engine->chunk_flags[chunk], CHUNK_TRIM, memory_order_acq_rel);
        atomic_fetch_add_explicit(&engine->trim_chunks, 1, memory_order_relaxed);
    }
    if (!*at) {
        log_warn("out of memory: the sub-host keeps the copy of a discarded page");
    } else if (!trim_has(*at, page)) {
        (*at)->bit[page % CHUNK_PAGES / 64] |= (uint64_t)1 << (page % 64);
        (*at)->n++;
    }
    pthread_mutex_unlock(&engine->trim->lock);
}

bool trim_bit(struct engine *engine, uint64_t page)
{
    uint64_t chunk = page_chunk(page);

    if (!(atomic_load_explicit(&engine->chunk_flags[chunk], memory_order_acquire) & CHUNK_TRIM)) {
        return false;
    }
    pthread_mutex_lock(&engine->trim->lock);
    bool set = trim_has(*trim_find(engine->trim, chunk), page);
    pthread_mutex_unlock(&engine->trim->lock);
    return set;
}

static void trim_clear(struct engine *engine, uint64_t first, uint64_t end)
{
    pthread_mutex_lock(&engine->trim->lock);
    struct trim_chunk **at = trim_find(engine->trim, page_chunk(first));
    for (uint64_t page = first; page < end; page++) {
        if (trim_has(*at, page)) {
            (*at)->bit[page % CHUNK_PAGES / 64] &= ~((uint64_t)1 << (page % 64));
            (*at)->n--;
        }
    }
    if (*at && (*at)->n == 0) {
        trim_unlink(engine, at);
    }
    pthread_mutex_unlock(&engine->trim->lock);
}

void trim_forget(struct engine *engine, uint64_t chunk)
{
    trim_clear(engine, chunk * CHUNK_PAGES, (chunk + 1) * CHUNK_PAGES);
}

void trim_end(struct pageout *pageout, struct pageout_batch *batch, bool failed)
{
    for (unsigned i = 0; i < batch->n && !failed; i++) {
        trim_clear(pageout->engine, batch->trimmed[i].first, batch->trimmed[i].end);
    }
    batch_free(pageout, batch);
}

static void trim_fill(struct pageout *pageout, struct pageout_batch *batch)
{
    struct engine *engine = pageout->engine;
    uint64_t page = batch->chunk * CHUNK_PAGES;
    uint64_t end = page + CHUNK_PAGES;

    batch->n = 0;
    end = end < engine->map->n_pages ? end : engine->map->n_pages;
    while (page < end && batch->n_requests < PAGEOUT_TRIM_RUNS) {
        uint64_t first = page;
        while (page < end && trim_bit(engine, page)) {
            page++;
        }
        if (page == first) {
            page++;
            continue;
        }
        batch->trimmed[batch->n].first = first;
        batch->trimmed[batch->n++].end = page;
        struct nbd_request *request = &batch->request[batch->n_requests];
        nbd_encode_request(request, NBD_CMD_TRIM, 0,
                           batch_cookie(pageout, batch, batch->n_requests), first * PAGE_BYTES,
                           (uint32_t)((page - first) * PAGE_BYTES));
        for (unsigned i = 0; i < batch->n_legs; i++) {
            struct pageout_leg *leg = &batch->leg[i];
            leg->iov[leg->iov_n++] = (struct iovec){request, sizeof(*request)};
        }
        batch->n_requests++;
        if (engine->backup) {
            backup_punch(engine->backup, first, page - first);
        }
    }
}

static bool trim_under_way(const struct pageout *pageout, uint64_t chunk)
{
    for (unsigned i = 0; i < pageout->n_batches; i++) {
        if (pageout->batch[i].used && pageout->batch[i].trim && pageout->batch[i].chunk == chunk) {
            return true;
        }
    }
    return false;
}

static bool trim_chunk(struct pageout *pageout, uint64_t chunk)
{
    struct engine *engine = pageout->engine;
    struct homes homes = homes_of(engine, chunk);
    struct pageout_to to = {.n = 0};

    if (homes.n == 0) {
        trim_forget(engine, chunk);
        return true;
    }
    for (unsigned i = 0; i < homes.n; i++) {
        struct pageout_host *host = &pageout->hosts[homes.place[i]];
        if (homes.place[i] == PAGEMAP_BACKUP) {
            continue; /* trim_fill() does that */
        }
        if (!link_up(&host->link)) {
            return true;
        }
        to.host[to.n++] = host;
    }
    if (trim_under_way(pageout, chunk)) {
        return true;
    }
    struct pageout_batch *batch = batch_new(pageout, &to, chunk);
    if (!batch) {
        return false;
    }
    batch->trim = true;
    trim_fill(pageout, batch);
    if (batch->n_requests && batch->n_legs) {
        batch_queue(batch);
    } else {
        trim_end(pageout, batch, false);
    }
    return true;
}

void trim_begin(struct pageout *pageout)
{
    struct engine *engine = pageout->engine;

    for (uint64_t chunk = 0;
         chunk < engine->map->n_chunks &&
         atomic_load_explicit(&engine->trim_chunks, memory_order_relaxed);
         chunk++) {
        if (atomic_load_explicit(&engine->chunk_flags[chunk], memory_order_acquire) & CHUNK_TRIM &&
            !trim_chunk(pageout, chunk)) {
            return;
        }
    }
}
