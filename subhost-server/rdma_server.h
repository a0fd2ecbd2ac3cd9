/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * rdma_server.h - regions over RDMA
 *
 * Theory of operation
 * -------------------
 * A client reads and writes a region's memory by itself; what the server does is to let it.  One
 * thread takes connection requests and a few messages (common/rdma_wire.h), and sleeps while pages
 * go to and fro.
 *
 * Who may reach what.  A connection request carries the hash of an export's name, ticket included;
 * one that fits no region is refused and gets no queue pair.  Each region has a protection domain
 * of its own, in which its memory is registered and its clients' queue pairs live: a key of one
 * region is worthless on another region's connection, even if it is guessed.
 *
 * Memory is registered by the region's slab, when a client first asks for one: the slab's pages are charged
 * against the quota, allocated and pinned whole, since nobody sees which of them are written.  All of
 * them exist from then on; that a page was never written is known to its pager only.  Slabs stay
 * registered while they hold anything, so that a pager that comes back finds them.
 *
 * A slab that was emptied is given back (rdma_region_give_back()): some seconds after the last TRIM,
 * one that is all zero loses its key first and is looked at once more, since WRITEs are seen by
 * nobody; if it is zero still, its memory goes.  A client that comes with the old key loses its
 * connection, makes another and asks again; what it wanted to write was not acknowledged.  In a
 * migration, which a lost connection would end, nothing is given back.
 *
 * When a region goes its queue pairs and then its keys are destroyed before its memory is given
 * back (rdma_server_revoke()).  When it gets another ticket, the queue pairs of who came with the
 * old one stop to answer at once (rdma_server_expire()), but are not closed for some time: the
 * source of a migration has done its work then, and must not take that for a failure.
 *
 * One mutex guards everything here; the thread holds it but while it waits.
 */
#ifndef SUBHOST_SERVER_RDMA_SERVER_H
#define SUBHOST_SERVER_RDMA_SERVER_H

#include <stdint.h>

#include "common/endpoint.h"
#include "common/log.h"
#include "subhost-server/store.h"

struct rdma_server;

struct rdma_server_config {
    struct store *store;
    unsigned max_connections;
};

/**
 * rdma_server_start() - listen and serve, in a thread of its own
 * @address: if its port is 0 the kernel chooses one, and it is stored here
 * Return: 0 or -errno with a sentence in @reason.
 */
int rdma_server_start(struct rdma_server **server, struct endpoint *address,
                      const struct rdma_server_config *config, struct reason *reason);

/** rdma_server_stop() - NULL is allowed */
void rdma_server_stop(struct rdma_server *server);

/** rdma_server_revoke() - from now on nobody reaches @region, which no name leads to any more */
void rdma_server_revoke(struct rdma_server *server, const struct region *region);

/** rdma_server_expire() - the region has another ticket: earlier connections reach nothing any more */
void rdma_server_expire(struct rdma_server *server, const struct region *region);

/** rdma_server_trimmed() - something of the region's slabs was trimmed: look at them soon */
void rdma_server_trimmed(struct rdma_server *server, const struct region *region);

/** rdma_server_connections() - how many there are; NULL: none */
unsigned rdma_server_connections(struct rdma_server *server);

#endif
