// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * link.c - the owner's side of a link: requests out, replies in, never waiting
 *
 * The receive buffer is linear: replies are used where they lie, and what is left of a cut one is
 * moved to the front before the next receive.
 */
#include "uffd-pager/link.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "uffd-pager/engine_impl.h"

int link_open(struct link *link, struct link_host *host, bool strict, int kick, size_t rx_size,
              size_t tx_size)
{
    memset(link, 0, sizeof(*link));
    link->host = host;
    link->strict = strict;
    link->kick = kick;
    link->fd = -1;
    atomic_init(&link->fresh, -1);
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
    if (link->fd >= 0) {
        close(link->fd);
        link->fd = -1;
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
    int fresh = atomic_exchange(&link->fresh, -1);
    if (fresh >= 0) {
        close(fresh);
    }
    link_shut(link);
    engine_buffer_free(link->rx, link->rx_size);
    free(link->tx);
    link->host = NULL;
}

bool link_take(struct link *link)
{
    int fresh = atomic_exchange_explicit(&link->fresh, -1, memory_order_acq_rel);

    if (fresh < 0) {
        return false;
    }
    link_shut(link);
    link->fd = fresh;
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
    while (link->fd >= 0 && link->tx_at < link->tx_have) {
        ssize_t n = send(link->fd, link->tx + link->tx_at, link->tx_have - link->tx_at,
                         MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EINTR) {
                continue;
            }
            return errno == EAGAIN ? -EAGAIN : -errno;
        }
        link->tx_at += (size_t)n;
    }
    link->tx_at = link->tx_have = 0;
    return 0;
}

ssize_t link_sendv(struct link *link, struct iovec *iov, size_t n)
{
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = n};
    ssize_t sent;

    do {
        sent = sendmsg(link->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    if (sent < 0) {
        return errno == EAGAIN ? 0 : -errno;
    }
    return sent;
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
        n = recv(link->fd, link->rx + link->rx_have, link->rx_size - link->rx_have, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
        return errno == EAGAIN ? 0 : -errno;
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

void link_consume(struct link *link, uint32_t length, bool valid, uint64_t now_us)
{
    link->rx_at += sizeof(struct nbd_simple_reply) + length;
    if (link->owed > 0) {
        link->owed--;
    }
    link->owed_us = now_us;
    if (valid && atomic_load_explicit(&link->host->trouble_us, memory_order_relaxed)) {
        atomic_store_explicit(&link->host->trouble_us, 0, memory_order_release);
    }
}

bool link_silent(const struct link *link, uint64_t now_us)
{
    return link->fd >= 0 && link->owed > 0 &&
           now_us > link->owed_us + (uint64_t)link->host->timeout_ms * 1000;
}

void link_broken(struct link *link, const char *why, uint64_t now_us)
{
    struct link_host *host = link->host;

    if (link->fd < 0) {
        return;
    }
    if (!engine_over(host->engine)) {
        log_debug("sub-host '%s': connection lost: %s",
                  host->engine->config.subhost[host->index].name, why);
    }
    if (link->owed > 0) {
        link_trouble(host, link->owed_us);
    }
    link_shut(link);
    pthread_mutex_lock(&host->lock);
    link->wanted = true;
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
