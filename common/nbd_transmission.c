// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * nbd_transmission.c - serve the requests of one connection
 *
 * nbd_validate() is the only place that judges a request; behind it offsets and
 * lengths are inside the export.  A refused request's payload is received and
 * dropped, so the stream stays in sync.  Only a wrong magic number, a WRITE
 * larger than NBD_MAX_REQUEST and a PACK larger than PACK_MOST cost the connection.
 */
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "common/nbd_connection.h"

/* Which flags a command may carry. */
static unsigned allowed_flags(const struct nbd_connection *conn, uint16_t type)
{
    unsigned fua = conn->export.ops->flush ? NBD_CMD_FLAG_FUA : 0;

    switch (type) {
    case NBD_CMD_READ:
        return fua | (conn->structured ? NBD_CMD_FLAG_DF : 0);
    case NBD_CMD_WRITE_ZEROES:
        return fua | NBD_CMD_FLAG_NO_HOLE;
    case NBD_CMD_BLOCK_STATUS:
        return fua | NBD_CMD_FLAG_REQ_ONE;
    default:
        return fua;
    }
}

/* Is the command one this export knows? */
static int validate_type(const struct nbd_connection *conn, uint16_t type)
{
    const struct nbd_export_ops *ops = conn->export.ops;

    switch (type) {
    case NBD_CMD_READ:
        return ops->read_begin ? 0 : -ENOTSUP;
    case NBD_CMD_WRITE:
        return conn->export.read_only || !ops->write_begin ? -EPERM : 0;
    case NBD_CMD_TRIM:
        return conn->export.read_only ? -EPERM : ops->trim ? 0 : -ENOTSUP;
    case NBD_CMD_WRITE_ZEROES:
        return conn->export.read_only ? -EPERM : ops->write_zeroes ? 0 : -ENOTSUP;
    case NBD_CMD_FLUSH:
        return ops->flush ? 0 : -ENOTSUP;
    case NBD_CMD_BLOCK_STATUS:
        return conn->allocation ? 0 : -EINVAL;
    default:
        return -EINVAL;
    }
}

int nbd_validate(const struct nbd_connection *conn, const struct nbd_command *command)
{
    int err = validate_type(conn, command->type);
    if (err) {
        return err;
    }
    if (command->flags & ~allowed_flags(conn, command->type)) {
        return -EINVAL;
    }
    if (command->type == NBD_CMD_FLUSH) {
        return command->offset || command->length ? -EINVAL : 0;
    }
    if (command->length == 0) {
        return -EINVAL;
    }
    if (command->type == NBD_CMD_READ && command->length > NBD_MAX_REQUEST) {
        return -EINVAL;
    }
    if (command->offset > conn->export.size ||
        command->length > conn->export.size - command->offset) {
        bool writes = command->type == NBD_CMD_WRITE || command->type == NBD_CMD_WRITE_ZEROES;
        return writes ? -ENOSPC : -EINVAL;
    }
    return 0;
}

/* Receive a WRITE's payload into the export, or drop it if the export refuses. */
static int serve_write(struct nbd_connection *conn, const struct nbd_command *command)
{
    struct nbd_export *export = &conn->export;
    void *memory;

    if (command->length > NBD_MAX_REQUEST) {
        nbd_reply_status(conn, command, -EINVAL);
        nbd_connection_flush(conn);
        nbd_connection_linger(conn);
        return -EMSGSIZE;
    }
    if (command->length <= NBD_SMALL_PAYLOAD) {
        /* Wait for the whole payload first: then the export's memory changes in one go. */
        int err = nbd_connection_need(conn, command->length);
        if (err) {
            return err;
        }
    }
    int status = nbd_validate(conn, command);
    if (!status) {
        export->pipes = command->length > NBD_SMALL_PAYLOAD && nbd_pipe_ready(conn);
        status = export->ops->write_begin(export, command->offset, command->length, &memory);
        export->pipes = false; /* what comes packed goes into memory */
    }
    if (status) {
        int err = nbd_connection_drop(conn, command->length);
        return err ? err : nbd_reply_status(conn, command, status);
    }
    int err = memory ? nbd_connection_receive(conn, memory, command->length)
                     : nbd_pipe_receive(conn, command, &status);
    conn->frugal = !memory; /* until the next request */
    int end = export->ops->write_end(export, command->offset, command->length, memory, err == 0 && status == 0);
    return err ? err : nbd_reply_status(conn, command, status ? status : end);
}

/* TRIM and WRITE_ZEROES may be longer than an export's operations: cut them. */
static int serve_clearing(struct nbd_connection *conn, const struct nbd_command *command)
{
    struct nbd_export *export = &conn->export;
    uint64_t offset = command->offset;
    uint32_t left = command->length;
    bool no_hole = command->flags & NBD_CMD_FLAG_NO_HOLE;
    int status = 0;

    while (left && !status) {
        uint32_t part = left < NBD_MAX_REQUEST ? left : NBD_MAX_REQUEST;
        status = command->type == NBD_CMD_TRIM
                     ? export->ops->trim(export, offset, part)
                     : export->ops->write_zeroes(export, offset, part, no_hole);
        offset += part;
        left -= part;
    }
    return nbd_reply_status(conn, command, status);
}

static int serve(struct nbd_connection *conn, const struct nbd_command *command)
{
    conn->frugal = false;
    if (command->type == NBD_CMD_WRITE) {
        return serve_write(conn, command);
    }
    if (command->type == NBD_CMD_PACK && conn->packs) {
        return nbd_pack_serve(conn, command);
    }
    int status = nbd_validate(conn, command);
    if (status) {
        return nbd_reply_status(conn, command, status);
    }
    switch (command->type) {
    case NBD_CMD_READ:
        return nbd_reply_read(conn, command);
    case NBD_CMD_BLOCK_STATUS:
        return nbd_reply_block_status(conn, command);
    case NBD_CMD_FLUSH:
        return nbd_reply_status(conn, command, conn->export.ops->flush(&conn->export));
    default:
        return serve_clearing(conn, command);
    }
}

int nbd_transmission(struct nbd_connection *conn)
{
    for (;;) {
        struct nbd_request request;
        int err = nbd_connection_need(conn, sizeof(request));
        if (err) {
            return err;
        }
        memcpy(&request, nbd_connection_take(conn, sizeof(request)), sizeof(request));
        if (request.magic != htobe32(NBD_REQUEST_MAGIC)) {
            return -EPROTO;
        }
        struct nbd_command command = {
            .type = be16toh(request.type),
            .flags = be16toh(request.flags),
            .length = be32toh(request.length),
            .offset = be64toh(request.offset),
            .cookie = request.cookie,
        };
        if (command.type == NBD_CMD_DISC) {
            return 0;
        }
        err = serve(conn, &command);
        if (err) {
            return err;
        }
    }
}

void nbd_connection_run(struct nbd_connection *conn)
{
    int err = nbd_handshake(conn);

    conn->deadline_us = 0;
    if (!err) {
        err = nbd_transmission(conn);
    }
    nbd_connection_flush(conn); /* also ends the pins */
    log_debug("NBD connection ended: %s", strerror(-err));
    if (!conn->opened) {
        return;
    }
    struct nbd_export export = conn->export;
    if (conn->lock) {
        pthread_mutex_lock(conn->lock);
    }
    conn->opened = false;
    if (conn->lock) {
        pthread_mutex_unlock(conn->lock);
    }
    if (export.ops->close) {
        export.ops->close(&export);
    }
}
