/* SPDX-License-Identifier: GPL-2.0-or-later */
/* nbd_rdma_internal.h - inside a connection: what nbd_rdma.c and nbd_rdma_connect.c share */
#ifndef COMMON_NBD_RDMA_INTERNAL_H
#define COMMON_NBD_RDMA_INTERNAL_H

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>
#include <stdatomic.h>

#include "common/nbd_rdma.h"
#include "common/rdma_wire.h"

#define RDMA_OPS 1024u         /* requests in the queue */
#define RDMA_SEND_QUEUE 256u   /* of these, posted */
#define RDMA_RECEIVES (2 * RDMA_MESSAGES)
#define RDMA_SIGNAL_EVERY 16u
#define RDMA_SLOT_BYTES 64u    /* of a message; and what staging is aligned to */
#define RDMA_RECEIVED (1ull << 63) /* in a work request's id: a receive, and the slot */

enum rdma_slab_state { RDMA_SLAB_UNKNOWN, RDMA_SLAB_ASKED, RDMA_SLAB_KNOWN, RDMA_SLAB_REFUSED };

struct rdma_slab {
    uint64_t address;
    uint32_t rkey;
    uint8_t state;
    int error; /* refused: why */
};

struct rdma_op {
    uint16_t type;   /* NBD_CMD_* */
    bool answered;   /* done without a completion of its own: TRIM, or refused */
    int error;
    uint64_t cookie;
    uint64_t offset;
    uint32_t length;
    uint32_t staged; /* where in the staging buffer its bytes are */
    uint64_t serial; /* of its work request, once posted */
};

struct nbd_rdma {
    struct rdma_event_channel *events;
    struct rdma_cm_id *id;
    struct ibv_pd *pd;
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    struct ibv_mr *mr;
    int epoll;
    int abort; /* eventfd */
    _Atomic bool aborted;
    bool armed;
    int error; /* sticks */

    uint64_t size;
    uint32_t slab_bytes;
    uint64_t n_slabs;
    struct rdma_slab *slabs;

    /* One registered piece of memory: staging, then message slots. */
    uint8_t *memory;
    size_t memory_size, staging_size;

    struct rdma_op *ops; /* ring of RDMA_OPS */
    uint64_t head, posted, tail; /* numbers of requests: to deliver, to post, to come */
    uint64_t serial, completed;  /* of work requests */
    unsigned unsignalled, messages;
};

static inline struct rdma_op *rdma_op_at(struct nbd_rdma *c, uint64_t number)
{
    return &c->ops[number % RDMA_OPS];
}

static inline uint8_t *rdma_slot(struct nbd_rdma *c, unsigned slot)
{
    return c->memory + c->staging_size + slot * RDMA_SLOT_BYTES;
}

/** rdma_post_receive() - have a message received into @slot. Return: 0 or -errno. */
int rdma_post_receive(struct nbd_rdma *c, unsigned slot);

/** rdma_break() - the connection is no good, because of @err; the first reason stays. Return: @err. */
int rdma_break(struct nbd_rdma *c, int err);

#endif
