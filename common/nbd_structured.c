// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * nbd_structured.c - replies, simple and structured
 *
 * A READ's memory comes from the export in one piece, or, if there is not
 * memory behind all of it, in pieces: block_status tells which parts are zeros
 * and these are sent from a constant block, so that looking at a hole never
 * gives it memory.  Simple replies promise success before the pieces are
 * looked up; if a piece fails then (its page was taken away meanwhile), all
 * that is left is to close the connection.
 */
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "common/nbd_connection.h"
#include "common/racy.h"

#define PIECE_EXTENTS 16
#define STATUS_EXTENTS 512

struct chunk_header {
    uint32_t magic;
    uint16_t flags;
    uint16_t type;
    uint64_t cookie;
    uint32_t length;
} __attribute__((packed));

struct chunk_hole {
    uint64_t offset;
    uint32_t length;
} __attribute__((packed));

struct chunk_error {
    uint32_t error;
    uint16_t message_length;
} __attribute__((packed));

struct wire_extent {
    uint32_t length;
    uint32_t flags;
} __attribute__((packed));

_Static_assert(sizeof(struct chunk_header) == 20, "wire layout");
_Static_assert(sizeof(struct wire_extent) == 8, "wire layout");

static int put_simple(struct nbd_connection *conn, const struct nbd_command *command, int err)
{
    struct nbd_simple_reply *reply = nbd_connection_room(conn, sizeof(*reply));

    if (!reply) {
        return -ECONNRESET;
    }
    reply->magic = htobe32(NBD_SIMPLE_REPLY_MAGIC);
    reply->error = htobe32(nbd_errno_to_wire(-err));
    reply->cookie = command->cookie;
    return 0;
}

/* A chunk's header and room for @here more bytes, which it returns; @length is the wire's. */
static void *put_chunk(struct nbd_connection *conn, const struct nbd_command *command,
                       uint16_t flags, uint16_t type, uint32_t length, size_t here)
{
    uint8_t *room = nbd_connection_room(conn, sizeof(struct chunk_header) + here);

    if (!room) {
        return NULL;
    }
    struct chunk_header header = {
        .magic = htobe32(NBD_STRUCTURED_REPLY_MAGIC),
        .flags = htobe16(flags),
        .type = htobe16(type),
        .cookie = command->cookie,
        .length = htobe32(length),
    };
    memcpy(room, &header, sizeof(header));
    return room + sizeof(header);
}

static int put_error_chunk(struct nbd_connection *conn, const struct nbd_command *command, int err)
{
    struct chunk_error *error = put_chunk(conn, command, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR,
                                          sizeof(*error), sizeof(*error));

    if (!error) {
        return -ECONNRESET;
    }
    error->error = htobe32(nbd_errno_to_wire(-err));
    error->message_length = 0;
    return 0;
}

int nbd_reply_status(struct nbd_connection *conn, const struct nbd_command *command, int err)
{
    if (err) {
        log_debug("NBD request type %u, offset %llu, length %u refused: %s", command->type,
                  (unsigned long long)command->offset, command->length, strerror(-err));
    }
    bool payload = command->type == NBD_CMD_READ || command->type == NBD_CMD_BLOCK_STATUS;
    if (conn->structured && payload && err) {
        return put_error_chunk(conn, command, err);
    }
    return put_simple(conn, command, err);
}

/* Send what read_begin gave; small payloads are copied, so that their pin ends at once. */
static int put_memory(struct nbd_connection *conn, const void *memory, uint64_t offset,
                      uint32_t length)
{
    const struct nbd_export_ops *ops = conn->export.ops;
    int err;

    if (length > NBD_SMALL_PAYLOAD) {
        err = nbd_connection_refer(conn, memory, length);
        if (!err) {
            return nbd_connection_pin(conn, offset, length);
        }
    } else {
        void *room = nbd_connection_room(conn, length);
        err = room ? 0 : -ECONNRESET;
        if (room) {
            racy_begin();
            memcpy(room, memory, length);
            racy_end();
        }
    }
    if (ops->read_end) {
        ops->read_end(&conn->export, offset, length);
    }
    return err;
}

/* The header of a chunk of @length bytes of data at @offset, which follow. */
static int put_data_header(struct nbd_connection *conn, const struct nbd_command *command,
                           uint64_t offset, uint32_t length, bool last)
{
    uint64_t wire_offset = htobe64(offset);
    void *room = put_chunk(conn, command, last ? NBD_REPLY_FLAG_DONE : 0,
                           NBD_REPLY_TYPE_OFFSET_DATA, (uint32_t)sizeof(wire_offset) + length,
                           sizeof(wire_offset));

    if (!room) {
        return -ECONNRESET;
    }
    memcpy(room, &wire_offset, sizeof(wire_offset));
    return 0;
}

static int put_hole_chunk(struct nbd_connection *conn, const struct nbd_command *command,
                          uint64_t offset, uint32_t length, bool last)
{
    struct chunk_hole *hole =
        put_chunk(conn, command, last ? NBD_REPLY_FLAG_DONE : 0, NBD_REPLY_TYPE_OFFSET_HOLE,
                  sizeof(*hole), sizeof(*hole));

    if (!hole) {
        return -ECONNRESET;
    }
    hole->offset = htobe64(offset);
    hole->length = htobe32(length);
    return 0;
}

/* How a READ in pieces goes on: each piece in a chunk of its own, or plain bytes after one header. */
struct pieces {
    const struct nbd_command *command;
    bool chunks;
    bool failed; /* an error chunk ended the reply */
};

/* One piece that block_status called data. */
static int put_data_piece(struct nbd_connection *conn, struct pieces *pieces, uint64_t offset,
                          uint32_t length, bool last)
{
    const void *memory = NULL;
    int err = conn->export.ops->read_begin(&conn->export, offset, length, &memory);

    if (err && pieces->chunks) {
        pieces->failed = true;
        return put_error_chunk(conn, pieces->command, err);
    }
    if (err) {
        return err;
    }
    if (!memory) {
        return -EAGAIN; /* it changed since block_status: ask again */
    }
    if (pieces->chunks) {
        err = put_data_header(conn, pieces->command, offset, length, last);
        if (err) {
            if (conn->export.ops->read_end) {
                conn->export.ops->read_end(&conn->export, offset, length);
            }
            return err;
        }
    }
    return put_memory(conn, memory, offset, length);
}

static int put_pieces(struct nbd_connection *conn, struct pieces *pieces)
{
    uint64_t offset = pieces->command->offset;
    uint32_t left = pieces->command->length;

    while (left && !pieces->failed) {
        struct nbd_extent extents[PIECE_EXTENTS];
        size_t n = PIECE_EXTENTS;
        int err = conn->export.ops->block_status(&conn->export, offset, left, extents, &n);
        if (err || n == 0) {
            return err ? err : -EIO;
        }
        for (size_t i = 0; i < n && left && !pieces->failed; i++) {
            uint32_t length = extents[i].length < left ? (uint32_t)extents[i].length : left;
            bool last = length == left;
            if (!(extents[i].flags & NBD_STATE_ZERO)) {
                err = put_data_piece(conn, pieces, offset, length, last);
            } else if (pieces->chunks) {
                err = put_hole_chunk(conn, pieces->command, offset, length, last);
            } else {
                err = nbd_connection_zeroes(conn, length);
            }
            if (err == -EAGAIN) {
                break;
            }
            if (err) {
                return err;
            }
            offset += length;
            left -= length;
        }
    }
    return 0;
}

int nbd_reply_read(struct nbd_connection *conn, const struct nbd_command *command)
{
    const struct nbd_export_ops *ops = conn->export.ops;
    const void *memory = NULL;
    int err = ops->read_begin(&conn->export, command->offset, command->length, &memory);

    if (err) {
        return nbd_reply_status(conn, command, err);
    }
    bool one = memory || (command->flags & NBD_CMD_FLAG_DF);
    if (!conn->structured) {
        err = put_simple(conn, command, 0);
    } else if (one) {
        err = put_data_header(conn, command, command->offset, command->length, true);
    }
    if (!memory) {
        struct pieces pieces = {.command = command, .chunks = conn->structured && !one};
        return err ? err : put_pieces(conn, &pieces);
    }
    if (err) {
        if (ops->read_end) {
            ops->read_end(&conn->export, command->offset, command->length);
        }
        return err;
    }
    return put_memory(conn, memory, command->offset, command->length);
}

/* Ask the export for extents until the range, or the room, is used up; equal neighbours become one. */
static int collect_extents(struct nbd_connection *conn, const struct nbd_command *command,
                           struct nbd_extent *extents, size_t *n)
{
    size_t max = command->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : STATUS_EXTENTS;
    uint64_t offset = command->offset;
    uint32_t left = command->length;

    *n = 0;
    while (left) {
        struct nbd_extent found[PIECE_EXTENTS];
        size_t n_found = PIECE_EXTENTS;
        uint32_t part = left < NBD_MAX_REQUEST ? left : NBD_MAX_REQUEST;
        int err = conn->export.ops->block_status(&conn->export, offset, part, found, &n_found);
        if (err || n_found == 0) {
            return err ? err : -EIO;
        }
        for (size_t i = 0; i < n_found && left; i++) {
            uint32_t length = found[i].length < left ? (uint32_t)found[i].length : left;
            if (*n && extents[*n - 1].flags == found[i].flags) {
                extents[*n - 1].length += length;
            } else if (*n == max) {
                return 0;
            } else {
                extents[(*n)++] = (struct nbd_extent){.length = length, .flags = found[i].flags};
            }
            offset += length;
            left -= length;
        }
    }
    return 0;
}

int nbd_reply_block_status(struct nbd_connection *conn, const struct nbd_command *command)
{
    struct nbd_extent extents[STATUS_EXTENTS];
    size_t n;
    int err = collect_extents(conn, command, extents, &n);

    if (err) {
        return nbd_reply_status(conn, command, err);
    }
    uint32_t id = htobe32(NBD_META_ALLOCATION);
    size_t size = sizeof(id) + n * sizeof(struct wire_extent);
    uint8_t *room = put_chunk(conn, command, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS,
                              (uint32_t)size, size);
    if (!room) {
        return -ECONNRESET;
    }
    memcpy(room, &id, sizeof(id));
    room += sizeof(id);
    for (size_t i = 0; i < n; i++) {
        struct wire_extent extent = {.length = htobe32((uint32_t)extents[i].length),
                                     .flags = htobe32(extents[i].flags)};
        memcpy(room + i * sizeof(extent), &extent, sizeof(extent));
    }
    return 0;
}
