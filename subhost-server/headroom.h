/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * headroom.h - lend less while this host is short of memory
 *
 * Theory of operation
 * -------------------
 * What is lent must not take the memory that others on this host need.  A thread looks at what is free
 * (freemem.h) four times a second.  When it is less than the headroom:
 *
 *   - nothing more is stored: quota_set_ceiling() at what is stored now.  Writes that need memory are ENOSPC, so
 *     pagers place new slabs elsewhere.  Reservations do not help against that.
 *   - slabs are asked back, as many as the headroom and an eighth of it lack: of a random sample of four times as
 *     much the coldest ones (chunk_heat() in chunk.h: requests lately, which cost a counter each).  The region's
 *     pager learns of them when it asks, once a second (`wanted` of region-query); it decides where the pages go,
 *     moves them, and trims them here, by which we know that it is done.  It may refuse (`region-refuse`).
 *
 * Nobody here sees how hot slabs are that are lent by RDMA: they count as the average of the others in the
 * sample, so that among themselves chance decides.  They come back some seconds after they were trimmed, when their
 * keys have been destroyed.
 *
 * When a quarter more than the headroom has been free for 5 seconds, a 64th of what is to be lent is added every
 * second, but never more than is free beyond the headroom.
 */
#ifndef SUBHOST_SERVER_HEADROOM_H
#define SUBHOST_SERVER_HEADROOM_H

#include <jansson.h>

#include "subhost-server/store.h"

struct headroom;

struct headroom_status {
    uint64_t headroom; /* bytes; 0: not watched, and the rest means nothing */
    uint64_t available; /* of this host's memory */
    uint64_t ceiling;  /* UINT64_MAX: lends all it is to lend */
    uint64_t asked;    /* bytes of slabs that were asked back */
    uint64_t given_back; /* bytes since the start */
    uint64_t refused;  /* slabs since the start */
};

/** headroom_start() - watch @bytes of headroom. Return: 0 or -errno. */
int headroom_start(struct headroom **headroom, struct store *store, uint64_t bytes);

/** headroom_stop() - end the thread and free; NULL is fine */
void headroom_stop(struct headroom *headroom);

/** headroom_wanted() - [[offset, length], ...] of a region's slabs that are asked back, new; NULL is fine */
json_t *headroom_wanted(struct headroom *headroom, const struct region *region);

/** headroom_refuse() - the pager cannot move a slab; others are chosen for a while. Return: false: it was not asked. */
bool headroom_refuse(struct headroom *headroom, const struct region *region, uint64_t offset,
                     const char *why);

/** headroom_status() - NULL is fine */
void headroom_status(struct headroom *headroom, struct headroom_status *status);

#endif
