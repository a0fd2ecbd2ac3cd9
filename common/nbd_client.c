// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * nbd_client.c - negotiate, and the synchronous calls
 *
 * What comes from a server is not trusted: option replies are bounded before
 * they are received, and a reply must carry the cookie of the request.
 */
#include "common/nbd_client.h"

#include <ctype.h>
#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "common/units.h"

#define MAX_OPTION_REPLY 8192u
#define MAX_OPTION_REPLIES 64

struct greeting {
    uint64_t magic;
    uint64_t option_magic;
    uint16_t flags;
} __attribute__((packed));

/* Client flags and the head of the first option, which go out together. */
struct option_head {
    uint32_t client_flags;
    uint64_t option_magic;
    uint32_t option;
    uint32_t length;
} __attribute__((packed));

struct option_reply {
    uint64_t magic;
    uint32_t option;
    uint32_t type;
    uint32_t length;
} __attribute__((packed));

struct info_export {
    uint16_t type;
    uint64_t size;
    uint16_t flags;
} __attribute__((packed));

/* Negotiation in progress: a channel, and when to give up. */
struct talk {
    struct channel channel;
    const char *tls_host; /* NULL: plaintext is wanted */
    uint64_t deadline_us; /* UINT64_MAX: never */
    bool flags_sent;
    bool packing; /* NBD_CMD_PACK is wanted */
};

static int talk_wait(const struct talk *talk, short events)
{
    struct pollfd pfd = {.fd = talk->channel.fd, .events = events};

    for (;;) {
        int n = poll(&pfd, 1, units_timeout_ms(talk->deadline_us));
        if (n > 0) {
            return 0;
        }
        if (n == 0) {
            return -ETIMEDOUT;
        }
        if (errno != EINTR) {
            return -errno;
        }
    }
}

static int talk_receive(const struct talk *talk, void *to, size_t n)
{
    uint8_t *p = to;

    while (n) {
        ssize_t got = channel_recv(&talk->channel, p, n, MSG_DONTWAIT);
        if (got == 0) {
            return -ECONNRESET;
        }
        if (got > 0) {
            p += got;
            n -= (size_t)got;
            continue;
        }
        int err = got == -EAGAIN ? talk_wait(talk, POLLIN) : got == -EINTR ? 0 : (int)got;
        if (err) {
            return err;
        }
    }
    return 0;
}

static int talk_send(const struct talk *talk, const void *from, size_t n)
{
    const uint8_t *p = from;

    while (n) {
        ssize_t sent = channel_send(&talk->channel, p, n, MSG_DONTWAIT);
        if (sent >= 0) {
            p += sent;
            n -= (size_t)sent;
            continue;
        }
        int err = sent == -EAGAIN ? talk_wait(talk, POLLOUT) : sent == -EINTR ? 0 : (int)sent;
        if (err) {
            return err;
        }
    }
    return 0;
}

/* The first option goes out with the client's flags. */
static int send_option(struct talk *talk, uint16_t server_flags, uint32_t option,
                       const uint8_t *body, size_t length)
{
    uint8_t message[sizeof(struct option_head) + sizeof(uint32_t) + NBD_MAX_STRING + 2];
    struct option_head head = {
        .client_flags =
            htobe32(NBD_FLAG_FIXED_NEWSTYLE | (server_flags & NBD_FLAG_NO_ZEROES)),
        .option_magic = htobe64(NBD_OPT_MAGIC),
        .option = htobe32(option),
        .length = htobe32((uint32_t)length),
    };
    size_t skip = talk->flags_sent ? sizeof(head.client_flags) : 0;

    memcpy(message, &head, sizeof(head));
    if (length) {
        memcpy(message + sizeof(head), body, length);
    }
    talk->flags_sent = true;
    return talk_send(talk, message + skip, sizeof(head) + length - skip);
}

static int send_go(struct talk *talk, uint16_t server_flags, const char *export, size_t length,
                   struct reason *reason)
{
    uint8_t body[sizeof(uint32_t) + NBD_MAX_STRING + 2];
    uint32_t wire_length = htobe32((uint32_t)length);

    if (length > NBD_MAX_STRING) {
        return reason_set(reason, -EINVAL, "an export's name has at most %u characters",
                          NBD_MAX_STRING);
    }
    memcpy(body, &wire_length, sizeof(wire_length));
    memcpy(body + sizeof(wire_length), export, length);
    memset(body + sizeof(wire_length) + length, 0, 2); /* no particular information is asked for */
    return send_option(talk, server_flags, NBD_OPT_GO, body, sizeof(wire_length) + length + 2);
}

/* An error reply: the server's own words if it has any that can be shown. */
static int refused(uint32_t type, uint8_t *words, uint32_t length, struct reason *reason)
{
    static const struct {
        uint32_t type;
        int err;
        const char *text;
    } table[] = {
        {NBD_REP_ERR_UNKNOWN, -ENOENT, "the server has no such export"},
        {NBD_REP_ERR_POLICY, -EACCES, "the server refuses this export"},
        {NBD_REP_ERR_TLS_REQD, -EACCES, "the server wants TLS"},
        {NBD_REP_ERR_SHUTDOWN, -ESHUTDOWN, "the server is shutting down"},
        {NBD_REP_ERR_UNSUP, -EPROTO, "the server does not know this"},
    };
    int err = -EPROTO;
    const char *text = "the server refuses this";

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        if (table[i].type == type) {
            err = table[i].err;
            text = table[i].text;
        }
    }
    for (uint32_t i = 0; i < length; i++) {
        words[i] = isprint(words[i]) ? words[i] : '?';
    }
    if (!length) {
        return reason_set(reason, err, "%s", text);
    }
    return reason_set(reason, err, "%s (%.*s)", text, (int)(length < 120 ? length : 120),
                      (const char *)words);
}

/* Receive one reply to @option, whole. */
static int receive_reply_to(const struct talk *talk, uint32_t option, uint32_t *type,
                            uint8_t body[MAX_OPTION_REPLY], uint32_t *length,
                            struct reason *reason)
{
    struct option_reply reply;
    int err = talk_receive(talk, &reply, sizeof(reply));

    if (err) {
        return err;
    }
    *type = be32toh(reply.type);
    *length = be32toh(reply.length);
    if (reply.magic != htobe64(NBD_OPT_REPLY_MAGIC) || reply.option != htobe32(option) ||
        *length > MAX_OPTION_REPLY) {
        return reason_set(reason, -EPROTO, "the server's answer to an option is not NBD");
    }
    err = talk_receive(talk, body, *length);
    if (err) {
        return err;
    }
    return *type & 0x80000000u ? refused(*type, body, *length, reason) : 0;
}

/* A server that cannot is not talked to any further: nobody in between can talk us out of TLS. */
static int negotiate_tls(struct talk *talk, uint16_t server_flags, struct reason *reason)
{
    uint8_t body[MAX_OPTION_REPLY];
    uint32_t type, length;
    struct reason why = {""};
    int err = send_option(talk, server_flags, NBD_OPT_STARTTLS, NULL, 0);

    if (!err) {
        err = receive_reply_to(talk, NBD_OPT_STARTTLS, &type, body, &length, &why);
    }
    if (!err && (type != NBD_REP_ACK || length)) {
        err = -EPROTO;
    }
    if (err) {
        return reason_set(reason, err, "the server does not begin TLS: %.180s",
                          why.text[0] ? why.text : strerror(-err));
    }
    return channel_secure(&talk->channel, talk->tls_host, talk->deadline_us, reason);
}

/* A server that does not know the option says so, and all goes on without. */
static int negotiate_pack(struct talk *talk, uint16_t server_flags, bool *packs,
                          struct reason *reason)
{
    uint8_t body[MAX_OPTION_REPLY];
    uint32_t type = 0;
    uint32_t length;
    int err = send_option(talk, server_flags, NBD_OPT_PACK, NULL, 0);

    if (!err) {
        err = receive_reply_to(talk, NBD_OPT_PACK, &type, body, &length, reason);
    }
    *packs = !err && type == NBD_REP_ACK;
    return err && type == NBD_REP_ERR_UNSUP ? 0 : err;
}

static int receive_go_reply(const struct talk *talk, struct nbd_client *client, bool *sized,
                            bool *done, struct reason *reason)
{
    uint8_t body[MAX_OPTION_REPLY];
    uint32_t type, length;
    int err = receive_reply_to(talk, NBD_OPT_GO, &type, body, &length, reason);

    if (err) {
        return err;
    }
    struct info_export info;
    if (type == NBD_REP_INFO && length == sizeof(info)) {
        memcpy(&info, body, sizeof(info));
        if (info.type == htobe16(NBD_INFO_EXPORT)) {
            client->size = be64toh(info.size);
            client->flags = be16toh(info.flags);
            *sized = true;
        }
    }
    *done = type == NBD_REP_ACK;
    return 0;
}

static int negotiate(struct talk *talk, struct nbd_client *client, const char *export,
                     struct reason *reason)
{
    struct greeting greeting;
    bool sized = false, done = false;
    int err = talk_receive(talk, &greeting, sizeof(greeting));

    if (err) {
        return err;
    }
    uint16_t flags = be16toh(greeting.flags);
    if (greeting.magic != htobe64(NBD_MAGIC) || greeting.option_magic != htobe64(NBD_OPT_MAGIC) ||
        !(flags & NBD_FLAG_FIXED_NEWSTYLE)) {
        return reason_set(reason, -EPROTO, "the peer does not speak NBD's fixed newstyle");
    }
    err = talk->tls_host ? negotiate_tls(talk, flags, reason) : 0;
    if (!err && talk->packing) {
        err = negotiate_pack(talk, flags, &client->packs, reason);
    }
    if (!err) {
        err = send_go(talk, flags, export, strlen(export), reason);
    }
    for (int n = 0; !err && !done; n++) {
        err = n < MAX_OPTION_REPLIES ? receive_go_reply(talk, client, &sized, &done, reason)
                                     : -EPROTO;
    }
    if (!err && !sized) {
        return reason_set(reason, -EPROTO, "the server did not tell the export's size");
    }
    return err;
}

static int client_connect(struct nbd_client *client, const struct endpoint *endpoint,
                          const char *export, bool packing, int timeout_ms, struct reason *reason)
{
    struct talk talk = {
        .packing = packing,
        .tls_host = endpoint->tls ? endpoint->host : NULL,
        .deadline_us =
            timeout_ms < 0 ? UINT64_MAX : units_now_us() + (uint64_t)timeout_ms * 1000};
    struct reason why = {""};
    char text[ENDPOINT_TEXT_LEN];

    *client = (struct nbd_client){.channel = CHANNEL_NONE, .next_cookie = 1};
    int fd = endpoint_connect(endpoint, timeout_ms, reason);
    if (fd < 0) {
        return fd;
    }
    talk.channel = (struct channel){.fd = fd};
    int err = negotiate(&talk, client, export, &why);
    if (err) {
        reason_set(reason, err, "NBD with %.80s: %.150s", endpoint_format(endpoint, text),
                   why.text[0] ? why.text : channel_error(&talk.channel, err));
        channel_close(&talk.channel);
        return err;
    }
    client->channel = talk.channel;
    return 0;
}

int nbd_client_connect(struct nbd_client *client, const struct endpoint *endpoint,
                       const char *export, int timeout_ms, struct reason *reason)
{
    return client_connect(client, endpoint, export, false, timeout_ms, reason);
}

int nbd_client_connect_packing(struct nbd_client *client, const struct endpoint *endpoint,
                               const char *export, int timeout_ms, struct reason *reason)
{
    return client_connect(client, endpoint, export, true, timeout_ms, reason);
}

void nbd_client_close(struct nbd_client *client, bool polite)
{
    if (client->channel.fd < 0) {
        return;
    }
    if (polite) {
        struct nbd_request request;
        nbd_encode_request(&request, NBD_CMD_DISC, 0, client->next_cookie++, 0, 0);
        ssize_t ignored =
            channel_send(&client->channel, &request, sizeof(request), MSG_DONTWAIT);
        (void)ignored;
    }
    channel_close(&client->channel);
}

int nbd_client_set_timeout(struct nbd_client *client, int timeout_ms)
{
    return channel_timeout(&client->channel, timeout_ms);
}

/* What a failed send or receive means for the caller. */
static int transport_error(ssize_t err)
{
    return err == -EAGAIN ? -ETIMEDOUT : err == -EPIPE ? -ECONNRESET : (int)err;
}

static int send_request(struct nbd_client *client, struct nbd_request *request,
                        const void *payload, size_t length)
{
    struct iovec iov[2] = {
        {.iov_base = request, .iov_len = sizeof(*request)},
        {.iov_base = (void *)(uintptr_t)payload, .iov_len = length},
    };
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = payload ? 2 : 1};

    while (message.msg_iovlen) {
        ssize_t sent = channel_sendv(&client->channel, message.msg_iov, message.msg_iovlen, 0);
        if (sent == -EINTR) {
            continue;
        }
        if (sent < 0) {
            return transport_error(sent);
        }
        while (message.msg_iovlen && (size_t)sent >= message.msg_iov->iov_len) {
            sent -= (ssize_t)message.msg_iov->iov_len;
            message.msg_iov++;
            message.msg_iovlen--;
        }
        if (message.msg_iovlen) {
            message.msg_iov->iov_base = (uint8_t *)message.msg_iov->iov_base + sent;
            message.msg_iov->iov_len -= (size_t)sent;
        }
    }
    return 0;
}

static int receive_whole(struct nbd_client *client, void *to, size_t n)
{
    uint8_t *p = to;

    while (n) {
        ssize_t got = channel_recv(&client->channel, p, n, MSG_WAITALL);
        if (got > 0) {
            p += got;
            n -= (size_t)got;
        } else if (got == 0) {
            return -ECONNRESET;
        } else if (got != -EINTR) {
            return transport_error(got);
        }
    }
    return 0;
}

/* Receive a simple reply and @length bytes after it, if it is a success. */
static int receive_reply(struct nbd_client *client, uint64_t cookie, void *payload, size_t length)
{
    struct nbd_simple_reply reply;
    uint64_t answered;
    int error;
    int err = receive_whole(client, &reply, sizeof(reply));

    if (!err) {
        err = nbd_decode_simple_reply(&reply, &answered, &error);
    }
    if (err) {
        return err;
    }
    if (answered != cookie) {
        return -EPROTO;
    }
    return error ? error : receive_whole(client, payload, length);
}

static int call(struct nbd_client *client, uint16_t type, uint64_t offset, uint32_t length,
                const void *out, void *in)
{
    struct nbd_request request;
    uint64_t cookie = client->next_cookie++;

    if (client->channel.fd < 0) {
        return -ECONNRESET;
    }
    nbd_encode_request(&request, type, 0, cookie, offset, length);
    int err = send_request(client, &request, out, out ? length : 0);
    return err ? err : receive_reply(client, cookie, in, in ? length : 0);
}

int nbd_client_read(struct nbd_client *client, void *buffer, uint64_t offset, uint32_t length)
{
    return length == 0 || length > NBD_MAX_REQUEST
               ? -EINVAL
               : call(client, NBD_CMD_READ, offset, length, NULL, buffer);
}

int nbd_client_write(struct nbd_client *client, const void *buffer, uint64_t offset,
                     uint32_t length)
{
    return length == 0 || length > NBD_MAX_REQUEST
               ? -EINVAL
               : call(client, NBD_CMD_WRITE, offset, length, buffer, NULL);
}

int nbd_client_trim(struct nbd_client *client, uint64_t offset, uint32_t length)
{
    return call(client, NBD_CMD_TRIM, offset, length, NULL, NULL);
}

int nbd_client_write_zeroes(struct nbd_client *client, uint64_t offset, uint32_t length)
{
    return call(client, NBD_CMD_WRITE_ZEROES, offset, length, NULL, NULL);
}

int nbd_client_flush(struct nbd_client *client)
{
    return call(client, NBD_CMD_FLUSH, 0, 0, NULL, NULL);
}
