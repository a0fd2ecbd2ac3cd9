// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/handoff_io.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/units.h"

static int handoff_wait(int fd, short events, uint64_t deadline_us)
{
    struct pollfd pfd = {.fd = fd, .events = events};
    int n = poll(&pfd, 1, units_timeout_ms(deadline_us));

    if (n < 0 && errno != EINTR) {
        return -errno;
    }
    return n == 0 ? -ETIMEDOUT : 0;
}

int handoff_send(int fd, uint16_t type, uint32_t cookie, const void *body, uint32_t length,
                 const int *fds, unsigned n_fds, uint64_t deadline_us)
{
    struct handoff_header header = {
        .magic = HANDOFF_MAGIC,
        .version = HANDOFF_VERSION,
        .type = type,
        .length = length,
        .cookie = cookie,
    };
    struct iovec iov[2] = {
        {.iov_base = &header, .iov_len = sizeof(header)},
        {.iov_base = (void *)(uintptr_t)body, .iov_len = length},
    };
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(HANDOFF_MAX_FDS * sizeof(int))];
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};

    if (n_fds) {
        msg.msg_control = control;
        msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        memset(control, 0, msg.msg_controllen);
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(cmsg), fds, n_fds * sizeof(int));
    }
    size_t left = sizeof(header) + length;
    while (left) {
        ssize_t n = sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) {
            int err = handoff_wait(fd, POLLOUT, deadline_us);
            if (err < 0) {
                return err;
            }
            continue;
        }
        if (n < 0) {
            if (errno == EINTR) {
                continue;
            }
            return -errno;
        }
        left -= (size_t)n;
        msg.msg_control = NULL; /* the fds went with the first byte */
        msg.msg_controllen = 0;
        for (size_t i = 0; i < 2; i++) {
            size_t part = (size_t)n < iov[i].iov_len ? (size_t)n : iov[i].iov_len;
            iov[i].iov_base = (char *)iov[i].iov_base + part;
            iov[i].iov_len -= part;
            n -= (ssize_t)part;
        }
    }
    return 0;
}

int handoff_send_result(int fd, uint16_t type, uint32_t cookie, int err,
                        const struct reason *reason, uint64_t deadline_us)
{
    struct handoff_result result = {.status = (uint32_t)-err};

    if (err < 0) {
        const char *text = reason && reason->text[0] ? reason->text : strerror(-err);
        size_t length = strnlen(text, sizeof(result.reason) - 1);
        memcpy(result.reason, text, length);
    }
    return handoff_send(fd, type, cookie, &result, sizeof(result), NULL, 0, deadline_us);
}

static void handoff_take_fds(struct msghdr *msg, struct handoff_frame *frame)
{
    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(msg); cmsg; cmsg = CMSG_NXTHDR(msg, cmsg)) {
        if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        size_t n = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        const unsigned char *data = CMSG_DATA(cmsg);
        for (size_t i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, data + i * sizeof(int), sizeof(fd));
            if (frame->n_fds < HANDOFF_MAX_FDS) {
                frame->fds[frame->n_fds++] = fd;
            } else {
                close(fd);
            }
        }
    }
}

static int handoff_read(int fd, struct handoff_frame *frame, void *buffer, size_t size,
                        uint64_t deadline_us, struct reason *reason)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(HANDOFF_MAX_FDS * sizeof(int))];
    char *p = buffer;

    while (size) {
        struct iovec iov = {.iov_base = p, .iov_len = size};
        struct msghdr msg = {
            .msg_iov = &iov,
            .msg_iovlen = 1,
            .msg_control = control,
            .msg_controllen = sizeof(control),
        };
        ssize_t n = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n > 0) {
            handoff_take_fds(&msg, frame);
            p += n;
            size -= (size_t)n;
        } else if (n == 0) {
            return reason_set(reason, -ECONNRESET, "the peer closed the hand-off connection");
        } else if (errno == EAGAIN) {
            int err = handoff_wait(fd, POLLIN, deadline_us);
            if (err < 0) {
                return reason_set(reason, err, "the hand-off message did not arrive in time");
            }
        } else if (errno != EINTR) {
            return reason_set(reason, -errno, "the hand-off connection broke: %m");
        }
    }
    return 0;
}

static bool handoff_counted(const void *body, uint32_t length, size_t count_at, size_t fixed,
                            size_t each)
{
    uint32_t n;

    if (length < fixed) {
        return false;
    }
    memcpy(&n, (const char *)body + count_at, sizeof(n));
    return n <= HANDOFF_MAX_BODY / each && length == fixed + n * each;
}

int handoff_check(uint16_t type, const void *body, uint32_t length, struct reason *reason)
{
    bool good;

    switch (type) {
    case HANDOFF_HELLO:
        good = length == sizeof(struct handoff_hello);
        break;
    case HANDOFF_BLOCK:
        good = length == sizeof(struct handoff_block) &&
               memchr((const char *)body + offsetof(struct handoff_block, idstr), 0,
                      HANDOFF_IDSTR_LEN) != NULL;
        break;
    case HANDOFF_LAYOUT_END:
    case HANDOFF_MIG_FINISH:
    case HANDOFF_IN_WAIT:
        good = length == 0;
        break;
    case HANDOFF_WELCOME:
    case HANDOFF_ZAPPED:
    case HANDOFF_DISCARDED:
    case HANDOFF_ARMED:
    case HANDOFF_MIG_BEGUN:
    case HANDOFF_MIG_FINISHED:
    case HANDOFF_MIG_FAILED:
    case HANDOFF_MIG_END:
    case HANDOFF_IN_BEGUN:
    case HANDOFF_IN_READY:
        good = length == sizeof(struct handoff_result);
        break;
    case HANDOFF_ARM:
    case HANDOFF_DISARM:
    case HANDOFF_MIG_BEGIN:
    case HANDOFF_IN_BEGIN:
        good = length == sizeof(struct handoff_migration);
        break;
    case HANDOFF_ZAP:
    case HANDOFF_DISCARD:
        good = handoff_counted(body, length, offsetof(struct handoff_ranges, n),
                               sizeof(struct handoff_ranges), sizeof(struct handoff_range));
        break;
    case HANDOFF_MIG_RUNS:
        good = handoff_counted(body, length, offsetof(struct handoff_runs, n),
                               sizeof(struct handoff_runs), sizeof(struct handoff_run));
        break;
    case HANDOFF_MIG_PROGRESS:
        good = length == sizeof(struct handoff_progress);
        break;
    case HANDOFF_MOVER_CONFIG:
        good = length > 0;
        break;
    default:
        return reason_set(reason, -EPROTO, "the hand-off message type %u is not known", type);
    }
    return good ? 0
                : reason_set(reason, -EPROTO, "the hand-off message of type %u is malformed", type);
}

int handoff_recv(int fd, struct handoff_frame *frame, uint64_t deadline_us, struct reason *reason)
{
    frame->n_fds = 0;
    int err = handoff_read(fd, frame, &frame->header, sizeof(frame->header), deadline_us, reason);
    if (err == 0 && (frame->header.magic != HANDOFF_MAGIC ||
                     frame->header.version != HANDOFF_VERSION)) {
        err = reason_set(reason, -EPROTO, "the peer does not speak version %u of the hand-off",
                         HANDOFF_VERSION);
    }
    if (err == 0 && frame->header.length > HANDOFF_MAX_BODY) {
        err = reason_set(reason, -EPROTO, "the hand-off message is longer than %u bytes",
                         HANDOFF_MAX_BODY);
    }
    if (err == 0) {
        err = handoff_read(fd, frame, frame->body.bytes, frame->header.length, deadline_us, reason);
    }
    if (err == 0) {
        frame->body.bytes[frame->header.length] = 0;
        err = handoff_check(frame->header.type, frame->body.bytes, frame->header.length, reason);
    }
    if (err < 0) {
        handoff_frame_close(frame);
    }
    return err;
}

void handoff_frame_close(struct handoff_frame *frame)
{
    for (unsigned i = 0; i < frame->n_fds; i++) {
        if (frame->fds[i] >= 0) {
            close(frame->fds[i]);
        }
    }
    frame->n_fds = 0;
}

int handoff_result_reason(const struct handoff_result *result, struct reason *reason)
{
    if (result->status == 0) {
        return 0;
    }
    /* From a peer: at most a row of printable characters goes on into logs and answers. */
    char text[HANDOFF_REASON_LEN];
    memcpy(text, result->reason, sizeof(text));
    text[sizeof(text) - 1] = '\0';
    for (char *p = text; *p; p++) {
        if ((unsigned char)*p < ' ') {
            *p = '?';
        }
    }
    int err = result->status < 4096 ? -(int)result->status : -EIO;
    return reason_set(reason, err, "%s", text[0] ? text : strerror(-err));
}
