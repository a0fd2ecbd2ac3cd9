/* SPDX-License-Identifier: GPL-2.0-or-later */
/* rdma_limits.h - may this process lock the memory that a card is to reach? */
#ifndef COMMON_RDMA_LIMITS_H
#define COMMON_RDMA_LIMITS_H

#include <stdint.h>

#include "common/log.h"

/** rdma_limits_lockable() - bytes this process may lock; UINT64_MAX: as many as it wants */
uint64_t rdma_limits_lockable(void);

/**
 * rdma_limits_reason() - why @bytes could not be registered
 * @err: positive errno of ibv_reg_mr()
 * Return: -@err, with a sentence in @reason that names RLIMIT_MEMLOCK if that is it.
 */
int rdma_limits_reason(int err, uint64_t bytes, struct reason *reason);

#endif
