// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * daemon.c - route hand-offs and control to the guests' workers
 *
 * The daemon holds no guest's memory and no guest depends on its life.  A verb
 * that names a guest is passed on to that guest's worker on a connection that
 * belongs to the caller's: when the caller closes its connection the worker
 * sees its own close, which ends the caller's leases.
 */
#include "uffd-pager/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "common/control.h"
#include "common/meminfo.h"
#include "common/metrics.h"
#include "common/notify.h"
#include "common/units.h"
#include "common/version.h"
#include "uffd-pager/guest_metrics.h"
#include "uffd-pager/guests.h"

#define DAEMON_TMPFS_MAGIC 0x01021994

struct daemon {
    const struct daemon_config *config;
    struct guests *guests;
    struct control_server *control[DAEMON_MAX_CONTROLS];
    struct metrics *metrics; /* NULL: not asked for */
    int handoff;
};

/* A caller's connections to workers; used by its own thread only. */
struct daemon_link {
    struct daemon_link *next;
    struct control_client *client;
    char uuid[UUID_TEXT_LEN];
};

static void daemon_event(void *opaque, const char *name, json_t *data)
{
    struct daemon *daemon = opaque;

    for (unsigned i = 0; i < daemon->config->n_controls; i++) {
        if (daemon->control[i]) {
            control_broadcast(daemon->control[i], name, json_incref(data));
        }
    }
    json_decref(data);
}

static void daemon_on_close(void *opaque, struct control_peer *peer)
{
    struct daemon_link *link = control_peer_get(peer);

    (void)opaque;
    while (link) {
        struct daemon_link *next = link->next;
        control_close(link->client);
        free(link);
        link = next;
    }
}

static int daemon_link(struct daemon *daemon, struct control_peer *peer, const char *uuid,
                       bool start, struct daemon_link **out, struct reason *reason)
{
    for (struct daemon_link *link = control_peer_get(peer); link; link = link->next) {
        if (strcmp(link->uuid, uuid) == 0) {
            *out = link;
            return 0;
        }
    }
    struct daemon_link *link = calloc(1, sizeof(*link));
    if (!link) {
        return -ENOMEM;
    }
    int err = guests_connect(daemon->guests, uuid, start, &link->client, reason);
    if (err) {
        free(link);
        return err;
    }
    snprintf(link->uuid, sizeof(link->uuid), "%s", uuid);
    link->next = control_peer_get(peer);
    control_peer_set(peer, link);
    *out = link;
    return 0;
}

static void daemon_unlink(struct control_peer *peer, struct daemon_link *gone)
{
    struct daemon_link *head = control_peer_get(peer);

    for (struct daemon_link **p = &head; *p; p = &(*p)->next) {
        if (*p == gone) {
            *p = gone->next;
            break;
        }
    }
    control_peer_set(peer, head);
    control_close(gone->client);
    free(gone);
}

static json_t *daemon_pass_on(struct daemon *daemon, struct control_peer *peer, const char *verb,
                              bool start, const json_t *args, int *err, struct reason *reason)
{
    const char *text = json_string_value(json_object_get(args, "uuid"));
    char uuid_text[UUID_TEXT_LEN];
    uint8_t uuid[16];
    struct daemon_link *link;
    json_t *result = NULL;

    if (!text || units_parse_uuid(text, uuid) < 0) {
        *err = reason_set(reason, -EINVAL, "'uuid' must be the guest's UUID");
        return NULL;
    }
    units_format_uuid(uuid, uuid_text);
    *err = daemon_link(daemon, peer, uuid_text, start, &link, reason);
    if (*err) {
        return NULL;
    }
    *err = control_call(link->client, verb, json_deep_copy(args), &result, -1, reason);
    if (*err == -ECONNRESET) {
        reason_set(reason, *err, "the worker of guest %s died", uuid_text);
        daemon_unlink(peer, link);
    }
    return result;
}

#define DAEMON_PASS_ON(function, verb, start)                                                      \
    static json_t *function(void *opaque, struct control_peer *peer, const json_t *args, int *err, \
                            struct reason *reason)                                                 \
    {                                                                                              \
        return daemon_pass_on(opaque, peer, verb, start, args, err, reason);                       \
    }

DAEMON_PASS_ON(daemon_query_guest, "query-guest", false)
DAEMON_PASS_ON(daemon_query_pages, "query-pages", false)
DAEMON_PASS_ON(daemon_query_heatmap, "query-heatmap", false)
DAEMON_PASS_ON(daemon_incoming_prepare, "incoming-prepare", true)
DAEMON_PASS_ON(daemon_incoming_cancel, "incoming-cancel", false)
DAEMON_PASS_ON(daemon_outgoing_profile, "outgoing-profile", false)
DAEMON_PASS_ON(daemon_outgoing_prepare, "outgoing-prepare", false)
DAEMON_PASS_ON(daemon_outgoing_status, "outgoing-status", false)
DAEMON_PASS_ON(daemon_outgoing_cancel, "outgoing-cancel", false)
DAEMON_PASS_ON(daemon_set_budget, "set-budget", false)
DAEMON_PASS_ON(daemon_subhost_drain, "subhost-drain", false)
DAEMON_PASS_ON(daemon_reset_stats, "reset-stats", false)

/* As JSON has numbers: 0 if the kernel does not say. */
static json_int_t daemon_meminfo(const char *key)
{
    uint64_t bytes = meminfo_bytes(key);

    return bytes <= INT64_MAX ? (json_int_t)bytes : 0;
}

static json_t *daemon_query_status(void *opaque, struct control_peer *peer, const json_t *args,
                                   int *err, struct reason *reason)
{
    struct daemon *daemon = opaque;
    json_t *list = guests_list(daemon->guests);
    json_t *answer =
        json_pack("{s:s, s:s, s:I, s:I, s:I}", "version", SPLIT_MIGRATE_VERSION, "run_dir",
                  daemon->config->run_dir, "memory_total", daemon_meminfo("MemTotal:"),
                  "memory_available", daemon_meminfo("MemAvailable:"), "guests",
                  (json_int_t)json_array_size(list));

    (void)peer, (void)args, (void)err, (void)reason;
    json_decref(list);
    return answer;
}

static json_t *daemon_query_guests(void *opaque, struct control_peer *peer, const json_t *args,
                                   int *err, struct reason *reason)
{
    struct daemon *daemon = opaque;
    json_t *list = guests_list(daemon->guests);
    json_t *answer = json_array();
    json_t *uuid;
    size_t i;

    (void)args, (void)err;
    json_array_foreach(list, i, uuid) {
        json_t *one = json_pack("{s:O}", "uuid", uuid);
        int failed = 0;
        json_t *guest = daemon_pass_on(daemon, peer, "query-guest", false, one, &failed, reason);
        if (guest) {
            json_array_append_new(answer, guest);
        } else if (failed != -ENOENT) {
            json_array_append_new(answer, json_pack("{s:O, s:s, s:b}", "uuid", uuid, "state",
                                                    "unserved", "connected", 0));
        }
        json_decref(one);
    }
    json_decref(list);
    return answer;
}

static const struct control_verb daemon_verbs[] = {
    {"query-status", daemon_query_status},
    {"query-guests", daemon_query_guests},
    {"query-guest", daemon_query_guest},
    {"query-pages", daemon_query_pages},
    {"query-heatmap", daemon_query_heatmap},
    {"incoming-prepare", daemon_incoming_prepare},
    {"incoming-cancel", daemon_incoming_cancel},
    {"outgoing-profile", daemon_outgoing_profile},
    {"outgoing-prepare", daemon_outgoing_prepare},
    {"outgoing-status", daemon_outgoing_status},
    {"outgoing-cancel", daemon_outgoing_cancel},
    {"set-budget", daemon_set_budget},
    {"subhost-drain", daemon_subhost_drain},
    {"reset-stats", daemon_reset_stats},
    {NULL, NULL},
};

struct daemon_handoff {
    struct daemon *daemon;
    int fd;
};

static void *daemon_handoff_thread(void *arg)
{
    struct daemon_handoff *handoff = arg;

    pthread_setname_np(pthread_self(), "handoff");
    guests_attach(handoff->daemon->guests, handoff->fd);
    free(handoff);
    return NULL;
}

/* Accept QEMU's hand-offs for ever; each is routed by a thread of its own. */
static void *daemon_accept_thread(void *arg)
{
    struct daemon *daemon = arg;
    pthread_attr_t attr;

    pthread_setname_np(pthread_self(), "handoff-accept");
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    for (;;) {
        int fd = endpoint_accept(daemon->handoff);
        if (fd < 0) {
            if (fd == -EMFILE || fd == -ENFILE || fd == -ENOMEM) {
                usleep(100000);
            }
            continue;
        }
        struct daemon_handoff *handoff = malloc(sizeof(*handoff));
        pthread_t thread;
        if (handoff) {
            handoff->daemon = daemon;
            handoff->fd = fd;
        }
        if (!handoff || pthread_create(&thread, &attr, daemon_handoff_thread, handoff)) {
            free(handoff);
            close(fd);
        }
    }
    return NULL;
}

/* Listen on a UNIX or TCP address; a UNIX socket is shared with @group. */
static int daemon_listen(struct endpoint *endpoint, const char *group, struct reason *reason)
{
    gid_t gid = 0;
    int err = group ? endpoint_group(group, &gid, reason) : 0;
    int listener = err ? err : endpoint_listen(endpoint, reason);

    if (listener >= 0 && group) {
        err = endpoint_share(endpoint, gid, reason);
    }
    if (err && listener >= 0) {
        close(listener);
    }
    return err ? err : listener;
}

static int daemon_start(struct daemon *daemon, struct reason *reason)
{
    const struct daemon_config *config = daemon->config;
    struct guests_config guests = {
        .run_dir = config->run_dir,
        .data = config->data,
        .debug = config->debug,
        .event = daemon_event,
        .opaque = daemon,
    };
    struct control_config control = {
        .program = "uffd-pager",
        .verbs = daemon_verbs,
        .opaque = daemon,
        .on_close = daemon_on_close,
    };
    struct endpoint handoff = config->handoff;
    struct statfs fs;
    pthread_t thread;

    if (mkdir(config->run_dir, 0700) < 0 && errno != EEXIST) {
        return reason_set(reason, -errno, "cannot make the run directory %s: %m", config->run_dir);
    }
    if (statfs(config->run_dir, &fs) == 0 && fs.f_type != DAEMON_TMPFS_MAGIC) {
        log_warn("the run directory %s is not on tmpfs: page maps will be written to disk",
                 config->run_dir);
    }
    int err = guests_new(&daemon->guests, &guests, reason);
    if (err) {
        return err;
    }
    daemon->handoff = daemon_listen(&handoff, config->handoff_group, reason);
    if (daemon->handoff < 0) {
        return daemon->handoff;
    }
    for (unsigned i = 0; i < config->n_controls; i++) {
        struct endpoint endpoint = config->control[i];
        int listener = daemon_listen(&endpoint, config->control_group, reason);
        if (listener < 0) {
            return listener;
        }
        control.tls = endpoint.tls;
        err = control_server_start(&daemon->control[i], listener, &control);
        if (err) {
            return reason_set(reason, err, "the control server cannot start: %s", strerror(-err));
        }
    }
    if (config->has_metrics) {
        struct endpoint endpoint = config->metrics;
        err = metrics_start(&daemon->metrics, &endpoint, guest_metrics, daemon->guests, reason);
        if (err) {
            return err;
        }
    }
    return -pthread_create(&thread, NULL, daemon_accept_thread, daemon);
}

static int daemon_write_pidfile(const char *path)
{
    char temporary[4096];

    if (!path) {
        return 0;
    }
    snprintf(temporary, sizeof(temporary), "%s.new", path);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) {
        return -errno;
    }
    dprintf(fd, "%d\n", (int)getpid());
    close(fd);
    return rename(temporary, path) < 0 ? -errno : 0;
}

int daemon_main(const struct daemon_config *config)
{
    static struct daemon daemon = {.handoff = -1}; /* its threads run to the process's end */
    struct reason reason = {""};
    sigset_t signals;
    int signal_number;

    daemon.config = config;
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, NULL); /* before any thread: all inherit it */
    int err = daemon_start(&daemon, &reason);
    if (!err) {
        err = daemon_write_pidfile(config->pidfile);
        if (err) {
            reason_set(&reason, err, "cannot write %s: %s", config->pidfile, strerror(-err));
        }
    }
    if (err) {
        log_error("%s", reason.text[0] ? reason.text : strerror(-err));
        return EXIT_FAILURE;
    }
    log_info("ready: hand-offs at %s", config->handoff.host);
    notify_service("READY=1");
    sigwait(&signals, &signal_number);
    log_info("stopping; guests go on");
    notify_service("STOPPING=1");
    if (config->pidfile) {
        unlink(config->pidfile);
    }
    unlink(config->handoff.host);
    if (config->metrics.is_unix) {
        unlink(config->metrics.host);
    }
    for (unsigned i = 0; i < config->n_controls; i++) {
        if (config->control[i].is_unix) {
            unlink(config->control[i].host);
        }
    }
    return EXIT_SUCCESS;
}
