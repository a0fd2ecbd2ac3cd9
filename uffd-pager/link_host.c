// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * link_host.c - one thread a sub-host: has links connected, judges trouble, tells the operator
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "uffd-pager/homes.h"
#include "uffd-pager/install.h"
#include "uffd-pager/link_dial.h"
#include "uffd-pager/uffd_abi.h"

#define LINK_JUDGE_MS 50u
#define LINK_SETTLED_US 1000000u
#define LINK_ROOM_MS 500 /* for an answer about room */
#define LINK_POLL_US 1000000u /* a sub-host that watches its headroom is asked what it wants back */
#define LINK_POLL_AGAIN_US 5000000u
#define LINK_GATHER_US 200000u /* lost pages come in crowds: count for a while, tell once */
#define LINK_TELL_PAGES_US 1000000u
#define LINK_HANDSHAKE_MAX_MS 3000
#define LINK_HANDSHAKE_MIN_MS 200

void link_trouble(struct link_host *host, uint64_t since_us)
{
    uint64_t none = 0;

    atomic_compare_exchange_strong_explicit(&host->trouble_us, &none, since_us,
                                            memory_order_acq_rel, memory_order_relaxed);
}

void link_write_trouble(struct link_host *host, uint64_t since_us)
{
    uint64_t none = 0;

    atomic_compare_exchange_strong_explicit(&host->write_trouble_us, &none, since_us,
                                            memory_order_acq_rel, memory_order_relaxed);
}

void link_lost_page(struct link_host *host, bool refused)
{
    if (refused) {
        atomic_store_explicit(&host->refused, true, memory_order_relaxed);
    }
    if (atomic_fetch_add_explicit(&host->lost_pages, 1, memory_order_relaxed) == 0) {
        pthread_mutex_lock(&host->lock);
        pthread_cond_signal(&host->changed);
        pthread_mutex_unlock(&host->lock);
    }
}

bool link_give_up(struct link_host *host)
{
    if (!link_host_lost(host)) {
        return false;
    }
    if (host->engine->config.lost_action == ENGINE_LOSS_POISON) {
        return true;
    }
    atomic_store_explicit(&host->waited, true, memory_order_relaxed);
    return false;
}

static void link_event(struct link_host *host, const char *name, const char *reason)
{
    engine_event(host->engine, name,
                 json_pack("{s:s, s:s}", "subhost", link_subhost(host)->name, "reason", reason));
}

/*
 * The server or the region is gone for good, as far as anybody can tell: the copies of CLEAN pages
 * there cannot be relied on, so what is here must not be dropped unsent.
 */
static void link_demote_chunk(struct engine *engine, uint64_t chunk)
{
    const struct layout_block *block = layout_by_flat(engine->layout, chunk * CHUNK_BYTES);
    uint64_t end = (chunk + 1) * CHUNK_PAGES;

    if (!block) {
        return;
    }
    end = end < page_end(block) ? end : page_end(block);
    for (uint64_t page = chunk * CHUNK_PAGES; page < end; page++) {
        if (pagemap_lock(engine->map, page, PAGE_CLEAN)) {
            uffd_unprotect(engine->uffd, page_hva(block, page), PAGE_BYTES);
            page_unlock(engine, block, page, PAGE_LOCAL);
        }
    }
}

/* Has it copies of the chunk, and no other place that can be counted on? */
static bool link_has_alone(const struct link_host *host, uint64_t chunk)
{
    struct homes homes = homes_of(host->engine, chunk);
    bool alone = homes_have(&homes, (uint8_t)host->index);

    for (unsigned i = 0; i < homes.n; i++) {
        uint8_t place = homes.place[i];
        alone = alone && (place == host->index || !homes_good(host->engine, place) ||
                          (place != PAGEMAP_BACKUP && atomic_load(&host->engine->hosts[place].refused)));
    }
    return alone;
}

static void link_demote(struct link_host *host)
{
    struct engine *engine = host->engine;

    for (uint64_t chunk = 0; chunk < engine->map->n_chunks && !engine_over(engine); chunk++) {
        if (link_has_alone(host, chunk) &&
            atomic_load_explicit(&engine->chunk_resident[chunk], memory_order_relaxed)) {
            link_demote_chunk(engine, chunk);
        }
    }
}

static void link_tell_lost_pages(struct link_host *host, uint64_t now_us)
{
    const char *reason = host->refused ? "the sub-host or its region is not there any more"
                                       : "the sub-host could not be reached";

    if (atomic_load_explicit(&host->lost_pages, memory_order_relaxed) == 0) {
        host->lost_seen_us = 0;
        return;
    }
    if (!host->lost_seen_us) {
        host->lost_seen_us = now_us;
    }
    if (now_us < host->lost_seen_us + LINK_GATHER_US ||
        now_us < host->told_pages_us + LINK_TELL_PAGES_US) {
        return;
    }
    uint64_t pages = atomic_exchange_explicit(&host->lost_pages, 0, memory_order_relaxed);
    if (pages) {
        host->told_pages_us = now_us;
        log_error("%llu pages on sub-host '%s' are lost: %s", (unsigned long long)pages,
                  link_subhost(host)->name, reason);
        engine_event(host->engine, "PAGES_LOST",
                     json_pack("{s:s, s:I, s:s}", "subhost", link_subhost(host)->name, "pages",
                               (json_int_t)pages, "reason", reason));
    }
}

static void link_kick_all(struct link_host *host)
{
    pthread_mutex_lock(&host->lock);
    for (struct link *link = host->links; link; link = link->next) {
        engine_kick(link->kick);
    }
    pthread_mutex_unlock(&host->lock);
}

/* The guest runs while no sub-host wants it stopped. */
static void link_pause(struct link_host *host, bool pause)
{
    struct engine *engine = host->engine;

    if (host->paused == pause || !engine->config.pause) {
        return;
    }
    host->paused = pause;
    pthread_mutex_lock(&engine->pause_lock);
    engine->pausing += pause ? 1 : -1u;
    bool edge = engine->pausing == (pause ? 1 : 0);
    if (edge) {
        engine->config.pause(engine->config.opaque, pause);
    }
    pthread_mutex_unlock(&engine->pause_lock);
    if (edge && pause) {
        log_error("the guest is stopped until sub-host '%s' is back", link_subhost(host)->name);
        link_event(host, "GUEST_PAUSED", "it touched a page of a sub-host that does not answer");
    } else if (edge) {
        log_info("the guest runs again");
        link_event(host, "GUEST_RESUMED", "the sub-host is back");
    }
}

static void link_judge_good(struct link_host *host)
{
    atomic_store_explicit(&host->waited, false, memory_order_relaxed);
    link_pause(host, false);
    if (host->told) {
        host->told = false;
        atomic_store_explicit(&host->lost, false, memory_order_release);
        log_info("sub-host '%s' is back", link_subhost(host)->name);
        link_event(host, "SUBHOST_BACK", "it answers again");
    }
    if (atomic_load_explicit(&host->lost_pages, memory_order_relaxed) == 0) {
        atomic_store_explicit(&host->refused, false, memory_order_relaxed);
        host->demoted = false;
    }
}

/* Is page-out's link up, and has it been for so long that it would have broken again? */
static bool link_sends_again(struct link_host *host, uint64_t now_us)
{
    bool up = false;

    pthread_mutex_lock(&host->lock);
    for (const struct link *link = host->links; link; link = link->next) {
        up = up || (!link->strict && !link->wanted &&
                    now_us > link->made_us + LINK_SETTLED_US + (uint64_t)host->timeout_ms * 1000);
    }
    pthread_mutex_unlock(&host->lock);
    return up;
}

/* For how long could no pages be sent to a sub-host that answers?  Thread only, without the lock. */
static void link_judge_writes(struct link_host *host, const char *why, uint64_t now_us)
{
    uint64_t since = atomic_load_explicit(&host->write_trouble_us, memory_order_acquire);
    unsigned patience_ms = host->engine->config.lost_after_ms;

    if (since && link_sends_again(host, now_us)) {
        atomic_store_explicit(&host->write_trouble_us, 0, memory_order_release);
        since = 0;
    }
    if (!since && link_unwritable(host)) {
        atomic_store_explicit(&host->unwritable, false, memory_order_release);
        log_info("pages can be sent to sub-host '%s' again", link_subhost(host)->name);
        link_event(host, "SUBHOST_WRITABLE", "it takes them again");
    }
    since = since && since < host->told_until_us ? host->told_until_us : since;
    if (since && !link_unwritable(host) && now_us > since + (uint64_t)patience_ms * 1000) {
        atomic_store_explicit(&host->unwritable, true, memory_order_release);
        log_error("no pages can be sent to sub-host '%s': it answers, but has taken none for %u ms (%s); "
                  "what it has is read there, %s",
                  link_subhost(host)->name, patience_ms, why,
                  host->engine->config.redundancy ? "and second copies are made elsewhere"
                                                  : "and new pages go elsewhere");
        link_event(host, "SUBHOST_UNWRITABLE", why);
    }
}

/* Look at how long trouble has lasted.  Thread only, without the lock. */
static void link_judge(struct link_host *host, const char *why, uint64_t now_us)
{
    uint64_t since = atomic_load_explicit(&host->trouble_us, memory_order_acquire);
    struct engine *engine = host->engine;

    link_tell_lost_pages(host, now_us);
    bool gone = link_host_lost(host) && engine->config.lost_action == ENGINE_LOSS_POISON;
    if (!host->demoted && (gone || atomic_load(&host->refused))) {
        host->demoted = true;
        link_demote(host);
    }
    if (host->told) { /* says it all; and links come back one after the other */
        host->told_until_us = now_us;
    }
    if (since == 0) {
        link_judge_good(host);
        link_judge_writes(host, host->why_no_writes.text, now_us);
        return;
    }
    if (!host->told && now_us > since + LINK_TELL_US) {
        host->told = true;
        log_warn("sub-host '%s' does not answer: %s", link_subhost(host)->name, why);
        link_event(host, "SUBHOST_LOST", why);
    }
    if (!link_host_lost(host) && now_us > since + (uint64_t)engine->config.lost_after_ms * 1000) {
        if (!host->told) {
            host->told = true;
            link_event(host, "SUBHOST_LOST", why);
        }
        static const char *const then[] = {
            [ENGINE_LOSS_POISON] = "pages touched there are memory errors",
            [ENGINE_LOSS_WAIT] = "the guest waits for it",
            [ENGINE_LOSS_PAUSE] = "the guest is stopped when it touches a page there"};
        log_error("sub-host '%s' is lost: it has not answered for %u ms; %s",
                  link_subhost(host)->name, engine->config.lost_after_ms,
                  engine->config.redundancy ? "what it had is read elsewhere, and copied again"
                                            : then[engine->config.lost_action]);
        atomic_store_explicit(&host->lost, true, memory_order_release);
        link_kick_all(host);
    }
    if (link_host_lost(host) && engine->config.lost_action == ENGINE_LOSS_PAUSE &&
        atomic_load_explicit(&host->waited, memory_order_relaxed)) {
        link_pause(host, true);
    }
}

static struct link *link_next_wanted(struct link_host *host, uint64_t now_us, uint64_t *next_us)
{
    for (struct link *link = host->links; link; link = link->next) {
        if (link->wanted && link->retry_us <= now_us) {
            return link;
        }
        if (link->wanted && link->retry_us < *next_us) {
            *next_us = link->retry_us;
        }
    }
    return NULL;
}

/* The link may have been closed while we were connecting: find it again. Lock held. */
static bool link_still_there(const struct link_host *host, const struct link *wanted)
{
    for (const struct link *link = host->links; link; link = link->next) {
        if (link == wanted) {
            return link->wanted;
        }
    }
    return false;
}

/* Does one of its links for READs wait for a connection?  Lock held. */
static bool link_reads_down(const struct link_host *host)
{
    bool down = false;

    for (const struct link *link = host->links; link; link = link->next) {
        down = down || (link->strict && link->wanted);
    }
    return down;
}

/*
 * There is no connection to send pages by.  Whether the sub-host is in trouble altogether, another
 * one for READs shows: those there are may be idle, as the guest need not touch anything there.  If
 * one of them is down, what becomes of that shows it.
 * Called with the lock, which is dropped meanwhile.  Return: 1: it answers; 0: it does not; -1: not known.
 */
static int link_probe(struct link_host *host)
{
    struct channel channel;
    struct reason reason = {""};

    if (link_reads_down(host)) {
        return -1;
    }
    bool try = atomic_load_explicit(&host->reads_unanswered, memory_order_relaxed);
    pthread_mutex_unlock(&host->lock);
    int err = link_dial(host, true, try, &channel, &reason);
    if (!err) {
        channel_close(&channel);
    }
    pthread_mutex_lock(&host->lock);
    return link_reads_down(host) ? -1 : !err;
}

/* Called with the lock, which is dropped meanwhile. */
static void link_connect(struct link_host *host, struct link *link, struct reason *reason)
{
    struct channel *channel = malloc(sizeof(*channel));
    bool strict = link->strict;
    _Atomic bool *unanswered = strict ? &host->reads_unanswered : &host->writes_unanswered;
    bool try = atomic_load_explicit(unanswered, memory_order_relaxed);

    pthread_mutex_unlock(&host->lock);
    uint64_t began = units_now_us();
    int err = channel ? link_dial(host, strict, try, channel, reason) : -ENOMEM;
    pthread_mutex_lock(&host->lock);
    int answers = -1;
    if (err && !strict) {
        host->why_no_writes = *reason;
        link_write_trouble(host, began);
        answers = link_probe(host);
    }
    uint64_t now = units_now_us();
    if (answers > 0) {
        host->answered_us = now;
        atomic_store_explicit(&host->trouble_us, 0, memory_order_release);
    } else if (err) {
        if (err == -ECONNREFUSED || err == -ENOENT) {
            atomic_store_explicit(&host->refused, true, memory_order_relaxed);
        }
        /*
         * One that does not answer now may have been silent since page-out's link broke.  If it has
         * answered since, it may be slow for once: it is tried again before it is told of.  Where reading
         * is down as well, a link for WRITEs says nothing of the time before.
         */
        uint64_t since = answers == 0 ? atomic_load(&host->write_trouble_us) : strict ? began : now;
        link_trouble(host, since > host->answered_us ? since : now);
    }
    if (!link_still_there(host, link)) {
        if (!err) {
            channel_close(channel);
        }
        free(channel);
        return;
    }
    if (err) {
        free(channel);
        link->backoff_ms = link->backoff_ms ? link->backoff_ms * 2 : 10;
        link->backoff_ms = link->backoff_ms > 1000 ? 1000 : link->backoff_ms;
        link->retry_us = now + (uint64_t)link->backoff_ms * 1000;
        return;
    }
    bool tried = try && !channel->rdma;
    link->wanted = false;
    link->made_us = now;
    host->poll_us = 0; /* it may be another server, with other options */
    atomic_store_explicit(&link->fresh, channel, memory_order_release);
    engine_kick(link->kick);
    if (try) {
        atomic_store_explicit(unanswered, false, memory_order_relaxed);
    }
    /* A handshake is an answer, unless links break right after it. */
    if (tried || link->backoff_ms <= 10 || link_host_lost(host) || host->told) {
        atomic_store_explicit(&host->trouble_us, 0, memory_order_release);
    }
    if (!strict && (tried || link->backoff_ms <= 10 || link_unwritable(host))) {
        atomic_store_explicit(&host->write_trouble_us, 0, memory_order_release);
    }
}

static void link_wait(struct link_host *host, uint64_t until_us)
{
    if (until_us == UINT64_MAX) {
        pthread_cond_wait(&host->changed, &host->lock);
        return;
    }
    struct timespec at = {.tv_sec = (time_t)(until_us / 1000000),
                          .tv_nsec = (long)(until_us % 1000000) * 1000};
    pthread_cond_timedwait(&host->changed, &host->lock, &at);
}

void link_ask_room(struct link_host *host)
{
    if (!atomic_exchange_explicit(&host->ask, true, memory_order_acq_rel)) {
        pthread_mutex_lock(&host->lock);
        pthread_cond_signal(&host->changed);
        pthread_mutex_unlock(&host->lock);
    }
}

void link_note_risk(struct link_host *host, uint64_t bytes)
{
    if (atomic_exchange_explicit(&host->at_risk, bytes, memory_order_acq_rel) != bytes) {
        pthread_mutex_lock(&host->lock);
        pthread_cond_signal(&host->changed);
        pthread_mutex_unlock(&host->lock);
    }
}

/* When to ask the sub-host next, or to tell it.  Thread only. */
static uint64_t link_query_due(const struct link_host *host)
{
    bool note = link_subhost(host)->control.host[0] && host->noted != atomic_load(&host->at_risk) &&
                !atomic_load_explicit(&host->trouble_us, memory_order_relaxed);

    return note && host->note_us < host->poll_us ? host->note_us : host->poll_us;
}

/* A sub-host short of memory tells which slabs it would have back (docs/protocols.md). */
static void link_hear_wanted(struct link_host *host, const json_t *answer)
{
    const json_t *slab;
    size_t i;

    host->poll_us = json_integer_value(json_object_get(answer, "headroom")) > 0
                        ? units_now_us() + LINK_POLL_US
                        : UINT64_MAX;
    json_array_foreach(json_object_get(answer, "wanted"), i, slab) {
        json_int_t offset = json_integer_value(json_array_get(slab, 0));
        json_int_t length = json_integer_value(json_array_get(slab, 1));
        if (offset >= 0 && length > 0) {
            drain_want(host->engine, host->index, (uint64_t)offset, (uint64_t)length);
        }
    }
}

/* Its operator is shown how safe what it has is. */
static json_t *link_query_args(const struct link_host *host, uint64_t at_risk)
{
    const struct engine_subhost *subhost = link_subhost(host);
    json_t *args = json_pack("{s:s, s:s, s:I}", "name", subhost->region, "redundancy",
                             engine_redundancy_name(host->engine->config.redundancy), "at_risk",
                             (json_int_t)at_risk);

    if (subhost->ticket[0]) {
        json_object_set_new(args, "ticket", json_string(subhost->ticket));
    }
    return args;
}

/* Thread only, without the lock. */
static int link_query_room(struct link_host *host, uint64_t *room, struct reason *reason)
{
    const struct engine_subhost *subhost = link_subhost(host);
    uint64_t at_risk = atomic_load(&host->at_risk);
    json_t *answer = NULL;
    int err = 0;

    stats_add(&host->engine->stats.room_asked, 1);
    if (!host->control) {
        err = control_connect(&host->control, &subhost->control, LINK_ROOM_MS, reason);
    }
    if (!err) {
        err = control_call(host->control, "region-query", link_query_args(host, at_risk), &answer,
                           LINK_ROOM_MS, reason);
    }
    const json_t *bytes = json_object_get(answer, "room");
    if (!err && json_is_integer(bytes) && json_integer_value(bytes) >= 0) {
        *room = (uint64_t)json_integer_value(bytes);
        host->noted = at_risk;
        link_hear_wanted(host, answer);
    } else if (!err) {
        err = -EPROTO;
    }
    json_decref(answer);
    return err;
}

/* A sub-host that does not say how much room it has may still be used, after those that do. */
static void link_tell_room(struct link_host *host)
{
    uint64_t room = LINK_ROOM_UNKNOWN;
    struct reason reason = {""};

    bool asked = atomic_load_explicit(&host->ask, memory_order_acquire);

    if (!asked && units_now_us() < link_query_due(host)) {
        return;
    }
    host->note_us = units_now_us() + LINK_POLL_US;
    host->poll_us = link_subhost(host)->control.host[0] ? units_now_us() + LINK_POLL_AGAIN_US
                                                         : UINT64_MAX;
    if (link_subhost(host)->control.host[0] && link_query_room(host, &room, &reason) < 0) {
        host->note_us = host->poll_us;
        log_debug("sub-host '%s' does not say how much room it has: %s", link_subhost(host)->name,
                  reason.text);
        control_close(host->control);
        host->control = NULL;
    }
    atomic_store_explicit(&host->room, room, memory_order_relaxed);
    atomic_store_explicit(&host->room_us, units_now_us(), memory_order_release);
    if (asked) {
        atomic_store_explicit(&host->ask, false, memory_order_release);
        link_kick_all(host);
    }
}

static void *link_host_main(void *arg)
{
    struct link_host *host = arg;
    struct reason why = {"it is silent"};

    pthread_mutex_lock(&host->lock);
    while (!host->stop) {
        uint64_t now = units_now_us();
        uint64_t next = UINT64_MAX;
        struct link *link = link_next_wanted(host, now, &next);
        if (link) {
            link_connect(host, link, &why);
        }
        pthread_mutex_unlock(&host->lock);
        link_judge(host, why.text, units_now_us());
        link_tell_room(host);
        pthread_mutex_lock(&host->lock);
        if (link || host->stop || atomic_load(&host->ask)) {
            continue;
        }
        if (host->told || !link_takes(host) || link_unwritable(host) || atomic_load(&host->lost_pages)) {
            uint64_t judge = now + LINK_JUDGE_MS * 1000;
            next = next < judge ? next : judge;
        }
        uint64_t query = link_query_due(host);
        link_wait(host, next < query ? next : query);
    }
    pthread_mutex_unlock(&host->lock);
    return NULL;
}

static void link_host_init(struct link_host *host, struct engine *engine, unsigned index)
{
    pthread_condattr_t attr;
    int timeout = (int)(engine->config.lost_after_ms / 3);

    timeout = timeout < LINK_HANDSHAKE_MIN_MS ? LINK_HANDSHAKE_MIN_MS : timeout;
    host->timeout_ms = timeout > LINK_HANDSHAKE_MAX_MS ? LINK_HANDSHAKE_MAX_MS : timeout;
    host->engine = engine;
    host->index = index;
    host->poll_us = UINT64_MAX;
    snprintf(host->why_no_writes.text, sizeof(host->why_no_writes.text), "its connections break");
    pthread_mutex_init(&host->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&host->changed, &attr);
    pthread_condattr_destroy(&attr);
}

int link_hosts_start(struct engine *engine)
{
    unsigned n = engine->config.n_subhosts;

    engine->hosts = calloc(n ? n : 1, sizeof(*engine->hosts));
    if (!engine->hosts) {
        return -ENOMEM;
    }
    for (unsigned i = 0; i < n; i++) {
        struct link_host *host = &engine->hosts[i];
        link_host_init(host, engine, i);
        int err = engine_thread(&host->thread, "subhost", i, link_host_main, host);
        if (err < 0) {
            return err;
        }
        host->started = true;
    }
    return 0;
}

void link_hosts_stop(struct engine *engine)
{
    for (unsigned i = 0; engine->hosts && i < engine->config.n_subhosts; i++) {
        struct link_host *host = &engine->hosts[i];
        if (!host->started) {
            continue;
        }
        pthread_mutex_lock(&host->lock);
        host->stop = true;
        pthread_cond_signal(&host->changed);
        pthread_mutex_unlock(&host->lock);
        pthread_join(host->thread, NULL);
        control_close(host->control);
        link_pause(host, false); /* who comes next judges anew */
        pthread_mutex_destroy(&host->lock);
        pthread_cond_destroy(&host->changed);
    }
    free(engine->hosts);
    engine->hosts = NULL;
}
