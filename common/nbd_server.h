/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * nbd_server.h - serve exports over NBD
 *
 * One thread per connection.  The server does negotiation, checks every length
 * and bound (in one function) before an export sees a request, receives write
 * payloads straight into the memory the export names, and sends read payloads
 * straight from it, coalescing the replies to requests that came together.
 * A bad peer costs its own connection and nothing else.
 */
#ifndef COMMON_NBD_SERVER_H
#define COMMON_NBD_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/log.h"

struct nbd_extent {
    uint64_t length;
    uint32_t flags; /* NBD_STATE_* */
};

struct nbd_export;

/*
 * What an export does.  Offsets and lengths are inside the export's size and
 * lengths are at most NBD_MAX_REQUEST.  All return 0 or a negative errno and
 * may run in several threads at once.  Optional ones may be NULL: the command
 * is then not advertised and is refused with ENOTSUP.
 */
struct nbd_export_ops {
    /*
     * Memory to send [offset, offset + length) from, valid until read_end.  *memory = NULL (and no
     * read_end) means that there is not memory behind all of it: the server then asks
     * block_status, sends zeros for what is NBD_STATE_ZERO and begins again for the other parts.
     */
    int (*read_begin)(struct nbd_export *export, uint64_t offset, uint32_t length,
                      const void **memory);
    void (*read_end)(struct nbd_export *export, uint64_t offset, uint32_t length);
    /*
     * Memory to receive into; checks quota.  write_end is always called after a successful
     * write_begin, with complete = false if the payload did not arrive whole; its result is the
     * command's.  Refused writes have their payload read and dropped by the server.
     */
    int (*write_begin)(struct nbd_export *export, uint64_t offset, uint32_t length, void **memory);
    /*
     * Take the next @length bytes of a payload out of @pipe, which has them, into @offset on (a
     * splice(2) into a file, which saves a copy).  Called, for one part after the other, instead of
     * filling memory when write_begin left *memory = NULL, which it may do if export->pipes.
     */
    int (*write_pipe)(struct nbd_export *export, uint64_t offset, uint32_t length, int pipe);
    int (*write_end)(struct nbd_export *export, uint64_t offset, uint32_t length, void *memory,
                     bool complete);
    int (*trim)(struct nbd_export *export, uint64_t offset, uint32_t length);
    int (*write_zeroes)(struct nbd_export *export, uint64_t offset, uint32_t length, bool no_hole);
    int (*flush)(struct nbd_export *export);
    /* Fill at most *n (and at least 1) extents from @offset; they need not cover all of @length. */
    int (*block_status)(struct nbd_export *export, uint64_t offset, uint32_t length,
                        struct nbd_extent *extents, size_t *n);
    /* The connection is gone: drop the reference that open gave. */
    void (*close)(struct nbd_export *export);
};

struct nbd_export {
    const struct nbd_export_ops *ops;
    uint64_t size;
    bool read_only;
    bool pipes; /* the server's, during write_begin: the payload may go through write_pipe */
    void *opaque; /* of the exporter */
};

struct nbd_server_config {
    void *opaque;
    /*
     * Find an export by the name a client asked for (not NUL-terminated; hostile) and fill it;
     * each connection has a struct of its own.  Return: 0, -ENOENT, -EACCES, ...
     */
    int (*open)(void *opaque, const char *name, size_t length, struct nbd_export *export);
    /* For NBD_OPT_LIST: call @add for each name that may be shown; may be NULL. */
    void (*list)(void *opaque, void (*add)(void *to, const char *name), void *to);
    unsigned max_connections; /* further ones are closed at once; 0: 256 */
    unsigned handshake_timeout_ms; /* 0: 10000 */
    bool tls; /* clients must begin TLS with NBD_OPT_STARTTLS before anything else */
    unsigned spin_us; /* how long to spin for the next request before sleeping; 0: not at all */
};

struct nbd_server;

/** nbd_server_start() - serve an endpoint_listen() socket, which the server then owns. Return: 0 or -errno. */
int nbd_server_start(struct nbd_server **server, int listener,
                     const struct nbd_server_config *config);

/** nbd_server_stop() - close the listener and every connection, wait for the threads, free */
void nbd_server_stop(struct nbd_server *server);

/**
 * nbd_pipe_splice() - for write_pipe: @length bytes, which @from has, into @file at @offset
 * Return: 0 or -errno (some of them may then be there); any thread.
 */
int nbd_pipe_splice(int from, int file, uint64_t offset, uint32_t length);

/** nbd_server_connections() - how many there are now; any thread */
unsigned nbd_server_connections(struct nbd_server *server);

/**
 * nbd_server_disconnect() - shut down the connections whose export @match says yes to
 * They close soon after, in their own threads; any thread may call this, but not while it holds a
 * lock that config->open takes.  A connection that is not seen opens its export after this call.
 */
void nbd_server_disconnect(struct nbd_server *server,
                           bool (*match)(void *arg, const struct nbd_export *export), void *arg);

#endif
