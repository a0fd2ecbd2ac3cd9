// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * pageout_trim.c - discarded pages: free what the sub-host holds of them
 *
 * Whoever makes a page UNTOUCHED that may have a copy there sets the page's bit while it owns the page,
 * and CHUNK_TRIM.  The bit stays until the sub-host has acknowledged the TRIM, and as long as it is
 * set the page is not paged out: the guest may have written it anew, and no TRIM may take that away.
 * A TRIM whose connection broke is sent again on the next one; the chunk is fenced meanwhile
 * (CHUNK_FENCED), so that the first one cannot come late.
 */
#include <errno.h>

#include "uffd-pager/pageout.h"

bool trim_bit(const struct engine *engine, uint64_t page)
{
    return atomic_load_explicit(&engine->trim[page / 64], memory_order_acquire) >> (page % 64) & 1;
}

static void trim_clear(struct engine *engine, uint64_t page)
{
    atomic_fetch_and_explicit(&engine->trim[page / 64], ~((uint64_t)1 << (page % 64)),
                              memory_order_acq_rel);
}

static bool trim_any(const struct engine *engine, uint64_t chunk)
{
    for (uint64_t i = 0; i < CHUNK_PAGES / 64; i++) {
        if (atomic_load_explicit(&engine->trim[chunk * CHUNK_PAGES / 64 + i],
                                 memory_order_acquire)) {
            return true;
        }
    }
    return false;
}

/* The flag goes first: a discard that sets a bit in between raises it again. */
static void trim_settle(struct engine *engine, uint64_t chunk)
{
    if (atomic_fetch_and_explicit(&engine->chunk_flags[chunk], (uint8_t)~CHUNK_TRIM,
                                  memory_order_acq_rel) &
        CHUNK_TRIM) {
        atomic_fetch_sub_explicit(&engine->trim_chunks, 1, memory_order_relaxed);
    }
    if (trim_any(engine, chunk) &&
        !(atomic_fetch_or_explicit(&engine->chunk_flags[chunk], CHUNK_TRIM, memory_order_acq_rel) &
          CHUNK_TRIM)) {
        atomic_fetch_add_explicit(&engine->trim_chunks, 1, memory_order_relaxed);
    }
}

void trim_forget(struct engine *engine, uint64_t chunk)
{
    for (uint64_t i = 0; i < CHUNK_PAGES / 64; i++) {
        atomic_store_explicit(&engine->trim[chunk * CHUNK_PAGES / 64 + i], 0,
                              memory_order_release);
    }
    trim_settle(engine, chunk);
}

void trim_end(struct pageout *pageout, struct pageout_batch *batch, bool failed)
{
    uint64_t chunk = batch->chunk;

    for (unsigned i = 0; i < batch->n && !failed; i++) {
        for (uint64_t page = batch->trimmed[i].first; page < batch->trimmed[i].end; page++) {
            trim_clear(pageout->engine, page);
        }
    }
    batch_free(pageout, batch);
    trim_settle(pageout->engine, chunk);
}

static void trim_fill(struct pageout *pageout, struct pageout_batch *batch)
{
    struct engine *engine = pageout->engine;
    uint64_t page = batch->chunk * CHUNK_PAGES;
    uint64_t end = page + CHUNK_PAGES;

    batch->n = 0;
    end = end < engine->map->n_pages ? end : engine->map->n_pages;
    while (page < end && batch->owed < PAGEOUT_TRIM_RUNS) {
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
        struct nbd_request *request = &batch->request[batch->owed];
        nbd_encode_request(request, NBD_CMD_TRIM, 0, batch_cookie(pageout, batch, batch->owed),
                           first * PAGE_BYTES, (uint32_t)((page - first) * PAGE_BYTES));
        batch->iov[batch->iov_n++] = (struct iovec){request, sizeof(*request)};
        batch->owed++;
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
    uint8_t index = atomic_load_explicit(&engine->map->subhost[chunk], memory_order_acquire);

    if (index >= engine->config.n_subhosts) {
        trim_forget(engine, chunk);
        return true;
    }
    struct pageout_host *host = &pageout->hosts[index];
    if (!link_up(&host->link) || trim_under_way(pageout, chunk)) {
        return true;
    }
    struct pageout_batch *batch = batch_new(pageout, host, chunk);
    if (!batch) {
        return false;
    }
    batch->trim = true;
    trim_fill(pageout, batch);
    if (batch->owed) {
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
