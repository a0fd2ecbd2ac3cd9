// SPDX-License-Identifier: GPL-2.0-or-later
/* Theory of operation: receive_internal.h. */
#include "uffd-pager/receive.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "uffd-pager/receive_internal.h"

/* Wait until QEMU has handed its memory over. */
static int receive_wait_ready(struct receive *receive)
{
    struct timespec deadline;
    int err = 0;

    clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec += RECEIVE_ARRIVAL_TIMEOUT_S;
    pthread_mutex_lock(&receive->lock);
    while (!receive->ready && !receive->stop && !err) {
        err = pthread_cond_timedwait(&receive->changed, &receive->lock, &deadline);
    }
    bool ready = receive->ready && !receive->stop;
    pthread_mutex_unlock(&receive->lock);
    return ready ? 0 : -ENOENT;
}

/* Compare without telling by the time it takes how much was right. */
static bool receive_name_is(const char *name, size_t length, const char *want)
{
    size_t n = strlen(want);
    unsigned char differ = 0;

    if (length != n) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        differ |= (unsigned char)(name[i] ^ want[i]);
    }
    return differ == 0;
}

static int receive_open_ram(struct receive *receive, struct nbd_export *export)
{
    struct receive_client *client = calloc(1, sizeof(*client));

    if (!client) {
        return -ENOMEM;
    }
    client->receive = receive;
    export->ops = &receive_ram_ops;
    export->size = receive->layout->flat_size;
    export->opaque = client;
    return 0;
}

static int receive_open(void *opaque, const char *name, size_t length, struct nbd_export *export)
{
    struct receive *receive = opaque;
    char ram[UUID_TEXT_LEN + sizeof(receive->config.ticket) + 2];
    char map[sizeof(ram) + 4];

    snprintf(ram, sizeof(ram), "%s.%s", receive->config.uuid, receive->config.ticket);
    snprintf(map, sizeof(map), "%s/map", ram);
    bool is_ram = receive_name_is(name, length, ram);
    bool is_map = receive_name_is(name, length, map);
    if (!is_ram && !is_map) {
        return -ENOENT;
    }
    if (receive->config.ticket_end_us && units_now_us() >= receive->config.ticket_end_us) {
        return -EKEYEXPIRED;
    }
    int err = receive_wait_ready(receive);
    if (err) {
        return err;
    }
    if (is_ram) {
        return receive_open_ram(receive, export);
    }
    export->ops = &receive_map_ops;
    export->size = receive_map_size(receive);
    export->opaque = receive;
    return 0;
}

static void receive_free(struct receive *receive)
{
    pthread_mutex_destroy(&receive->lock);
    pthread_mutex_destroy(&receive->write_lock);
    pthread_mutex_destroy(&receive->count_lock);
    pthread_mutex_destroy(&receive->commit_lock);
    pthread_rwlock_destroy(&receive->gate);
    pthread_cond_destroy(&receive->changed);
    free(receive->held);
    free(receive->image);
    free((void *)receive->image_written);
    free(receive);
}

static struct receive *receive_new(const struct receive_config *config)
{
    struct receive *receive = calloc(1, sizeof(*receive));
    pthread_condattr_t attr;

    if (!receive) {
        return NULL;
    }
    receive->config = *config;
    pthread_mutex_init(&receive->lock, NULL);
    pthread_mutex_init(&receive->write_lock, NULL);
    pthread_mutex_init(&receive->count_lock, NULL);
    pthread_mutex_init(&receive->commit_lock, NULL);
    pthread_rwlock_init(&receive->gate, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&receive->changed, &attr);
    pthread_condattr_destroy(&attr);
    return receive;
}

int receive_start(struct receive **to, struct receive_config *config, struct reason *reason)
{
    struct receive *receive = receive_new(config);

    if (!receive) {
        return reason_set(reason, -ENOMEM, "there is no memory for a receiver");
    }
    int listener = endpoint_listen(&config->listen, reason);
    if (listener < 0) {
        receive_free(receive);
        return listener;
    }
    receive->config.listen = config->listen;
    struct nbd_server_config server = {
        .opaque = receive,
        .open = receive_open,
        .max_connections = 64,
        .tls = config->listen.tls,
        /* A client that is waiting for the guest's memory is in its handshake. */
        .handshake_timeout_ms = (RECEIVE_ARRIVAL_TIMEOUT_S + 10) * 1000,
    };
    int err = nbd_server_start(&receive->server, listener, &server);
    if (err) {
        receive_free(receive);
        return reason_set(reason, err, "the receiver cannot be started: %s", strerror(-err));
    }
    *to = receive;
    return 0;
}

int receive_layout(struct receive *receive, const struct layout *layout, struct pagemap *map,
                   struct reason *reason)
{
    uint64_t n_pages = layout->flat_size / PAGE_BYTES;

    if (map->n_pages != n_pages) {
        return reason_set(reason, -EINVAL, "the page map is not of the guest's size");
    }
    if (receive->ready) {
        return reason_set(reason, -EALREADY, "the guest's memory is known already");
    }
    free(receive->held); /* of an attempt that failed */
    free(receive->image);
    free((void *)receive->image_written);
    receive->held = calloc(n_pages / 64, sizeof(*receive->held));
    receive->image = calloc(1, n_pages + 2 * map->n_chunks);
    receive->image_written = calloc((n_pages + 2 * map->n_chunks) / PAGE_BYTES + 1, 1);
    if (!receive->held || !receive->image || !receive->image_written) {
        return reason_set(reason, -ENOMEM, "there is no memory for the page map to arrive");
    }
    pthread_mutex_lock(&receive->lock);
    receive->layout = layout;
    receive->map = map;
    receive->n_pages = n_pages;
    receive->n_chunks = map->n_chunks;
    /* What QEMU wrote while it started is none of the guest's. */
    int err = receive_ram_drop(receive, 0, n_pages);
    if (!err) {
        receive->ready = true;
        pthread_cond_broadcast(&receive->changed);
    }
    pthread_mutex_unlock(&receive->lock);
    return err ? reason_set(reason, err, "the RAM blocks cannot be emptied: %s", strerror(-err))
               : 0;
}

uint64_t receive_bytes(const struct receive *receive)
{
    return atomic_load(&receive->bytes);
}

unsigned receive_connections(struct receive *receive)
{
    return nbd_server_connections(receive->server);
}

void receive_stop(struct receive *receive)
{
    if (!receive) {
        return;
    }
    pthread_mutex_lock(&receive->lock);
    receive->stop = true;
    pthread_cond_broadcast(&receive->changed);
    pthread_mutex_unlock(&receive->lock);
    nbd_server_stop(receive->server);
    receive_free(receive);
}
