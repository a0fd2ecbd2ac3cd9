// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * rdma_connection.c - one client's queue pair, and the few messages on it
 *
 * A client may have RDMA_MESSAGES requests without an answer; there are receives for twice as many.
 * One that sends more, or anything but a sound message, is cut off.
 */
#include <errno.h>
#include <fcntl.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "common/units.h"
#include "subhost-server/rdma_internal.h"

#define RDMA_DEPTH 16u         /* READs under way at most */
#define RDMA_ANSWER_ID 1000u   /* of work requests that send */

static uint8_t *slot(struct rdma_connection *c, unsigned n)
{
    return c->memory + (size_t)n * RDMA_SLOT_BYTES;
}

/* ---- which region? ---- */

struct search {
    const struct rdma_hello *hello;
    struct region *found; /* a reference */
    uint64_t slab;
    unsigned epoch;
};

static void compare_entry(void *to, const struct store_entry *entry)
{
    char name[2 * STORE_WORD_MAX + 2];
    uint8_t hash[RDMA_EXPORT_BYTES];
    struct search *search = to;

    int n = snprintf(name, sizeof(name), "%s%s%s", entry->name, entry->ticket[0] ? "." : "",
                     entry->ticket);
    bool late = entry->expires_us && units_now_us() >= entry->expires_us;
    if (gnutls_hash_fast(GNUTLS_DIG_SHA256, name, (size_t)n, hash) == 0 && !late && !search->found &&
        gnutls_memcmp(hash, search->hello->export_hash, sizeof(hash)) == 0) {
        search->found = region_ref(entry->region);
        search->slab = entry->slab;
        search->epoch = region_epoch(entry->region);
    }
    explicit_bzero(name, sizeof(name));
}

static int find_region(struct rdma_server *server, const struct rdma_conn_param *param,
                       struct search *search)
{
    struct rdma_hello hello;

    int err = rdma_decode_hello(param->private_data, param->private_data_len, &hello);
    if (!err) {
        *search = (struct search){.hello = &hello};
        store_each(server->config.store, compare_entry, search);
        search->hello = NULL;
        err = search->found ? 0 : -ENOENT;
    }
    return err;
}

/* ---- making one ---- */

static int post_receive(struct rdma_connection *c, unsigned n)
{
    struct ibv_sge sge = {
        .addr = (uintptr_t)slot(c, n), .length = RDMA_SLOT_BYTES, .lkey = c->mr->lkey};
    struct ibv_recv_wr wr = {.wr_id = n, .sg_list = &sge, .num_sge = 1};
    struct ibv_recv_wr *bad;

    return ibv_post_recv(c->id->qp, &wr, &bad);
}

static int make_queues(struct rdma_connection *c, struct rdma_cm_id *id)
{
    struct ibv_qp_init_attr attr = {
        .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = RDMA_SLOTS,
                .max_recv_wr = RDMA_SLOTS,
                .max_send_sge = 1,
                .max_recv_sge = 1},
    };
    size_t size = 2 * RDMA_SLOTS * RDMA_SLOT_BYTES;

    c->memory = aligned_alloc(PAGE_BYTES, (size + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1));
    c->channel = ibv_create_comp_channel(id->verbs);
    c->cq = c->channel ? ibv_create_cq(id->verbs, 2 * RDMA_SLOTS, NULL, c->channel, 0) : NULL;
    if (!c->memory || !c->cq || fcntl(c->channel->fd, F_SETFL, O_NONBLOCK) < 0) {
        return -ENOMEM;
    }
    c->mr = ibv_reg_mr(c->region->pd, c->memory, size, IBV_ACCESS_LOCAL_WRITE);
    attr.send_cq = attr.recv_cq = c->cq;
    if (!c->mr || rdma_create_qp(id, c->region->pd, &attr)) {
        return -ENOMEM;
    }
    c->id = id;
    for (unsigned n = 0; n < RDMA_SLOTS; n++) {
        if (post_receive(c, n)) {
            return -ENOMEM;
        }
    }
    return ibv_req_notify_cq(c->cq, 0) ? -ENOMEM : 0;
}

static int say_welcome(struct rdma_connection *c, const struct rdma_conn_param *asked)
{
    struct rdma_welcome welcome = {.size = region_size(c->region->region),
                                   .slab_bytes = c->region->slab_bytes};
    uint8_t data[RDMA_WELCOME_BYTES];
    struct rdma_conn_param param = {
        .private_data = data,
        .private_data_len = sizeof(data),
        /* What the client calls its initiator depth. */
        .responder_resources = (uint8_t)(asked->responder_resources < RDMA_DEPTH
                                             ? asked->responder_resources
                                             : RDMA_DEPTH),
        .rnr_retry_count = 7,
    };
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = c->serial};

    rdma_encode_welcome(data, &welcome);
    if (epoll_ctl(c->server->epoll, EPOLL_CTL_ADD, c->channel->fd, &event) < 0 ||
        rdma_accept(c->id, &param)) {
        return -errno;
    }
    return 0;
}

int rdma_connection_accept(struct rdma_server *server, struct rdma_cm_id *id,
                           const struct rdma_conn_param *param)
{
    struct search search;

    if (server->n_connections >= server->config.max_connections) {
        return -EBUSY;
    }
    int err = find_region(server, param, &search);
    if (err) {
        return err;
    }
    struct rdma_connection *c = calloc(1, sizeof(*c));
    if (!c) {
        region_unref(search.found);
        return -ENOMEM;
    }
    c->server = server;
    c->serial = ++server->last_serial;
    c->born_us = units_now_us();
    c->epoch = search.epoch;
    c->region = rdma_region_get(server, search.found, search.slab, id->verbs);
    region_unref(search.found);
    err = c->region ? make_queues(c, id) : -ENOMEM;
    err = err ? err : say_welcome(c, param);
    if (err) {
        if (id->qp) {
            rdma_destroy_qp(id);
        }
        c->id = NULL; /* the caller's */
        rdma_connection_free(c);
        return err;
    }
    id->context = c;
    region_client_came(c->region->region);
    c->next = server->connections;
    server->connections = c;
    server->n_connections++;
    return 0;
}

bool rdma_connection_expire(struct rdma_connection *c)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};

    /* Its receives complete with an error now, which is not to be taken for its end. */
    if (c->expired_us == 0 && epoll_ctl(c->server->epoll, EPOLL_CTL_DEL, c->channel->fd, NULL) < 0) {
        return false;
    }
    c->expired_us = units_now_us();
    return ibv_modify_qp(c->id->qp, &attr, IBV_QP_STATE) == 0;
}

void rdma_connection_free(struct rdma_connection *c)
{
    if (c->id) {
        region_client_left(c->region->region);
        rdma_disconnect(c->id);
        rdma_destroy_qp(c->id);
    }
    if (c->cq) {
        ibv_destroy_cq(c->cq);
    }
    if (c->channel) {
        ibv_destroy_comp_channel(c->channel); /* its descriptor leaves the epoll set */
    }
    if (c->mr) {
        ibv_dereg_mr(c->mr);
    }
    if (c->id) {
        rdma_destroy_id(c->id);
    }
    free(c->memory);
    free(c);
}

/* ---- messages ---- */

static int trim(struct rdma_connection *c, const struct rdma_message *message)
{
    uint64_t size = region_size(c->region->region);

    if (message->offset >= size || message->length == 0 || message->length > size - message->offset) {
        return -EINVAL;
    }
    int err = region_trim(c->region->region, message->offset, message->length);
    if (!err && region_lent_trimmed(c->region->region)) {
        rdma_region_trimmed(c->region);
    }
    return err;
}

static bool send_answer(struct rdma_connection *c, const struct rdma_message *answer)
{
    unsigned n = RDMA_SLOTS + c->next_answer++ % RDMA_SLOTS;
    struct ibv_sge sge = {
        .addr = (uintptr_t)slot(c, n), .length = RDMA_MESSAGE_BYTES, .lkey = c->mr->lkey};
    struct ibv_send_wr wr = {.wr_id = RDMA_ANSWER_ID,
                             .sg_list = &sge,
                             .num_sge = 1,
                             .opcode = IBV_WR_SEND,
                             .send_flags = IBV_SEND_SIGNALED};
    struct ibv_send_wr *bad;

    if (c->answers == RDMA_SLOTS) {
        return false; /* it sends and does not receive */
    }
    rdma_encode_message(slot(c, n), answer);
    c->answers++;
    return ibv_post_send(c->id->qp, &wr, &bad) == 0;
}

static bool handle_message(struct rdma_connection *c, unsigned n, size_t length)
{
    struct rdma_message message, answer;

    if (n >= RDMA_SLOTS || rdma_decode_message(slot(c, n), length, &message) ||
        message.type & RDMA_ANSWER) {
        log_warn("an RDMA client sent what is no message, and is cut off");
        return false;
    }
    answer = (struct rdma_message){.type = message.type | RDMA_ANSWER, .cookie = message.cookie};
    answer.error = message.type == RDMA_SLAB
                       ? rdma_region_slab(c->region, message.offset, &answer)
                       : trim(c, &message);
    return post_receive(c, n) == 0 && send_answer(c, &answer);
}

bool rdma_connection_serve(struct rdma_connection *c)
{
    struct ibv_cq *cq;
    struct ibv_wc wc;
    void *context;
    int n;

    if (ibv_get_cq_event(c->channel, &cq, &context) == 0) {
        ibv_ack_cq_events(cq, 1);
        if (ibv_req_notify_cq(cq, 0)) {
            return false;
        }
    }
    while ((n = ibv_poll_cq(c->cq, 1, &wc)) > 0) {
        if (wc.status != IBV_WC_SUCCESS) {
            return false;
        }
        if (wc.wr_id == RDMA_ANSWER_ID) {
            c->answers--;
        } else if (!handle_message(c, (unsigned)wc.wr_id, wc.byte_len)) {
            return false;
        }
    }
    return n == 0;
}
