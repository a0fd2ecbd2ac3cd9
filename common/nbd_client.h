/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * nbd_client.h - our side of an NBD connection
 *
 * Simple replies only (the fault connection wants nothing between the header
 * and the page).  The synchronous calls serve control paths and tests; the
 * fault path, page-out and the mover write requests and read replies on
 * the channel themselves with the encode and decode helpers.
 */
#ifndef COMMON_NBD_CLIENT_H
#define COMMON_NBD_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/channel.h"
#include "common/endpoint.h"
#include "common/log.h"
#include "common/nbd.h"

struct nbd_client {
    struct channel channel;
    uint64_t size;
    uint32_t flags; /* transmission flags, NBD_TFLAG_* */
    uint64_t next_cookie;
    bool packs; /* NBD_CMD_PACK may be used */
};

/**
 * nbd_client_connect() - connect, negotiate fixed newstyle, TLS if @endpoint says so, and NBD_OPT_GO
 * @export: name, at most NBD_MAX_STRING
 * @timeout_ms: for connecting and negotiating together
 *
 * Return: 0, or -errno with a sentence in @reason (-ENOENT: no such export; -EPROTO: not NBD).
 * On success the channel belongs to @client; a plain one is blocking.
 */
int nbd_client_connect(struct nbd_client *client, const struct endpoint *endpoint,
                       const char *export, int timeout_ms, struct reason *reason);

/** nbd_client_connect_packing() - the same, and ask for NBD_CMD_PACK: ->packs tells whether the server knows it */
int nbd_client_connect_packing(struct nbd_client *client, const struct endpoint *endpoint,
                               const char *export, int timeout_ms, struct reason *reason);

/** nbd_client_close() - send DISC if the connection is idle and whole (@polite), close */
void nbd_client_close(struct nbd_client *client, bool polite);

/** nbd_encode_request() - fill a request in wire order */
void nbd_encode_request(struct nbd_request *request, uint16_t type, uint16_t flags,
                        uint64_t cookie, uint64_t offset, uint32_t length);

/**
 * nbd_decode_simple_reply() - check and convert a reply's header
 * @error: 0 or a negative errno
 * Return: 0 or -EPROTO if the magic is wrong.
 */
int nbd_decode_simple_reply(const struct nbd_simple_reply *reply, uint64_t *cookie, int *error);

/* Synchronous calls; 0 or -errno; -EPROTO, -ECONNRESET, -ETIMEDOUT leave the connection unusable. */
int nbd_client_read(struct nbd_client *client, void *buffer, uint64_t offset, uint32_t length);
int nbd_client_write(struct nbd_client *client, const void *buffer, uint64_t offset,
                     uint32_t length);
int nbd_client_trim(struct nbd_client *client, uint64_t offset, uint32_t length);
int nbd_client_write_zeroes(struct nbd_client *client, uint64_t offset, uint32_t length);
int nbd_client_flush(struct nbd_client *client);

/** nbd_client_set_timeout() - receive and send time limit for the synchronous calls, 0: none */
int nbd_client_set_timeout(struct nbd_client *client, int timeout_ms);

#endif
