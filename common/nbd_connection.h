/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * nbd_connection.h - inside the NBD server: one connection and its buffers
 *
 * Theory of operation
 * -------------------
 * Bytes are received into rx as many as come, so that requests which came
 * together are found there together.  Replies are gathered: small ones as
 * bytes in tx, large payloads as iovecs that point into the export's memory,
 * which stays pinned (read_begin without its read_end) until it is sent.
 * Nothing is sent until the connection would otherwise wait for the peer, or
 * a buffer is full; then everything goes in one sendmsg.  So a lone request is
 * answered at once, and requests that came together are answered together.
 *
 * A large payload that goes into a file goes there through a pipe (nbd_pipe.c): spliced, it is copied
 * once instead of twice.  Of what follows it no more than a header is then received ahead, since
 * what is in rx has been copied already.
 *
 * nbd_server.c owns threads and the listener, nbd_handshake.c negotiates,
 * nbd_transmission.c serves requests, nbd_structured.c writes structured replies.
 * All functions return 0 or a negative errno, after which the connection is to be closed.
 */
#ifndef COMMON_NBD_CONNECTION_H
#define COMMON_NBD_CONNECTION_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/bounce.h"
#include "common/channel.h"
#include "common/nbd.h"
#include "common/nbd_server.h"
#include "common/pack.h"

#define NBD_RX_BYTES (128u << 10)
#define NBD_TX_BYTES (128u << 10)
#define NBD_TX_IOVS 64
/* Payloads up to this size are copied through rx and tx, larger ones go straight. */
#define NBD_SMALL_PAYLOAD (32u << 10)
#define NBD_META_ALLOCATION 1u /* our id of base:allocation */

struct nbd_pin {
    uint64_t offset;
    uint32_t length;
};

struct nbd_connection {
    struct channel channel;
    const struct nbd_server_config *config;
    pthread_mutex_t *lock; /* of the server: guards export and opened against nbd_server_disconnect() */
    struct nbd_export export;
    bool opened;
    bool structured;       /* the client asked for structured replies */
    bool no_zeroes;        /* the client asked for a short NBD_OPT_EXPORT_NAME reply */
    bool packs;            /* the client asked for NBD_CMD_PACK */
    bool allocation;       /* base:allocation was chosen, for the export named meta_name */
    uint32_t meta_length;
    char meta_name[NBD_MAX_STRING];
    uint64_t deadline_us; /* of the handshake; 0: none */
    int pipe[2];     /* of nbd_pipe.c; -1: none yet */
    bool no_pipe;    /* ... and there will be none */
    bool frugal;     /* receive no more than is needed: the next payload goes through the pipe, too */
    struct bounce pack;
    struct unpacker *unpacker;
    size_t rx_start, rx_end;
    size_t tx_used;
    unsigned n_iov, n_pins;
    struct iovec iov[NBD_TX_IOVS];
    struct nbd_pin pins[NBD_TX_IOVS];
    struct nbd_connection *next, **link; /* in the server's list */
    struct nbd_server *server;
    uint8_t rx[NBD_RX_BYTES] __attribute__((aligned(64)));
    uint8_t tx[NBD_TX_BYTES] __attribute__((aligned(64)));
};

/**
 * nbd_connection_new() - a connection on socket @fd, which it then owns
 * Its buffers hold page contents, so it is not in core dumps.  Return: NULL if there is no memory.
 */
struct nbd_connection *nbd_connection_new(const struct nbd_server_config *config, int fd);

/** nbd_connection_free() - close the socket and free */
void nbd_connection_free(struct nbd_connection *conn);

/** nbd_connection_run() - negotiate and serve until the peer is gone or must go; closes the export */
void nbd_connection_run(struct nbd_connection *conn);

/**
 * nbd_connection_need() - have @n (at most NBD_RX_BYTES) bytes in rx
 * Sends what is gathered before it waits.  Return: 0; -ECONNRESET at the end of the stream.
 */
int nbd_connection_need(struct nbd_connection *conn, size_t n);

/** nbd_connection_take() - use up @n bytes that nbd_connection_need() got; valid until the next need */
static inline uint8_t *nbd_connection_take(struct nbd_connection *conn, size_t n)
{
    uint8_t *bytes = conn->rx + conn->rx_start;
    conn->rx_start += n;
    return bytes;
}

/** nbd_connection_receive() - @n bytes to @to: first from rx, then straight from the socket */
int nbd_connection_receive(struct nbd_connection *conn, void *to, size_t n);

/** nbd_connection_drop() - read @n bytes and forget them */
int nbd_connection_drop(struct nbd_connection *conn, uint64_t n);

/** nbd_connection_room() - room for @n (at most NBD_TX_BYTES) bytes to be sent; NULL: close */
void *nbd_connection_room(struct nbd_connection *conn, size_t n);

/** nbd_connection_refer() - send @n bytes at @memory, which stays valid until they are sent */
int nbd_connection_refer(struct nbd_connection *conn, const void *memory, size_t n);

/** nbd_connection_pin() - call the export's read_end for this range after it is sent */
int nbd_connection_pin(struct nbd_connection *conn, uint64_t offset, uint32_t length);

/** nbd_connection_zeroes() - send @n zero bytes */
int nbd_connection_zeroes(struct nbd_connection *conn, uint64_t n);

/** nbd_connection_flush() - send all that is gathered and end its pins */
int nbd_connection_flush(struct nbd_connection *conn);

/** nbd_connection_linger() - the last reply is under way: give the peer a moment to read it */
void nbd_connection_linger(struct nbd_connection *conn);

/** nbd_handshake() - negotiate; Return: 0 when an export is open and transmission begins */
int nbd_handshake(struct nbd_connection *conn);

/** nbd_handshake_flags() - transmission flags that tell what the export can do */
uint16_t nbd_handshake_flags(const struct nbd_connection *conn, const struct nbd_export *export);

/** nbd_transmission() - serve requests; Return: 0 after a DISC, or -errno */
int nbd_transmission(struct nbd_connection *conn);

/* A request in host order. */
struct nbd_command {
    uint16_t type;
    uint16_t flags;
    uint32_t length;
    uint64_t offset;
    uint64_t cookie; /* as it came: only ever copied back */
};

/** nbd_validate() - all that must be true of a request before it is run. Return: 0 or -errno for the client. */
int nbd_validate(const struct nbd_connection *conn, const struct nbd_command *command);

/** nbd_pipe_ready() - can a payload go through a pipe? Makes it if there is none yet. */
bool nbd_pipe_ready(struct nbd_connection *conn);

/**
 * nbd_pipe_receive() - hand a WRITE's payload to the export's write_pipe in parts
 * @status: how the export took it, 0 or -errno; what it did not take is dropped
 * Return: 0, or -errno that ends the connection: then the payload did not arrive whole.
 */
int nbd_pipe_receive(struct nbd_connection *conn, const struct nbd_command *command, int *status);

/** nbd_pipe_close() - with the connection */
void nbd_pipe_close(struct nbd_connection *conn);

/** nbd_pack_serve() - NBD_CMD_PACK; Return: 0, or -errno that ends the connection */
int nbd_pack_serve(struct nbd_connection *conn, const struct nbd_command *command);

/** nbd_reply_read() - answer a READ that passed validation */
int nbd_reply_read(struct nbd_connection *conn, const struct nbd_command *command);

/** nbd_reply_block_status() - answer a BLOCK_STATUS that passed validation */
int nbd_reply_block_status(struct nbd_connection *conn, const struct nbd_command *command);

/** nbd_reply_status() - answer with @err, 0 or a negative errno, and no payload */
int nbd_reply_status(struct nbd_connection *conn, const struct nbd_command *command, int err);

#endif
