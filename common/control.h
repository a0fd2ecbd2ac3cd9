/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * control.h - QMP-style control: one JSON object a line
 *
 * Theory of operation
 * -------------------
 * The server greets: {"split-migrate": {"program": "...", "version": "...", "protocol": 1}}
 * A client sends     {"execute": "verb", "arguments": {...}, "id": anything}
 * and gets           {"return": ..., "id": ...}  or  {"error": {"class": "...", "desc": "..."}, "id": ...}
 * Events come between: {"event": "NAME", "data": {...}, "timestamp": {"seconds": s, "microseconds": us}}
 * A line is at most CONTROL_MAX_LINE bytes; a longer one, or one that is not
 * JSON, is answered with an error and the connection is closed.
 *
 * The server runs one thread per connection (control is rare and never on the
 * page path), at most CONTROL_MAX_CONNECTIONS of them.  The same functions
 * speak QEMU's QMP from the client's side.
 */
#ifndef COMMON_CONTROL_H
#define COMMON_CONTROL_H

#include <jansson.h>
#include <stdbool.h>

#include "common/endpoint.h"
#include "common/log.h"

#define CONTROL_MAX_LINE (16u << 20)
#define CONTROL_MAX_CONNECTIONS 256

struct control_server;
struct control_peer; /* a client's connection, as its server sees it */

/**
 * typedef control_handler - run one verb
 * @opaque: of the verb's table
 * @peer: valid until its on_close has run; may be kept for control_event()
 * @args: the arguments object, never NULL; borrowed
 * @reason: to hold the sentence if the verb fails
 *
 * Runs in the connection's thread; several connections run verbs at the same time.
 * Return: a new reference for "return" (NULL means {} if *@err is 0); on failure *@err is a
 * negative errno, which becomes the error's class ("ENOSPC", ...).
 */
typedef json_t *(*control_handler)(void *opaque, struct control_peer *peer, const json_t *args,
                                   int *err, struct reason *reason);

struct control_verb {
    const char *name; /* NULL ends the table */
    control_handler handler;
};

struct control_config {
    const char *program; /* for the greeting */
    const struct control_verb *verbs;
    void *opaque;
    /* may be NULL; runs in the connection's thread when the peer is gone, before it is freed */
    void (*on_close)(void *opaque, struct control_peer *peer);
    bool tls; /* peers must do a TLS handshake first */
};

/**
 * control_server_start() - serve @listener, an endpoint_listen() socket, in threads of its own
 * The server owns @listener.  Return: 0 or -errno.
 */
int control_server_start(struct control_server **server, int listener,
                         const struct control_config *config);

/** control_server_stop() - close the listener and all peers, wait for the threads, free */
void control_server_stop(struct control_server *server);

/** control_event() - send an event to one peer; any thread; a dead peer is ignored. Steals @data. */
void control_event(struct control_peer *peer, const char *name, json_t *data);

/** control_broadcast() - send an event to every peer; any thread. Steals @data. */
void control_broadcast(struct control_server *server, const char *name, json_t *data);

/** control_peer_set()/control_peer_get() - one pointer of the handler's own per connection */
void control_peer_set(struct control_peer *peer, void *data);
void *control_peer_get(struct control_peer *peer);

/* ---- client ---- */

struct control_client;
typedef void (*control_on_event)(void *opaque, const char *name, const json_t *data);

/**
 * control_connect() - connect, with TLS if @endpoint says so, and read the greeting (ours or QMP's;
 * for QMP also negotiates with qmp_capabilities)
 * Return: 0, or -errno with a sentence in @reason.  Not thread-safe: one user per client.
 */
int control_connect(struct control_client **client, const struct endpoint *endpoint,
                    int timeout_ms, struct reason *reason);

/** control_on_event_set() - events read by later calls are given to @on_event */
void control_on_event_set(struct control_client *client, control_on_event on_event, void *opaque);

/**
 * control_call() - run a verb and wait for its answer
 * @args: stolen; may be NULL
 * @result: new reference to the "return" value; may be NULL
 * @timeout_ms: -1 waits for ever
 *
 * Return: 0; -errno named by the error's class (-EREMOTEIO for others) with the peer's sentence
 * in @reason; -ETIMEDOUT or -ECONNRESET if the peer did not answer (the connection is then unusable).
 */
int control_call(struct control_client *client, const char *verb, json_t *args, json_t **result,
                 int timeout_ms, struct reason *reason);

/** control_poll() - read and deliver what events have come; Return: 0, or -ECONNRESET at end of file */
int control_poll(struct control_client *client);

/** control_fd() - for poll(2) */
int control_fd(const struct control_client *client);

/** control_close() - close and free; NULL is fine */
void control_close(struct control_client *client);

#endif
