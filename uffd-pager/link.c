// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * link.c - the owner's side of a link: requests out, replies in, never waiting
 *
 * The receive buffer is linear: replies are used where they lie, and what is left of a cut one is
 * moved to the front before the next receive.
 */
#include "uffd-pager/link.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "uffd-pager/engine_impl.h"

int link_open(struct link *link, struct link_host *host, bool strict, int kick, size_t rx_size,
              size_t tx_size)
{
    memset(link, 0, sizeof(*link));
    link->host = host;
    link->strict = strict;
    link->kick = kick;
    link->channel = CHANNEL_NONE;
    atomic_init(&link->fresh, NULL);
    link->rx_size = rx_size;
    link->tx_size = tx_size;
    link->rx = engine_buffer(rx_size);
    link->tx = malloc(tx_size);
    if (!link->rx || !link->tx) {
        engine_buffer_free(link->rx, rx_size);
        free(link->tx);
        link->host = NULL;
        return -ENOMEM;
    }
    pthread_mutex_lock(&host->lock);
    link->wanted = true;
    link->next = host->links;
    host->links = link;
    pthread_cond_signal(&host->changed);
    pthread_mutex_unlock(&host->lock);
    return 0;
}

static void link_shut(struct link *link)
{
    if (link_up(link)) {
        channel_close(&link->channel);
        atomic_fetch_sub_explicit(&link->host->up, 1, memory_order_relaxed);
    }
    link->rx_have = link->rx_at = 0;
    link->tx_have = link->tx_at = 0;
    link->owed = 0;
}

void link_close(struct link *link)
{
    struct link_host *host = link->host;

    if (!host) {
        return;
    }
    pthread_mutex_lock(&host->lock);
    for (struct link **at = &host->links; *at; at = &(*at)->next) {
        if (*at == link) {
            *at = link->next;
            break;
        }
    }
    pthread_mutex_unlock(&host->lock);
    struct channel *fresh = atomic_exchange(&link->fresh, NULL);
    if (fresh) {
        channel_close(fresh);
        free(fresh);
    }
    link_shut(link);
    engine_buffer_free(link->rx, link->rx_size);
    free(link->tx);
    link->host = NULL;
}

bool link_take(struct link *link)
{
    struct channel *fresh = link_fresh(link)
                                ? atomic_exchange_explicit(&link->fresh, NULL, memory_order_acq_rel)
                                : NULL;

    if (!fresh) {
        return false;
    }
    link_shut(link);
    link->channel = *fresh;
    free(fresh);
    link->connected_us = units_now_us();
    atomic_fetch_add_explicit(&link->host->up, 1, memory_order_relaxed);
    return true;
}

bool link_queue(struct link *link, uint16_t type, uint64_t cookie, uint64_t offset, uint32_t length)
{
    if (link->tx_have + sizeof(struct nbd_request) > link->tx_size) {
        if (link->tx_at == 0) {
            return false;
        }
        memmove(link->tx, link->tx + link->tx_at, link->tx_have - link->tx_at);
        link->tx_have -= link->tx_at;
        link->tx_at = 0;
        if (link->tx_have + sizeof(struct nbd_request) > link->tx_size) {
            return false;
        }
    }
    struct nbd_request request;
    nbd_encode_request(&request, type, 0, cookie, offset, length);
    memcpy(link->tx + link->tx_have, &request, sizeof(request));
    link->tx_have += sizeof(request);
    return true;
}

int link_flush(struct link *link)
{
    while (link_up(link) && link->tx_at < link->tx_have) {
        ssize_t n = channel_send(&link->channel, link->tx + link->tx_at,
                                 link->tx_have - link->tx_at, MSG_DONTWAIT);
        if (n < 0) {
            if (n == -EINTR) {
                continue;
            }
            return (int)n;
        }
        link->tx_at += (size_t)n;
    }
    link->tx_at = link->tx_have = 0;
    return 0;
}

ssize_t link_sendv(struct link *link, struct iovec *iov, size_t n)
{
    ssize_t sent;

    do {
        sent = channel_sendv(&link->channel, iov, n, MSG_DONTWAIT);
    } while (sent == -EINTR);
    return sent == -EAGAIN ? 0 : sent;
}

void link_sent(struct link *link, uint64_t now_us)
{
    if (link->owed++ == 0) {
        link->owed_us = now_us;
    }
}

ssize_t link_receive(struct link *link)
{
    if (link->rx_at == link->rx_have) {
        link->rx_at = link->rx_have = 0;
    } else if (link->rx_at > 0) {
        memmove(link->rx, link->rx + link->rx_at, link->rx_have - link->rx_at);
        link->rx_have -= link->rx_at;
        link->rx_at = 0;
    }
    if (link->rx_have == link->rx_size) {
        return -EPROTO; /* the owner has taken nothing: not a reply we asked for */
    }
    ssize_t n;
    do {
        n = channel_recv(&link->channel, link->rx + link->rx_have, link->rx_size - link->rx_have,
                         MSG_DONTWAIT);
    } while (n == -EINTR);
    if (n < 0) {
        return n == -EAGAIN ? 0 : n;
    }
    if (n == 0) {
        return -ECONNRESET;
    }
    link->rx_have += (size_t)n;
    return n;
}

int link_peek(struct link *link, struct link_reply *reply)
{
    struct nbd_simple_reply header;

    if (link->rx_have - link->rx_at < sizeof(header)) {
        return 0;
    }
    memcpy(&header, link->rx + link->rx_at, sizeof(header));
    int err = nbd_decode_simple_reply(&header, &reply->cookie, &reply->error);
    return err < 0 ? err : 1;
}

const void *link_payload(struct link *link, uint32_t length)
{
    if (link->rx_have - link->rx_at < sizeof(struct nbd_simple_reply) + length) {
        return NULL;
    }
    return link->rx + link->rx_at + sizeof(struct nbd_simple_reply);
}

/* Writes only what changes: all threads that fetch pages come here. */
static void link_answered(struct link_host *host, bool strict)
{
    _Atomic bool *unanswered = strict ? &host->reads_unanswered : &host->writes_unanswered;

    if (atomic_load_explicit(unanswered, memory_order_relaxed)) {
        atomic_store_explicit(unanswered, false, memory_order_relaxed);
    }
    if (atomic_load_explicit(&host->trouble_us, memory_order_relaxed) &&
        (strict || !atomic_load_explicit(&host->reads_unanswered, memory_order_relaxed))) {
        atomic_store_explicit(&host->trouble_us, 0, memory_order_release);
    }
    if (!strict && atomic_load_explicit(&host->write_trouble_us, memory_order_relaxed)) {
        atomic_store_explicit(&host->write_trouble_us, 0, memory_order_release);
    }
}

void link_consume(struct link *link, uint32_t length, bool valid, uint64_t now_us)
{
    link->rx_at += sizeof(struct nbd_simple_reply) + length;
    if (link->owed > 0) {
        link->owed--;
    }
    link->owed_us = now_us;
    if (valid) {
        link_answered(link->host, link->strict);
    }
}

bool link_silent(const struct link *link, uint64_t now_us)
{
    return link_up(link) && link->owed > 0 &&
           now_us > link->owed_us + (uint64_t)link->host->timeout_ms * 1000;
}

void link_broken(struct link *link, const char *why, uint64_t now_us)
{
    struct link_host *host = link->host;

    if (!link_up(link)) {
        return;
    }
    if (!engine_over(host->engine)) {
        log_debug("sub-host '%s': connection lost: %s",
                  host->engine->config.subhost[host->index].name, why);
    }
    bool owed = link->owed > 0;
    link_shut(link);
    pthread_mutex_lock(&host->lock);
    link->wanted = true;
    if (owed && link->strict) {
        atomic_store_explicit(&host->reads_unanswered, true, memory_order_relaxed);
        link_trouble(host, link->owed_us);
    } else if (owed) { /* of the sub-host as a whole?  What becomes of the next connection shows it */
        atomic_store_explicit(&host->writes_unanswered, true, memory_order_relaxed);
        link_write_trouble(host, link->owed_us);
    }
    /* A connection that broke at once was no good: do not make the next one at once. */
    if (now_us > link->made_us + 1000000) {
        link->backoff_ms = 0;
    }
    link->retry_us = now_us + (uint64_t)link->backoff_ms * 1000;
    link->backoff_ms = link->backoff_ms ? link->backoff_ms * 2 : 10;
    link->backoff_ms = link->backoff_ms > 1000 ? 1000 : link->backoff_ms;
    pthread_cond_signal(&host->changed);
    pthread_mutex_unlock(&host->lock);
}
