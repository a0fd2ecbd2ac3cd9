// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * fault_fetch.c - page-in: READs on a fault thread's own links
 *
 * A READ's cookie is its slot and the slot's generation.  A connection that breaks is replaced, and
 * what was owed on it is asked again; to read a page that only we may change is idempotent.
 *
 * A chunk may have two places.  The first that is well is asked; the other one if that does not have
 * the page, is not connected, or has been silent for LINK_LATE_US while it owes answers.  An answer
 * that comes all the same is thrown away.  A page of the backup is read by the backup's own threads.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "uffd-pager/fault.h"
#include "uffd-pager/uffd_abi.h"

#define FETCH_RX (64u * (sizeof(struct nbd_simple_reply) + PAGE_BYTES))

static uint64_t fetch_cookie(const struct fault_thread *thread, const struct fault_request *slot)
{
    return (uint64_t)slot->generation << 16 | (uint64_t)(slot - thread->slot);
}

static void fetch_free(struct fault_thread *thread, struct fault_request *slot)
{
    slot->used = false;
    slot->generation++;
    slot->next = thread->free_slot;
    thread->free_slot = (uint16_t)(slot - thread->slot);
    thread->in_flight--;
}

static const struct layout_block *fetch_block(const struct fault_thread *thread, uint64_t page)
{
    return layout_by_flat(thread->engine->layout, page * PAGE_BYTES);
}

static void fetch_lost(struct fault_thread *thread, struct fault_request *slot, bool refused)
{
    struct engine *engine = thread->engine;

    install_lost(engine, fetch_block(thread, slot->page), slot->page);
    if (slot->host < engine->config.n_subhosts) {
        link_lost_page(&engine->hosts[slot->host], refused);
    }
    fetch_free(thread, slot);
}

static void fetch_send(struct fault_thread *thread, struct fault_request *slot)
{
    struct link *link = &thread->links[slot->host];

    slot->sent = link_up(link) && link_queue(link, NBD_CMD_READ, fetch_cookie(thread, slot),
                                             slot->page * PAGE_BYTES, (uint32_t)PAGE_BYTES);
    if (slot->sent) {
        link_sent(link, thread->now_us);
    }
}

static bool fetch_is_late(const struct fault_thread *thread, uint8_t place)
{
    const struct link *link = &thread->links[place];

    return link->owed && thread->now_us > link->owed_us + LINK_LATE_US;
}

static bool fetch_is_well(const struct fault_thread *thread, uint8_t place)
{
    return homes_good(thread->engine, place) && link_up(&thread->links[place]) &&
           !fetch_is_late(thread, place);
}

/*
 * Where to read a page: sub-hosts that are well, in order, then the backup, then the first that does
 * not lack it.  Return: PAGEMAP_NO_SUBHOST: no place has it.
 */
static uint8_t fetch_choose(const struct fault_thread *thread, const struct homes *homes,
                            uint16_t missing)
{
    uint8_t otherwise = PAGEMAP_NO_SUBHOST;

    for (unsigned i = 0; i < homes->n; i++) {
        if (homes->place[i] != PAGEMAP_BACKUP && homes->place[i] != missing &&
            fetch_is_well(thread, homes->place[i])) {
            return homes->place[i];
        }
    }
    for (unsigned i = homes->n; i-- > 0;) {
        if (homes->place[i] != missing) {
            otherwise = otherwise == PAGEMAP_BACKUP ? otherwise : homes->place[i];
        }
    }
    return otherwise;
}

/* Is there any use in waiting for one of the places that may have the page? */
static bool fetch_give_up(const struct fault_thread *thread, const struct homes *homes,
                          uint16_t missing)
{
    bool all = true;

    for (unsigned i = 0; i < homes->n; i++) {
        uint8_t place = homes->place[i];
        if (place != missing && (place == PAGEMAP_BACKUP || link_up(&thread->links[place]) ||
                                 !link_give_up(&thread->engine->hosts[place]))) {
            all = false;
        }
    }
    return all;
}

/* Once asked, it is waited for: the readers have the slot's buffer. */
static void fetch_from_backup(struct fault_thread *thread, struct fault_request *slot)
{
    struct backup_read *read = &thread->disk_reads[slot - thread->slot];

    slot->host = PAGEMAP_BACKUP;
    slot->sent = true;
    read->answers = &thread->answers;
    read->page = slot->page;
    read->contents = thread->disk_pages + (size_t)(slot - thread->slot) * PAGE_BYTES;
    backup_fetch(thread->engine->backup, read);
}

/* Ask the best place there is now for a page that nobody has been asked for. */
static void fetch_route(struct fault_thread *thread, struct fault_request *slot)
{
    struct homes homes = homes_of(thread->engine, page_chunk(slot->page));
    uint8_t place = fetch_choose(thread, &homes, slot->missing);

    if (place == PAGEMAP_NO_SUBHOST) {
        if (homes.n == 0) {
            log_error("a page is on a sub-host that nobody knows");
        }
        fetch_lost(thread, slot, true);
    } else if (place == PAGEMAP_BACKUP) {
        fetch_from_backup(thread, slot);
    } else {
        slot->host = place;
        if (fetch_give_up(thread, &homes, slot->missing)) {
            fetch_lost(thread, slot, false);
            return;
        }
        fetch_send(thread, slot);
        if (slot->sent && homes.n > 1 && place != homes.place[0]) {
            stats_add(&thread->engine->stats.fell_over, 1);
        }
    }
}

void fetch_begin(struct fault_thread *thread, uint64_t page, bool write, uint64_t began_us)
{
    struct fault_request *slot = &thread->slot[thread->free_slot];

    thread->free_slot = slot->next;
    thread->in_flight++;
    slot->used = true;
    slot->sent = false;
    slot->page = page;
    slot->write = write;
    slot->began_us = began_us;
    slot->missing = PAGEMAP_NO_SUBHOST;
    slot->host = PAGEMAP_NO_SUBHOST;
    fetch_route(thread, slot);
}

static void fetch_done(struct fault_thread *thread, struct fault_request *slot, const void *contents)
{
    struct engine *engine = thread->engine;
    uint64_t page = slot->page;
    int err = install_fetched(engine, fetch_block(thread, page), page, contents,
                              slot->write || install_guess_written(engine, page));
    uint64_t began_us = slot->began_us;
    bool write = slot->write;

    fetch_free(thread, slot);
    if (err < 0) {
        fault_again(thread, page, write ? UFFD_PAGEFAULT_FLAG_WRITE : 0, began_us, err);
        return;
    }
    stats_record(&engine->stats.fault_us, units_now_us() - began_us);
    stats_add(&engine->stats.page_ins, 1);
    predictor_note(engine->predictor, page_chunk(page), PREDICTOR_FAULT);
    engine_arrived(engine, page, 1);
    prefetch_push(engine, page);
}

static bool fetch_receive_backup(struct fault_thread *thread)
{
    struct backup_read *next = backup_answer(&thread->answers);
    bool busy = next != NULL;

    while (next) {
        struct backup_read *read = next;
        struct fault_request *slot = &thread->slot[read - thread->disk_reads];
        next = read->next; /* before the slot is free for another */
        if (read->err < 0) {
            log_error("the backup cannot be read: %s", strerror(-read->err));
            slot->missing = PAGEMAP_BACKUP;
            slot->sent = false; /* looked at again in a moment */
        } else {
            stats_add(&thread->engine->stats.fell_over, 1);
            fetch_done(thread, slot, read->contents);
        }
    }
    return busy;
}

/* An answer that is not waited for any more. Return: as fetch_reply(). */
static int fetch_reply_late(struct fault_thread *thread, struct link *link,
                            const struct link_reply *reply)
{
    unsigned *given_up = &thread->given_up[link->host->index];
    uint32_t length = reply->error ? 0 : (uint32_t)PAGE_BYTES;

    if (!*given_up) {
        return -EPROTO;
    }
    if (length && !link_payload(link, length)) {
        return 0;
    }
    --*given_up;
    link_consume(link, length, true, thread->now_us);
    return 1;
}

/* The place does not have the page. */
static void fetch_missing(struct fault_thread *thread, struct fault_request *slot)
{
    struct engine *engine = thread->engine;
    struct homes homes = homes_of(engine, page_chunk(slot->page));
    bool expected = homes_have(&homes, (uint8_t)slot->host);

    if (homes.n < 2 && (expected || homes.n == 0)) {
        fetch_lost(thread, slot, true);
        return;
    }
    if (expected && slot->missing == PAGEMAP_NO_SUBHOST) {
        atomic_store_explicit(&engine->hosts[slot->host].gone, true, memory_order_release);
    }
    if (expected && slot->missing != PAGEMAP_NO_SUBHOST) {
        fetch_lost(thread, slot, true);
        return;
    }
    slot->missing = expected ? slot->host : slot->missing;
    slot->generation++;
    fetch_route(thread, slot);
}

/* Return: 1 if a reply was used, 0 if there is none whole, -errno if the connection is no good. */
static int fetch_reply(struct fault_thread *thread, struct link *link)
{
    struct link_reply reply;
    int rc = link_peek(link, &reply);

    if (rc <= 0) {
        return rc;
    }
    struct fault_request *slot = &thread->slot[reply.cookie & 0xffff & (FAULT_SLOTS - 1)];
    if (!slot->used || !slot->sent || reply.cookie != fetch_cookie(thread, slot) ||
        slot->host != link->host->index) {
        return fetch_reply_late(thread, link, &reply);
    }
    if (reply.error == -EIO) {
        link_consume(link, 0, true, thread->now_us);
        fetch_missing(thread, slot);
        return 1;
    }
    if (reply.error < 0) {
        return reply.error; /* it cannot now: try again on another connection, a little later */
    }
    const void *contents = link_payload(link, (uint32_t)PAGE_BYTES);
    if (!contents) {
        return 0;
    }
    fetch_done(thread, slot, contents);
    link_consume(link, (uint32_t)PAGE_BYTES, true, thread->now_us);
    return 1;
}

static void fetch_broken(struct fault_thread *thread, struct link *link, int err)
{
    link_broken(link, strerror(-err), thread->now_us);
    thread->given_up[link->host->index] = 0;
    for (unsigned i = 0; i < FAULT_SLOTS; i++) {
        if (thread->slot[i].used && thread->slot[i].host == link->host->index) {
            thread->slot[i].sent = false;
        }
    }
}

static bool fetch_receive_link(struct fault_thread *thread, struct link *link)
{
    ssize_t n = link_receive(link);
    bool busy = n > 0;
    int rc = (int)(n < 0 ? n : 0);

    if (busy) {
        thread->now_us = units_now_us();
        do {
            rc = fetch_reply(thread, link);
        } while (rc > 0);
    }
    if (rc < 0) {
        fetch_broken(thread, link, rc);
    }
    return busy;
}

bool fetch_receive(struct fault_thread *thread)
{
    bool busy = fetch_receive_backup(thread);

    for (unsigned i = 0; i < thread->engine->config.n_subhosts; i++) {
        struct link *link = &thread->links[i];
        if (link_up(link) && link->owed) {
            busy |= fetch_receive_link(thread, link);
        }
    }
    return busy;
}

bool fetch_may_sleep(struct fault_thread *thread)
{
    bool may = true;

    for (unsigned i = 0; i < thread->engine->config.n_subhosts; i++) {
        const struct link *link = &thread->links[i];
        if (link_up(link) && link->owed) {
            may = !channel_more(&link->channel) && may;
        }
    }
    return may;
}

void fetch_flush(struct fault_thread *thread)
{
    for (unsigned i = 0; i < thread->engine->config.n_subhosts; i++) {
        struct link *link = &thread->links[i];
        if (link_up(link) && link->tx_have) {
            int err = link_flush(link);
            if (err < 0 && err != -EAGAIN) {
                fetch_broken(thread, link, err);
            }
        }
    }
}

/* Is the place that was asked silent, and is there one that is well? */
static bool fetch_could_fall_over(const struct fault_thread *thread,
                                  const struct fault_request *slot)
{
    struct homes homes = homes_of(thread->engine, page_chunk(slot->page));

    return slot->host != PAGEMAP_BACKUP && fetch_is_late(thread, (uint8_t)slot->host) &&
           fetch_choose(thread, &homes, slot->missing) != slot->host;
}

static void fetch_attend_slots(struct fault_thread *thread)
{
    for (unsigned i = 0; i < FAULT_SLOTS; i++) {
        struct fault_request *slot = &thread->slot[i];
        if (slot->used && slot->sent && fetch_could_fall_over(thread, slot)) {
            thread->given_up[slot->host]++;
            slot->generation++;
            slot->sent = false;
        }
        if (slot->used && !slot->sent) {
            fetch_route(thread, slot);
        }
    }
}

/*
 * An idle link is read only when something is owed, so that its end is noticed here: EPOLLIN without
 * a request under way can only be the end of the connection or a peer that talks out of turn.
 */
static void fetch_check_idle(struct fault_thread *thread, struct link *link)
{
    if (link_up(link) && !link->owed) {
        ssize_t n = link_receive(link);
        if (n != 0) {
            fetch_broken(thread, link, n < 0 ? (int)n : -EPROTO);
        }
    }
}

void fetch_attend(struct fault_thread *thread)
{
    thread->now_us = units_now_us();
    for (unsigned i = 0; i < thread->engine->config.n_subhosts; i++) {
        struct link *link = &thread->links[i];
        if (link_take(link)) {
            fault_poll_add(thread, link->channel.fd, EPOLLIN | EPOLLRDHUP, i);
        }
        fetch_check_idle(thread, link);
        if (link_silent(link, thread->now_us)) {
            fetch_broken(thread, link, -ETIMEDOUT);
        }
    }
    fetch_attend_slots(thread);
}

int fetch_open(struct fault_thread *thread)
{
    struct engine *engine = thread->engine;
    unsigned n = engine->config.n_subhosts;

    thread->links = calloc(n ? n : 1, sizeof(*thread->links));
    thread->given_up = calloc(n + 1, sizeof(*thread->given_up));
    if (!thread->links || !thread->given_up) {
        return -ENOMEM;
    }
    thread->answers.kick = thread->kick;
    if (engine->backup) {
        thread->disk_reads = calloc(FAULT_SLOTS, sizeof(*thread->disk_reads));
        thread->disk_pages = engine_buffer(FAULT_SLOTS * PAGE_BYTES);
        if (!thread->disk_reads || !thread->disk_pages) {
            return -ENOMEM;
        }
    }
    for (unsigned i = 0; i < n; i++) {
        int err = link_open(&thread->links[i], &engine->hosts[i], true, thread->kick, FETCH_RX,
                            FAULT_SLOTS * sizeof(struct nbd_request));
        if (err < 0) {
            return err;
        }
    }
    return 0;
}

void fetch_close(struct fault_thread *thread)
{
    struct engine *engine = thread->engine;

    for (unsigned i = 0; i < FAULT_SLOTS; i++) {
        struct fault_request *slot = &thread->slot[i];
        if (slot->used) {
            room_give(engine, page_chunk(slot->page), 1);
            page_release(engine->map, slot->page, PAGE_REMOTE);
        }
    }
    for (unsigned i = 0; thread->links && i < engine->config.n_subhosts; i++) {
        link_close(&thread->links[i]);
    }
    free(thread->links);
    free(thread->given_up);
    free(thread->disk_reads);
    engine_buffer_free(thread->disk_pages, FAULT_SLOTS * PAGE_BYTES);
    thread->links = NULL;
}
