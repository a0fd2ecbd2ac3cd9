// SPDX-License-Identifier: GPL-2.0-or-later
/* rdma_none.c - a build without libibverbs and librdmacm */
#include <errno.h>

#include "subhost-server/rdma_server.h"

int rdma_server_start(struct rdma_server **server, struct endpoint *address,
                      const struct rdma_server_config *config, struct reason *reason)
{
    (void)server;
    (void)address;
    (void)config;
    return reason_set(reason, -ENOTSUP,
                      "--listen rdma: this program was built without RDMA (libibverbs, librdmacm)");
}

void rdma_server_stop(struct rdma_server *server)
{
    (void)server;
}

void rdma_server_revoke(struct rdma_server *server, const struct region *region)
{
    (void)server;
    (void)region;
}

void rdma_server_expire(struct rdma_server *server, const struct region *region)
{
    (void)server;
    (void)region;
}

void rdma_server_trimmed(struct rdma_server *server, const struct region *region)
{
    (void)server;
    (void)region;
}

unsigned rdma_server_connections(struct rdma_server *server)
{
    (void)server;
    return 0;
}
