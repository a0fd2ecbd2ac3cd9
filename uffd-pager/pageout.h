/* SPDX-License-Identifier: GPL-2.0-or-later */
/* pageout.h - inside page-out: what the files pageout*.c share */
#ifndef UFFD_PAGER_PAGEOUT_H
#define UFFD_PAGER_PAGEOUT_H

#include "uffd-pager/backup.h"
#include "uffd-pager/homes.h"
#include "uffd-pager/install.h"

#define PAGEOUT_BATCH_PAGES 64u /* pages that are busy together; a granule may be several batches */
#define PAGEOUT_TRIM_RUNS 16u /* of a chunk, with one batch */
#define PAGEOUT_MAX_BATCHES 128u
#define PAGEOUT_HOST_BATCHES 4u /* of one sub-host under way, if there are few sub-hosts */
#define PAGEOUT_VICTIMS 256u
#define PAGEOUT_FENCE_US 10000000u
#define PAGEOUT_FULL_US 500000u /* how long a full sub-host is left alone at first, and at most */
#define PAGEOUT_FULL_MAX_US 8000000u
#define PAGEOUT_IDLE_US 50000u
#define PAGEOUT_SLOW_US 50000u
#define PAGEOUT_NO_CHUNK UINT64_MAX

/* What becomes of each page of a batch. */
enum pageout_fate {
    PAGEOUT_NOT_OURS,
    PAGEOUT_DROP,    /* CLEAN: the sub-host has it */
    PAGEOUT_ZERO,    /* nothing but zeros: will be UNTOUCHED */
    PAGEOUT_SEND,    /* WRITEs are to be sent or under way */
    PAGEOUT_STORED,  /* all places have acknowledged it */
    PAGEOUT_REFUSED, /* stays LOCAL */
};

struct pageout_host {
    struct link link;
    unsigned batches;  /* under way */
    uint64_t full_us;      /* it refused a WRITE for want of room: nothing new until then */
    uint64_t full_wait_us; /* how long that was; 0: it was not so lately */
    struct pageout_leg *send_first, *send_last; /* not wholly sent, in order */
};

/* Where pages of a chunk are to go. */
struct pageout_to {
    unsigned n; /* 0: nothing may be sent, only CLEAN pages may go */
    struct pageout_host *host[PAGEMAP_COPIES]; /* NULL: the backup */
};

/* A batch on its way to one of its places. */
struct pageout_leg {
    struct pageout_batch *batch;
    struct pageout_host *host; /* NULL: the backup, by job */
    struct pageout_leg *next;  /* in the host's list to send */
    unsigned owed;             /* answers; none: this leg is over */
    uint64_t answered;         /* bit i: the request that begins with page first + i */
    uint64_t stored;           /* bit i: page first + i */
    struct iovec iov[2 * PAGEOUT_BATCH_PAGES];
    unsigned iov_n, iov_at;
    struct backup_job job;
};

struct pageout_batch {
    bool used;
    bool trim;         /* TRIMs, and no pages */
    uint32_t generation;
    uint64_t chunk;
    uint64_t first;    /* page */
    unsigned n;        /* pages looked at, from first; TRIMs: runs */
    unsigned ours;     /* pages locked */
    bool failed;       /* TRIMs: not all were acknowledged */
    unsigned n_legs;
    struct pageout_leg leg[PAGEMAP_COPIES];
    uint8_t fate[PAGEOUT_BATCH_PAGES];
    uint8_t *contents; /* PAGEOUT_BATCH_PAGES pages */
    unsigned n_requests;
    struct nbd_request request[PAGEOUT_BATCH_PAGES];
    struct {
        uint64_t first, end; /* pages */
    } trimmed[PAGEOUT_TRIM_RUNS];
};

/* Sub-hosts that are being asked for room for the next slab. */
struct pageout_pick {
    uint64_t since_us; /* 0: none are */
    unsigned n;
    uint8_t host[ENGINE_MAX_CHOICES];
    int without; /* not this sub-host: it is the slab's other home; -1: any */
};

struct pageout {
    struct engine *engine;
    pthread_t thread;
    bool started;
    int epoll;
    int kick;
    _Atomic bool active;
    bool under_way; /* between the watermarks: on the way down */
    uint64_t now_us;
    struct pageout_host *hosts; /* [n_subhosts] */
    unsigned n_batches, host_batches;
    struct pageout_batch *batch; /* [n_batches] */
    unsigned used;
    int64_t leaving; /* pages in batches */
    struct pageout_pick pick;
    bool full_told; /* the operator knows that nobody has room */
    uint64_t seed;

    /* what predictor_victims() chooses from, and what it chose */
    _Atomic uint16_t *candidates;
    uint64_t victims[PAGEOUT_VICTIMS];
    size_t n_victims, at_victim;
    uint64_t cursor; /* the next page of the victim; PAGEOUT_NO_CHUNK: begin it */
    struct sweep_step step; /* or what the sweep chose: still to leave */
    uint64_t idle_until_us; /* nothing could be chosen: not before */
};

/* ---- pageout.c ---- */

/** pageout_excess() - how many pages are still to leave */
int64_t pageout_excess(const struct pageout *pageout);

/** pageout_is_candidate() - may pages of @chunk leave now?  @room_somewhere: a sub-host takes pages */
bool pageout_is_candidate(struct pageout *pageout, uint64_t chunk, bool room_somewhere);

/** pageout_assign() - where pages of @chunk are to go. Return: false: nowhere now. */
bool pageout_assign(struct pageout *pageout, uint64_t chunk, struct pageout_to *to);

enum pageout_turn { PAGEOUT_GO, PAGEOUT_WAIT, PAGEOUT_SKIP };

/** pageout_turn_of() - may a batch begin, or are answers to be waited for, or is a place too slow for that? */
enum pageout_turn pageout_turn_of(const struct pageout *pageout, const struct pageout_to *to);

/* ---- pageout_sweep.c ---- */

/** sweep_fill() - begin batches of pages that the sweep names, as many as can be */
void sweep_fill(struct pageout *pageout);

/* ---- pageout_batch.c ---- */

/**
 * batch_begin() - lock, protect and read up to PAGEOUT_BATCH_PAGES pages from @first; begin to send
 * @mask: bit i: page @first + i is meant
 * A batch that needs no answers is ended at once.
 * Return: pages that are leaving, 0 if there were none (then no batch is used).
 */
unsigned batch_begin(struct pageout *pageout, const struct pageout_to *to, uint64_t first,
                     unsigned n, uint64_t mask);

/** batch_host_events() - send and receive what can be, on one host. Return: true if something happened. */
bool batch_host_events(struct pageout *pageout, struct pageout_host *host);

/** batch_host_broken() - its connection is no good: what was not acknowledged stays */
void batch_host_broken(struct pageout *pageout, struct pageout_host *host, const char *why);

/** batch_backup_events() - what the backup has written. Return: true if something happened. */
bool batch_backup_events(struct pageout *pageout);

/** batch_new()/batch_queue() - for TRIMs: a free batch or NULL; send its requests to all its hosts */
struct pageout_batch *batch_new(struct pageout *pageout, const struct pageout_to *to,
                                uint64_t chunk);
void batch_queue(struct pageout_batch *batch);
uint64_t batch_cookie(const struct pageout *pageout, const struct pageout_batch *batch,
                      unsigned index);
void batch_free(struct pageout *pageout, struct pageout_batch *batch);

/* ---- pageout_place.c ---- */

/** place_takes() - may pages be sent there now? */
static inline bool place_takes(const struct pageout *pageout, const struct pageout_host *host)
{
    return link_up(&host->link) && link_readable(host->link.host) &&
           pageout->now_us >= host->full_us &&
           pageout->now_us >=
               atomic_load_explicit(&host->link.host->fence_us, memory_order_relaxed) &&
           !atomic_load_explicit(&host->link.host->draining, memory_order_relaxed) &&
           !atomic_load_explicit(&host->link.host->unclean, memory_order_acquire);
}

/** place_better() - is @room of sub-host @a worth more than @best of @b, by weight? */
bool place_better(const struct engine_config *config, unsigned a, uint64_t room, unsigned b,
                  uint64_t best);

/** place_any() - are there as many places that take pages as a chunk is to have? */
bool place_any(const struct pageout *pageout);

/**
 * place_chunk() - places for pages of a chunk that has none, or none that counts, on its own
 * @to: the homes of its slab, or new ones
 * Return: false: none now, or not known yet: try again soon.
 */
bool place_chunk(struct pageout *pageout, uint64_t chunk, struct pageout_to *to);

/** place_tell() - tell the operator when all sub-hosts are full, and when there is room again */
void place_tell(struct pageout *pageout, bool wanted);

/* ---- pageout_trim.c ---- */

/** trim_bit() - is @page to be trimmed, or being trimmed?  It must not be paged out then. Any thread. */
bool trim_bit(struct engine *engine, uint64_t page);

/** trim_begin() - begin TRIMs of discarded pages, as many as can be */
void trim_begin(struct pageout *pageout);

/** trim_end() - the TRIMs of a batch are answered; @failed: they are not, and will be sent again */
void trim_end(struct pageout *pageout, struct pageout_batch *batch, bool failed);

/** trim_forget() - @chunk has another sub-host now, there is nothing to trim */
void trim_forget(struct engine *engine, uint64_t chunk);

#endif
