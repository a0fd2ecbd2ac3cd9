/* SPDX-License-Identifier: GPL-2.0-or-later */
/* daemon.h - the process that listens for QEMU and for controllers, one per host */
#ifndef UFFD_PAGER_DAEMON_H
#define UFFD_PAGER_DAEMON_H

#include <stdbool.h>

#include "common/endpoint.h"

#define DAEMON_MAX_CONTROLS 8

struct daemon_config {
    const char *run_dir;
    struct endpoint handoff;
    struct endpoint control[DAEMON_MAX_CONTROLS];
    unsigned n_controls;
    struct endpoint data;
    struct endpoint metrics;
    bool has_metrics;
    const char *handoff_group; /* may hand guests over, too; NULL: only our user and root */
    const char *control_group; /* may control us by UNIX sockets, too; NULL: as above */
    const char *pidfile;       /* NULL: none */
    bool debug;
};

/** daemon_main() - run until SIGTERM or SIGINT; workers go on. Return: the process's exit status. */
int daemon_main(const struct daemon_config *config);

#endif
