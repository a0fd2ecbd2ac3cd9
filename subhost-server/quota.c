// SPDX-License-Identifier: GPL-2.0-or-later
#include "subhost-server/quota.h"

#include <errno.h>

#include "common/units.h"

void quota_init(struct quota *quota, uint64_t memory)
{
    *quota = (struct quota){.memory = memory, .ceiling = UINT64_MAX};
    pthread_mutex_init(&quota->lock, NULL);
}

void quota_destroy(struct quota *quota)
{
    pthread_mutex_destroy(&quota->lock);
}

static uint64_t taken_by(const struct quota_claim *claim, uint64_t stored)
{
    return stored > claim->reserve ? stored : claim->reserve;
}

/* Caller holds the lock: what the ceiling leaves. */
static uint64_t below_ceiling(const struct quota *quota)
{
    return quota->ceiling > quota->stored ? quota->ceiling - quota->stored : 0;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

void quota_set_ceiling(struct quota *quota, uint64_t bytes)
{
    pthread_mutex_lock(&quota->lock);
    quota->ceiling = bytes;
    pthread_mutex_unlock(&quota->lock);
}

/* Caller holds the lock: let the claim store @stored bytes. */
static void set_stored(struct quota_claim *claim, uint64_t stored)
{
    struct quota *quota = claim->quota;
    uint64_t before = atomic_load_explicit(&claim->stored, memory_order_relaxed);

    quota->taken = quota->taken - taken_by(claim, before) + taken_by(claim, stored);
    quota->stored = quota->stored - before + stored;
    atomic_store_explicit(&claim->stored, stored, memory_order_relaxed);
}

int quota_claim_open(struct quota *quota, struct quota_claim *claim, uint64_t reserve,
                     uint64_t limit, struct reason *reason)
{
    char wanted[32], have[32];

    *claim = (struct quota_claim){.quota = quota, .reserve = reserve, .limit = limit};
    pthread_mutex_lock(&quota->lock);
    uint64_t available = least(quota->memory - quota->taken, below_ceiling(quota));
    bool fits = reserve <= available;
    claim->closed = !fits;
    if (fits) {
        quota->taken += reserve;
        quota->reserved += reserve;
    }
    pthread_mutex_unlock(&quota->lock);
    if (fits) {
        return 0;
    }
    return reason_set(reason, -ENOSPC, "cannot reserve %s: this sub-host has %s left to give",
                      units_format_size(reserve, wanted, sizeof(wanted)),
                      units_format_size(available, have, sizeof(have)));
}

void quota_claim_close(struct quota_claim *claim)
{
    struct quota *quota = claim->quota;

    pthread_mutex_lock(&quota->lock);
    if (!claim->closed) {
        set_stored(claim, 0);
        quota->taken -= claim->reserve;
        quota->reserved -= claim->reserve;
        claim->closed = true;
    }
    pthread_mutex_unlock(&quota->lock);
}

int quota_charge(struct quota_claim *claim, uint64_t bytes)
{
    struct quota *quota = claim->quota;
    int err = 0;

    pthread_mutex_lock(&quota->lock);
    uint64_t before = atomic_load_explicit(&claim->stored, memory_order_relaxed);
    uint64_t after = before + bytes;
    uint64_t more = taken_by(claim, after) - taken_by(claim, before);
    if (claim->closed) {
        err = -ESHUTDOWN;
    } else if (after > claim->limit || more > quota->memory - quota->taken ||
               bytes > below_ceiling(quota)) {
        err = -ENOSPC;
    } else {
        set_stored(claim, after);
    }
    pthread_mutex_unlock(&quota->lock);
    return err;
}

void quota_uncharge(struct quota_claim *claim, uint64_t bytes)
{
    struct quota *quota = claim->quota;

    pthread_mutex_lock(&quota->lock);
    if (!claim->closed) {
        set_stored(claim, atomic_load_explicit(&claim->stored, memory_order_relaxed) - bytes);
    }
    pthread_mutex_unlock(&quota->lock);
}

uint64_t quota_room(struct quota_claim *claim)
{
    struct quota *quota = claim->quota;

    pthread_mutex_lock(&quota->lock);
    uint64_t stored = atomic_load_explicit(&claim->stored, memory_order_relaxed);
    uint64_t own = claim->reserve > stored ? claim->reserve - stored : 0;
    uint64_t room = own + quota->memory - quota->taken;
    uint64_t limit = least(claim->limit - stored, below_ceiling(quota));
    pthread_mutex_unlock(&quota->lock);
    return room < limit ? room : limit;
}

void quota_status(struct quota *quota, struct quota_status *status)
{
    pthread_mutex_lock(&quota->lock);
    *status = (struct quota_status){
        .memory = quota->memory,
        .stored = quota->stored,
        .reserved = quota->reserved,
        .free = least(quota->memory - quota->taken, below_ceiling(quota)),
    };
    pthread_mutex_unlock(&quota->lock);
}
