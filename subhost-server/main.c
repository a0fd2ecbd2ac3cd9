// SPDX-License-Identifier: GPL-2.0-or-later
#include <stdlib.h>
#include <sys/prctl.h>

#include "subhost-server/server.h"

int main(int argc, char **argv)
{
    static struct options options;
    struct reason reason = {""};

    log_init("subhost-server", LOG_LEVEL_INFO);
    prctl(PR_SET_DUMPABLE, 0); /* guests' memory, tickets and keys have no place in a core file */
    switch (options_parse(&options, argc, argv, &reason)) {
    case OPTIONS_DONE:
        return EXIT_SUCCESS;
    case OPTIONS_BAD:
        log_error("%s", reason.text);
        return EXIT_FAILURE;
    case OPTIONS_RUN:
        break;
    }
    if (options.verbose) {
        log_init("subhost-server", LOG_LEVEL_DEBUG);
    }
    if (options.forget ? server_forget(&options, &reason) : server_run(&options, &reason)) {
        log_error("%s", reason.text);
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
