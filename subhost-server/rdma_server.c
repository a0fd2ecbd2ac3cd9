// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * rdma_server.c - the thread: who comes, who goes, who has sent something
 *
 * Theory of operation: rdma_server.h.
 */
#include "subhost-server/rdma_server.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/nbd_rdma.h"
#include "common/rdma_limits.h"
#include "common/units.h"
#include "subhost-server/rdma_internal.h"

#define RDMA_BACKLOG 64
#define RDMA_HALF_OPEN_US 10000000u /* a connection that is not established by then is dropped */
#define RDMA_EXPIRED_US 30000000u /* one whose ticket has expired has gone by itself by then */
#define RDMA_TICK_MS 2000
#define WAKE_EVENTS 0 /* no connection's serial */
#define WAKE_THREAD UINT64_MAX

/* ---- connections; lock held ---- */

static void drop(struct rdma_server *server, struct rdma_connection *connection)
{
    for (struct rdma_connection **at = &server->connections; *at; at = &(*at)->next) {
        if (*at == connection) {
            *at = connection->next;
            server->n_connections--;
            rdma_connection_free(connection);
            return;
        }
    }
}

static struct rdma_connection *find(struct rdma_server *server, uint64_t serial)
{
    struct rdma_connection *c = server->connections;

    while (c && c->serial != serial) {
        c = c->next;
    }
    return c;
}

/* Half open for too long, or expired and still there. */
static void drop_late(struct rdma_server *server)
{
    struct rdma_connection *next;

    for (struct rdma_connection *c = server->connections; c; c = next) {
        next = c->next;
        uint64_t now = units_now_us();
        if ((!c->established && now > c->born_us + RDMA_HALF_OPEN_US) ||
            (c->expired_us && now > c->expired_us + RDMA_EXPIRED_US)) {
            drop(server, c);
        }
    }
}

/* ---- slabs that are empty; lock held ---- */

/* What is on the move waits until it is kept: rdma_server_expire() has it looked at then. */
static void give_back(struct rdma_server *server)
{
    for (struct rdma_region *r = server->regions; r; r = r->next) {
        if (r->look_us == 0 || units_now_us() < r->look_us) {
            continue;
        }
        r->look_us = 0;
        if (store_is_kept(server->config.store, r->region)) {
            rdma_region_give_back(r);
        }
    }
}

/* Is there anything that must be looked at although nobody calls? */
static bool is_pending(const struct rdma_server *server)
{
    bool pending = false;

    for (const struct rdma_connection *c = server->connections; c; c = c->next) {
        pending |= !c->established || c->expired_us;
    }
    for (const struct rdma_region *r = server->regions; r; r = r->next) {
        pending |= r->look_us != 0;
    }
    return pending;
}

static void wake(struct rdma_server *server)
{
    uint64_t one = 1;
    ssize_t ignored = write(server->wake, &one, sizeof(one));
    (void)ignored;
}

static void woken(struct rdma_server *server)
{
    uint64_t count;
    ssize_t ignored = read(server->wake, &count, sizeof(count));
    (void)ignored;
}

static void connection_request(struct rdma_server *server, struct rdma_cm_id *id,
                               const struct rdma_conn_param *param)
{
    uint8_t data[RDMA_REFUSAL_BYTES];
    int err = rdma_connection_accept(server, id, param);

    if (err) {
        log_info("an RDMA connection is refused: %s",
                 err == -ENOENT ? "no such region, or not with this ticket" : strerror(-err));
        rdma_encode_refusal(data, err);
        rdma_reject(id, data, sizeof(data));
        rdma_destroy_id(id);
    }
}

static void handle_event(struct rdma_server *server, enum rdma_cm_event_type type,
                         struct rdma_cm_id *id, const struct rdma_conn_param *param)
{
    struct rdma_connection *connection = id->context;

    if (type == RDMA_CM_EVENT_CONNECT_REQUEST) {
        connection_request(server, id, param);
    } else if (id == server->listener) {
        log_warn("RDMA: %s", rdma_event_str(type));
    } else if (type == RDMA_CM_EVENT_ESTABLISHED) {
        connection->established = true;
    } else if (type != RDMA_CM_EVENT_TIMEWAIT_EXIT) {
        drop(server, connection);
    }
}

static void take_events(struct rdma_server *server)
{
    struct rdma_cm_event *event;
    uint8_t private_data[RDMA_PRIVATE_MAX];

    while (rdma_get_cm_event(server->events, &event) == 0) {
        struct rdma_conn_param param = event->param.conn;
        enum rdma_cm_event_type type = event->event;
        struct rdma_cm_id *id = event->id;
        /* An event must be acknowledged before its id may be destroyed, and takes its data along. */
        param.private_data_len = param.private_data_len < RDMA_PRIVATE_MAX ? param.private_data_len
                                                                           : RDMA_PRIVATE_MAX;
        if (param.private_data) {
            memcpy(private_data, param.private_data, param.private_data_len);
            param.private_data = private_data;
        }
        rdma_ack_cm_event(event);
        handle_event(server, type, id, &param);
    }
}

static void *server_main(void *arg)
{
    struct rdma_server *server = arg;
    struct epoll_event events[32];

    pthread_mutex_lock(&server->lock);
    while (!server->stop) {
        int tick = is_pending(server) ? RDMA_TICK_MS : -1;
        pthread_mutex_unlock(&server->lock);
        int n = epoll_wait(server->epoll, events, 32, tick);
        pthread_mutex_lock(&server->lock);
        for (int i = 0; i < n && !server->stop; i++) {
            struct rdma_connection *c;
            if (events[i].data.u64 == WAKE_EVENTS) {
                take_events(server);
            } else if (events[i].data.u64 == WAKE_THREAD) {
                woken(server);
            } else if ((c = find(server, events[i].data.u64)) && !c->expired_us &&
                       !rdma_connection_serve(c)) {
                drop(server, c);
            }
        }
        drop_late(server);
        give_back(server);
    }
    pthread_mutex_unlock(&server->lock);
    return NULL;
}

/* ---- coming and going ---- */

static int check_limits(const struct rdma_server_config *config, struct reason *reason)
{
    uint64_t lockable = rdma_limits_lockable();
    struct quota_status quota;
    char want[32], have[32];

    quota_status(&config->store->quota, &quota);
    if (lockable >= quota.memory) {
        return 0;
    }
    units_format_size(quota.memory, want, sizeof(want));
    return reason_set(reason, -ENOMEM,
                      "RDMA needs to lock the %s of --memory, but this process may lock only %s "
                      "(RLIMIT_MEMLOCK): raise it with ulimit -l or LimitMEMLOCK=",
                      want, units_format_size(lockable, have, sizeof(have)));
}

static int listen_on(struct rdma_server *server, struct endpoint *address, struct reason *reason)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    char text[ENDPOINT_TEXT_LEN], port[8];
    struct addrinfo *list;

    server->events = rdma_create_event_channel();
    if (!server->events) {
        return reason_set(reason, -ENOTSUP,
                          "this host has no RDMA: /dev/infiniband/rdma_cm cannot be opened (is "
                          "there a card, and is the module rdma_ucm loaded?)");
    }
    fcntl(server->events->fd, F_SETFL, O_NONBLOCK);
    fcntl(server->events->fd, F_SETFD, FD_CLOEXEC);
    snprintf(port, sizeof(port), "%u", address->port);
    int rc = getaddrinfo(address->host[0] ? address->host : NULL, port, &hints, &list);
    if (rc) {
        return reason_set(reason, -EHOSTUNREACH, "host '%s' cannot be found: %s", address->host,
                          gai_strerror(rc));
    }
    int err = 0;
    if (rdma_create_id(server->events, &server->listener, NULL, RDMA_PS_TCP) ||
        rdma_bind_addr(server->listener, list->ai_addr) ||
        rdma_listen(server->listener, RDMA_BACKLOG)) {
        err = -errno;
    }
    freeaddrinfo(list);
    if (err) {
        return reason_set(reason, err, "cannot listen on %s: %s", nbd_rdma_format(address, text),
                          err == -ENODEV ? "no RDMA card has this address" : strerror(-err));
    }
    address->port = ntohs(rdma_get_src_port(server->listener));
    return 0;
}

static int start_thread(struct rdma_server *server, struct reason *reason)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = WAKE_EVENTS};
    struct epoll_event stop = {.events = EPOLLIN, .data.u64 = WAKE_THREAD};

    server->epoll = epoll_create1(EPOLL_CLOEXEC);
    server->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int err = 0;
    if (server->epoll < 0 || server->wake < 0 ||
        epoll_ctl(server->epoll, EPOLL_CTL_ADD, server->events->fd, &event) < 0 ||
        epoll_ctl(server->epoll, EPOLL_CTL_ADD, server->wake, &stop) < 0) {
        err = -errno;
    }
    err = err ? err : -pthread_create(&server->thread, NULL, server_main, server);
    server->started = !err;
    return err ? reason_set(reason, err, "cannot serve RDMA: %s", strerror(-err)) : 0;
}

int rdma_server_start(struct rdma_server **result, struct endpoint *address,
                      const struct rdma_server_config *config, struct reason *reason)
{
    struct rdma_server *server = calloc(1, sizeof(*server));

    if (!server) {
        return reason_set(reason, -ENOMEM, "no memory to start");
    }
    server->config = *config;
    server->epoll = server->wake = -1;
    pthread_mutex_init(&server->lock, NULL);
    int err = check_limits(config, reason);
    err = err ? err : listen_on(server, address, reason);
    err = err ? err : start_thread(server, reason);
    if (err) {
        rdma_server_stop(server);
        return err;
    }
    *result = server;
    return 0;
}

void rdma_server_stop(struct rdma_server *server)
{
    if (!server) {
        return;
    }
    if (server->started) {
        pthread_mutex_lock(&server->lock);
        server->stop = true;
        pthread_mutex_unlock(&server->lock);
        wake(server);
        pthread_join(server->thread, NULL);
    }
    while (server->connections) {
        drop(server, server->connections);
    }
    while (server->regions) {
        struct rdma_region *region = server->regions;
        server->regions = region->next;
        rdma_region_free(region);
    }
    if (server->listener) {
        rdma_destroy_id(server->listener);
    }
    if (server->events) {
        rdma_destroy_event_channel(server->events);
    }
    if (server->epoll >= 0) {
        close(server->epoll);
    }
    if (server->wake >= 0) {
        close(server->wake);
    }
    pthread_mutex_destroy(&server->lock);
    free(server);
}

void rdma_server_revoke(struct rdma_server *server, const struct region *region)
{
    struct rdma_connection *next;

    if (!server) {
        return;
    }
    pthread_mutex_lock(&server->lock);
    for (struct rdma_connection *c = server->connections; c; c = next) {
        next = c->next;
        if (c->region->region == region) {
            drop(server, c);
        }
    }
    for (struct rdma_region **at = &server->regions; *at;) {
        struct rdma_region *r = *at;
        if (r->region == region) {
            *at = r->next;
            rdma_region_free(r);
        } else {
            at = &r->next;
        }
    }
    pthread_mutex_unlock(&server->lock);
}

/* Lock held. */
static void look_soon(struct rdma_server *server, const struct region *region)
{
    for (struct rdma_region *r = server->regions; r; r = r->next) {
        if (r->region == region) {
            rdma_region_trimmed(r);
        }
    }
}

void rdma_server_expire(struct rdma_server *server, const struct region *region)
{
    struct rdma_connection *next;
    unsigned n = 0;

    if (!server) {
        return;
    }
    pthread_mutex_lock(&server->lock);
    look_soon(server, region);
    for (struct rdma_connection *c = server->connections; c; c = next) {
        next = c->next;
        if (c->region->region == region && c->epoch != region_epoch(region)) {
            n++;
            if (!rdma_connection_expire(c)) {
                drop(server, c);
            }
        }
    }
    pthread_mutex_unlock(&server->lock);
    wake(server);
    if (n) {
        log_info("the ticket of %u RDMA connections has expired", n);
    }
}

void rdma_server_trimmed(struct rdma_server *server, const struct region *region)
{
    if (!server) {
        return;
    }
    pthread_mutex_lock(&server->lock);
    look_soon(server, region);
    pthread_mutex_unlock(&server->lock);
    wake(server);
}

unsigned rdma_server_connections(struct rdma_server *server)
{
    if (!server) {
        return 0;
    }
    pthread_mutex_lock(&server->lock);
    unsigned n = server->n_connections;
    pthread_mutex_unlock(&server->lock);
    return n;
}
