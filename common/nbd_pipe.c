// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * nbd_pipe.c - a WRITE's payload from the socket through a pipe into the export's file
 *
 * Theory of operation
 * -------------------
 * splice(2) moves references from the socket's buffers into the pipe, and the export's splice copies
 * from there into its file: one copy where receiving and writing make two, and the file's pages are
 * allocated by a system call, which can fail, and not by page faults.
 *
 * What the pipe holds is handed on as whole pages, because a page that is filled in two steps is
 * looked up, and in part cleared, twice; what is left of one waits for the rest.  A pipe has few slots,
 * and a peer that sends single bytes fills them: so while something waits there, nothing waits for
 * room in the pipe (SPLICE_F_NONBLOCK), and all of it is handed on if no more fits.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include "common/nbd_connection.h"
#include "common/units.h"

#define PIPE_BYTES (1 << 20)       /* wanted: what a user without privileges may have */
#define PIPE_LEAST_BYTES (64 << 10) /* with less it is not worth it */

/* A payload on its way. */
struct transit {
    uint64_t offset; /* of the next byte that the export takes */
    uint32_t held;   /* bytes in the pipe */
    uint32_t ahead;  /* bytes that are to come after them */
};

bool nbd_pipe_ready(struct nbd_connection *conn)
{
    if (conn->pipe[0] >= 0) {
        return true;
    }
    if (conn->no_pipe || conn->channel.tls || conn->channel.rdma || pipe2(conn->pipe, O_CLOEXEC) < 0) {
        conn->pipe[0] = -1;
        return false;
    }
    if (fcntl(conn->pipe[0], F_SETPIPE_SZ, PIPE_BYTES) < 0 &&
        fcntl(conn->pipe[0], F_GETPIPE_SZ) < PIPE_LEAST_BYTES) {
        conn->no_pipe = true;
        nbd_pipe_close(conn);
        return false;
    }
    return true;
}

void nbd_pipe_close(struct nbd_connection *conn)
{
    if (conn->pipe[0] >= 0) {
        close(conn->pipe[0]);
        close(conn->pipe[1]);
        conn->pipe[0] = -1;
    }
}

int nbd_pipe_splice(int from, int file, uint64_t offset, uint32_t length)
{
    off_t to = (off_t)offset;

    while (length) {
        ssize_t n = splice(from, NULL, file, &to, length, SPLICE_F_MOVE);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? -errno : -EIO;
        }
        length -= (uint32_t)n;
    }
    return 0;
}

/* What the socket has; waits for it. Return: as splice(2); EAGAIN also if no more fits. */
static ssize_t transit_splice(struct nbd_connection *conn, const struct transit *transit)
{
    struct pollfd pfd = {.fd = conn->channel.fd, .events = POLLIN};
    unsigned flags = transit->held ? SPLICE_F_NONBLOCK : 0;
    ssize_t n = splice(pfd.fd, NULL, conn->pipe[1], NULL, transit->ahead, flags);

    if (n < 0 && errno == EAGAIN && flags && poll(&pfd, 1, -1) == 1) {
        n = splice(pfd.fd, NULL, conn->pipe[1], NULL, transit->ahead, flags);
    }
    return n;
}

/* Into the pipe: what was received already, or else what the socket has. Return: 0, or -errno. */
static int transit_fill(struct nbd_connection *conn, struct transit *transit)
{
    size_t buffered = conn->rx_end - conn->rx_start;
    ssize_t n;

    if (buffered && transit->held) {
        return -EAGAIN; /* both are less than a pipe may have room for, together perhaps not */
    }
    if (buffered) {
        buffered = buffered < transit->ahead ? buffered : transit->ahead;
        buffered = buffered < PIPE_LEAST_BYTES ? buffered : PIPE_LEAST_BYTES;
        n = write(conn->pipe[1], conn->rx + conn->rx_start, buffered);
        nbd_connection_take(conn, n > 0 ? (size_t)n : 0);
    } else {
        n = transit_splice(conn, transit);
    }
    if (n <= 0) {
        return n < 0 ? -errno : -ECONNRESET;
    }
    transit->held += (uint32_t)n;
    transit->ahead -= (uint32_t)n;
    return 0;
}

int nbd_pipe_receive(struct nbd_connection *conn, const struct nbd_command *command, int *status)
{
    struct nbd_export *export = &conn->export;
    struct transit transit = {.offset = command->offset, .ahead = command->length};
    int err = nbd_connection_flush(conn);

    *status = 0;
    while (!err && !*status && transit.held + transit.ahead) {
        if (transit.ahead) {
            err = transit_fill(conn, &transit);
        }
        if (err == -EINTR) {
            err = 0;
            continue;
        }
        uint32_t part = transit.held;
        if (!err && transit.ahead) {
            uint64_t end = (transit.offset + transit.held) & ~(PAGE_BYTES - 1);
            part = end > transit.offset ? (uint32_t)(end - transit.offset) : 0;
        } else if (err == -EAGAIN && transit.held) {
            err = 0;
        }
        if (!err && part) {
            *status = export->ops->write_pipe(export, transit.offset, part, conn->pipe[0]);
            transit.offset += part;
            transit.held -= part;
        }
    }
    if (err || *status) {
        nbd_pipe_close(conn); /* with what is left in it */
    }
    return err ? err : nbd_connection_drop(conn, transit.ahead);
}
