// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * nbd_server.c - the listener, the list of connections and their threads
 *
 * One thread accepts, one detached thread serves each connection.  server->lock
 * guards the list and each connection's export; a connection leaves the list
 * under the lock before its socket is closed, so a descriptor found in the
 * list may be shut down.  An export is opened under the lock too: a connection
 * that nbd_server_disconnect() does not see opens its export after it.
 */
#include "common/nbd_server.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <netinet/in.h>
#include <netinet/tcp.h>

#include "common/endpoint.h"
#include "common/nbd_connection.h"
#include "common/units.h"

#define DEFAULT_CONNECTIONS 256
#define DEFAULT_HANDSHAKE_MS 10000
#define THREAD_STACK (256u << 10)
#define KEEPALIVE_IDLE_S 30
#define KEEPALIVE_INTERVAL_S 10
#define KEEPALIVE_PROBES 3
#define WARNING_INTERVAL_US 10000000
#define RETRY_ACCEPT_MS 100 /* after an accept that failed for want of descriptors or memory */

struct nbd_server {
    struct nbd_server_config config;
    int listener;
    int stop_event;
    pthread_t acceptor;
    pthread_mutex_t lock;
    pthread_cond_t empty; /* signalled when the last connection has gone */
    struct nbd_connection *connections;
    atomic_uint n_connections;
    uint64_t next_warning_us; /* used by the acceptor only */
};

static void connection_enlist(struct nbd_server *server, struct nbd_connection *conn)
{
    pthread_mutex_lock(&server->lock);
    conn->next = server->connections;
    conn->link = &server->connections;
    if (conn->next) {
        conn->next->link = &conn->next;
    }
    server->connections = conn;
    atomic_fetch_add(&server->n_connections, 1);
    pthread_mutex_unlock(&server->lock);
}

/* After this the server may be freed by nbd_server_stop(). */
static void connection_delist(struct nbd_server *server, struct nbd_connection *conn)
{
    pthread_mutex_lock(&server->lock);
    *conn->link = conn->next;
    if (conn->next) {
        conn->next->link = conn->link;
    }
    nbd_connection_free(conn);
    if (atomic_fetch_sub(&server->n_connections, 1) == 1) {
        pthread_cond_broadcast(&server->empty);
    }
    pthread_mutex_unlock(&server->lock);
}

static void *connection_thread(void *arg)
{
    struct nbd_connection *conn = arg;

    nbd_connection_run(conn);
    connection_delist(conn->server, conn);
    return NULL;
}

/* Notice peers that vanished without a word; has no effect on UNIX sockets. */
static void set_keepalive(int fd)
{
    int on = 1, idle = KEEPALIVE_IDLE_S, interval = KEEPALIVE_INTERVAL_S, probes = KEEPALIVE_PROBES;

    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
}

static int start_thread(void *(*run)(void *), void *arg)
{
    pthread_attr_t attr;
    pthread_t thread;

    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, THREAD_STACK);
    int err = pthread_create(&thread, &attr, run, arg);
    pthread_attr_destroy(&attr);
    return -err;
}

/* Tell the operator, but do not let whoever knocks fill the log. */
static void warn_full(struct nbd_server *server)
{
    uint64_t now = units_now_us();

    if (now >= server->next_warning_us) {
        log_warn("NBD connection refused: there are %u already", server->config.max_connections);
        server->next_warning_us = now + WARNING_INTERVAL_US;
    }
}

static void admit(struct nbd_server *server, int fd)
{
    if (atomic_load(&server->n_connections) >= server->config.max_connections) {
        warn_full(server);
        close(fd);
        return;
    }
    struct nbd_connection *conn = nbd_connection_new(&server->config, fd);
    if (!conn) {
        log_warn("NBD connection refused: no memory");
        close(fd);
        return;
    }
    set_keepalive(fd);
    conn->server = server;
    conn->lock = &server->lock;
    conn->deadline_us = units_now_us() + (uint64_t)server->config.handshake_timeout_ms * 1000;
    connection_enlist(server, conn);
    int err = start_thread(connection_thread, conn);
    if (err) {
        log_warn("NBD connection refused: no thread: %s", strerror(-err));
        connection_delist(server, conn);
    }
}

static void *accept_thread(void *arg)
{
    struct nbd_server *server = arg;
    struct pollfd pfd[2] = {
        {.fd = server->listener, .events = POLLIN},
        {.fd = server->stop_event, .events = POLLIN},
    };

    for (;;) {
        if (poll(pfd, 2, -1) < 0 && errno != EINTR) {
            log_error("NBD server: poll: %m");
            return NULL;
        }
        if (pfd[1].revents) {
            return NULL;
        }
        int fd = endpoint_accept(server->listener);
        if (fd >= 0) {
            admit(server, fd);
        } else if (fd == -EMFILE || fd == -ENFILE || fd == -ENOBUFS || fd == -ENOMEM) {
            log_warn("NBD server: accept: %s", strerror(-fd));
            poll(&pfd[1], 1, RETRY_ACCEPT_MS);
        }
    }
}

int nbd_server_start(struct nbd_server **result, int listener,
                     const struct nbd_server_config *config)
{
    struct nbd_server *server = calloc(1, sizeof(*server));
    if (!server) {
        close(listener);
        return -ENOMEM;
    }
    server->config = *config;
    if (!server->config.max_connections) {
        server->config.max_connections = DEFAULT_CONNECTIONS;
    }
    if (!server->config.handshake_timeout_ms) {
        server->config.handshake_timeout_ms = DEFAULT_HANDSHAKE_MS;
    }
    server->listener = listener;
    pthread_mutex_init(&server->lock, NULL);
    pthread_cond_init(&server->empty, NULL);
    fcntl(listener, F_SETFL, fcntl(listener, F_GETFL) | O_NONBLOCK);
    server->stop_event = eventfd(0, EFD_CLOEXEC);
    int err = server->stop_event < 0 ? -errno : 0;
    if (!err) {
        err = -pthread_create(&server->acceptor, NULL, accept_thread, server);
        if (err) {
            close(server->stop_event);
        }
    }
    if (err) {
        close(listener);
        free(server);
        return err;
    }
    *result = server;
    return 0;
}

void nbd_server_stop(struct nbd_server *server)
{
    uint64_t one = 1;

    if (!server) {
        return;
    }
    ssize_t ignored = write(server->stop_event, &one, sizeof(one));
    (void)ignored;
    pthread_join(server->acceptor, NULL);
    close(server->listener);
    pthread_mutex_lock(&server->lock);
    for (struct nbd_connection *conn = server->connections; conn; conn = conn->next) {
        shutdown(conn->channel.fd, SHUT_RDWR);
    }
    while (server->connections) {
        pthread_cond_wait(&server->empty, &server->lock);
    }
    pthread_mutex_unlock(&server->lock);
    close(server->stop_event);
    pthread_mutex_destroy(&server->lock);
    pthread_cond_destroy(&server->empty);
    free(server);
}

unsigned nbd_server_connections(struct nbd_server *server)
{
    return atomic_load(&server->n_connections);
}

void nbd_server_disconnect(struct nbd_server *server,
                           bool (*match)(void *arg, const struct nbd_export *export), void *arg)
{
    pthread_mutex_lock(&server->lock);
    for (struct nbd_connection *conn = server->connections; conn; conn = conn->next) {
        if (conn->opened && match(arg, &conn->export)) {
            shutdown(conn->channel.fd, SHUT_RDWR);
        }
    }
    pthread_mutex_unlock(&server->lock);
}
