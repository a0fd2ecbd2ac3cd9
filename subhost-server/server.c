// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * server.c - start, wait for a signal, stop
 *
 * Everything that can fail is tried before the pid file is written: whoever
 * waits for it knows that the server serves.  Stopping goes the other way
 * round: no new orders, then no new pages, then the regions go.
 */
#include "subhost-server/server.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/meminfo.h"
#include "common/nbd_rdma.h"
#include "common/notify.h"
#include "common/units.h"
#include "common/version.h"
#include "subhost-server/export.h"
#include "subhost-server/store_metrics.h"
#include "subhost-server/verbs.h"

#define RDMA_CONNECTIONS 256u

static void warn_of_memory(uint64_t memory)
{
    uint64_t available = meminfo_bytes("MemAvailable:");
    struct rlimit limit;
    char wanted[32], have[32];

    units_format_size(memory, wanted, sizeof(wanted));
    if (available < memory) {
        log_warn("--memory is %s, but this host has only %s available now", wanted,
                 units_format_size(available, have, sizeof(have)));
    }
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur < memory) {
        log_warn("--memory is %s, but this process may map only %s (RLIMIT_AS)", wanted,
                 units_format_size(limit.rlim_cur, have, sizeof(have)));
    }
}

static void disconnect_region(void *opaque, const struct region *region)
{
    struct server *server = opaque;

    for (unsigned i = 0; i < server->n_data; i++) {
        nbd_server_disconnect(server->nbd[i], export_is_of, (void *)(uintptr_t)region);
    }
}

static void revoke_region(void *opaque, const struct region *region)
{
    struct server *server = opaque;

    rdma_server_revoke(server->rdma, region);
}

static void expire_region(void *opaque, const struct region *region)
{
    struct server *server = opaque;

    rdma_server_expire(server->rdma, region);
}

static void trimmed_region(void *opaque, const struct region *region)
{
    struct server *server = opaque;

    rdma_server_trimmed(server->rdma, region);
}

/* A UNIX socket's directory is made if only its last part is missing. */
static void make_directory(const struct endpoint *endpoint)
{
    char path[sizeof(endpoint->host)];

    snprintf(path, sizeof(path), "%s", endpoint->host);
    char *slash = strrchr(path, '/');
    if (endpoint->is_unix && slash && slash != path) {
        *slash = '\0';
        mkdir(path, 0755);
    }
}

static int listen_on(struct endpoint *endpoint, struct reason *reason)
{
    make_directory(endpoint);
    return endpoint_listen(endpoint, reason);
}

static int start_data(struct server *server, struct reason *reason)
{
    const struct options *options = server->options;
    struct nbd_server_config config = {
        .max_connections = options->max_connections,
        .spin_us = options->spin_us,
    };
    char text[ENDPOINT_TEXT_LEN];

    export_config(&config, &server->store);
    for (unsigned i = 0; i < options->n_listen; i++) {
        server->data[i] = options->listen[i];
        int fd = listen_on(&server->data[i], reason);
        if (fd < 0) {
            return fd;
        }
        config.tls = server->data[i].tls;
        int err = nbd_server_start(&server->nbd[i], fd, &config);
        if (err) {
            return reason_set(reason, err, "cannot serve pages: %s", strerror(-err));
        }
        server->n_data++;
        log_info("pages at %s", endpoint_format(&server->data[i], text));
    }
    return 0;
}

static int start_rdma(struct server *server, struct reason *reason)
{
    const struct options *options = server->options;
    struct rdma_server_config config = {
        .store = &server->store,
        .max_connections = options->max_connections ? options->max_connections : RDMA_CONNECTIONS,
    };
    char text[ENDPOINT_TEXT_LEN];

    if (!options->has_rdma) {
        return 0;
    }
    server->rdma_address = options->rdma;
    int err = rdma_server_start(&server->rdma, &server->rdma_address, &config, reason);
    if (!err) {
        log_info("pages at %s", nbd_rdma_format(&server->rdma_address, text));
    }
    return err;
}

static int start_control(struct server *server, struct reason *reason)
{
    const struct options *options = server->options;
    struct control_config config;
    char text[ENDPOINT_TEXT_LEN];

    gid_t group = 0;
    int err = options->control_group ? endpoint_group(options->control_group, &group, reason) : 0;
    if (err) {
        return err;
    }
    verbs_config(&config, server);
    for (unsigned i = 0; i < options->n_control; i++) {
        server->control[i] = options->control[i];
        int fd = listen_on(&server->control[i], reason);
        if (fd < 0) {
            return fd;
        }
        err = options->control_group ? endpoint_share(&server->control[i], group, reason) : 0;
        if (err) {
            close(fd);
            return err;
        }
        config.tls = server->control[i].tls;
        err = control_server_start(&server->controls[i], fd, &config);
        if (err) {
            return reason_set(reason, err, "cannot be controlled: %s", strerror(-err));
        }
        server->n_control++;
        log_info("control at %s", endpoint_format(&server->control[i], text));
    }
    return 0;
}

static int write_pidfile(const char *path, struct reason *reason)
{
    char temporary[4096];
    int n = snprintf(temporary, sizeof(temporary), "%s.new", path);

    if ((size_t)n >= sizeof(temporary)) {
        return reason_set(reason, -ENAMETOOLONG, "--pidfile: the name is too long");
    }
    FILE *file = fopen(temporary, "we");
    bool written = file && fprintf(file, "%ld\n", (long)getpid()) > 0;
    if (file && fclose(file) != 0) {
        written = false;
    }
    if (!written || rename(temporary, path) < 0) {
        int err = -errno;
        if (file) {
            unlink(temporary);
        }
        return reason_set(reason, err, "cannot write the pid file %.150s: %s", path,
                          strerror(-err));
    }
    return 0;
}

static void unlink_sockets(const struct endpoint *endpoints, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        if (endpoints[i].is_unix) {
            unlink(endpoints[i].host);
        }
    }
}

static void stop(struct server *server)
{
    for (unsigned i = 0; i < server->n_control; i++) {
        control_server_stop(server->controls[i]);
    }
    unlink_sockets(server->control, server->n_control);
    metrics_stop(server->metrics);
    headroom_stop(server->headroom);
    unlink_sockets(&server->options->metrics, server->metrics != NULL);
    for (unsigned i = 0; i < server->n_data; i++) {
        nbd_server_stop(server->nbd[i]);
    }
    rdma_server_stop(server->rdma); /* after NBD, whose TRIMs it is told of */
    server->rdma = NULL;
    unlink_sockets(server->data, server->n_data);
    server->n_data = 0;
    unsigned kept = server->store.state ? store_count_kept(&server->store) : 0;
    store_destroy(&server->store);
    if (server->store.state) {
        if (kept) {
            log_info("%u regions stay in %s for the next server; --forget frees them", kept,
                     server->state.path);
        }
        statedir_close(&server->state);
    }
}

/* Find the regions of an earlier server before anybody can ask for them. */
static int start_state(struct server *server, struct reason *reason)
{
    const struct options *options = server->options;
    char lent[32], room[32];

    if (!options->state_dir) {
        log_info("regions end with this process: --state-dir would keep them");
        return 0;
    }
    int err = statedir_open(&server->state, options->state_dir, reason);
    if (err) {
        return err;
    }
    server->store.state = &server->state;
    if (statedir_room(&server->state) < options->memory) {
        log_warn("--memory is %s, but %s holds only %s: mount it with size=%s and a little more",
                 units_format_size(options->memory, lent, sizeof(lent)), options->state_dir,
                 units_format_size(statedir_room(&server->state), room, sizeof(room)), lent);
    }
    return store_adopt(&server->store, reason);
}

int server_forget(const struct options *options, struct reason *reason)
{
    struct statedir state;
    int err = statedir_open(&state, options->state_dir, reason);

    if (!err) {
        log_info("%u regions in %s are freed", statedir_forget(&state), options->state_dir);
        statedir_close(&state);
    }
    return err;
}

/* Signals are taken by sigwait() only; they are blocked before any thread starts. */
static void block_signals(sigset_t *signals)
{
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(signals);
    sigaddset(signals, SIGTERM);
    sigaddset(signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, signals, NULL);
}

static int die_with_parent(struct reason *reason)
{
    pid_t parent = getppid();

    if (prctl(PR_SET_PDEATHSIG, SIGTERM) < 0) {
        return reason_set(reason, -errno, "--exit-with-parent does not work here: %s",
                          strerror(errno));
    }
    if (getppid() != parent) {
        return reason_set(reason, -ESRCH, "the parent process has ended already");
    }
    return 0;
}

int server_run(const struct options *options, struct reason *reason)
{
    struct server *server = calloc(1, sizeof(*server));
    sigset_t signals;
    int number;

    if (!server) {
        return reason_set(reason, -ENOMEM, "no memory to start");
    }
    block_signals(&signals);
    server->options = options;
    store_init(&server->store, options->memory);
    server->store.disconnect = disconnect_region;
    server->store.revoke = revoke_region;
    server->store.expire = expire_region;
    server->store.trimmed = trimmed_region;
    server->store.opaque = server;
    warn_of_memory(options->memory);

    int err = options->exit_with_parent ? die_with_parent(reason) : 0;
    if (!err) {
        err = start_state(server, reason);
    }
    if (!err) {
        err = start_data(server, reason);
    }
    if (!err) {
        err = start_rdma(server, reason);
    }
    if (!err && options->headroom) {
        err = headroom_start(&server->headroom, &server->store, options->headroom);
        if (err) {
            reason_set(reason, err, "cannot watch the headroom: %s", strerror(-err));
        }
    }
    if (!err) {
        err = start_control(server, reason);
    }
    if (!err && options->has_metrics) {
        struct endpoint endpoint = options->metrics;
        err = metrics_start(&server->metrics, &endpoint, store_metrics, server, reason);
    }
    if (!err && options->pidfile) {
        err = write_pidfile(options->pidfile, reason);
    }
    if (!err) {
        log_info("version %s is ready", SPLIT_MIGRATE_VERSION);
        notify_service("READY=1");
        sigwait(&signals, &number);
        log_info("stopping: %s", strsignal(number));
        notify_service("STOPPING=1");
        if (options->pidfile) {
            unlink(options->pidfile);
        }
    }
    stop(server);
    free(server);
    return err;
}

unsigned server_connections(const struct server *server)
{
    unsigned n = rdma_server_connections(server->rdma);

    for (unsigned i = 0; i < server->n_data; i++) {
        n += nbd_server_connections(server->nbd[i]);
    }
    return n;
}
