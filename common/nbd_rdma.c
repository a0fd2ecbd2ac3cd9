// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * nbd_rdma.c - NBD requests into work requests, completions into replies
 *
 * Theory of operation: nbd_rdma.h.
 */
#include "common/nbd_rdma.h"

#include <endian.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "common/nbd_client.h"
#include "common/nbd_rdma_internal.h"
#include "common/racy.h"
#include "common/units.h"

#define RDMA_POST 32u /* work requests handed over at a time */

int rdma_break(struct nbd_rdma *c, int err)
{
    if (!c->error) {
        c->error = err;
    }
    return c->error;
}

/* ---- the queue ---- */

/* Room for @length contiguous bytes of staging. Return: where, or -1. */
static int64_t stage(struct nbd_rdma *c, size_t length)
{
    size_t head, tail;

    length = (length + RDMA_SLOT_BYTES - 1) & ~(size_t)(RDMA_SLOT_BYTES - 1);
    if (c->head == c->tail) {
        return length < c->staging_size ? 0 : -1;
    }
    const struct rdma_op *last = rdma_op_at(c, c->tail - 1);
    size_t last_length = last->type == NBD_CMD_TRIM ? RDMA_SLOT_BYTES : last->length;
    head = rdma_op_at(c, c->head)->staged;
    tail = last->staged + ((last_length + RDMA_SLOT_BYTES - 1) & ~(size_t)(RDMA_SLOT_BYTES - 1));
    /* The two are equal only when nothing is staged, which was dealt with. */
    if (tail > head) {
        if (tail + length <= c->staging_size) {
            return (int64_t)tail;
        }
        return length < head ? 0 : -1;
    }
    return tail + length < head ? (int64_t)tail : -1;
}

struct cursor {
    const struct iovec *iov;
    size_t n, at; /* bytes of iov[0] that are taken */
};

/* Return: false if there are not so many. */
static bool take(struct cursor *from, uint8_t *to, size_t length)
{
    racy_begin();
    while (length && from->n) {
        size_t part = from->iov->iov_len - from->at;
        part = part < length ? part : length;
        memcpy(to, (const uint8_t *)from->iov->iov_base + from->at, part);
        to += part;
        length -= part;
        from->at += part;
        if (from->at == from->iov->iov_len) {
            from->iov++;
            from->n--;
            from->at = 0;
        }
    }
    racy_end();
    return length == 0;
}

static bool op_is_sound(const struct nbd_rdma *c, const struct rdma_op *op)
{
    return op->length && op->offset < c->size && op->length <= c->size - op->offset &&
           (op->type == NBD_CMD_TRIM ||
            op->offset / c->slab_bytes == (op->offset + op->length - 1) / c->slab_bytes);
}

/* Take one request. Return: 1; 0: no room; -errno. */
static int enqueue(struct nbd_rdma *c, struct cursor *from)
{
    struct nbd_request wire;
    struct cursor at = *from;

    if (c->tail - c->head == RDMA_OPS) {
        return 0;
    }
    if (!take(&at, (uint8_t *)&wire, sizeof(wire))) {
        return rdma_break(c, -EINVAL);
    }
    struct rdma_op op = {.type = be16toh(wire.type),
                         .cookie = be64toh(wire.cookie),
                         .offset = be64toh(wire.offset),
                         .length = be32toh(wire.length)};
    bool known = op.type == NBD_CMD_READ || op.type == NBD_CMD_WRITE || op.type == NBD_CMD_TRIM;
    size_t length = op.type == NBD_CMD_TRIM ? RDMA_SLOT_BYTES : op.length;
    if (!known || length > c->staging_size / 2) {
        return rdma_break(c, -EINVAL);
    }
    int64_t staged = stage(c, length);
    if (staged < 0) {
        return 0;
    }
    op.staged = (uint32_t)staged;
    if (op.type == NBD_CMD_WRITE && !take(&at, c->memory + staged, length)) {
        return rdma_break(c, -EINVAL);
    }
    if (!op_is_sound(c, &op)) {
        op.answered = true;
        op.error = -EINVAL;
    }
    *rdma_op_at(c, c->tail++) = op;
    *from = at;
    return 1;
}

/* ---- posting ---- */

struct batch {
    struct ibv_send_wr wr[RDMA_POST];
    struct ibv_sge sge[RDMA_POST];
    unsigned n;
};

static bool batch_has_room(const struct nbd_rdma *c, const struct batch *batch)
{
    return batch->n < RDMA_POST && c->serial - c->completed < RDMA_SEND_QUEUE;
}

static struct ibv_send_wr *batch_add(struct nbd_rdma *c, struct batch *batch, enum ibv_wr_opcode code,
                                     void *memory, uint32_t length)
{
    struct ibv_sge *sge = &batch->sge[batch->n];
    struct ibv_send_wr *wr = &batch->wr[batch->n];

    *sge = (struct ibv_sge){
        .addr = (uintptr_t)memory, .length = length, .lkey = c->mr->lkey};
    *wr = (struct ibv_send_wr){.wr_id = ++c->serial, .sg_list = sge, .num_sge = 1, .opcode = code};
    if (batch->n++) {
        batch->wr[batch->n - 2].next = wr;
    }
    if (code != IBV_WR_RDMA_WRITE || ++c->unsignalled >= RDMA_SIGNAL_EVERY) {
        wr->send_flags = IBV_SEND_SIGNALED;
        c->unsignalled = 0;
    }
    return wr;
}

static int batch_post(struct nbd_rdma *c, struct batch *batch)
{
    struct ibv_send_wr *bad;

    if (!batch->n) {
        return 0;
    }
    batch->wr[batch->n - 1].send_flags = IBV_SEND_SIGNALED;
    c->unsignalled = 0;
    int err = ibv_post_send(c->id->qp, batch->wr, &bad);
    batch->n = 0;
    return err ? rdma_break(c, -err) : 0;
}

static void add_message(struct nbd_rdma *c, struct batch *batch, uint8_t *memory,
                        const struct rdma_message *message)
{
    rdma_encode_message(memory, message);
    batch_add(c, batch, IBV_WR_SEND, memory, RDMA_MESSAGE_BYTES);
    c->messages++;
}

/* Return: false if the request, and all behind it, must wait. */
static bool add_transfer(struct nbd_rdma *c, struct batch *batch, struct rdma_op *op)
{
    uint64_t number = op->offset / c->slab_bytes;
    struct rdma_slab *slab = &c->slabs[number];

    if (slab->state == RDMA_SLAB_KNOWN) {
        bool read = op->type == NBD_CMD_READ;
        struct ibv_send_wr *wr =
            batch_add(c, batch, read ? IBV_WR_RDMA_READ : IBV_WR_RDMA_WRITE, c->memory + op->staged,
                      op->length);
        wr->wr.rdma.remote_addr = slab->address + op->offset % c->slab_bytes;
        wr->wr.rdma.rkey = slab->rkey;
        op->serial = wr->wr_id;
        return true;
    }
    if (slab->state == RDMA_SLAB_REFUSED) {
        op->answered = true;
        op->error = slab->error;
        slab->state = RDMA_SLAB_UNKNOWN; /* whoever comes next asks again */
        return true;
    }
    if (slab->state == RDMA_SLAB_UNKNOWN && c->messages < RDMA_MESSAGES) {
        struct rdma_message question = {
            .type = RDMA_SLAB, .cookie = number, .offset = number * c->slab_bytes};
        add_message(c, batch, rdma_slot(c, RDMA_RECEIVES), &question);
        slab->state = RDMA_SLAB_ASKED;
    }
    return false;
}

static bool add_trim(struct nbd_rdma *c, struct batch *batch, struct rdma_op *op)
{
    struct rdma_message message = {
        .type = RDMA_TRIM, .cookie = c->posted, .offset = op->offset, .length = op->length};

    if (c->messages >= RDMA_MESSAGES) {
        return false;
    }
    add_message(c, batch, c->memory + op->staged, &message);
    return true;
}

/* Post what can be posted. */
static int pump(struct nbd_rdma *c)
{
    struct batch batch;
    bool more = !c->error;

    batch.n = 0;
    while (more && c->posted < c->tail) {
        struct rdma_op *op = rdma_op_at(c, c->posted);
        if (!batch_has_room(c, &batch)) {
            more = batch.n > 0 && batch_post(c, &batch) == 0 && batch_has_room(c, &batch);
            continue;
        }
        if (!op->answered) {
            more = op->type == NBD_CMD_TRIM ? add_trim(c, &batch, op)
                                            : add_transfer(c, &batch, op);
        }
        c->posted += more;
    }
    return c->error ? c->error : batch_post(c, &batch);
}

ssize_t nbd_rdma_send(struct nbd_rdma *c, const struct iovec *iov, size_t n)
{
    struct cursor from = {.iov = iov, .n = n};
    uint64_t before = c->tail;
    int rc = c->error ? c->error : 1;

    while (rc > 0 && from.n) {
        rc = enqueue(c, &from);
    }
    if (rc < 0 || (rc = pump(c)) < 0) {
        return rc;
    }
    ssize_t sent = 0;
    for (uint64_t i = before; i < c->tail; i++) {
        const struct rdma_op *op = rdma_op_at(c, i);
        sent += (ssize_t)(sizeof(struct nbd_request) + (op->type == NBD_CMD_WRITE ? op->length : 0));
    }
    return sent;
}

/* ---- completions ---- */

int rdma_post_receive(struct nbd_rdma *c, unsigned slot)
{
    struct ibv_sge sge = {.addr = (uintptr_t)rdma_slot(c, slot),
                          .length = RDMA_SLOT_BYTES,
                          .lkey = c->mr->lkey};
    struct ibv_recv_wr wr = {.wr_id = RDMA_RECEIVED | slot, .sg_list = &sge, .num_sge = 1};
    struct ibv_recv_wr *bad;

    return -ibv_post_recv(c->id->qp, &wr, &bad);
}

static int slab_answer(struct nbd_rdma *c, const struct rdma_message *answer)
{
    struct rdma_slab *slab = answer->cookie < c->n_slabs ? &c->slabs[answer->cookie] : NULL;
    uint64_t left = c->size - answer->cookie * c->slab_bytes;

    if (!slab || slab->state != RDMA_SLAB_ASKED) {
        return -EPROTO;
    }
    if (answer->error) {
        slab->state = RDMA_SLAB_REFUSED;
        slab->error = answer->error;
        return 0;
    }
    if (answer->length != (left < c->slab_bytes ? left : c->slab_bytes)) {
        return -EPROTO;
    }
    slab->state = RDMA_SLAB_KNOWN;
    slab->address = answer->address;
    slab->rkey = answer->rkey;
    return 0;
}

static int trim_answer(struct nbd_rdma *c, const struct rdma_message *answer)
{
    struct rdma_op *op = rdma_op_at(c, answer->cookie);

    if (answer->cookie < c->head || answer->cookie >= c->posted || op->type != NBD_CMD_TRIM ||
        op->answered) {
        return -EPROTO;
    }
    op->answered = true;
    op->error = answer->error;
    return 0;
}

static int message_came(struct nbd_rdma *c, unsigned slot, size_t length)
{
    struct rdma_message answer;
    int err = slot < RDMA_RECEIVES ? rdma_decode_message(rdma_slot(c, slot), length, &answer)
                                   : -EPROTO;

    if (!err && (!(answer.type & RDMA_ANSWER) || c->messages == 0)) {
        err = -EPROTO;
    }
    if (!err) {
        c->messages--;
        err = answer.type == (RDMA_ANSWER | RDMA_SLAB) ? slab_answer(c, &answer)
                                                       : trim_answer(c, &answer);
    }
    return err ? err : rdma_post_receive(c, slot);
}

static int completion_errno(enum ibv_wc_status status)
{
    switch (status) {
    case IBV_WC_RETRY_EXC_ERR:
    case IBV_WC_RNR_RETRY_EXC_ERR:
        return -ETIMEDOUT;
    case IBV_WC_REM_ACCESS_ERR:
        return -EACCES;
    case IBV_WC_WR_FLUSH_ERR:
        return -ECONNRESET;
    default:
        return -EREMOTEIO;
    }
}

/* Treat completions. Return: how many, or -errno. */
static int reap(struct nbd_rdma *c)
{
    struct ibv_wc wc[16];
    int total = 0, n;

    if (atomic_load_explicit(&c->aborted, memory_order_relaxed)) {
        return rdma_break(c, -ECANCELED);
    }
    while (!c->error && (n = ibv_poll_cq(c->cq, 16, wc)) != 0) {
        if (n < 0) {
            return rdma_break(c, -EIO);
        }
        for (int i = 0; i < n; i++) {
            int err = 0;
            if (wc[i].status != IBV_WC_SUCCESS) {
                err = completion_errno(wc[i].status);
            } else if (wc[i].wr_id & RDMA_RECEIVED) {
                err = message_came(c, (unsigned)(wc[i].wr_id & 0xffff), wc[i].byte_len);
            } else {
                c->completed = wc[i].wr_id;
            }
            if (err) {
                return rdma_break(c, err);
            }
        }
        total += n;
    }
    if (total && !c->error) {
        pump(c);
    }
    return c->error ? c->error : total;
}

/* The other end has gone, or rdma_cm has something to say; without waiting. */
static int look_at_events(struct nbd_rdma *c)
{
    struct rdma_cm_event *event;
    struct ibv_cq *cq;
    void *context;

    if (c->armed && ibv_get_cq_event(c->channel, &cq, &context) == 0) {
        ibv_ack_cq_events(cq, 1);
        c->armed = false;
    }
    while (rdma_get_cm_event(c->events, &event) == 0) {
        bool over = event->event != RDMA_CM_EVENT_TIMEWAIT_EXIT;
        rdma_ack_cm_event(event);
        if (over) {
            rdma_break(c, -ECONNRESET);
        }
    }
    return c->error;
}

static bool is_done(const struct nbd_rdma *c, const struct rdma_op *op)
{
    return op->answered || (op->type != NBD_CMD_TRIM && op->serial <= c->completed);
}

static bool has_reply(struct nbd_rdma *c)
{
    return c->head < c->posted && is_done(c, rdma_op_at(c, c->head));
}

/* Copy replies to @buffer. Return: bytes. */
static size_t deliver(struct nbd_rdma *c, uint8_t *buffer, size_t size)
{
    size_t used = 0;

    while (has_reply(c)) {
        const struct rdma_op *op = rdma_op_at(c, c->head);
        size_t payload = op->type == NBD_CMD_READ && !op->error ? op->length : 0;
        struct nbd_simple_reply reply = {
            .magic = htobe32(NBD_SIMPLE_REPLY_MAGIC),
            .error = htobe32(op->error ? nbd_errno_to_wire(-op->error) : 0),
            .cookie = htobe64(op->cookie),
        };
        if (used + sizeof(reply) + payload > size) {
            break;
        }
        memcpy(buffer + used, &reply, sizeof(reply));
        memcpy(buffer + used + sizeof(reply), c->memory + op->staged, payload);
        used += sizeof(reply) + payload;
        c->head++;
    }
    return used;
}

ssize_t nbd_rdma_receive(struct nbd_rdma *c, void *buffer, size_t size)
{
    int rc = reap(c);

    if (rc >= 0 && c->head == c->tail) {
        rc = look_at_events(c);
    }
    size_t used = deliver(c, buffer, size);
    if (used && !c->error && c->posted < c->tail) {
        pump(c);
    }
    return used ? (ssize_t)used : rc < 0 ? rc : 0;
}

bool nbd_rdma_sleep(struct nbd_rdma *c)
{
    if (look_at_events(c)) {
        return false;
    }
    if (!c->armed) {
        if (ibv_req_notify_cq(c->cq, 0)) {
            rdma_break(c, -EIO);
            return false;
        }
        c->armed = true;
    }
    return reap(c) == 0 && !has_reply(c);
}

void nbd_rdma_abort(struct nbd_rdma *c)
{
    uint64_t one = 1;

    atomic_store(&c->aborted, true);
    ssize_t ignored = write(c->abort, &one, sizeof(one));
    (void)ignored;
}
