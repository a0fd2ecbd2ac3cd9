/* SPDX-License-Identifier: GPL-2.0-or-later */
/* server.h - the sub-host server as a whole: its listeners, its regions, its life */
#ifndef SUBHOST_SERVER_SERVER_H
#define SUBHOST_SERVER_SERVER_H

#include "common/control.h"
#include "common/endpoint.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/nbd_server.h"
#include "subhost-server/headroom.h"
#include "subhost-server/options.h"
#include "subhost-server/rdma_server.h"
#include "subhost-server/statedir.h"
#include "subhost-server/store.h"

struct server {
    const struct options *options;
    struct store store;
    struct statedir state;
    struct endpoint data[OPTIONS_MAX_LISTEN]; /* with the ports the kernel chose */
    struct nbd_server *nbd[OPTIONS_MAX_LISTEN];
    unsigned n_data;
    struct rdma_server *rdma; /* NULL: none */
    struct endpoint rdma_address;
    struct endpoint control[OPTIONS_MAX_LISTEN];
    struct control_server *controls[OPTIONS_MAX_LISTEN];
    unsigned n_control;
    struct metrics *metrics; /* NULL: not asked for */
    struct headroom *headroom; /* NULL: not asked for */
};

/**
 * server_run() - serve until SIGTERM or SIGINT
 * Return: 0, or -errno with a sentence in @reason if it could not start.
 */
int server_run(const struct options *options, struct reason *reason);

/** server_forget() - --forget: free the regions in --state-dir; Return: 0 or -errno with @reason */
int server_forget(const struct options *options, struct reason *reason);

/** server_connections() - how many NBD connections there are */
unsigned server_connections(const struct server *server);

#endif
