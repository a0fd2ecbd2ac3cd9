/* SPDX-License-Identifier: GPL-2.0-or-later */
/* options.h - the command line of uffd-pager */
#ifndef UFFD_PAGER_OPTIONS_H
#define UFFD_PAGER_OPTIONS_H

#include <stdio.h>

#include "common/tls.h"
#include "uffd-pager/daemon.h"

enum options_role { OPTIONS_DAEMON, OPTIONS_WORKER, OPTIONS_MOVER, OPTIONS_EXIT };

struct options {
    enum options_role role;
    struct daemon_config daemon;
    struct tls_config tls;
    const char *uuid; /* of a worker */
    int mover_fd;
    bool exit_with_parent;
    int status; /* for OPTIONS_EXIT */
};

/** options_parse() - read argv; --help, --version and mistakes are answered here, role OPTIONS_EXIT */
void options_parse(struct options *options, int argc, char **argv);

#define OPTIONS_PASS 8 /* with the NULL at the end */
/** options_pass() - what workers and movers must be told; @argv: room for OPTIONS_PASS. Return: how many. */
unsigned options_pass(char **argv);

#endif
