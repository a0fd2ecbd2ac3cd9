/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * quota.h - who may take how much of the memory this host lends
 *
 * Each region holds a claim.  What a claim takes from the host's memory is the
 * larger of its reservation and what it stores; the sum of that over all
 * claims never exceeds the memory.  So a reservation is always there, and
 * what nobody reserved goes to who comes first.  All figures are bytes.
 * While the host is short of memory (headroom.h) a ceiling keeps what is stored from growing.
 */
#ifndef SUBHOST_SERVER_QUOTA_H
#define SUBHOST_SERVER_QUOTA_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/log.h"

struct quota {
    pthread_mutex_t lock;
    uint64_t memory;
    uint64_t taken; /* sum over claims of max(reserve, stored) */
    uint64_t reserved;
    uint64_t stored;
    uint64_t ceiling; /* no more is stored than that, reservations or not; UINT64_MAX: none */
};

struct quota_claim {
    struct quota *quota;
    uint64_t reserve;
    uint64_t limit;
    _Atomic uint64_t stored; /* changed under quota->lock */
    bool closed;
};

struct quota_status {
    uint64_t memory, stored, reserved, free;
};

/** quota_init() - lend @memory bytes */
void quota_init(struct quota *quota, uint64_t memory);

/** quota_destroy() - there are no claims any more */
void quota_destroy(struct quota *quota);

/**
 * quota_claim_open() - a new claim that may store up to @limit and is sure of @reserve
 * Return: 0, or -ENOSPC with a sentence in @reason.
 */
int quota_claim_open(struct quota *quota, struct quota_claim *claim, uint64_t reserve,
                     uint64_t limit, struct reason *reason);

/** quota_claim_close() - give everything back; later charges fail with -ESHUTDOWN; again is fine */
void quota_claim_close(struct quota_claim *claim);

/** quota_charge() - the claim wants to store @bytes more; Return: 0, -ENOSPC or -ESHUTDOWN */
int quota_charge(struct quota_claim *claim, uint64_t bytes);

/** quota_uncharge() - it stores @bytes less */
void quota_uncharge(struct quota_claim *claim, uint64_t bytes);

/** quota_set_ceiling() - store no more than @bytes from now on; what is stored stays */
void quota_set_ceiling(struct quota *quota, uint64_t bytes);

/** quota_room() - bytes the claim could be charged now */
uint64_t quota_room(struct quota_claim *claim);

/** quota_status() - a consistent snapshot */
void quota_status(struct quota *quota, struct quota_status *status);

#endif
