/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * chunk_pull.h - have a sub-host fetch pages from another one
 *
 * Theory of operation
 * -------------------
 * The sub-host that is to have the pages is told to fetch them from the other one (`region-pull`,
 * docs/protocols.md): they cross the network once, and do not come here.
 *
 * A copy that we have given up must not write later, over pages that have gone there since.  A sub-host
 * that owes us an answer is therefore not used for anything new (link_host.fence_us) until it has answered
 * `region-settle`: then its copies have ended, and those that may still come to it are refused by their
 * serial.  Which ones may be copying is in the page map's header, so a worker that takes over knows it
 * as well.
 */
#ifndef UFFD_PAGER_CHUNK_PULL_H
#define UFFD_PAGER_CHUNK_PULL_H

#include "uffd-pager/engine_impl.h"

struct pull_peer {
    struct control_client *control; /* NULL: not connected */
    uint64_t relay_us;              /* it could not fetch by itself: do not ask until then */
};

/* Of one thread. */
struct puller {
    struct engine *engine;
    struct pull_peer *peers; /* [n_subhosts] */
};

/** pull_init() - Return: 0 or -ENOMEM */
int pull_init(struct puller *puller, struct engine *engine);
void pull_free(struct puller *puller);

/** pull_recover() - fence sub-hosts that an earlier worker may have left copying; before page-out runs */
void pull_recover(struct engine *engine);

/**
 * pull_pages() - pages of [first, first + n) whose bit in @mask is set: from one sub-host to another
 * The caller sees to it that nobody writes them at @from, nor looks at them at @to.
 * Return: 0; -ENOSPC: @to has no room; -EAGAIN: later; -EOPNOTSUPP: it cannot, they have to go through here.
 */
int pull_pages(struct puller *puller, unsigned from, unsigned to, uint64_t first, unsigned n,
               const uint64_t *mask);

/** pull_settle() - find out about sub-hosts that owe an answer. Return: true if some still do. */
bool pull_settle(struct puller *puller);

/** pull_tell() - run a verb about our region there; steals @args. Return: as control_call(). */
int pull_tell(struct puller *puller, unsigned index, const char *verb, json_t *args,
              struct reason *reason);

/** pull_rest() - nothing is to be moved for now: close connections */
void pull_rest(struct puller *puller);

/** pull_fence() - a WRITE or TRIM of ours may still take effect there: nothing new for a while; any thread */
void pull_fence(struct link_host *host);

#endif
