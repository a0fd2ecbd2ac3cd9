/* SPDX-License-Identifier: GPL-2.0-or-later */
/* options.h - the command line */
#ifndef SUBHOST_SERVER_OPTIONS_H
#define SUBHOST_SERVER_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/endpoint.h"
#include "common/log.h"
#include "common/tls.h"

#define OPTIONS_MAX_LISTEN 16

struct options {
    uint64_t memory;
    uint64_t headroom; /* memory of this host that is to stay free; 0: not watched */
    struct endpoint listen[OPTIONS_MAX_LISTEN];
    unsigned n_listen;
    struct endpoint rdma; /* serve pages by RDMA too */
    bool has_rdma;
    struct endpoint control[OPTIONS_MAX_LISTEN];
    unsigned n_control;
    struct endpoint metrics;
    bool has_metrics;
    const char *control_group; /* may control by UNIX sockets, too; NULL: only our user and root */
    const char *pidfile;       /* NULL: none */
    const char *state_dir;     /* NULL: regions end with the server */
    bool forget;
    unsigned max_connections;
    unsigned spin_us;
    bool plaintext;
    struct tls_config tls;
    bool verbose;
    bool exit_with_parent;
};

enum options_result { OPTIONS_RUN, OPTIONS_DONE, OPTIONS_BAD };

/**
 * options_parse() - fill @options from the command line
 * Return: OPTIONS_DONE if --help or --version was answered; OPTIONS_BAD with a sentence in @reason.
 */
enum options_result options_parse(struct options *options, int argc, char **argv,
                                  struct reason *reason);

#endif
