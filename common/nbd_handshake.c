// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * nbd_handshake.c - fixed newstyle negotiation, the server's side
 *
 * Every option's length is checked before its body is received, and the body
 * is received whole before it is looked at, so a refused option never costs
 * the stream its sync.  All of it happens within the connection's deadline and
 * within MAX_OPTIONS options.
 */
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "common/nbd_connection.h"
#include "common/version.h"

#define MAX_OPTIONS 64
#define MAX_BODY (16u << 10) /* of an option we look at */
#define MAX_DROP (1u << 20)  /* of an option we only step over */
#define CONTEXT_NAME "base:allocation"
#define PREFERRED_BLOCK 4096u

_Static_assert(MAX_BODY <= NBD_RX_BYTES, "an option is parsed in rx");

/* A cursor over an option's body: reads fail for good once they run past the end. */
struct body {
    const uint8_t *p;
    size_t left;
    bool bad;
};

static const uint8_t *body_bytes(struct body *body, size_t n)
{
    if (body->bad || n > body->left) {
        body->bad = true;
        return NULL;
    }
    const uint8_t *p = body->p;
    body->p += n;
    body->left -= n;
    return p;
}

static uint32_t body_u32(struct body *body)
{
    uint32_t value = 0;
    const uint8_t *p = body_bytes(body, sizeof(value));
    if (p) {
        memcpy(&value, p, sizeof(value));
    }
    return be32toh(value);
}

static uint16_t body_u16(struct body *body)
{
    uint16_t value = 0;
    const uint8_t *p = body_bytes(body, sizeof(value));
    if (p) {
        memcpy(&value, p, sizeof(value));
    }
    return be16toh(value);
}

/* A 32-bit length and a string of at most NBD_MAX_STRING bytes. */
static const char *body_string(struct body *body, size_t *length)
{
    *length = body_u32(body);
    if (*length > NBD_MAX_STRING) {
        body->bad = true;
    }
    return (const char *)body_bytes(body, *length);
}

static uint8_t *put_u16(uint8_t *p, uint16_t value)
{
    value = htobe16(value);
    memcpy(p, &value, sizeof(value));
    return p + sizeof(value);
}

static uint8_t *put_u32(uint8_t *p, uint32_t value)
{
    value = htobe32(value);
    memcpy(p, &value, sizeof(value));
    return p + sizeof(value);
}

static uint8_t *put_u64(uint8_t *p, uint64_t value)
{
    value = htobe64(value);
    memcpy(p, &value, sizeof(value));
    return p + sizeof(value);
}

static uint8_t *put_bytes(uint8_t *p, const void *bytes, size_t n)
{
    memcpy(p, bytes, n);
    return p + n;
}

/* The header of an option's reply and room for @length more bytes, which it returns. */
static uint8_t *reply_begin(struct nbd_connection *conn, uint32_t option, uint32_t type,
                            uint32_t length)
{
    uint8_t *p = nbd_connection_room(conn, 20 + (size_t)length);
    if (!p) {
        return NULL;
    }
    p = put_u64(p, NBD_OPT_REPLY_MAGIC);
    p = put_u32(p, option);
    p = put_u32(p, type);
    return put_u32(p, length);
}

static int reply_plain(struct nbd_connection *conn, uint32_t option, uint32_t type)
{
    return reply_begin(conn, option, type, 0) ? 0 : -ECONNRESET;
}

/* An error reply with a sentence for people. */
static int reply_error(struct nbd_connection *conn, uint32_t option, uint32_t type,
                       const char *sentence)
{
    uint32_t length = (uint32_t)strlen(sentence);
    uint8_t *p = reply_begin(conn, option, type, length);
    if (!p) {
        return -ECONNRESET;
    }
    put_bytes(p, sentence, length);
    return 0;
}

uint16_t nbd_handshake_flags(const struct nbd_connection *conn, const struct nbd_export *export)
{
    const struct nbd_export_ops *ops = export->ops;
    unsigned flags = NBD_TFLAG_HAS_FLAGS | NBD_TFLAG_CAN_MULTI_CONN;

    if (export->read_only || !ops->write_begin) {
        flags |= NBD_TFLAG_READ_ONLY;
    } else {
        flags |= ops->trim ? NBD_TFLAG_SEND_TRIM : 0;
        flags |= ops->write_zeroes ? NBD_TFLAG_SEND_WRITE_ZEROES : 0;
    }
    flags |= ops->flush ? NBD_TFLAG_SEND_FLUSH | NBD_TFLAG_SEND_FUA : 0;
    flags |= conn->structured ? NBD_TFLAG_SEND_DF : 0;
    return (uint16_t)flags;
}

/* Open the connection's export; nbd_server_disconnect() sees it or has run before. */
static int open_export(struct nbd_connection *conn, const char *name, size_t length)
{
    if (conn->lock) {
        pthread_mutex_lock(conn->lock);
    }
    int err = conn->config->open(conn->config->opaque, name, length, &conn->export);
    conn->opened = err == 0;
    if (conn->lock) {
        pthread_mutex_unlock(conn->lock);
    }
    return err;
}

static void close_export(struct nbd_connection *conn)
{
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

static int refuse_open(struct nbd_connection *conn, uint32_t option, int err)
{
    switch (err) {
    case -EACCES:
    case -EPERM:
        return reply_error(conn, option, NBD_REP_ERR_POLICY, "this export is not for you");
    case -EKEYEXPIRED:
        return reply_error(conn, option, NBD_REP_ERR_POLICY, "the ticket has expired");
    case -ESHUTDOWN:
        return reply_error(conn, option, NBD_REP_ERR_SHUTDOWN, "the server is shutting down");
    default:
        return reply_error(conn, option, NBD_REP_ERR_UNKNOWN, "no such export, or not with this ticket");
    }
}

static int reply_infos(struct nbd_connection *conn, uint32_t option, struct body *requests,
                       uint16_t n_requests, const char *name, size_t length)
{
    uint8_t *p = reply_begin(conn, option, NBD_REP_INFO, 12);
    if (!p) {
        return -ECONNRESET;
    }
    p = put_u16(p, NBD_INFO_EXPORT);
    p = put_u64(p, conn->export.size);
    put_u16(p, nbd_handshake_flags(conn, &conn->export));

    p = reply_begin(conn, option, NBD_REP_INFO, 14);
    if (!p) {
        return -ECONNRESET;
    }
    p = put_u16(p, NBD_INFO_BLOCK_SIZE);
    p = put_u32(p, 1);
    p = put_u32(p, PREFERRED_BLOCK);
    put_u32(p, NBD_MAX_REQUEST);

    bool named = false;
    while (n_requests--) {
        if (body_u16(requests) != NBD_INFO_NAME || named) {
            continue;
        }
        named = true;
        p = reply_begin(conn, option, NBD_REP_INFO, 2 + (uint32_t)length);
        if (!p) {
            return -ECONNRESET;
        }
        put_bytes(put_u16(p, NBD_INFO_NAME), name, length);
    }
    return reply_plain(conn, option, NBD_REP_ACK);
}

/* NBD_OPT_INFO and NBD_OPT_GO. */
static int option_info(struct nbd_connection *conn, uint32_t option, struct body body, bool *ready)
{
    size_t length;
    const char *name = body_string(&body, &length);
    uint16_t n_requests = body_u16(&body);

    if (body.bad || body.left != (size_t)n_requests * 2) {
        return reply_error(conn, option, NBD_REP_ERR_INVALID, "the option's lengths do not fit");
    }
    int err = open_export(conn, name, length);
    if (err) {
        return refuse_open(conn, option, err);
    }
    /* A context chosen for another export does not hold for this one. */
    if (conn->allocation &&
        (length != conn->meta_length || memcmp(name, conn->meta_name, length) != 0)) {
        conn->allocation = false;
    }
    err = reply_infos(conn, option, &body, n_requests, name, length);
    if (option == NBD_OPT_GO && !err) {
        *ready = true;
    } else {
        close_export(conn);
    }
    return err;
}

/* The old way to open: there is no way to refuse but to close the connection. */
static int option_export_name(struct nbd_connection *conn, struct body body, bool *ready)
{
    if (body.left > NBD_MAX_STRING) {
        return -EPROTO;
    }
    int err = open_export(conn, (const char *)body.p, body.left);
    if (err) {
        return err;
    }
    size_t padding = conn->no_zeroes ? 0 : 124;
    uint8_t *p = nbd_connection_room(conn, 10 + padding);
    if (!p) {
        return -ECONNRESET;
    }
    p = put_u64(p, conn->export.size);
    p = put_u16(p, nbd_handshake_flags(conn, &conn->export));
    memset(p, 0, padding);
    conn->allocation = false;
    *ready = true;
    return 0;
}

static void list_add(void *to, const char *name)
{
    struct nbd_connection *conn = to;
    uint32_t length = (uint32_t)strnlen(name, NBD_MAX_STRING);
    uint8_t *p = reply_begin(conn, NBD_OPT_LIST, NBD_REP_SERVER, 4 + length);

    if (p) { /* if not, the socket is dead, and the next reply finds out */
        put_bytes(put_u32(p, length), name, length);
    }
}

static int option_list(struct nbd_connection *conn, struct body body)
{
    if (body.left) {
        return reply_error(conn, NBD_OPT_LIST, NBD_REP_ERR_INVALID, "NBD_OPT_LIST has no body");
    }
    if (conn->config->list) {
        conn->config->list(conn->config->opaque, list_add, conn);
    }
    return reply_plain(conn, NBD_OPT_LIST, NBD_REP_ACK);
}

static int option_structured(struct nbd_connection *conn, struct body body)
{
    if (body.left) {
        return reply_error(conn, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_INVALID,
                           "NBD_OPT_STRUCTURED_REPLY has no body");
    }
    conn->structured = true;
    return reply_plain(conn, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
}

static int option_pack(struct nbd_connection *conn, struct body body)
{
    if (body.left) {
        return reply_error(conn, NBD_OPT_PACK, NBD_REP_ERR_INVALID, "NBD_OPT_PACK has no body");
    }
    conn->packs = true;
    return reply_plain(conn, NBD_OPT_PACK, NBD_REP_ACK);
}

/* Does any of the queries in @body ask for base:allocation?  No queries: @if_none. */
static bool wants_allocation(struct body *body, bool listing)
{
    uint32_t n = body_u32(body);
    bool wanted = listing && n == 0;

    /* Each query takes at least 4 bytes, so a lie about their number ends this soon. */
    while (n-- && !body->bad) {
        size_t length;
        const char *query = body_string(body, &length);
        if (!query) {
            break;
        }
        bool all = listing && length == strlen("base:") && memcmp(query, "base:", length) == 0;
        if (all || (length == strlen(CONTEXT_NAME) && memcmp(query, CONTEXT_NAME, length) == 0)) {
            wanted = true;
        }
    }
    if (body->left) {
        body->bad = true;
    }
    return wanted;
}

/* NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT. */
static int option_meta(struct nbd_connection *conn, uint32_t option, struct body body)
{
    bool setting = option == NBD_OPT_SET_META_CONTEXT;
    size_t length;
    const char *name = body_string(&body, &length);
    bool wanted = wants_allocation(&body, !setting);

    if (setting) {
        conn->allocation = false;
    }
    if (body.bad) {
        return reply_error(conn, option, NBD_REP_ERR_INVALID, "the option's lengths do not fit");
    }
    if (!conn->structured) {
        return reply_error(conn, option, NBD_REP_ERR_INVALID, "structured replies come first");
    }
    int err = open_export(conn, name, length);
    if (err) {
        return refuse_open(conn, option, err);
    }
    wanted = wanted && conn->export.ops->block_status;
    close_export(conn);
    if (wanted) {
        uint32_t size = (uint32_t)strlen(CONTEXT_NAME);
        uint8_t *p = reply_begin(conn, option, NBD_REP_META_CONTEXT, 4 + size);
        if (!p) {
            return -ECONNRESET;
        }
        put_bytes(put_u32(p, setting ? NBD_META_ALLOCATION : 0), CONTEXT_NAME, size);
    }
    if (setting) {
        conn->allocation = wanted;
        memcpy(conn->meta_name, name, length);
        conn->meta_length = (uint32_t)length;
    }
    return reply_plain(conn, option, NBD_REP_ACK);
}

/*
 * What the client sent behind the option must be the handshake's: bytes that are
 * here already came in plaintext, from whomever.
 */
static int option_starttls(struct nbd_connection *conn, struct body body)
{
    if (!conn->config->tls) {
        return reply_error(conn, NBD_OPT_STARTTLS, NBD_REP_ERR_UNSUP, "there is no TLS here");
    }
    if (conn->channel.tls || body.left) {
        return reply_error(conn, NBD_OPT_STARTTLS, NBD_REP_ERR_INVALID,
                           "NBD_OPT_STARTTLS has no body and comes once");
    }
    if (conn->rx_start != conn->rx_end) {
        return -EPROTO;
    }
    int err = reply_plain(conn, NBD_OPT_STARTTLS, NBD_REP_ACK);
    if (!err) {
        err = nbd_connection_flush(conn);
    }
    return err ? err : channel_secure(&conn->channel, NULL, conn->deadline_us, NULL);
}

static int option_tls_required(struct nbd_connection *conn, uint32_t option)
{
    if (option == NBD_OPT_EXPORT_NAME) {
        return -EACCES; /* there is no way to refuse it but to close the connection */
    }
    return reply_error(conn, option, NBD_REP_ERR_TLS_REQD, "begin TLS first");
}

static int run_option(struct nbd_connection *conn, uint32_t option, struct body body, bool *ready)
{
    if (conn->config->tls && !conn->channel.tls && option != NBD_OPT_STARTTLS &&
        option != NBD_OPT_ABORT) {
        return option_tls_required(conn, option);
    }
    switch (option) {
    case NBD_OPT_STARTTLS:
        return option_starttls(conn, body);
    case NBD_OPT_EXPORT_NAME:
        return option_export_name(conn, body, ready);
    case NBD_OPT_ABORT:
        reply_plain(conn, option, NBD_REP_ACK);
        nbd_connection_flush(conn);
        return -ECONNRESET;
    case NBD_OPT_LIST:
        return option_list(conn, body);
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        return option_info(conn, option, body, ready);
    case NBD_OPT_STRUCTURED_REPLY:
        return option_structured(conn, body);
    case NBD_OPT_PACK:
        return option_pack(conn, body);
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        return option_meta(conn, option, body);
    default:
        return reply_error(conn, option, NBD_REP_ERR_UNSUP, "this option is not known here");
    }
}

/* Receive one option and answer it. */
static int next_option(struct nbd_connection *conn, bool *ready)
{
    int err = nbd_connection_need(conn, 16);
    if (err) {
        return err;
    }
    struct body header = {.p = nbd_connection_take(conn, 16), .left = 16};
    uint64_t magic = (uint64_t)body_u32(&header) << 32;
    magic |= body_u32(&header);
    uint32_t option = body_u32(&header);
    uint32_t length = body_u32(&header);
    if (magic != NBD_OPT_MAGIC) {
        return -EPROTO;
    }
    if (length > MAX_BODY) {
        if (length > MAX_DROP || option == NBD_OPT_EXPORT_NAME) {
            return -EMSGSIZE;
        }
        err = nbd_connection_drop(conn, length);
        return err ? err : reply_error(conn, option, NBD_REP_ERR_TOO_BIG, "the option is too long");
    }
    err = nbd_connection_need(conn, length);
    if (err) {
        return err;
    }
    struct body body = {.p = nbd_connection_take(conn, length), .left = length};
    return run_option(conn, option, body, ready);
}

static int greet(struct nbd_connection *conn)
{
    uint8_t *p = nbd_connection_room(conn, 18);
    if (!p) {
        return -ECONNRESET;
    }
    p = put_u64(p, NBD_MAGIC);
    p = put_u64(p, NBD_OPT_MAGIC);
    put_u16(p, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);

    int err = nbd_connection_need(conn, 4);
    if (err) {
        return err;
    }
    struct body body = {.p = nbd_connection_take(conn, 4), .left = 4};
    uint32_t flags = body_u32(&body);
    if (flags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) {
        return -EPROTO; /* a server must drop a client that sets flags it does not know */
    }
    conn->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
    return 0;
}

int nbd_handshake(struct nbd_connection *conn)
{
    bool ready = false;
    int err = greet(conn);

    for (unsigned n = 0; !err && !ready; n++) {
        err = n < MAX_OPTIONS ? next_option(conn, &ready) : -EPROTO;
    }
    return err ? err : nbd_connection_flush(conn);
}
