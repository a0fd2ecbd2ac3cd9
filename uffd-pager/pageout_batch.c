// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * pageout_batch.c - how pages leave
 *
 * For up to 64 pages in a row:
 *
 *   lock          LOCAL -> EVICTING, CLEAN -> DROPPING; others are left out, and those whose old copy
 *                 is still to be trimmed.  From here on nobody else maps or changes these pages.
 *   protect       one UFFDIO_WRITEPROTECT a run, mapped or not.  Who writes now waits (a WP fault), who
 *                 reads reads on.
 *   pread         the contents cannot change any more
 *   WRITE         to all places of the chunk; not for zeros, not for CLEAN pages
 *   answers       all of them, from all places
 *   punch         only what all places have acknowledged.  Readers who have it mapped lose it and fault.
 *   unlock        -> REMOTE, or UNTOUCHED if it was all zeros
 *   wake          who was turned away meanwhile faults again, now MISSING
 *
 * A page that is refused, or whose connection broke, is unprotected and LOCAL again.  A connection
 * that broke may have left WRITEs in the sub-host's buffers which take effect later, over newer ones:
 * its chunks are fenced (CHUNK_FENCED) and not paged out until a new connection has been good for
 * PAGEOUT_FENCE_US.
 */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "uffd-pager/pageout.h"
#include "uffd-pager/uffd_abi.h"

uint64_t batch_cookie(const struct pageout *pageout, const struct pageout_batch *batch,
                      unsigned index)
{
    return (uint64_t)batch->generation << 32 | (uint64_t)(batch - pageout->batch) << 8 | index;
}

static void batch_legs(struct pageout_batch *batch, const struct pageout_to *to)
{
    batch->n_legs = to->n;
    for (unsigned i = 0; i < to->n; i++) {
        struct pageout_leg *leg = &batch->leg[i];
        leg->batch = batch;
        leg->host = to->host[i];
        leg->owed = leg->iov_n = leg->iov_at = 0;
        leg->answered = leg->stored = 0;
        if (leg->host) {
            leg->host->batches++;
        }
    }
}

struct pageout_batch *batch_new(struct pageout *pageout, const struct pageout_to *to,
                                uint64_t chunk)
{
    for (unsigned i = 0; i < to->n; i++) {
        if (to->host[i] && to->host[i]->batches >= pageout->host_batches) {
            return NULL;
        }
    }
    for (unsigned i = 0; i < pageout->n_batches; i++) {
        struct pageout_batch *batch = &pageout->batch[i];
        if (!batch->used) {
            batch->used = true;
            batch->trim = batch->failed = false;
            batch->chunk = chunk;
            batch->ours = batch->n_requests = 0;
            memset(batch->fate, PAGEOUT_NOT_OURS, sizeof(batch->fate));
            batch_legs(batch, to);
            pageout->used++;
            return batch;
        }
    }
    return NULL;
}

void batch_free(struct pageout *pageout, struct pageout_batch *batch)
{
    batch->used = false;
    batch->generation++;
    for (unsigned i = 0; i < batch->n_legs; i++) {
        if (batch->leg[i].host) {
            batch->leg[i].host->batches--;
        }
    }
    pageout->used--;
}

static bool batch_owed(const struct pageout_batch *batch)
{
    bool owed = false;

    for (unsigned i = 0; i < batch->n_legs; i++) {
        owed = owed || batch->leg[i].owed;
    }
    return owed;
}

static const struct layout_block *batch_block(const struct pageout *pageout,
                                              const struct pageout_batch *batch)
{
    return layout_by_flat(pageout->engine->layout, batch->first * PAGE_BYTES);
}

/* The end of the run of pages from @at whose fate is one of @set (bits). */
static unsigned batch_run(const struct pageout_batch *batch, unsigned at, unsigned set)
{
    while (at < batch->n && set & 1u << batch->fate[at]) {
        at++;
    }
    return at;
}

static void batch_lock(struct pageout *pageout, struct pageout_batch *batch, bool send,
                       uint64_t mask)
{
    struct pagemap *map = pageout->engine->map;

    for (unsigned i = 0; i < batch->n; i++) {
        uint64_t page = batch->first + i;
        uint8_t byte = pagemap_get(map, page);
        if (!(mask >> i & 1)) {
            continue;
        }
        if (byte == PAGE_CLEAN && pagemap_lock(map, page, PAGE_CLEAN)) {
            batch->fate[i] = PAGEOUT_DROP;
            batch->ours++;
        } else if (send && byte == PAGE_LOCAL && pagemap_lock(map, page, PAGE_LOCAL)) {
            if (trim_bit(pageout->engine, page)) { /* set by an owner before us */
                page_unlock(pageout->engine, batch_block(pageout, batch), page, PAGE_LOCAL);
                continue;
            }
            batch->fate[i] = PAGEOUT_SEND;
            batch->ours++;
        }
    }
}

static bool batch_is_zero(const uint8_t *page)
{
    const uint64_t *word = (const uint64_t *)page;

    return !word[0] && memcmp(page, page + sizeof(*word), PAGE_BYTES - sizeof(*word)) == 0;
}

/* Return: 0, or -errno: then the run's pages are to stay. */
static int batch_read_run(struct pageout *pageout, struct pageout_batch *batch,
                          const struct layout_block *block, unsigned from, unsigned to)
{
    uint8_t *contents = batch->contents + from * PAGE_BYTES;
    size_t length = (to - from) * PAGE_BYTES;
    uint64_t page = batch->first + from;
    int err = uffd_protect(pageout->engine->uffd, page_hva(block, page), length);

    if (err < 0) {
        if (err == -ESRCH) {
            engine_gone(pageout->engine);
        }
        return err;
    }
    ssize_t n = pread(block->fd, contents, length, layout_file(block, page * PAGE_BYTES));
    return n == (ssize_t)length ? 0 : -EIO;
}

static void batch_read(struct pageout *pageout, struct pageout_batch *batch)
{
    const struct layout_block *block = batch_block(pageout, batch);

    for (unsigned from = 0; from < batch->n;) {
        unsigned to = batch_run(batch, from, 1u << PAGEOUT_SEND);
        if (to == from) {
            from++;
            continue;
        }
        int err = batch_read_run(pageout, batch, block, from, to);
        for (; from < to; from++) {
            if (err < 0) {
                batch->fate[from] = PAGEOUT_REFUSED;
            } else if (batch_is_zero(batch->contents + from * PAGE_BYTES)) {
                batch->fate[from] = PAGEOUT_ZERO;
            }
        }
    }
}

static void batch_encode(struct pageout *pageout, struct pageout_batch *batch)
{
    for (unsigned from = 0; from < batch->n;) {
        unsigned to = batch_run(batch, from, 1u << PAGEOUT_SEND);
        if (to == from) {
            from++;
            continue;
        }
        uint32_t length = (uint32_t)((to - from) * PAGE_BYTES);
        struct nbd_request *request = &batch->request[batch->n_requests++];
        nbd_encode_request(request, NBD_CMD_WRITE, 0, batch_cookie(pageout, batch, from),
                           (batch->first + from) * PAGE_BYTES, length);
        for (unsigned i = 0; i < batch->n_legs; i++) {
            struct pageout_leg *leg = &batch->leg[i];
            leg->iov[leg->iov_n++] = (struct iovec){request, sizeof(*request)};
            leg->iov[leg->iov_n++] = (struct iovec){batch->contents + from * PAGE_BYTES, length};
        }
        from = to;
    }
}

/* ---- the end ---- */

static void batch_stay(struct pageout *pageout, struct pageout_batch *batch,
                       const struct layout_block *block, unsigned from, unsigned to)
{
    struct engine *engine = pageout->engine;

    uffd_unprotect(engine->uffd, page_hva(block, batch->first + from), (to - from) * PAGE_BYTES);
    page_unlock_run(engine, block, batch->first + from, to - from, PAGE_LOCAL);
    batch->ours -= to - from;
    pageout->leaving -= to - from;
}

static void batch_punch(struct pageout *pageout, struct pageout_batch *batch,
                        const struct layout_block *block, unsigned from, unsigned to)
{
    struct engine *engine = pageout->engine;
    bool missed = false;

    /* First the byte: a hole that is to read as zero must not be taken for a remote page. */
    for (unsigned i = from; i < to; i++) {
        if (batch->fate[i] == PAGEOUT_ZERO) {
            page_retag(engine->map, batch->first + i, PAGE_UNTOUCHED);
            engine_want_trim(engine, batch->first + i);
        }
    }
    if (fallocate(block->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  layout_file(block, (batch->first + from) * PAGE_BYTES),
                  (off_t)((to - from) * PAGE_BYTES)) < 0) {
        log_error("memory cannot be freed: %m");
        batch_stay(pageout, batch, block, from, to);
        return;
    }
    for (unsigned i = from; i < to; i++) {
        bool zero = batch->fate[i] == PAGEOUT_ZERO;
        uint8_t remarks = pagemap_kept(engine->map, batch->first + i);
        if (remarks & PAGE_GUESS) {
            predictor_prefetch_outcome(engine->predictor, batch->first + i, false);
        }
        if (batch->fate[i] == PAGEOUT_DROP && remarks & PAGE_WANTED) {
            install_learn(engine, batch->first + i, false);
        }
        missed |= page_release(engine->map, batch->first + i, zero ? PAGE_UNTOUCHED : PAGE_REMOTE);
        stats_add(zero                              ? &engine->stats.zero_drops
                  : batch->fate[i] == PAGEOUT_DROP ? &engine->stats.clean_drops
                                                    : &engine->stats.page_outs,
                  1);
    }
    if (missed) {
        page_wake(engine, block, batch->first + from, to - from);
    }
}

/* A page is STORED if all legs have stored it. */
static void batch_judge(struct pageout_batch *batch)
{
    uint64_t stored = batch->n_legs ? UINT64_MAX : 0;

    for (unsigned i = 0; i < batch->n_legs; i++) {
        stored &= batch->leg[i].stored;
    }
    for (unsigned i = 0; i < batch->n; i++) {
        if (batch->fate[i] == PAGEOUT_SEND && stored >> i & 1) {
            batch->fate[i] = PAGEOUT_STORED;
        }
    }
}

static void batch_end(struct pageout *pageout, struct pageout_batch *batch)
{
    const unsigned leave = 1u << PAGEOUT_DROP | 1u << PAGEOUT_ZERO | 1u << PAGEOUT_STORED;
    const unsigned stay = 1u << PAGEOUT_SEND | 1u << PAGEOUT_REFUSED;
    const struct layout_block *block = batch_block(pageout, batch);

    batch_judge(batch);
    for (unsigned from = 0; from < batch->n;) {
        unsigned to = batch_run(batch, from, leave);
        if (to > from) {
            batch_punch(pageout, batch, block, from, to);
        } else if ((to = batch_run(batch, from, stay)) > from) {
            batch_stay(pageout, batch, block, from, to);
        } else {
            to = from + 1;
        }
        from = to;
    }
    pageout->leaving -= batch->ours;
    if (batch->ours) {
        room_give(pageout->engine, batch->chunk, batch->ours);
        room_freed(pageout->engine, batch->ours);
    }
    batch_free(pageout, batch);
}

void batch_queue(struct pageout_batch *batch)
{
    for (unsigned i = 0; i < batch->n_legs; i++) {
        struct pageout_leg *leg = &batch->leg[i];
        struct pageout_host *host = leg->host;
        leg->owed = batch->n_requests;
        leg->next = NULL;
        if (host && host->send_last) {
            host->send_last->next = leg;
        } else if (host) {
            host->send_first = leg;
        }
        if (host) {
            host->send_last = leg;
        }
    }
}

static void batch_to_backup(struct pageout *pageout, struct pageout_batch *batch)
{
    for (unsigned i = 0; i < batch->n_legs; i++) {
        struct pageout_leg *leg = &batch->leg[i];
        if (leg->host) {
            continue;
        }
        leg->owed = 1;
        leg->job = (struct backup_job){.contents = batch->contents, .first = batch->first};
        for (unsigned page = 0; page < batch->n; page++) {
            leg->job.pages |= (uint64_t)(batch->fate[page] == PAGEOUT_SEND) << page;
        }
        backup_push(pageout->engine->backup, &leg->job);
    }
}

bool batch_backup_events(struct pageout *pageout)
{
    struct backup *backup = pageout->engine->backup;
    struct backup_job *job;
    bool busy = false;

    while (backup && (job = backup_done(backup)) != NULL) {
        struct pageout_leg *leg =
            (struct pageout_leg *)((char *)job - offsetof(struct pageout_leg, job));
        leg->stored = job->written;
        leg->owed = 0;
        if (!batch_owed(leg->batch)) {
            batch_end(pageout, leg->batch);
        }
        busy = true;
    }
    return busy;
}

unsigned batch_begin(struct pageout *pageout, const struct pageout_to *to, uint64_t first,
                     unsigned n, uint64_t mask)
{
    struct pageout_batch *batch = batch_new(pageout, to, page_chunk(first));

    if (!batch) {
        return 0;
    }
    batch->first = first;
    batch->n = n;
    batch_lock(pageout, batch, to->n > 0, mask);
    unsigned ours = batch->ours;
    if (!ours) {
        batch_free(pageout, batch);
        return 0;
    }
    pageout->leaving += ours;
    batch_read(pageout, batch);
    batch_encode(pageout, batch);
    if (batch->n_requests) {
        batch_queue(batch);
        batch_to_backup(pageout, batch);
    } else {
        batch_end(pageout, batch);
    }
    return ours;
}

/* ---- the wire ---- */

static int batch_send(struct pageout *pageout, struct pageout_host *host)
{
    struct pageout_leg *leg = host->send_first;
    bool began = leg->iov_at > 0 || leg->iov[0].iov_len < sizeof(struct nbd_request);
    ssize_t sent = link_sendv(&host->link, leg->iov + leg->iov_at, leg->iov_n - leg->iov_at);

    if (sent <= 0) {
        return (int)sent;
    }
    if (!began) {
        for (unsigned i = 0; i < leg->owed; i++) {
            link_sent(&host->link, pageout->now_us);
        }
    }
    for (size_t left = (size_t)sent; left > 0;) {
        struct iovec *iov = &leg->iov[leg->iov_at];
        size_t part = left < iov->iov_len ? left : iov->iov_len;
        iov->iov_base = (uint8_t *)iov->iov_base + part;
        iov->iov_len -= part;
        left -= part;
        leg->iov_at += iov->iov_len == 0;
    }
    if (leg->iov_at == leg->iov_n) {
        host->send_first = leg->next;
        if (!host->send_first) {
            host->send_last = NULL;
        }
    }
    return 1;
}

static void batch_refused(struct pageout *pageout, struct pageout_host *host, int err)
{
    stats_add(&pageout->engine->stats.write_refusals, 1);
    if (pageout->now_us < host->full_us) {
        return; /* one of several that were under way */
    }
    if (!host->full_wait_us) {
        log_warn("sub-host '%s' refuses pages: %s",
                 pageout->engine->config.subhost[host->link.host->index].name, strerror(-err));
    }
    host->full_wait_us = host->full_wait_us ? host->full_wait_us * 2 : PAGEOUT_FULL_US;
    host->full_wait_us = host->full_wait_us > PAGEOUT_FULL_MAX_US ? PAGEOUT_FULL_MAX_US
                                                                  : host->full_wait_us;
    host->full_us = pageout->now_us + host->full_wait_us;
}

static void batch_accepted(struct pageout *pageout, struct pageout_host *host)
{
    /* Some are taken even by a full sub-host: pages it has a copy of. */
    if (host->full_wait_us && pageout->now_us > host->full_us + PAGEOUT_FULL_MAX_US) {
        host->full_wait_us = 0;
        log_info("sub-host '%s' takes pages again",
                 pageout->engine->config.subhost[host->link.host->index].name);
    }
}

/* Return: the leg of a batch under way that @cookie, from @host, is about; NULL: there is none. */
static struct pageout_leg *batch_leg(struct pageout *pageout, const struct pageout_host *host,
                                     uint64_t cookie)
{
    unsigned number = cookie >> 8 & 0xffffff;
    struct pageout_batch *batch = &pageout->batch[number < pageout->n_batches ? number : 0];

    if (!batch->used || cookie != batch_cookie(pageout, batch, cookie & 0xff)) {
        return NULL;
    }
    for (unsigned i = 0; i < batch->n_legs; i++) {
        struct pageout_leg *leg = &batch->leg[i];
        if (leg->host == host && leg->owed > 0 && (leg->owed > 1 || leg->iov_at == leg->iov_n)) {
            return leg;
        }
    }
    return NULL;
}

/* Return: 1 if a reply was used, 0 if there is none, -errno if the connection is no good. */
static int batch_reply(struct pageout *pageout, struct pageout_host *host)
{
    struct link_reply reply;
    int rc = link_peek(&host->link, &reply);

    if (rc <= 0) {
        return rc;
    }
    struct pageout_leg *leg = batch_leg(pageout, host, reply.cookie);
    if (!leg) {
        return -EPROTO;
    }
    struct pageout_batch *batch = leg->batch;
    unsigned index = reply.cookie & 0xff;
    link_consume(&host->link, 0, true, pageout->now_us);
    if (batch->trim) {
        leg->owed--;
        if (!batch_owed(batch)) {
            trim_end(pageout, batch, batch->failed);
        }
        return 1;
    }
    if (index >= batch->n || batch->fate[index] != PAGEOUT_SEND || leg->answered >> index & 1) {
        return -EPROTO;
    }
    leg->owed--;
    leg->answered |= (uint64_t)1 << index;
    if (reply.error < 0) {
        batch_refused(pageout, host, reply.error);
    } else {
        batch_accepted(pageout, host);
    }
    for (unsigned to = batch_run(batch, index, 1u << PAGEOUT_SEND); index < to; index++) {
        leg->stored |= (uint64_t)(reply.error >= 0) << index;
    }
    if (!batch_owed(batch)) {
        batch_end(pageout, batch);
    }
    return 1;
}

/* Whatever the other leg is still owed comes first: it sends from the batch's memory. */
static void batch_leg_broken(struct pageout *pageout, struct pageout_leg *leg)
{
    struct pageout_batch *batch = leg->batch;

    atomic_fetch_or_explicit(&pageout->engine->chunk_flags[batch->chunk], CHUNK_FENCED,
                             memory_order_relaxed);
    atomic_store_explicit(&leg->host->link.host->stale, true, memory_order_release);
    leg->owed = 0;
    batch->failed = true;
    if (batch_owed(batch)) {
        return;
    }
    if (batch->trim) {
        trim_end(pageout, batch, true);
    } else {
        batch_end(pageout, batch);
    }
}

void batch_host_broken(struct pageout *pageout, struct pageout_host *host, const char *why)
{
    link_broken(&host->link, why, pageout->now_us);
    host->send_first = host->send_last = NULL;
    for (unsigned i = 0; i < pageout->n_batches; i++) {
        for (unsigned k = 0; k < pageout->batch[i].n_legs; k++) {
            struct pageout_leg *leg = &pageout->batch[i].leg[k];
            if (pageout->batch[i].used && leg->host == host && leg->owed) {
                batch_leg_broken(pageout, leg);
                break;
            }
        }
    }
}

bool batch_host_events(struct pageout *pageout, struct pageout_host *host)
{
    bool busy = false;
    int rc = 0;

    while (host->send_first && (rc = batch_send(pageout, host)) > 0) {
        busy = true;
    }
    if (rc == 0) {
        ssize_t n = link_receive(&host->link);
        busy |= n > 0;
        rc = (int)(n < 0 ? n : 0);
        while (n > 0 && (rc = batch_reply(pageout, host)) > 0) {
        }
    }
    if (rc < 0) {
        batch_host_broken(pageout, host, strerror(-rc));
        busy = true;
    }
    return busy;
}
