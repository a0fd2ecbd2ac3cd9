// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/fault.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

void fault_point(const char *place)
{
    const char *wanted = getenv("SPLIT_MIGRATE_FAULT");

    if (wanted && strcmp(wanted, place) == 0) {
        raise(SIGKILL);
    }
}
