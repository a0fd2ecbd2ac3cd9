// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/rdma_limits.h"

#include <errno.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/units.h"

/* The limit does not hold for who has CAP_IPC_LOCK. */
static bool may_lock_all(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{0}};

    return syscall(SYS_capget, &header, data) == 0 &&
           data[CAP_TO_INDEX(CAP_IPC_LOCK)].effective & CAP_TO_MASK(CAP_IPC_LOCK);
}

uint64_t rdma_limits_lockable(void)
{
    struct rlimit limit;

    if (may_lock_all() || getrlimit(RLIMIT_MEMLOCK, &limit) < 0 ||
        limit.rlim_cur == RLIM_INFINITY) {
        return UINT64_MAX;
    }
    return limit.rlim_cur;
}

int rdma_limits_reason(int err, uint64_t bytes, struct reason *reason)
{
    uint64_t lockable = rdma_limits_lockable();
    char want[32], have[32];

    units_format_size(bytes, want, sizeof(want));
    if (err == ENOMEM && lockable != UINT64_MAX) {
        return reason_set(reason, -err,
                          "%s cannot be registered for RDMA: this process may lock only %s of "
                          "memory (RLIMIT_MEMLOCK); raise it with ulimit -l or LimitMEMLOCK=",
                          want, units_format_size(lockable, have, sizeof(have)));
    }
    return reason_set(reason, -err, "%s cannot be registered for RDMA: %s", want, strerror(err));
}
