/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * move.h - one move of one guest
 *
 * Theory of operation
 * -------------------
 * Everything that can refuse comes before everything that changes something:
 *
 *   prepare.c  move_connect   connect to all, check all
 *              move_plan      profile, divide
 *              move_reserve   a region on each sub-host              lease: each sub-host
 *              move_announce  incoming-prepare, outgoing-prepare     lease: both pagers
 *   move.c     driver prepare, start
 *   watch.c    move_watch     poll, progress, switch-over
 *   move.c     arrived, hand_over, retire
 *
 * A failure anywhere before hand_over undoes all of it, in the opposite order,
 * and looks at the source: it runs as before (EXIT_UNCHANGED), or somebody must
 * look at it (EXIT_ATTENTION).
 */
#ifndef SPLIT_MIGRATE_MOVE_H
#define SPLIT_MIGRATE_MOVE_H

#include <stdbool.h>

#include "common/policy.h"
#include "split-migrate/driver.h"
#include "split-migrate/estimate.h"
#include "split-migrate/hosts.h"
#include "split-migrate/plan.h"
#include "split-migrate/progress.h"
#include "split-migrate/stall.h"
#include "split-migrate/target.h"

struct move_options {
    bool live;
    bool offline_plan; /* do not sample accesses */
    bool keep_source;
    bool verbose;
    bool suspend_late; /* after the policy's timeout: stop the guest rather than cancel */
    struct driver_config driver; /* bandwidth, downtime and live come from elsewhere */
};

struct move_stats {
    char state[16]; /* of outgoing-status */
    char reason[REASON_LEN];
    uint64_t rounds;
    uint64_t pages_done;
    uint64_t zero_pages;
    uint64_t wire_bytes;
    uint64_t main_bytes;
    uint64_t subhost_bytes[PAGEMAP_MAX_SUBHOSTS];
};

struct move {
    struct move_options options;
    struct policy policy;
    struct target source;
    struct target destination; /* scheme "": none, only a plan is wanted */

    struct driver *driver;
    struct driver_guest guest;
    struct pager source_pager;
    struct pager main_pager;
    unsigned n_subhosts;
    struct subhost subhost[PAGEMAP_MAX_SUBHOSTS];

    struct plan plan;
    struct estimate estimate;
    uint64_t profiled_chunks;
    char migration[UUID_TEXT_LEN];
    char main_data[ENDPOINT_TEXT_LEN];
    char main_export[HOSTS_EXPORT_LEN];

    bool incoming; /* prepared on the main host's pager */
    bool outgoing; /* prepared on the source's pager */
    bool prepared; /* by the driver */
    bool started;
    bool suspended; /* because it took too long */
    bool proceeded; /* the switch-over has begun */

    struct progress progress;
    struct stall stall;
    struct move_stats stats;
    struct driver_progress last;
    uint64_t began_us;
    uint64_t started_us;
    uint64_t ended_us;
};

/** move_new() - an empty move with a default policy; aborts if memory is out */
struct move *move_new(void);
/** move_free() - close all connections, and free */
void move_free(struct move *move);

/* prepare.c */
/** move_connect() - connect to all and check them; changes nothing */
int move_connect(struct move *move, struct reason *reason);
/** move_plan() - profile the guest and divide it */
int move_plan(struct move *move, struct reason *reason);
/** move_estimate() - how long it would take, if the policy has a bandwidth; after move_plan() */
int move_estimate(struct move *move, struct reason *reason);
/** move_reserve() - a region on each sub-host */
int move_reserve(struct move *move, struct reason *reason);
/** move_announce() - prepare both pagers; afterwards the source QEMU is armed */
int move_announce(struct move *move, struct reason *reason);

/* watch.c */
/** move_watch() - until the source has completed; 0, or -errno with the reason of the failure */
int move_watch(struct move *move, struct reason *reason);
/** move_refresh() - read outgoing-status into stats. Return: 0 or -errno, @reason. */
int move_refresh(struct move *move, struct reason *reason);

/* move.c */
/**
 * move_run() - the whole sequence, after move_connect() and move_plan()
 * Return: an exit status; if it is not EXIT_OK a sentence is in @reason.
 */
int move_run(struct move *move, struct reason *reason);

#endif
