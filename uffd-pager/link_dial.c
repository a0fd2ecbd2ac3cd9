// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * link_dial.c - make one connection to a sub-host, and wait for it
 *
 * A connection may be tried before it is used: a READ of what the sub-host has, or a WRITE beyond
 * its region's end, which takes no effect whenever it arrives, and must be refused.  Both are longer than
 * a packet, for some networks lose only large ones.
 */
#include "uffd-pager/link_dial.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "uffd-pager/homes.h"
#include "uffd-pager/install.h"

#define LINK_STAGING (1u << 20) /* of an RDMA connection */
#define LINK_TRY_PAGES 16u      /* of a connection that is tried */

static void link_socket_options(int fd)
{
    int on = 1;
    int idle_s = 5;
    int interval_s = 2;
    int count = 3;

    /* An idle link to a host that is off is found out too.  (No effect on UNIX sockets.) */
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

static int link_check_size(const struct link_host *host, uint64_t size, struct reason *reason)
{
    return size < host->engine->layout->flat_size
               ? reason_set(reason, -EINVAL, "its region is smaller than the guest's memory")
               : 0;
}

/* Return: 0; 1: it did not come up, but TCP will do; or -errno. */
static int link_dial_rdma(struct link_host *host, struct channel *channel, struct reason *reason)
{
    const struct engine_subhost *subhost = link_subhost(host);
    int err = nbd_rdma_connect(&channel->rdma, &subhost->rdma, subhost->export_name, LINK_STAGING,
                               host->timeout_ms, reason);

    if (err && err != -ENOENT && subhost->tcp_will_do) {
        if (!host->told_tcp) {
            log_warn("sub-host '%s': pages go by TCP, as RDMA did not come up: %s", subhost->name,
                     reason->text);
        }
        host->told_tcp = true;
        return 1;
    }
    if (err) {
        return err;
    }
    channel->fd = nbd_rdma_fd(channel->rdma);
    err = link_check_size(host, nbd_rdma_size(channel->rdma), reason);
    if (err) {
        channel_close(channel);
    }
    host->told_tcp = false;
    return err;
}

/* Up to LINK_TRY_PAGES pages that the sub-host has. Return: the first; if there is none, any. */
static uint64_t link_page_there(const struct link_host *host, unsigned *n)
{
    const struct engine *engine = host->engine;
    uint64_t first = 0;

    *n = 0;
    for (uint64_t chunk = 0; chunk < engine->map->n_chunks && !*n; chunk++) {
        struct homes homes = homes_of(engine, chunk);
        uint64_t end = (chunk + 1) * CHUNK_PAGES;
        end = end < engine->map->n_pages ? end : engine->map->n_pages;
        uint64_t page = homes_have(&homes, (uint8_t)host->index) ? chunk * CHUNK_PAGES : end;
        for (; page < end && *n < LINK_TRY_PAGES; page++) {
            uint8_t state = page_state(pagemap_get(engine->map, page));
            if (state == PAGE_REMOTE || state == PAGE_CLEAN) {
                first = (*n)++ ? first : page;
            } else if (*n) {
                break;
            }
        }
    }
    *n = *n ? *n : 1;
    return first;
}

static int link_try(const struct link_host *host, bool strict, struct nbd_client *client,
                    struct reason *reason)
{
    size_t size = LINK_TRY_PAGES * PAGE_BYTES;
    uint8_t *buffer = engine_buffer(size);
    int err = buffer ? nbd_client_set_timeout(client, host->timeout_ms) : -ENOMEM;
    unsigned n;

    if (!err && strict) {
        uint64_t page = link_page_there(host, &n);
        err = nbd_client_read(client, buffer, page * PAGE_BYTES, n * (uint32_t)PAGE_BYTES);
    } else if (!err) {
        err = nbd_client_write(client, buffer, client->size, (uint32_t)size);
    }
    engine_buffer_free(buffer, size);
    if (err == 0 || err == -ENOSPC || err == -EINVAL || err == -EIO || err == -EPERM) {
        return nbd_client_set_timeout(client, 0); /* an error is an answer, too */
    }
    return reason_set(reason, err, "it takes connections, but does not answer a %s: %s",
                      strict ? "READ" : "WRITE", strerror(-err));
}

int link_dial(struct link_host *host, bool strict, bool try, struct channel *channel,
              struct reason *reason)
{
    const struct engine_subhost *subhost = link_subhost(host);
    char name[sizeof(subhost->export_name) + sizeof("/strict")];
    struct nbd_client client;

    *channel = CHANNEL_NONE;
    if (subhost->has_rdma) {
        int rc = link_dial_rdma(host, channel, reason);
        if (rc <= 0) {
            return rc;
        }
    }
    snprintf(name, sizeof(name), "%s%s", subhost->export_name, strict ? "/strict" : "");
    int err = nbd_client_connect(&client, &subhost->data, name, host->timeout_ms, reason);
    if (err < 0) {
        return err;
    }
    err = link_check_size(host, client.size, reason);
    bool whole = err != 0; /* refused by us, but sound */
    err = err || !try ? err : link_try(host, strict, &client, reason);
    if (err) {
        nbd_client_close(&client, whole);
        return err;
    }
    link_socket_options(client.channel.fd);
    *channel = client.channel;
    return 0;
}
