// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common/control.h"
#include "common/control_line.h"
#include "common/units.h"
#include "common/version.h"

/*
 * Lock order: server->lock, then peer->write_lock.  server->lock guards the
 * list of peers; write_lock keeps lines whole.  A peer is freed by its own
 * thread, after it has left the list.
 */
struct control_peer {
    struct control_server *server;
    struct control_peer *next;
    pthread_mutex_t write_lock;
    struct channel channel;
    bool ready; /* TLS is done or not wanted; guarded by write_lock */
    void *data;
};

struct control_server {
    struct control_config config;
    pthread_mutex_t lock;
    pthread_cond_t empty;
    struct control_peer *peers;
    unsigned n_peers;
    pthread_t acceptor;
    int listener;
    int wake; /* eventfd: stop accepting */
};

/* A peer that does not read its lines must not block whoever sends events for ever. */
#define CONTROL_SEND_TIMEOUT_S 10
#define CONTROL_TLS_TIMEOUT_S 10 /* to get through the handshake */

static void control_peer_send(struct control_peer *peer, const json_t *object)
{
    pthread_mutex_lock(&peer->write_lock);
    if (peer->ready && control_line_write(&peer->channel, object) < 0) {
        shutdown(peer->channel.fd, SHUT_RDWR);
    }
    pthread_mutex_unlock(&peer->write_lock);
}

static void control_greet(struct control_peer *peer)
{
    json_t *greeting =
        json_pack("{s:{s:s, s:s, s:i}}", "split-migrate", "program", peer->server->config.program,
                  "version", SPLIT_MIGRATE_VERSION, "protocol", 1);

    control_peer_send(peer, greeting);
    json_decref(greeting);
}

static const char *control_class(int err)
{
    const char *name = strerrorname_np(-err);

    return name ? name : "EIO";
}

static void control_answer(struct control_peer *peer, const json_t *request, json_t *result,
                           int err, const struct reason *reason)
{
    json_t *answer;

    if (err < 0) {
        const char *text = reason->text[0] ? reason->text : strerror(-err);
        json_t *desc = json_string(text); /* NULL if it is not UTF-8 */
        answer = json_pack("{s:{s:s, s:o}}", "error", "class", control_class(err), "desc",
                           desc ? desc : json_string(strerror(-err)));
    } else {
        answer = json_pack("{s:o}", "return", result ? result : json_object());
    }
    json_t *id = request ? json_object_get(request, "id") : NULL;
    if (id) {
        json_object_set(answer, "id", id);
    }
    control_peer_send(peer, answer);
    json_decref(answer);
}

static json_t *control_run(struct control_peer *peer, const json_t *request, int *err,
                           struct reason *reason)
{
    const struct control_config *config = &peer->server->config;
    const char *name = json_string_value(json_object_get(request, "execute"));
    json_t *args = json_object_get(request, "arguments");

    if (!name || (args && !json_is_object(args))) {
        *err = reason_set(reason, -EINVAL,
                          "a request is {\"execute\": \"verb\", \"arguments\": {...}}");
        return NULL;
    }
    for (const struct control_verb *verb = config->verbs; verb->name; verb++) {
        if (strcmp(verb->name, name) == 0) {
            json_t *none = args ? NULL : json_object();
            json_t *result =
                verb->handler(config->opaque, peer, args ? args : none, err, reason);
            json_decref(none);
            return result;
        }
    }
    *err = reason_set(reason, -ENOSYS, "there is no verb '%.64s'", name);
    return NULL;
}

static void control_serve(struct control_peer *peer)
{
    struct control_line line;

    control_line_init(&line, &peer->channel);
    control_greet(peer);
    for (;;) {
        struct reason reason = {""};
        json_t *request = NULL;
        int err = control_line_read(&line, UINT64_MAX, &request, &reason);
        if (err == -EBADMSG || err == -EMSGSIZE) {
            control_answer(peer, NULL, NULL, err, &reason);
        }
        if (err < 0) {
            break;
        }
        json_t *result = control_run(peer, request, &err, &reason);
        control_answer(peer, request, result, err, &reason);
        json_decref(request);
    }
    control_line_free(&line);
}

/* Nothing is said to a peer, not even an event, before TLS is done. */
static int control_admit(struct control_peer *peer)
{
    struct channel channel = peer->channel;
    uint64_t deadline = units_now_us() + (uint64_t)CONTROL_TLS_TIMEOUT_S * 1000000;
    int err = peer->server->config.tls ? channel_secure(&channel, NULL, deadline, NULL) : 0;

    if (!err) {
        channel_timeout(&channel, CONTROL_SEND_TIMEOUT_S * 1000);
        pthread_mutex_lock(&peer->write_lock);
        peer->channel.tls = channel.tls; /* control_server_stop() may be looking at the socket */
        peer->ready = true;
        pthread_mutex_unlock(&peer->write_lock);
    }
    return err;
}

static void *control_peer_thread(void *arg)
{
    struct control_peer *peer = arg;
    struct control_server *server = peer->server;

    pthread_setname_np(pthread_self(), "control");
    if (control_admit(peer) == 0) {
        control_serve(peer);
    }
    if (server->config.on_close) {
        server->config.on_close(server->config.opaque, peer);
    }
    pthread_mutex_lock(&server->lock);
    for (struct control_peer **p = &server->peers; *p; p = &(*p)->next) {
        if (*p == peer) {
            *p = peer->next;
            break;
        }
    }
    server->n_peers--;
    pthread_cond_broadcast(&server->empty);
    pthread_mutex_unlock(&server->lock);
    channel_close(&peer->channel);
    pthread_mutex_destroy(&peer->write_lock);
    free(peer);
    return NULL;
}

static int control_start_thread(pthread_t *thread, void *(*run)(void *), void *arg, bool detached)
{
    pthread_attr_t attr;

    pthread_attr_init(&attr);
    if (detached) {
        pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    }
    int err = pthread_create(thread, &attr, run, arg);
    pthread_attr_destroy(&attr);
    return -err;
}

static void control_add_peer(struct control_server *server, int fd)
{
    struct control_peer *peer = calloc(1, sizeof(*peer));
    pthread_t thread;

    if (!peer) {
        close(fd);
        return;
    }
    peer->server = server;
    peer->channel = (struct channel){.fd = fd};
    pthread_mutex_init(&peer->write_lock, NULL);
    pthread_mutex_lock(&server->lock);
    bool room = server->n_peers < CONTROL_MAX_CONNECTIONS;
    if (room) {
        peer->next = server->peers;
        server->peers = peer;
        server->n_peers++;
        if (control_start_thread(&thread, control_peer_thread, peer, true) < 0) {
            server->peers = peer->next;
            server->n_peers--;
            room = false;
        }
    }
    pthread_mutex_unlock(&server->lock);
    if (!room) {
        log_warn("a control connection was refused: there are %u already",
                 CONTROL_MAX_CONNECTIONS);
        close(fd);
        pthread_mutex_destroy(&peer->write_lock);
        free(peer);
    }
}

static void *control_acceptor(void *arg)
{
    struct control_server *server = arg;
    struct pollfd pfds[2] = {{.fd = server->listener, .events = POLLIN},
                             {.fd = server->wake, .events = POLLIN}};

    pthread_setname_np(pthread_self(), "control-accept");
    for (;;) {
        if (poll(pfds, 2, -1) < 0 && errno != EINTR) {
            break;
        }
        if (pfds[1].revents) {
            break;
        }
        if (pfds[0].revents) {
            int fd = endpoint_accept(server->listener);
            if (fd >= 0) {
                control_add_peer(server, fd);
            } else if (fd == -EMFILE || fd == -ENFILE || fd == -ENOMEM) {
                poll(&pfds[1], 1, 100); /* out of resources: do not spin */
            }
        }
    }
    return NULL;
}

int control_server_start(struct control_server **out, int listener,
                         const struct control_config *config)
{
    struct control_server *server = calloc(1, sizeof(*server));

    if (!server) {
        close(listener);
        return -ENOMEM;
    }
    server->config = *config;
    server->listener = listener;
    /* A peer that has vanished between poll and accept must not hold the acceptor. */
    fcntl(listener, F_SETFL, fcntl(listener, F_GETFL) | O_NONBLOCK);
    server->wake = eventfd(0, EFD_CLOEXEC);
    pthread_mutex_init(&server->lock, NULL);
    pthread_cond_init(&server->empty, NULL);
    int err = server->wake < 0
                  ? -errno
                  : control_start_thread(&server->acceptor, control_acceptor, server, false);
    if (err < 0) {
        close(listener);
        free(server);
        return err;
    }
    *out = server;
    return 0;
}

void control_server_stop(struct control_server *server)
{
    uint64_t one = 1;
    ssize_t ignored = write(server->wake, &one, sizeof(one));

    (void)ignored;
    pthread_join(server->acceptor, NULL);
    close(server->listener);
    pthread_mutex_lock(&server->lock);
    for (struct control_peer *peer = server->peers; peer; peer = peer->next) {
        shutdown(peer->channel.fd, SHUT_RDWR);
    }
    while (server->n_peers) {
        pthread_cond_wait(&server->empty, &server->lock);
    }
    pthread_mutex_unlock(&server->lock);
    close(server->wake);
    pthread_cond_destroy(&server->empty);
    pthread_mutex_destroy(&server->lock);
    free(server);
}

static json_t *control_make_event(const char *name, json_t *data)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return json_pack("{s:s, s:o, s:{s:I, s:I}}", "event", name, "data",
                     data ? data : json_object(), "timestamp", "seconds", (json_int_t)now.tv_sec,
                     "microseconds", (json_int_t)(now.tv_nsec / 1000));
}

void control_event(struct control_peer *peer, const char *name, json_t *data)
{
    json_t *event = control_make_event(name, data);

    control_peer_send(peer, event);
    json_decref(event);
}

void control_broadcast(struct control_server *server, const char *name, json_t *data)
{
    json_t *event = control_make_event(name, data);

    pthread_mutex_lock(&server->lock);
    for (struct control_peer *peer = server->peers; peer; peer = peer->next) {
        control_peer_send(peer, event);
    }
    pthread_mutex_unlock(&server->lock);
    json_decref(event);
}

void control_peer_set(struct control_peer *peer, void *data)
{
    peer->data = data;
}

void *control_peer_get(struct control_peer *peer)
{
    return peer->data;
}
