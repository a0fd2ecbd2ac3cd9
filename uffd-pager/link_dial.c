// SPDX-License-Identifier: GPL-2.0-or-later
/* link_dial.c - make one connection to a sub-host, and wait for it */
#include "uffd-pager/link_dial.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/socket.h>

#define LINK_STAGING (1u << 20) /* of an RDMA connection */

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

int link_dial(struct link_host *host, bool strict, struct channel *channel, struct reason *reason)
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
    if (err) {
        nbd_client_close(&client, true);
        return err;
    }
    link_socket_options(client.channel.fd);
    *channel = client.channel;
    return 0;
}
