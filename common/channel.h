/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * channel.h - a byte stream between two hosts: a socket, with or without TLS on it
 *
 * Theory of operation
 * -------------------
 * Without TLS a channel is its socket: send and receive are one system call
 * and nothing else, because the page path lives on them.  With TLS (tls.h) the
 * socket does not block, and calls that may wait use poll(2).
 *
 * Two things are different for whoever polls:
 *  - bytes may have been received and not be read yet, so that poll() on the
 *    socket would sleep.  channel_more() tells; a receive that returned -EAGAIN
 *    or less than was asked for has left nothing behind.
 *  - a send that returned -EAGAIN has taken bytes: repeat it with the same ones
 *    in front.  (That is what one does with a plain socket.)
 *
 * One thread may send while another one receives.
 *
 * A connection to a sub-host's region may also be RDMA (nbd_rdma.h): requests and replies of NBD go
 * in and out as they would on a socket, and fd only wakes, if channel_more() was false before.  One
 * thread has all of it.
 */
#ifndef COMMON_CHANNEL_H
#define COMMON_CHANNEL_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "common/endpoint.h"
#include "common/log.h"
#include "common/nbd_rdma.h"
#include "common/tls.h"

struct channel {
    int fd;          /* -1: none */
    struct tls *tls; /* NULL: plaintext */
    struct nbd_rdma *rdma; /* not NULL: fd is its own, and no socket */
};

#define CHANNEL_NONE ((struct channel){.fd = -1})

/**
 * channel_recv() - receive, as recv(2)
 * @flags: MSG_DONTWAIT or 0 (MSG_WAITALL is allowed, and only a hint)
 * Return: bytes; 0 at the end of the stream; -errno (-EAGAIN also if a time limit has passed).
 */
static inline ssize_t channel_recv(const struct channel *channel, void *to, size_t n, int flags)
{
    if (channel->tls) {
        return tls_recv(channel->tls, to, n, !(flags & MSG_DONTWAIT));
    }
    if (channel->rdma) {
        ssize_t got_rdma = nbd_rdma_receive(channel->rdma, to, n);
        return got_rdma ? got_rdma : -EAGAIN;
    }
    ssize_t got = recv(channel->fd, to, n, flags);
    return got < 0 ? -errno : got;
}

/** channel_sendv() - send from iovecs, as sendmsg(2) with MSG_NOSIGNAL. Return: bytes or -errno. */
static inline ssize_t channel_sendv(const struct channel *channel, struct iovec *iov, size_t n,
                                    int flags)
{
    if (channel->tls) {
        return tls_sendv(channel->tls, iov, n, !(flags & MSG_DONTWAIT));
    }
    if (channel->rdma) {
        ssize_t sent_rdma = nbd_rdma_send(channel->rdma, iov, n);
        return sent_rdma ? sent_rdma : -EAGAIN;
    }
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = n};
    ssize_t sent = sendmsg(channel->fd, &message, flags | MSG_NOSIGNAL);
    return sent < 0 ? -errno : sent;
}

/** channel_send() - send one piece, as send(2) with MSG_NOSIGNAL. Return: bytes or -errno. */
static inline ssize_t channel_send(const struct channel *channel, const void *from, size_t n,
                                   int flags)
{
    if (channel->tls || channel->rdma) {
        struct iovec iov = {.iov_base = (void *)(uintptr_t)from, .iov_len = n};
        return channel_sendv(channel, &iov, 1, flags);
    }
    ssize_t sent = send(channel->fd, from, n, flags | MSG_NOSIGNAL);
    return sent < 0 ? -errno : sent;
}

/** channel_more() - true if there may be bytes to read although poll(2) on the socket would wait */
static inline bool channel_more(const struct channel *channel)
{
    return (channel->tls && tls_more(channel->tls)) ||
           (channel->rdma && !nbd_rdma_sleep(channel->rdma));
}

/**
 * channel_connect() - connect to @endpoint, with TLS if it says so
 * @timeout_ms: for connecting and TLS together (-1: none)
 * Not for NBD, where TLS comes after the greeting.  Return: 0, or -errno with a sentence in @reason.
 */
int channel_connect(struct channel *channel, const struct endpoint *endpoint, int timeout_ms,
                    struct reason *reason);

/**
 * channel_secure() - make TLS of an open channel, as a client of @host or (@host NULL) as a server
 * @deadline_us: of units_now_us(); UINT64_MAX: none
 * Return: 0, or -errno with a sentence in @reason; the channel is then good for closing only.
 */
int channel_secure(struct channel *channel, const char *host, uint64_t deadline_us,
                   struct reason *reason);

/** channel_timeout() - time limit of sends and receives that wait; 0: none. Return: 0 or -errno. */
int channel_timeout(struct channel *channel, int timeout_ms);

/** channel_error() - what a failed send or receive was about, for people */
const char *channel_error(const struct channel *channel, int err);

/** channel_abort() - sends and receives fail from now on, and fd wakes; any thread */
void channel_abort(struct channel *channel);

/** channel_close() - say good-bye if that takes no time, close, free; none is fine */
void channel_close(struct channel *channel);

#endif
