/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * engine.h - the page path of one split guest: faults, page-in, page-out
 *
 * The worker makes one engine when its guest has arrived, or when it comes back
 * to a guest after a crash.  The engine owns its threads and its connections to
 * the sub-hosts; it borrows the layout, the page map and the userfaultfd.
 */
#ifndef UFFD_PAGER_ENGINE_H
#define UFFD_PAGER_ENGINE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/endpoint.h"
#include "common/handoff.h"
#include "common/layout.h"
#include "common/log.h"
#include "common/pagemap.h"

struct engine;

#define ENGINE_MAX_CHOICES 8u

/* What becomes of the guest's wait for a sub-host that has not answered for lost_after_ms. */
enum engine_loss {
    ENGINE_LOSS_POISON, /* pages it is touching there become memory errors */
    ENGINE_LOSS_WAIT,   /* it waits on, the operator knows */
    ENGINE_LOSS_PAUSE,  /* the whole guest is stopped until the sub-host is back */
};

/* Where the copy of a page that has left is to be beside its sub-host (homes.h). */
enum engine_redundancy {
    ENGINE_REDUNDANCY_NONE,
    ENGINE_REDUNDANCY_REPLICA, /* on another sub-host */
    ENGINE_REDUNDANCY_BACKUP,  /* in a file on this host */
};

/** engine_redundancy_name() - the policy's word for it; "" if there is none with that number */
const char *engine_redundancy_name(unsigned redundancy);

struct engine_subhost {
    char name[64];
    struct endpoint data;
    struct endpoint rdma; /* used if has_rdma */
    bool has_rdma;
    bool tcp_will_do; /* ... and data if RDMA does not come up */
    char export_name[512]; /* NBD export, without "/strict" */
    /* Where to ask for its room; control.host is "" if nowhere. */
    struct endpoint control;
    char region[UUID_TEXT_LEN];
    char ticket[65];
    unsigned weight; /* 0: only when the others are full */
};

struct engine_config {
    const struct layout *layout;
    struct pagemap *map;
    int uffd; /* as QEMU made it: no API negotiated, or (after a crash) everything registered */
    int pagemap; /* QEMU's, to see which pages are in use (mapped.h); -1: that cannot be seen */
    unsigned n_subhosts;
    struct engine_subhost subhost[PAGEMAP_MAX_SUBHOSTS];
    uint64_t budget;         /* bytes of guest memory resident at most */
    uint64_t low_watermark;  /* page-out stops here; bytes */
    uint64_t high_watermark; /* page-out starts here; bytes, below budget */
    unsigned prefetch;       /* pages fetched around a fault at most; 0: none */
    uint64_t granule;        /* bytes paged out together, 4 KiB to 2 MiB */
    unsigned choices;        /* sub-hosts asked for room when a slab needs one; 0: 2 */
    char predictor[32];      /* policy name; "" for the default */
    unsigned fault_threads;  /* 0: 2 */
    unsigned spin_us;        /* how long a fault thread spins before it sleeps; 0: default */
    unsigned sample_period_ms; /* access sampling on this host; 0: off */
    unsigned lost_after_ms;  /* a sub-host unreachable for so long is lost */
    enum engine_loss lost_action;
    enum engine_redundancy redundancy;
    char backup[512]; /* the file, for ENGINE_REDUNDANCY_BACKUP; it stays when the engine stops */
    /*
     * Ask QEMU to zap ranges (HANDOFF_ZAP), wait until it has.  Any engine thread.
     * Return: 0, or -ENOTCONN/-ETIMEDOUT: then sampling pauses, nothing else suffers.
     */
    int (*zap)(void *opaque, const struct handoff_range *ranges, uint32_t n);
    /*
     * Stop the guest (ENGINE_LOSS_PAUSE), or let it run again.  Any engine thread, in turns.
     * NULL: the guest waits instead.
     */
    void (*pause)(void *opaque, bool pause);
    /* Tell the operator (docs/protocols.md, events of uffd-pager). Steals data. Any engine thread. */
    void (*event)(void *opaque, const char *name, json_t *data);
    void *opaque;
};

/**
 * engine_start() - register the userfaultfd (MISSING, WP), connect to the sub-hosts, serve
 * @recover: the map is that of an earlier worker: reconcile it with the memfds first
 *           (common/pagemap.h), lift write-protection where the state says so, and wake everything
 *
 * Returns when faults are being served; a sub-host that does not answer does not stop that (its
 * pages wait).  Return: 0 or -errno with a sentence in @reason; then nothing is registered that was
 * not before.
 */
int engine_start(struct engine **engine, const struct engine_config *config, bool recover,
                 struct reason *reason);

/**
 * engine_stop() - stop threads and close connections; faults then wait for another engine
 * The userfaultfd's registrations stay.
 */
void engine_stop(struct engine *engine);

/** engine_set_budget() - change the limits of a running engine, at once; any thread. Return: 0 or -EINVAL. */
int engine_set_budget(struct engine *engine, uint64_t budget, uint64_t low_watermark,
                      uint64_t high_watermark, struct reason *reason);

/**
 * engine_discard() - the guest gave [flat, flat + length) up (balloon): it is UNTOUCHED from now on
 * Waits until no page of it is in flight, punches the memfd, trims the sub-hosts in the background.
 */
int engine_discard(struct engine *engine, uint64_t flat, uint64_t length);

/**
 * engine_drain() - move all pages away from a sub-host while the guest runs, or (@drain false) use it again
 * @subhost: number in the configuration
 *
 * Returns at once; `query-guest` says how far it is, SUBHOST_EMPTY when it is done, DRAIN_STALLED
 * when the others are full.  The next engine of the same page map goes on with it.  Any thread.
 * Return: 0, or -ENOSPC if there is no other sub-host.
 */
int engine_drain(struct engine *engine, unsigned subhost, bool drain, struct reason *reason);

/** engine_stats() - add the counters of `query-guest` (docs/protocols.md) to @object; any thread */
void engine_stats(struct engine *engine, json_t *object);

/** engine_reset_stats() - counters and histograms begin again; any thread */
void engine_reset_stats(struct engine *engine);

/** engine_heat() - predictor's heat of a chunk, for `query-pages`; any thread */
uint8_t engine_heat(const struct engine *engine, uint64_t chunk);

/** engine_resident() - bytes of the guest's memory that are in the memfds, from their blocks (fstat) */
uint64_t engine_resident(const struct layout *layout);

#endif
