// SPDX-License-Identifier: GPL-2.0-or-later
/* Theory of operation: nbd_connection.h. */
#include "common/nbd_connection.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "common/racy.h"
#include "common/units.h"

#define LINGER_MS 200
#define LINGER_BYTES (64u << 20)

static const uint8_t zero_block[64 << 10];

static size_t mapping_size(void)
{
    return (sizeof(struct nbd_connection) + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1);
}

struct nbd_connection *nbd_connection_new(const struct nbd_server_config *config, int fd)
{
    struct nbd_connection *conn = mmap(NULL, mapping_size(), PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (conn == MAP_FAILED) {
        return NULL;
    }
    madvise(conn, mapping_size(), MADV_DONTDUMP);
    conn->channel = (struct channel){.fd = fd};
    conn->config = config;
    conn->pipe[0] = -1;
    return conn;
}

void nbd_connection_free(struct nbd_connection *conn)
{
    channel_close(&conn->channel);
    nbd_pipe_close(conn);
    bounce_free(&conn->pack);
    unpacker_free(conn->unpacker);
    munmap(conn, mapping_size());
}

/* Wait until the handshake's deadline for the socket to be ready. */
static int wait_until_deadline(struct nbd_connection *conn, short events)
{
    if (events == POLLIN && channel_more(&conn->channel)) {
        return 0;
    }
    for (;;) {
        uint64_t now = units_now_us();
        if (now >= conn->deadline_us) {
            return -ETIMEDOUT;
        }
        struct pollfd pfd = {.fd = conn->channel.fd, .events = events};
        int n = poll(&pfd, 1, (int)((conn->deadline_us - now) / 1000) + 1);
        if (n > 0) {
            return 0;
        }
        if (n < 0 && errno != EINTR) {
            return -errno;
        }
    }
}

/* Look for bytes without sleeping; returns -EAGAIN when the time to spin is over. */
static ssize_t receive_spinning(struct nbd_connection *conn, void *to, size_t n)
{
    uint64_t end = 0;

    for (;;) {
        for (int i = 0; i < 16; i++) {
            ssize_t got = channel_recv(&conn->channel, to, n, MSG_DONTWAIT);
            if (got != -EAGAIN && got != -EINTR) {
                return got;
            }
        }
        uint64_t now = units_now_us();
        if (!end) {
            end = now + conn->config->spin_us;
        } else if (now >= end) {
            return -EAGAIN;
        }
    }
}

/* One receive of at least 1 byte. */
static ssize_t receive_some(struct nbd_connection *conn, void *to, size_t n)
{
    int flags = 0;

    if (conn->deadline_us) {
        int err = wait_until_deadline(conn, POLLIN);
        if (err) {
            return err;
        }
        flags = MSG_DONTWAIT;
    } else if (conn->config->spin_us) {
        ssize_t got = receive_spinning(conn, to, n);
        if (got != -EAGAIN) {
            return got == 0 ? -ECONNRESET : got;
        }
    }
    for (;;) {
        ssize_t got = channel_recv(&conn->channel, to, n, flags);
        if (got > 0) {
            return got;
        }
        if (got == 0) {
            return -ECONNRESET;
        }
        if (got == -EAGAIN && conn->deadline_us) { /* part of a TLS record: wait for the rest */
            got = wait_until_deadline(conn, POLLIN);
        }
        if (got < 0 && got != -EINTR) {
            return got;
        }
    }
}

int nbd_connection_need(struct nbd_connection *conn, size_t n)
{
    if (conn->rx_end - conn->rx_start >= n) {
        return 0;
    }
    if (conn->rx_start == conn->rx_end) {
        conn->rx_start = conn->rx_end = 0;
    } else if (sizeof(conn->rx) - conn->rx_start < n) {
        memmove(conn->rx, conn->rx + conn->rx_start, conn->rx_end - conn->rx_start);
        conn->rx_end -= conn->rx_start;
        conn->rx_start = 0;
    }
    int err = nbd_connection_flush(conn);
    while (!err && conn->rx_end - conn->rx_start < n) {
        size_t most = conn->frugal ? n - (conn->rx_end - conn->rx_start) : sizeof(conn->rx) - conn->rx_end;
        ssize_t got = receive_some(conn, conn->rx + conn->rx_end, most);
        if (got < 0) {
            err = (int)got;
        } else {
            conn->rx_end += (size_t)got;
        }
    }
    return err;
}

int nbd_connection_receive(struct nbd_connection *conn, void *to, size_t n)
{
    size_t buffered = conn->rx_end - conn->rx_start;
    uint8_t *p = to;
    int err = 0;

    if (buffered > n) {
        buffered = n;
    }
    racy_begin();
    memcpy(p, nbd_connection_take(conn, buffered), buffered);
    p += buffered;
    n -= buffered;
    if (n) {
        err = nbd_connection_flush(conn);
    }
    while (n && !err) {
        ssize_t got = receive_some(conn, p, n);
        if (got < 0) {
            err = (int)got;
            break;
        }
        p += got;
        n -= (size_t)got;
    }
    racy_end();
    return err;
}

int nbd_connection_drop(struct nbd_connection *conn, uint64_t n)
{
    while (n) {
        int err = nbd_connection_need(conn, 1);
        if (err) {
            return err;
        }
        size_t buffered = conn->rx_end - conn->rx_start;
        size_t dropped = buffered < n ? buffered : (size_t)n;
        nbd_connection_take(conn, dropped);
        n -= dropped;
    }
    return 0;
}

/* Send iov[0..n) whole; the iovecs are used up. */
static int send_whole(struct nbd_connection *conn, struct iovec *iov, size_t n)
{
    while (n) {
        if (conn->deadline_us) {
            int err = wait_until_deadline(conn, POLLOUT);
            if (err) {
                return err;
            }
        }
        ssize_t sent =
            channel_sendv(&conn->channel, iov, n, conn->deadline_us ? MSG_DONTWAIT : 0);
        if (sent < 0) {
            if (sent == -EINTR || sent == -EAGAIN) {
                continue;
            }
            return (int)sent;
        }
        while (n && (size_t)sent >= iov->iov_len) {
            sent -= (ssize_t)iov->iov_len;
            iov++;
            n--;
        }
        if (n) {
            iov->iov_base = (uint8_t *)iov->iov_base + sent;
            iov->iov_len -= (size_t)sent;
        }
    }
    return 0;
}

int nbd_connection_flush(struct nbd_connection *conn)
{
    int err = 0;

    if (conn->n_iov) {
        racy_begin();
        err = send_whole(conn, conn->iov, conn->n_iov);
        racy_end();
    }
    for (unsigned i = 0; i < conn->n_pins; i++) {
        const struct nbd_pin *pin = &conn->pins[i];
        if (conn->export.ops->read_end) {
            conn->export.ops->read_end(&conn->export, pin->offset, pin->length);
        }
    }
    conn->n_iov = conn->n_pins = 0;
    conn->tx_used = 0;
    return err;
}

/* Add to the last iovec if the bytes follow it in memory. */
static bool extend_last(struct nbd_connection *conn, const uint8_t *memory, size_t n)
{
    if (!conn->n_iov) {
        return false;
    }
    struct iovec *last = &conn->iov[conn->n_iov - 1];
    if ((const uint8_t *)last->iov_base + last->iov_len != memory) {
        return false;
    }
    last->iov_len += n;
    return true;
}

int nbd_connection_refer(struct nbd_connection *conn, const void *memory, size_t n)
{
    if (n == 0 || extend_last(conn, memory, n)) {
        return 0;
    }
    if (conn->n_iov == NBD_TX_IOVS) {
        int err = nbd_connection_flush(conn);
        if (err) {
            return err;
        }
    }
    conn->iov[conn->n_iov++] = (struct iovec){.iov_base = (void *)(uintptr_t)memory, .iov_len = n};
    return 0;
}

void *nbd_connection_room(struct nbd_connection *conn, size_t n)
{
    if (sizeof(conn->tx) - conn->tx_used < n || conn->n_iov == NBD_TX_IOVS) {
        if (nbd_connection_flush(conn)) {
            return NULL;
        }
    }
    uint8_t *room = conn->tx + conn->tx_used;
    nbd_connection_refer(conn, room, n); /* there is room for an iovec: it cannot fail */
    conn->tx_used += n;
    return room;
}

int nbd_connection_pin(struct nbd_connection *conn, uint64_t offset, uint32_t length)
{
    conn->pins[conn->n_pins++] = (struct nbd_pin){.offset = offset, .length = length};
    return conn->n_pins == NBD_TX_IOVS ? nbd_connection_flush(conn) : 0;
}

int nbd_connection_zeroes(struct nbd_connection *conn, uint64_t n)
{
    while (n) {
        size_t part = n < sizeof(zero_block) ? (size_t)n : sizeof(zero_block);
        int err = nbd_connection_refer(conn, zero_block, part);
        if (err) {
            return err;
        }
        n -= part;
    }
    return 0;
}

void nbd_connection_linger(struct nbd_connection *conn)
{
    uint64_t dropped = 0;

    conn->deadline_us = units_now_us() + LINGER_MS * 1000;
    shutdown(conn->channel.fd, SHUT_WR);
    while (dropped < LINGER_BYTES) {
        ssize_t got = receive_some(conn, conn->rx, sizeof(conn->rx));
        if (got < 0) {
            break;
        }
        dropped += (uint64_t)got;
    }
}
