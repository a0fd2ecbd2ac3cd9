// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * mover_connect.c - open the exports, each stream its own, all at the same time
 *
 * "Connecting" in mover_internal.h says why the main host's come later.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#include "uffd-pager/mover_internal.h"

static void connect_set(struct mover_stream *stream, bool connecting, bool connected)
{
    pthread_mutex_lock(&stream->mover->lock);
    stream->connecting = connecting;
    stream->connected = connected;
    pthread_mutex_unlock(&stream->mover->lock);
}

static int connect_failed(struct mover_stream *stream, int err, const struct reason *reason)
{
    return mover_fail(stream->mover, err, "%s cannot be used: %s", stream->target->title,
                      reason->text);
}

bool mover_stopped(struct mover *mover)
{
    pthread_mutex_lock(&mover->lock);
    bool stop = mover->stop || mover->failed;
    pthread_mutex_unlock(&mover->lock);
    return stop;
}

static void connect_ready(struct mover *mover)
{
    pthread_mutex_lock(&mover->lock);
    mover->n_ready++;
    pthread_mutex_unlock(&mover->lock);
    mover_notify(mover);
}

/* Return: 0; 1: it did not come up, but TCP will do; or -errno: the migration has failed. */
static int connect_rdma(struct mover_stream *stream, int timeout_ms)
{
    struct mover_target *target = stream->target;
    struct channel channel = CHANNEL_NONE;
    struct reason reason = {""};

    int err = nbd_rdma_connect(&channel.rdma, &target->rdma, target->export_name,
                               MOVER_RDMA_STAGING, timeout_ms, &reason);
    if (err && err != -ENOENT && target->tcp_will_do) {
        if (stream == target->stream[0]) {
            log_warn("%s: memory goes by TCP, as RDMA did not come up: %s", target->title,
                     reason.text);
        }
        return 1;
    }
    if (!err) {
        channel.fd = nbd_rdma_fd(channel.rdma);
        if (nbd_rdma_size(channel.rdma) < stream->mover->layout.flat_size) {
            channel_close(&channel);
            err = reason_set(&reason, -EINVAL, "its region is smaller than the guest's RAM");
        }
    }
    stream->client.channel = channel;
    connect_set(stream, false, err == 0);
    return err ? connect_failed(stream, err, &reason) : 0;
}

static int connect_export(struct mover_stream *stream, int timeout_ms)
{
    struct mover *mover = stream->mover;
    struct mover_target *target = stream->target;
    struct reason reason = {""};

    int err = mover->packing
                  ? nbd_client_connect_packing(&stream->client, &target->endpoint,
                                               target->export_name, timeout_ms, &reason)
                  : nbd_client_connect(&stream->client, &target->endpoint, target->export_name,
                                       timeout_ms, &reason);
    connect_set(stream, false, err == 0);
    if (!err) {
        int fd = stream->client.channel.fd;
        stream->by_file = !stream->client.channel.tls && fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0;
    }
    if (err) {
        stream->client.channel = CHANNEL_NONE;
    } else if (stream->client.size < mover->layout.flat_size) {
        err = reason_set(&reason, -EINVAL, "its export is smaller than the guest's RAM");
    } else if (stream->client.packs && mover_stream_pack(stream) < 0) {
        err = reason_set(&reason, -ENOMEM, "there is no memory for its buffers");
    }
    return err ? connect_failed(stream, err, &reason) : 0;
}

static int connect_map(struct mover_stream *stream)
{
    struct mover *mover = stream->mover;
    struct mover_target *target = stream->target;
    char name[sizeof(target->export_name) + 8];
    struct reason reason = {""};

    snprintf(name, sizeof(name), "%s/map", target->export_name);
    int err = nbd_client_connect(&mover->map, &target->endpoint, name, MOVER_CONNECT_TIMEOUT_MS,
                                 &reason);
    if (err) {
        mover->map.channel = CHANNEL_NONE;
        return connect_failed(stream, err, &reason);
    }
    nbd_client_set_timeout(&mover->map, MOVER_STALL_TIMEOUT_MS);
    pthread_mutex_lock(&mover->lock);
    mover->map_connected = true;
    pthread_mutex_unlock(&mover->lock);
    mover_notify(mover);
    return 0;
}

/* Does the main host answer at all?  Then wait until its exports are wanted. */
static int connect_main(struct mover_stream *stream)
{
    struct mover *mover = stream->mover;
    struct pollfd pfd = {.fd = stream->wake, .events = POLLIN};
    struct reason reason = {""};
    bool wanted = false;

    int fd = endpoint_connect(&stream->target->endpoint, MOVER_CONNECT_TIMEOUT_MS, &reason);
    connect_set(stream, false, false);
    if (fd < 0) {
        return connect_failed(stream, fd, &reason);
    }
    close(fd);
    connect_ready(mover);
    while (!wanted && !mover_stopped(mover)) {
        poll(&pfd, 1, -1);
        pthread_mutex_lock(&mover->lock);
        wanted = mover->main_wanted && !mover->failed && !mover->stop;
        stream->connecting = wanted;
        pthread_mutex_unlock(&mover->lock);
    }
    int err = wanted ? connect_export(stream, MOVER_ARRIVAL_TIMEOUT_MS) : -ECANCELED;
    return !err && stream == stream->target->stream[0] ? connect_map(stream) : err;
}

int mover_connect(struct mover_stream *stream)
{
    if (stream->target == &stream->mover->target[MOVER_MAIN]) {
        return connect_main(stream);
    }
    int err = stream->target->has_rdma ? connect_rdma(stream, MOVER_CONNECT_TIMEOUT_MS) : 1;
    if (err > 0) {
        err = connect_export(stream, MOVER_CONNECT_TIMEOUT_MS);
    }
    if (!err) {
        connect_ready(stream->mover);
    }
    return err;
}
