// SPDX-License-Identifier: GPL-2.0-or-later
#include <signal.h>
#include <sys/prctl.h>

#include "uffd-pager/daemon.h"
#include "uffd-pager/mover.h"
#include "uffd-pager/options.h"
#include "uffd-pager/worker.h"

int main(int argc, char **argv)
{
    struct options options;

    options_parse(&options, argc, argv);
    log_init("uffd-pager", options.daemon.debug ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO);
    prctl(PR_SET_DUMPABLE, 0); /* guests' memory, tickets and keys have no place in a core file */
    if (options.exit_with_parent) {
        prctl(PR_SET_PDEATHSIG, SIGTERM);
    }
    switch (options.role) {
    case OPTIONS_DAEMON:
        return daemon_main(&options.daemon);
    case OPTIONS_WORKER:
        return worker_main(options.daemon.run_dir, options.uuid, &options.daemon.data, 3);
    case OPTIONS_MOVER:
        return mover_main(options.mover_fd);
    default:
        return options.status;
    }
}
