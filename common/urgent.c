// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/urgent.h"

#include <linux/sched/types.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#define URGENT_SLICE_NS 100000u /* the shortest there is */
#define UNHURRIED_SLICE_NS 20000000u

static void ask_for_slice(uint64_t ns)
{
    struct sched_attr attr = {.size = sizeof(attr)};

    if (syscall(SYS_sched_getattr, 0, &attr, sizeof(attr), 0) == 0) {
        attr.sched_runtime = ns;
        syscall(SYS_sched_setattr, 0, &attr, 0);
    }
}

void urgent_thread(void)
{
    ask_for_slice(URGENT_SLICE_NS);
}

void unhurried_thread(void)
{
    ask_for_slice(UNHURRIED_SLICE_NS);
}
