/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * endpoint.h - addresses of our sockets: parse, print, listen, connect
 *
 * Text forms:  unix:/run/x.sock   tcp:HOST:PORT   tcp:[::1]:PORT   tcp::PORT (any address)
 *              tls:HOST:PORT, as tcp: with TLS
 * A policy's sub-host URI  subhost://HOST[:PORT]  has port 10810 by default.
 */
#ifndef COMMON_ENDPOINT_H
#define COMMON_ENDPOINT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/log.h"

#define ENDPOINT_TEXT_LEN 300

struct endpoint {
    bool is_unix;
    bool tls;
    char host[256]; /* or the path; "" for any address */
    uint16_t port;
};

/** endpoint_parse() - Return: 0, or -EINVAL with a sentence in @reason */
int endpoint_parse(const char *text, struct endpoint *endpoint, struct reason *reason);

/** endpoint_format() - the text form; Return: @text */
const char *endpoint_format(const struct endpoint *endpoint, char text[ENDPOINT_TEXT_LEN]);

/** endpoint_is_local() - true for UNIX sockets and loopback addresses */
bool endpoint_is_local(const struct endpoint *endpoint);

/** endpoint_is_exposed() - true if other hosts are talked to, and without TLS */
static inline bool endpoint_is_exposed(const struct endpoint *endpoint)
{
    return !endpoint->tls && !endpoint_is_local(endpoint);
}

/** endpoint_refuse_exposed() - from now on endpoint_connect() refuses exposed addresses (-EPERM) */
void endpoint_refuse_exposed(void);

/**
 * endpoint_listen() - bind and listen; a stale UNIX socket nobody listens on is replaced
 * @endpoint: if its port is 0 the kernel chooses one, and it is stored here
 *
 * Return: a close-on-exec, blocking socket, or -errno with a sentence in @reason.
 */
int endpoint_listen(struct endpoint *endpoint, struct reason *reason);

/** endpoint_group() - a group by its name or number; Return: 0, or -EINVAL with a sentence in @reason */
int endpoint_group(const char *text, gid_t *gid, struct reason *reason);

/**
 * endpoint_share() - let the members of @group connect to a UNIX socket, beside its owner
 * Only the owner may before.  For TCP this is nothing.  Return: 0, or -errno with a sentence in @reason.
 */
int endpoint_share(const struct endpoint *endpoint, gid_t group, struct reason *reason);

/**
 * endpoint_connect() - connect within a time limit; TCP_NODELAY is set; TLS is the caller's affair
 * @timeout_ms: limit for the whole call, also name look-up's results (-1: none)
 *
 * Return: a close-on-exec, blocking socket, or -errno with a sentence in @reason.
 */
int endpoint_connect(const struct endpoint *endpoint, int timeout_ms, struct reason *reason);

/** endpoint_accept() - accept, close-on-exec, TCP_NODELAY where it applies; Return: fd or -errno */
int endpoint_accept(int listener);

#endif
