/* SPDX-License-Identifier: GPL-2.0-or-later */
/* rdma_internal.h - inside the RDMA server: its regions and connections */
#ifndef SUBHOST_SERVER_RDMA_INTERNAL_H
#define SUBHOST_SERVER_RDMA_INTERNAL_H

#include <infiniband/verbs.h>
#include <pthread.h>
#include <rdma/rdma_cma.h>
#include <stdbool.h>

#include "common/rdma_wire.h"
#include "subhost-server/rdma_server.h"

#define RDMA_SLOTS (2 * RDMA_MESSAGES) /* receives, and as many answers */
#define RDMA_SLOT_BYTES 64u
#define RDMA_PRIVATE_MAX 56u

struct rdma_slab {
    struct ibv_mr *mr; /* NULL: nobody has a key */
    uint64_t used;     /* where it was not zero when it was last looked at */
    bool lent;         /* region_lend() */
};

/* A region's memory as one card reaches it. */
struct rdma_region {
    struct rdma_region *next;
    struct region *region; /* a reference */
    struct ibv_context *verbs;
    struct ibv_pd *pd;
    uint32_t slab_bytes;
    uint64_t n_slabs;
    struct rdma_slab *slabs;
    uint64_t look_us; /* when to look for slabs that are empty; 0: no need */
};

struct rdma_connection {
    struct rdma_connection *next;
    uint64_t serial; /* never 0 */
    struct rdma_server *server;
    struct rdma_region *region;
    struct rdma_cm_id *id;
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    struct ibv_mr *mr;
    uint8_t *memory; /* RDMA_SLOTS receives, then RDMA_SLOTS answers */
    unsigned answers; /* that are being sent */
    unsigned next_answer;
    bool established;
    uint64_t born_us;
    unsigned epoch;      /* of the region, when the ticket was good */
    uint64_t expired_us; /* since when the ticket is not; 0: it is */
};

struct rdma_server {
    struct rdma_server_config config;
    struct rdma_event_channel *events;
    struct rdma_cm_id *listener;
    int epoll, wake;
    pthread_t thread;
    bool started;
    bool stop;
    pthread_mutex_t lock;
    struct rdma_region *regions;
    struct rdma_connection *connections;
    unsigned n_connections;
    uint64_t last_serial;
};

/* ---- rdma_region.c ---- */

/**
 * rdma_region_get() - the region as @verbs reaches it; takes its own reference
 * @slab: as the region was made, in bytes
 * Return: NULL: no memory.
 */
struct rdma_region *rdma_region_get(struct rdma_server *server, struct region *region,
                                    uint64_t slab, struct ibv_context *verbs);

/**
 * rdma_region_slab() - register the slab at @offset, if it is not yet
 * Return: 0 with address, length and rkey in @answer; -EINVAL, -ENOSPC, -ENOMEM, -ESHUTDOWN.
 */
int rdma_region_slab(struct rdma_region *region, uint64_t offset, struct rdma_message *answer);

/** rdma_region_trimmed() - some of it was: look for slabs that are empty, soon */
void rdma_region_trimmed(struct rdma_region *region);

/** rdma_region_give_back() - revoke the keys of slabs that are all zero, and give their memory back */
void rdma_region_give_back(struct rdma_region *region);

/** rdma_region_free() - destroy its keys; no queue pair uses it any more */
void rdma_region_free(struct rdma_region *region);

/* ---- rdma_connection.c ---- */

/**
 * rdma_connection_accept() - take a connection request
 * Return: 0, or -errno: refuse it; @id stays the caller's then.
 */
int rdma_connection_accept(struct rdma_server *server, struct rdma_cm_id *id,
                           const struct rdma_conn_param *param);

/** rdma_connection_serve() - answer what came. Return: false if it is to be closed. */
bool rdma_connection_serve(struct rdma_connection *connection);

/** rdma_connection_expire() - it reaches nothing from now on. Return: false if it must be closed. */
bool rdma_connection_expire(struct rdma_connection *connection);

/** rdma_connection_free() - close it; it is in no list any more */
void rdma_connection_free(struct rdma_connection *connection);

#endif
