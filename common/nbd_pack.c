// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * nbd_pack.c - the server's side of NBD_CMD_PACK: a WRITE whose payload comes compressed
 *
 * The pack is received whole into a buffer of the connection, of a size that does not depend on
 * what the client says, before anything of it is looked at.  What it unpacks to is judged as the
 * WRITE that it is.  A pack that does not unpack is a write that broke off.
 */
#include <endian.h>
#include <errno.h>

#include "common/nbd_connection.h"

static int pack_ready(struct nbd_connection *conn)
{
    if (!conn->unpacker) {
        conn->unpacker = unpacker_new();
    }
    return conn->unpacker && bounce_get(&conn->pack, PACK_MOST) ? 0 : -ENOMEM;
}

static int pack_store(struct nbd_connection *conn, const struct nbd_command *write, size_t size)
{
    struct nbd_export *export = &conn->export;
    void *memory;

    int err = export->ops->write_begin(export, write->offset, write->length, &memory);
    if (err) {
        return err;
    }
    int unpacked = unpacker_unpack(conn->unpacker, conn->pack.memory, size, memory);
    err = export->ops->write_end(export, write->offset, write->length, memory, unpacked == 0);
    return unpacked ? unpacked : err;
}

int nbd_pack_serve(struct nbd_connection *conn, const struct nbd_command *command)
{
    struct nbd_command write = *command;

    if (command->length > PACK_MOST) {
        nbd_reply_status(conn, command, -EINVAL);
        nbd_connection_flush(conn);
        nbd_connection_linger(conn);
        return -EMSGSIZE;
    }
    int status = pack_ready(conn);
    if (status) {
        int err = nbd_connection_drop(conn, command->length);
        return err ? err : nbd_reply_status(conn, command, status);
    }
    int err = nbd_connection_receive(conn, conn->pack.memory, command->length);
    if (err) {
        return err;
    }
    write.type = NBD_CMD_WRITE;
    write.length = unpacker_length(conn->pack.memory, command->length);
    status = nbd_validate(conn, &write); /* a length of 0 is none */
    if (!status) {
        status = pack_store(conn, &write, command->length);
    }
    return nbd_reply_status(conn, command, status);
}
