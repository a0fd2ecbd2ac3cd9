// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * nbd_rdma_connect.c - how a connection comes and goes
 *
 * rdma_cm finds the card that leads to the address, and carries the hash of the export's name there
 * in its private data.  The sub-host accepts only if it has that export: who does not know the
 * ticket gets no queue pair, and without one no key is of any use.
 */
#include <errno.h>
#include <fcntl.h>
#include <gnutls/crypto.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/nbd_rdma_internal.h"
#include "common/rdma_limits.h"
#include "common/units.h"

#define RDMA_ACK_TIMEOUT 15 /* 4.096 us << 15 = 134 ms, and seven tries: dead within 1.1 s */
#define RDMA_DEPTH 16       /* READs under way at most */

static int wait_event(struct nbd_rdma *c, uint64_t deadline_us, struct rdma_cm_event **event)
{
    struct pollfd pfd = {.fd = c->events->fd, .events = POLLIN};

    for (;;) {
        if (rdma_get_cm_event(c->events, event) == 0) {
            return 0;
        }
        if (errno != EAGAIN && errno != EINTR) {
            return -errno;
        }
        uint64_t now = units_now_us();
        if (now >= deadline_us) {
            return -ETIMEDOUT;
        }
        poll(&pfd, 1, (int)((deadline_us - now) / 1000 + 1));
    }
}

/* Wait for one step of the way to be done. */
static int wait_step(struct nbd_rdma *c, enum rdma_cm_event_type wanted, uint64_t deadline_us)
{
    struct rdma_cm_event *event;
    int err = wait_event(c, deadline_us, &event);

    if (err) {
        return err;
    }
    if (event->event != wanted) {
        err = event->status < 0 ? event->status : -EHOSTUNREACH;
    }
    rdma_ack_cm_event(event);
    return err;
}

static int begin(struct nbd_rdma *c, struct reason *reason)
{
    c->events = rdma_create_event_channel();
    if (!c->events) {
        return reason_set(reason, -ENOTSUP,
                          "this host has no RDMA: /dev/infiniband/rdma_cm cannot be opened (is "
                          "there a card, and is the module rdma_ucm loaded?)");
    }
    fcntl(c->events->fd, F_SETFL, O_NONBLOCK);
    fcntl(c->events->fd, F_SETFD, FD_CLOEXEC);
    if (rdma_create_id(c->events, &c->id, c, RDMA_PS_TCP)) {
        return reason_set(reason, -errno, "RDMA cannot be used: %s", strerror(errno));
    }
    return 0;
}

/* Find the card and the way. */
static int resolve(struct nbd_rdma *c, const struct endpoint *address, uint64_t deadline_us,
                   struct reason *reason)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    char text[ENDPOINT_TEXT_LEN], port[8];
    struct addrinfo *list;
    uint8_t timeout = RDMA_ACK_TIMEOUT;

    snprintf(port, sizeof(port), "%u", address->port);
    int rc = getaddrinfo(address->host, port, &hints, &list);
    if (rc) {
        return reason_set(reason, -EHOSTUNREACH, "host '%s' cannot be found: %s", address->host,
                          gai_strerror(rc));
    }
    int left_ms = (int)((deadline_us - units_now_us()) / 1000 + 1);
    int err = rdma_resolve_addr(c->id, NULL, list->ai_addr, left_ms) ? -errno : 0;
    freeaddrinfo(list);
    if (!err) {
        err = wait_step(c, RDMA_CM_EVENT_ADDR_RESOLVED, deadline_us);
    }
    if (err) {
        return reason_set(reason, err, "no RDMA card of this host leads to %s: %s",
                          nbd_rdma_format(address, text), strerror(-err));
    }
    rdma_set_option(c->id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &timeout, sizeof(timeout));
    err = rdma_resolve_route(c->id, left_ms) ? -errno : 0;
    if (!err) {
        err = wait_step(c, RDMA_CM_EVENT_ROUTE_RESOLVED, deadline_us);
    }
    return err ? reason_set(reason, err, "there is no RDMA route to %s: %s",
                            nbd_rdma_format(address, text), strerror(-err))
               : 0;
}

static int allocate(struct nbd_rdma *c, struct reason *reason)
{
    struct ibv_qp_init_attr attr = {
        .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = RDMA_SEND_QUEUE + 8,
                .max_recv_wr = RDMA_RECEIVES,
                .max_send_sge = 1,
                .max_recv_sge = 1},
    };

    c->memory_size = c->staging_size + (RDMA_RECEIVES + 1) * RDMA_SLOT_BYTES;
    c->memory_size = (c->memory_size + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1);
    void *memory = mmap(NULL, c->memory_size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    c->ops = calloc(RDMA_OPS, sizeof(*c->ops));
    if (memory == MAP_FAILED || !c->ops) {
        return reason_set(reason, -ENOMEM, "no memory for an RDMA connection");
    }
    c->memory = memory;
    madvise(memory, c->memory_size, MADV_DONTDUMP);
    madvise(memory, c->memory_size, MADV_DONTFORK); /* a child's copy would leave the card ours */
    c->pd = ibv_alloc_pd(c->id->verbs);
    c->channel = ibv_create_comp_channel(c->id->verbs);
    c->cq = c->channel ? ibv_create_cq(c->id->verbs, RDMA_SEND_QUEUE + 8 + RDMA_RECEIVES, NULL,
                                       c->channel, 0)
                       : NULL;
    if (!c->pd || !c->cq) {
        return reason_set(reason, -errno, "the RDMA card has no room for a connection: %s",
                          strerror(errno));
    }
    fcntl(c->channel->fd, F_SETFL, O_NONBLOCK);
    c->mr = ibv_reg_mr(c->pd, c->memory, c->memory_size, IBV_ACCESS_LOCAL_WRITE);
    if (!c->mr) {
        return rdma_limits_reason(errno, c->memory_size, reason);
    }
    attr.send_cq = attr.recv_cq = c->cq;
    if (rdma_create_qp(c->id, c->pd, &attr)) {
        return reason_set(reason, -errno, "the RDMA card has no room for a connection: %s",
                          strerror(errno));
    }
    for (unsigned i = 0; i < RDMA_RECEIVES; i++) {
        int err = rdma_post_receive(c, i);
        if (err) {
            return reason_set(reason, err, "RDMA cannot be used: %s", strerror(-err));
        }
    }
    return 0;
}

static int add_to_epoll(struct nbd_rdma *c, int fd)
{
    struct epoll_event event = {.events = EPOLLIN};

    return epoll_ctl(c->epoll, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

static int open_descriptors(struct nbd_rdma *c, struct reason *reason)
{
    c->epoll = epoll_create1(EPOLL_CLOEXEC);
    c->abort = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int err = c->epoll < 0 || c->abort < 0 ? -errno : 0;
    err = err ? err : add_to_epoll(c, c->abort);
    err = err ? err : add_to_epoll(c, c->events->fd);
    err = err ? err : add_to_epoll(c, c->channel->fd);
    return err ? reason_set(reason, err, "RDMA cannot be used: %s", strerror(-err)) : 0;
}

static int refused(const struct rdma_cm_event *event, const char *where, struct reason *reason)
{
    int err = rdma_decode_refusal(event->param.conn.private_data,
                                  event->param.conn.private_data_len);

    if (err == -ENOENT) {
        return reason_set(reason, err, "%s has no such region, or not with this ticket", where);
    }
    return reason_set(reason, err, "%s does not take an RDMA connection: %s", where,
                      strerror(-err));
}

static int welcomed(struct nbd_rdma *c, const struct rdma_cm_event *event, const char *where,
                    struct reason *reason)
{
    struct rdma_welcome welcome;
    int err = rdma_decode_welcome(event->param.conn.private_data,
                                  event->param.conn.private_data_len, &welcome);

    if (err) {
        return reason_set(reason, err, "%s does not speak our language over RDMA", where);
    }
    c->size = welcome.size;
    c->slab_bytes = welcome.slab_bytes;
    c->n_slabs = (c->size + c->slab_bytes - 1) / c->slab_bytes;
    c->slabs = calloc(c->n_slabs, sizeof(*c->slabs));
    return c->slabs ? 0 : reason_set(reason, -ENOMEM, "no memory for an RDMA connection");
}

static int hash_name(const char *name, struct rdma_hello *hello)
{
    return gnutls_hash_fast(GNUTLS_DIG_SHA256, name, strlen(name), hello->export_hash) ? -EIO : 0;
}

static int shake_hands(struct nbd_rdma *c, const struct endpoint *address, const char *export_name,
                       uint64_t deadline_us, struct reason *reason)
{
    char where[ENDPOINT_TEXT_LEN];
    uint8_t data[RDMA_HELLO_BYTES];
    struct rdma_hello hello;
    struct rdma_conn_param param = {
        .private_data = data,
        .private_data_len = sizeof(data),
        .responder_resources = 0,
        .initiator_depth = RDMA_DEPTH,
        .retry_count = 7,
        .rnr_retry_count = 7,
    };
    struct rdma_cm_event *event;

    nbd_rdma_format(address, where);
    int err = hash_name(export_name, &hello);
    rdma_encode_hello(data, &hello);
    if (!err && rdma_connect(c->id, &param)) {
        err = -errno;
    }
    if (!err) {
        err = wait_event(c, deadline_us, &event);
    }
    if (err) {
        return reason_set(reason, err, "%s does not answer over RDMA: %s", where, strerror(-err));
    }
    if (event->event == RDMA_CM_EVENT_ESTABLISHED) {
        err = welcomed(c, event, where, reason);
    } else if (event->event == RDMA_CM_EVENT_REJECTED) {
        err = refused(event, where, reason);
    } else {
        err = reason_set(reason, -EHOSTUNREACH, "%s cannot be reached over RDMA", where);
    }
    rdma_ack_cm_event(event);
    return err;
}

int nbd_rdma_connect(struct nbd_rdma **connection, const struct endpoint *address,
                     const char *export_name, size_t staging, int timeout_ms,
                     struct reason *reason)
{
    uint64_t timeout_us = (uint64_t)timeout_ms * 1000;
    struct nbd_rdma *c = calloc(1, sizeof(*c));

    if (!c) {
        return reason_set(reason, -ENOMEM, "no memory for an RDMA connection");
    }
    c->epoll = c->abort = -1;
    c->staging_size = staging;
    int err = begin(c, reason);
    err = err ? err : resolve(c, address, units_now_us() + timeout_us, reason);
    err = err ? err : allocate(c, reason);
    err = err ? err : open_descriptors(c, reason);
    /* What this host took to register memory is no time that the other one had to answer. */
    err = err ? err : shake_hands(c, address, export_name, units_now_us() + timeout_us, reason);
    if (err) {
        nbd_rdma_close(c);
        return err;
    }
    *connection = c;
    return 0;
}

void nbd_rdma_close(struct nbd_rdma *c)
{
    if (!c) {
        return;
    }
    if (c->id && c->id->qp) {
        rdma_disconnect(c->id);
        rdma_destroy_qp(c->id);
    }
    if (c->cq) {
        ibv_destroy_cq(c->cq);
    }
    if (c->channel) {
        ibv_destroy_comp_channel(c->channel);
    }
    if (c->mr) {
        ibv_dereg_mr(c->mr);
    }
    if (c->pd) {
        ibv_dealloc_pd(c->pd);
    }
    if (c->id) {
        rdma_destroy_id(c->id);
    }
    if (c->events) {
        rdma_destroy_event_channel(c->events);
    }
    if (c->memory) {
        explicit_bzero(c->memory, c->memory_size);
        munmap(c->memory, c->memory_size);
    }
    if (c->epoll >= 0) {
        close(c->epoll);
    }
    if (c->abort >= 0) {
        close(c->abort);
    }
    free(c->slabs);
    free(c->ops);
    free(c);
}

uint64_t nbd_rdma_size(const struct nbd_rdma *c)
{
    return c->size;
}

int nbd_rdma_fd(const struct nbd_rdma *c)
{
    return c->epoll;
}
