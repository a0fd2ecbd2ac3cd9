// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * pageout.c - which pages leave, and when
 *
 * Above the high watermark, or when faults wait for room, until the low watermark: the sweep names
 * pages (pageout_sweep.c), or another policy the coldest chunks, and they leave in batches
 * (pageout_batch.c), several under way at a time and a few a sub-host, so that a sub-host that is slow
 * holds up its own chunks only.
 *
 * What must not be chosen now is hidden from the predictor: chunks of a sub-host that is not
 * connected or has no room (unless the chunk has no pages there: then it may get another), chunks
 * with a fence.
 */
#include "uffd-pager/pageout.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/urgent.h"

#define PAGEOUT_TICK_MS 20
#define PAGEOUT_RX 4096u
#define PAGEOUT_POLL_KICK UINT64_MAX

static bool pageout_chunk_has(const struct engine *engine, uint64_t chunk, unsigned states)
{
    uint64_t end = (chunk + 1) * CHUNK_PAGES;

    for (uint64_t page = chunk * CHUNK_PAGES; page < end; page++) {
        if (states & 1u << page_state(pagemap_get(engine->map, page))) {
            return true;
        }
    }
    return false;
}

static bool pageout_in_batch(const struct pageout *pageout, uint64_t chunk)
{
    for (unsigned i = 0; i < pageout->n_batches; i++) {
        if (pageout->batch[i].used && pageout->batch[i].chunk == chunk) {
            return true;
        }
    }
    return false;
}

/* May the chunk be given to other places?  Only when its own hold nothing of it that counts. */
static bool pageout_may_move(const struct pageout *pageout, uint64_t chunk)
{
    return !pageout_in_batch(pageout, chunk) &&
           !pageout_chunk_has(pageout->engine, chunk, 1u << PAGE_REMOTE | 1u << PAGE_CLEAN);
}

/* A fence is lifted when a new connection has been good for long enough. */
static bool pageout_fenced(struct pageout *pageout, uint64_t chunk)
{
    struct homes homes = homes_of(pageout->engine, chunk);
    uint8_t flags =
        atomic_load_explicit(&pageout->engine->chunk_flags[chunk], memory_order_acquire);
    if (flags & CHUNK_MOVING) {
        return true;
    }
    if (!(flags & CHUNK_FENCED)) {
        return false;
    }
    for (unsigned i = 0; i < homes.n; i++) {
        const struct pageout_host *host = &pageout->hosts[homes.place[i]];
        if (homes.place[i] != PAGEMAP_BACKUP &&
            (!link_up(&host->link) ||
             pageout->now_us < host->link.connected_us + PAGEOUT_FENCE_US)) {
            return true;
        }
    }
    atomic_fetch_and_explicit(&pageout->engine->chunk_flags[chunk], (uint8_t)~CHUNK_FENCED,
                              memory_order_relaxed);
    return false;
}

/* Do all of the chunk's places take pages, and are they as many as they should be? */
static bool pageout_ready(struct pageout *pageout, const struct homes *homes, uint64_t chunk)
{
    if (homes->n < homes_wanted(pageout->engine)) {
        if (homes->n) {
            repair_hint(pageout->engine, chunk);
        }
        return false;
    }
    for (unsigned i = 0; i < homes->n; i++) {
        if (homes->place[i] == PAGEMAP_BACKUP
                ? !backup_takes(pageout->engine->backup)
                : !place_takes(pageout, &pageout->hosts[homes->place[i]])) {
            return false;
        }
    }
    return homes->n > 0;
}

/*
 * May the chunk's CLEAN pages be dropped?  When it has as many places as it is to have, and one of them
 * has the pages, as far as one can tell.  With fewer, what is here is the second copy, and stays until
 * another has been made: nothing is put at risk that was not.
 */
static bool pageout_may_drop(const struct pageout *pageout, const struct homes *homes)
{
    if (homes->n < homes_wanted(pageout->engine)) {
        return false;
    }
    for (unsigned i = 0; i < homes->n; i++) {
        uint8_t place = homes->place[i];
        const struct link_host *host = place == PAGEMAP_BACKUP ? NULL : &pageout->engine->hosts[place];
        if (!host || (link_up(&pageout->hosts[place].link) && link_readable(host)) ||
            (link_unwritable(host) && !atomic_load(&host->trouble_us))) {
            return true;
        }
    }
    return false;
}

bool pageout_is_candidate(struct pageout *pageout, uint64_t chunk, bool room_somewhere)
{
    struct homes homes = homes_of(pageout->engine, chunk);

    if (pageout_fenced(pageout, chunk)) {
        return false;
    }
    if (homes.n == 0) {
        return room_somewhere;
    }
    if (pageout_ready(pageout, &homes, chunk)) {
        return true;
    }
    if (pageout_may_drop(pageout, &homes) &&
        pageout_chunk_has(pageout->engine, chunk, 1u << PAGE_CLEAN)) {
        return true;
    }
    return room_somewhere && pageout_may_move(pageout, chunk);
}

static void pageout_choose(struct pageout *pageout, int64_t want)
{
    struct engine *engine = pageout->engine;
    bool room_somewhere = place_any(pageout);

    for (uint64_t chunk = 0; chunk < engine->map->n_chunks; chunk++) {
        uint16_t n = atomic_load_explicit(&engine->chunk_resident[chunk], memory_order_relaxed);
        if (n && !pageout_is_candidate(pageout, chunk, room_somewhere)) {
            n = 0;
        }
        atomic_store_explicit(&pageout->candidates[chunk], n, memory_order_relaxed);
    }
    for (unsigned i = 0; i < pageout->n_batches; i++) {
        const struct pageout_batch *batch = &pageout->batch[i];
        if (batch->used && atomic_load(&pageout->candidates[batch->chunk]) >= batch->ours) {
            atomic_fetch_sub(&pageout->candidates[batch->chunk], (uint16_t)batch->ours);
        }
    }
    pageout->n_victims = predictor_victims(engine->predictor, pageout->candidates, (uint64_t)want,
                                           pageout->victims, PAGEOUT_VICTIMS);
    pageout->at_victim = 0;
    pageout->cursor = PAGEOUT_NO_CHUNK;
}

static uint8_t pageout_place(const struct pageout *pageout, const struct pageout_to *to, unsigned i)
{
    return i >= to->n     ? (uint8_t)PAGEMAP_NO_SUBHOST
           : to->host[i] ? (uint8_t)(to->host[i] - pageout->hosts)
                          : (uint8_t)PAGEMAP_BACKUP;
}

bool pageout_assign(struct pageout *pageout, uint64_t chunk, struct pageout_to *to)
{
    struct engine *engine = pageout->engine;
    struct homes homes = homes_of(engine, chunk);

    if (pageout_ready(pageout, &homes, chunk)) {
        to->n = homes.n;
        for (unsigned i = 0; i < homes.n; i++) {
            bool backup = homes.place[i] == PAGEMAP_BACKUP;
            to->host[i] = backup ? NULL : &pageout->hosts[homes.place[i]];
        }
        return true;
    }
    if ((!homes.n || pageout_may_move(pageout, chunk)) && place_chunk(pageout, chunk, to)) {
        if (homes.n) {
            trim_forget(engine, chunk);
        }
        pagemap_set_home(engine->map, chunk, 1, PAGEMAP_NO_SUBHOST);
        pagemap_set_home(engine->map, chunk, 0, pageout_place(pageout, to, 0));
        pagemap_set_home(engine->map, chunk, 1, pageout_place(pageout, to, 1));
        return true;
    }
    to->n = 0;
    return pageout_may_drop(pageout, &homes);
}

enum pageout_turn pageout_turn_of(const struct pageout *pageout, const struct pageout_to *to)
{
    for (unsigned i = 0; i < to->n; i++) {
        const struct pageout_host *host = to->host[i];
        if (host && host->batches >= pageout->host_batches) {
            return pageout->now_us < host->link.owed_us + PAGEOUT_SLOW_US ? PAGEOUT_WAIT
                                                                          : PAGEOUT_SKIP;
        }
    }
    return pageout->used < pageout->n_batches ? PAGEOUT_GO : PAGEOUT_WAIT;
}

static int64_t pageout_target(const struct pageout *pageout)
{
    const struct engine *engine = pageout->engine;
    int64_t low = atomic_load_explicit(&engine->low, memory_order_relaxed);
    int64_t most = atomic_load_explicit(&engine->limit, memory_order_relaxed) -
                   (int64_t)PAGEOUT_BATCH_PAGES;

    return low < most ? low : most;
}

int64_t pageout_excess(const struct pageout *pageout)
{
    return atomic_load_explicit(&pageout->engine->resident, memory_order_acquire) -
           pageout->leaving - pageout_target(pageout);
}

/* From the high watermark, or the first fault that waits, to the low one. */
static bool pageout_wanted(struct pageout *pageout)
{
    const struct engine *engine = pageout->engine;
    int64_t resident = atomic_load_explicit(&engine->resident, memory_order_acquire);

    if (resident > atomic_load_explicit(&engine->high, memory_order_relaxed) ||
        atomic_load_explicit(&engine->parked, memory_order_acquire)) {
        pageout->under_way = true;
    }
    pageout->under_way = pageout->under_way && pageout_excess(pageout) > 0;
    return pageout->under_way;
}

/* engine.move_lock held: a batch of the current victim.  Return: false to wait for answers first. */
static bool pageout_step_locked(struct pageout *pageout)
{
    struct engine *engine = pageout->engine;
    uint64_t chunk = pageout->victims[pageout->at_victim];
    const struct layout_block *block = layout_by_flat(engine->layout, chunk * CHUNK_BYTES);
    uint64_t end = (chunk + 1) * CHUNK_PAGES;
    uint64_t most = engine->config.granule / PAGE_BYTES;
    struct pageout_to to;
    /* It was chosen a while ago: the connection may have broken since. */
    bool may = block && !pageout_fenced(pageout, chunk) && pageout_assign(pageout, chunk, &to);
    enum pageout_turn turn = may ? pageout_turn_of(pageout, &to) : PAGEOUT_SKIP;

    if (turn == PAGEOUT_WAIT) {
        return false;
    }
    if (turn == PAGEOUT_SKIP) {
        pageout->at_victim++;
        pageout->cursor = PAGEOUT_NO_CHUNK;
        return true;
    }
    end = end < page_end(block) ? end : page_end(block);
    most = most < PAGEOUT_BATCH_PAGES ? most : PAGEOUT_BATCH_PAGES;
    uint64_t first = pageout->cursor == PAGEOUT_NO_CHUNK ? chunk * CHUNK_PAGES : pageout->cursor;
    uint64_t n = end - first < most ? end - first : most;
    batch_begin(pageout, &to, first, (unsigned)n, UINT64_MAX);
    pageout->cursor = first + n;
    if (pageout->cursor >= end) {
        pageout->at_victim++;
        pageout->cursor = PAGEOUT_NO_CHUNK;
    }
    return true;
}

/* Begin a batch of the current victim.  Return: false to wait for answers first. */
static bool pageout_step(struct pageout *pageout)
{
    pthread_mutex_lock(&pageout->engine->move_lock);
    bool more = pageout_step_locked(pageout);
    pthread_mutex_unlock(&pageout->engine->move_lock);
    return more;
}

/* Begin what can be begun. */
static void pageout_fill(struct pageout *pageout)
{
    bool chosen = false;

    while (pageout->now_us >= pageout->idle_until_us && pageout_excess(pageout) > 0) {
        if (pageout->at_victim == pageout->n_victims) {
            if (chosen && pageout->used == 0) {
                pageout->idle_until_us = pageout->now_us + PAGEOUT_IDLE_US;
            }
            if (chosen) {
                return;
            }
            pageout_choose(pageout, pageout_excess(pageout));
            chosen = true;
        } else if (!pageout_step(pageout)) {
            return;
        }
    }
}

static void pageout_attend(struct pageout *pageout)
{
    for (unsigned i = 0; i < pageout->engine->config.n_subhosts; i++) {
        struct pageout_host *host = &pageout->hosts[i];
        if (link_take(&host->link)) {
            struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                        .data.u64 = i};
            epoll_ctl(pageout->epoll, EPOLL_CTL_ADD, host->link.channel.fd, &event);
            host->full_us = 0;
            if (atomic_load(&host->link.host->stale)) {
                atomic_store(&host->link.host->stale_us, pageout->now_us + PAGEOUT_FENCE_US);
                atomic_store(&host->link.host->stale, false);
            }
        }
        if (link_silent(&host->link, pageout->now_us)) {
            batch_host_broken(pageout, host, "no answer");
        }
    }
}

static bool pageout_turn(struct pageout *pageout)
{
    bool busy = false;

    pageout->now_us = units_now_us();
    pageout_attend(pageout);
    if (atomic_load_explicit(&pageout->engine->trim_chunks, memory_order_relaxed)) {
        trim_begin(pageout);
    }
    bool wanted = pageout_wanted(pageout);
    if (wanted && pageout->engine->sweep) {
        sweep_fill(pageout);
    } else if (wanted) {
        pageout_fill(pageout);
    }
    place_tell(pageout, wanted);
    busy |= batch_backup_events(pageout);
    for (unsigned i = 0; i < pageout->engine->config.n_subhosts; i++) {
        struct pageout_host *host = &pageout->hosts[i];
        if (link_up(&host->link) && (host->link.owed || host->send_first)) {
            busy |= batch_host_events(pageout, host);
        }
    }
    return busy;
}

static void pageout_sleep(struct pageout *pageout)
{
    struct epoll_event events[16];
    bool waits = pageout->used > 0;
    int timeout = waits ? PAGEOUT_TICK_MS : -1;

    if (pageout_wanted(pageout)) {
        timeout = PAGEOUT_TICK_MS; /* nothing can be chosen now; kicks do not help */
    } else {
        atomic_store(&pageout->active, false);
        if (pageout_wanted(pageout)) {
            timeout = 0;
        }
    }
    if ((atomic_load(&pageout->engine->trim_chunks) || pageout->full_told) && timeout < 0) {
        timeout = PAGEOUT_TICK_MS;
    }
    for (unsigned i = 0; i < pageout->engine->config.n_subhosts; i++) {
        const struct link *link = &pageout->hosts[i].link;
        if (link_up(link) && link->owed && channel_more(&link->channel)) {
            timeout = 0;
        }
    }
    int n = epoll_wait(pageout->epoll, events, 16, timeout);
    atomic_store(&pageout->active, true);
    for (int i = 0; i < n; i++) {
        uint64_t source = events[i].data.u64;
        uint64_t count;
        if (source == PAGEOUT_POLL_KICK) {
            ssize_t ignored = read(pageout->kick, &count, sizeof(count));
            (void)ignored;
            pageout->idle_until_us = pageout->pick.since_us ? 0 : pageout->idle_until_us;
        } else if (link_up(&pageout->hosts[source].link) && !pageout->hosts[source].link.owed) {
            ssize_t got = link_receive(&pageout->hosts[source].link);
            if (got != 0) {
                batch_host_broken(pageout, &pageout->hosts[source], "it was closed");
            }
        }
    }
}

static void *pageout_main(void *arg)
{
    struct pageout *pageout = arg;

    unhurried_thread();
    while (!engine_over(pageout->engine)) {
        if (!pageout_turn(pageout)) {
            pageout_sleep(pageout);
        }
    }
    return NULL;
}

static int pageout_prepare(struct pageout *pageout)
{
    struct engine *engine = pageout->engine;
    unsigned n = engine->config.n_subhosts;
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = PAGEOUT_POLL_KICK};

    pageout->n_batches = n * PAGEOUT_HOST_BATCHES;
    pageout->n_batches = pageout->n_batches > PAGEOUT_MAX_BATCHES ? PAGEOUT_MAX_BATCHES
                                                                  : pageout->n_batches;
    pageout->host_batches = n ? pageout->n_batches / n : 0;
    pageout->hosts = calloc(n + 1, sizeof(*pageout->hosts));
    pageout->batch = calloc(pageout->n_batches + 1, sizeof(*pageout->batch));
    /* Victims by chunk only: where a sweep chooses pages, this would be memory for nothing. */
    pageout->candidates =
        calloc(engine->sweep ? 1 : engine->map->n_chunks, sizeof(*pageout->candidates));
    pageout->epoll = epoll_create1(EPOLL_CLOEXEC);
    pageout->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!pageout->hosts || !pageout->batch || !pageout->candidates || pageout->epoll < 0 ||
        pageout->kick < 0 ||
        epoll_ctl(pageout->epoll, EPOLL_CTL_ADD, pageout->kick, &event) < 0) {
        return -ENOMEM;
    }
    for (unsigned i = 0; i < pageout->n_batches; i++) {
        pageout->batch[i].contents = engine_buffer(PAGEOUT_BATCH_PAGES * PAGE_BYTES);
        if (!pageout->batch[i].contents) {
            return -ENOMEM;
        }
    }
    for (unsigned i = 0; i < n; i++) {
        int err = link_open(&pageout->hosts[i].link, &engine->hosts[i], false, pageout->kick,
                            PAGEOUT_RX, sizeof(struct nbd_request));
        if (err < 0) {
            return err;
        }
    }
    return 0;
}

int pageout_start(struct engine *engine)
{
    struct pageout *pageout = calloc(1, sizeof(*pageout));

    if (!pageout) {
        return -ENOMEM;
    }
    pageout->engine = engine;
    pageout->cursor = PAGEOUT_NO_CHUNK;
    pageout->seed = units_now_us() | 1;
    pageout->epoll = pageout->kick = -1;
    atomic_store(&pageout->active, true);
    engine->pageout = pageout;
    int err = pageout_prepare(pageout);
    err = err < 0 || !engine->backup ? err : backup_start(engine->backup, pageout->kick);
    err = err < 0 ? err : engine_thread(&pageout->thread, "pageout", 0, pageout_main, pageout);
    pageout->started = err == 0;
    return err;
}

void pageout_join(struct engine *engine)
{
    struct pageout *pageout = engine->pageout;

    if (pageout && pageout->started) {
        engine_kick(pageout->kick);
        pthread_join(pageout->thread, NULL);
        pageout->started = false;
    }
    if (engine->backup) {
        backup_stop(engine->backup);
    }
}

/* Batches under way are given up: their pages are LOCAL, or REMOTE as far as acknowledged. */
void pageout_free(struct engine *engine)
{
    struct pageout *pageout = engine->pageout;

    if (!pageout) {
        return;
    }
    batch_backup_events(pageout);
    for (unsigned i = 0; pageout->hosts && i < engine->config.n_subhosts; i++) {
        if (pageout->hosts[i].batches) {
            batch_host_broken(pageout, &pageout->hosts[i], "the engine stops");
        }
        link_close(&pageout->hosts[i].link);
    }
    for (unsigned i = 0; pageout->batch && i < pageout->n_batches; i++) {
        engine_buffer_free(pageout->batch[i].contents, PAGEOUT_BATCH_PAGES * PAGE_BYTES);
    }
    close(pageout->epoll);
    close(pageout->kick);
    engine->pageout = NULL;
    free((void *)pageout->candidates);
    free(pageout->batch);
    free(pageout->hosts);
    free(pageout);
}

void pageout_kick(struct engine *engine)
{
    struct pageout *pageout = engine->pageout;

    if (pageout && !atomic_load(&pageout->active) && !atomic_exchange(&pageout->active, true)) {
        engine_kick(pageout->kick);
    }
}
