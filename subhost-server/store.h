/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * store.h - the regions of this host by name
 *
 * A name and a ticket are 1 to 128 of [A-Za-z0-9_-]; a region with a ticket
 * is opened as NAME.TICKET only.  A region with an owner is transient: it goes
 * when store_delete_owned() is called for the owner, unless it was kept.
 *
 * A ticket is for one migration.  Who keeps the region gives it another one: the
 * old one has expired then, also for connections that were opened with it, and the one made from it
 * that only reads.
 */
#ifndef SUBHOST_SERVER_STORE_H
#define SUBHOST_SERVER_STORE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/log.h"
#include "common/units.h"
#include "subhost-server/quota.h"
#include "subhost-server/region.h"

#define STORE_WORD_MAX 128
#define STORE_MAX_REGIONS 4096

struct store_stats {
    _Atomic uint64_t reads, writes, trims, read_bytes, write_bytes, errors, enospc;
    _Atomic uint64_t pulled_bytes; /* from other sub-hosts */
};

/* A name for a region.  Guarded by store->lock. */
struct store_entry {
    struct store_entry *next;
    struct region *region;
    const void *owner; /* NULL: kept */
    uint64_t slab; /* bytes the guest takes at a time; for the accounts only */
    char name[STORE_WORD_MAX + 1];
    char ticket[STORE_WORD_MAX + 1]; /* "": none */
    char expired[STORE_WORD_MAX + 1]; /* the ticket before it; "": none */
    uint64_t expires_us; /* nothing is opened with the ticket after this; 0: no limit */
    char redundancy[16]; /* what the guest's pager told (store_note()); "": nothing yet */
    uint64_t at_risk;    /* and how many bytes are here and nowhere else */
    const void *creator; /* as long as it is connected, it may delete with the expired ticket */
};

struct statedir;

struct store {
    pthread_mutex_t lock;
    struct quota quota;
    struct store_entry *entries;
    unsigned n_regions;
    struct store_stats stats;
    struct statedir *state; /* where regions are in files; NULL: nowhere, they end with us */
    /* Nobody may reach the region by RDMA any more; called without the lock, before it is killed. */
    void (*revoke)(void *opaque, const struct region *region);
    /* The region has another ticket: who came by RDMA with the old one reaches nothing any more. */
    void (*expire)(void *opaque, const struct region *region);
    /* Something was trimmed of what clients reach by RDMA: perhaps a slab is empty. */
    void (*trimmed)(void *opaque, const struct region *region);
    /* Cut off the clients of a region; called without the lock. */
    void (*disconnect)(void *opaque, const struct region *region);
    void *opaque;
};

/** store_init() - an empty store that lends @memory bytes */
void store_init(struct store *store, uint64_t memory);

/**
 * store_adopt() - take up the regions of an earlier server from store->state
 * Return: 0, or -errno with a sentence in @reason; then nothing was freed.
 */
int store_adopt(struct store *store, struct reason *reason);

/** store_destroy() - delete all regions, but for kept ones that are in files */
void store_destroy(struct store *store);

struct store_request {
    const char *name;
    const char *ticket; /* NULL: none */
    uint64_t size, reserve, limit;
    uint64_t slab; /* 0: STORE_SLAB_BYTES */
    uint64_t ticket_seconds; /* how long the ticket opens the region before it is kept; 0: always */
    const void *owner;
};

#define STORE_SLAB_BYTES (64 * MIB)

/** store_create() - Return: 0; -EINVAL, -EEXIST, -ENOSPC, -ENOMEM with a sentence in @reason */
int store_create(struct store *store, const struct store_request *request, struct reason *reason);

/**
 * store_keep() - not transient any more
 * @new_ticket: from now on instead of @ticket; NULL: @ticket stays
 * Return: 0; -ENOENT, -EACCES, -EKEYEXPIRED, -EINVAL with a sentence in @reason.
 */
int store_keep(struct store *store, const char *name, const char *ticket, const char *new_ticket,
               struct reason *reason);

/** store_visit() - call @visit for one region, with the lock held; Return: as store_keep() */
int store_visit(struct store *store, const char *name, const char *ticket,
                void (*visit)(void *to, const struct store_entry *entry), void *to,
                struct reason *reason);

/** store_is_redundancy() - is it a word for store_note(): none, replica or backup? */
bool store_is_redundancy(const char *word);

/**
 * store_note() - the guest's pager tells how safe the region's pages are, for the operator
 * Not remembered over a restart: it is told again.  Return: as store_keep().
 */
int store_note(struct store *store, const char *name, const char *ticket, const char *redundancy,
               uint64_t at_risk, struct reason *reason);

/** store_at_risk() - bytes of the region that are here and nowhere else, as far as is known; with the lock held */
uint64_t store_at_risk(const struct store_entry *entry);

/**
 * store_find() - a reference to a region for a control client
 * Return: 0 and *@region, to be given back by region_unref(); else as store_keep().
 */
int store_find(struct store *store, const char *name, const char *ticket, struct region **region,
               struct reason *reason);

/** store_delete() - free a region now for @peer, cut off its clients; Return: as store_keep() */
int store_delete(struct store *store, const char *name, const char *ticket, const void *peer,
                 struct reason *reason);

/** store_delete_owned() - delete the transient regions of @owner */
void store_delete_owned(struct store *store, const void *owner);

/* What a client has opened. */
struct store_opened {
    struct region *region; /* a reference */
    unsigned epoch;        /* region_epoch() at that time */
    bool strict;
    bool read_only; /* by the ticket that only reads (common/ticket.h) */
};

/**
 * store_open() - find what a client means by NAME[.TICKET][/strict]
 * @name: @length bytes, hostile
 *
 * Return: 0 and *@opened; -ENOENT, also if the ticket is wrong; -EKEYEXPIRED.
 */
int store_open(struct store *store, const char *name, size_t length, struct store_opened *opened);

/** store_each() - call @visit for each region, with the lock held */
void store_each(struct store *store, void (*visit)(void *to, const struct store_entry *entry),
                void *to);

/** store_is_kept() - is it the region of a name, and not transient? */
bool store_is_kept(struct store *store, const struct region *region);

/** store_count_kept() - how many regions are not transient */
unsigned store_count_kept(struct store *store);

/** store_count() - how many regions there are */
unsigned store_count(struct store *store);

#endif
