// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/fault.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

#define FAULT_PREFIX "controller-"

void fault_point(const char *place)
{
    const char *wanted = getenv("SPLIT_MIGRATE_FAULT");

    if (!wanted || strncmp(wanted, FAULT_PREFIX, strlen(FAULT_PREFIX)) != 0) {
        return;
    }
    wanted += strlen(FAULT_PREFIX);
    if (strncmp(wanted, "exit-", 5) == 0 && strcmp(wanted + 5, place) == 0) {
        raise(SIGKILL);
    } else if (strncmp(wanted, "stop-", 5) == 0 && strcmp(wanted + 5, place) == 0) {
        raise(SIGSTOP);
    }
}
