// SPDX-License-Identifier: GPL-2.0-or-later
/* Theory of operation: channel.h. */
#include "common/channel.h"

#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "common/units.h"

int channel_secure(struct channel *channel, const char *host, uint64_t deadline_us,
                   struct reason *reason)
{
    return tls_start(&channel->tls, channel->fd, host, deadline_us, reason);
}

int channel_connect(struct channel *channel, const struct endpoint *endpoint, int timeout_ms,
                    struct reason *reason)
{
    uint64_t deadline =
        timeout_ms < 0 ? UINT64_MAX : units_now_us() + (uint64_t)timeout_ms * 1000;
    char text[ENDPOINT_TEXT_LEN];
    struct reason why = {""};

    *channel = CHANNEL_NONE;
    int fd = endpoint_connect(endpoint, timeout_ms, reason);
    if (fd < 0) {
        return fd;
    }
    channel->fd = fd;
    int err = endpoint->tls ? channel_secure(channel, endpoint->host, deadline, &why) : 0;
    if (err) {
        channel_close(channel);
        return reason_set(reason, err, "%.100s: %.150s", endpoint_format(endpoint, text), why.text);
    }
    return 0;
}

int channel_timeout(struct channel *channel, int timeout_ms)
{
    struct timeval limit = {.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000};

    if (channel->tls) {
        tls_timeout(channel->tls, timeout_ms);
        return 0;
    }
    if (setsockopt(channel->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) < 0 ||
        setsockopt(channel->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) < 0) {
        return -errno;
    }
    return 0;
}

const char *channel_error(const struct channel *channel, int err)
{
    const char *why = channel->tls ? tls_error(channel->tls) : NULL;

    return why ? why : strerror(-err);
}

void channel_abort(struct channel *channel)
{
    if (channel->rdma) {
        nbd_rdma_abort(channel->rdma);
    } else {
        shutdown(channel->fd, SHUT_RDWR);
    }
}

void channel_close(struct channel *channel)
{
    if (channel->rdma) {
        nbd_rdma_close(channel->rdma);
        *channel = CHANNEL_NONE;
        return;
    }
    if (channel->tls) {
        tls_end(channel->tls);
    }
    if (channel->fd >= 0) {
        close(channel->fd);
    }
    *channel = CHANNEL_NONE;
}
