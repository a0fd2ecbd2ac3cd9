/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * blocks.h - the RAM blocks of a split guest, and those that come and go afterwards
 *
 * Theory of operation
 * -------------------
 * The layout is settled when the guest arrives: page map, regions and engine are
 * made for it and keep its flat offsets for as long as the guest lives.  A DIMM
 * may be plugged or unplugged all the same; QEMU then hands everything over anew.
 *
 *   - A block that is new stays out of it: it is not registered with the
 *     userfaultfd, so it is plain memory of this host, beyond the budget.
 *   - A block that is missing was unplugged and its memory freed: its pages are
 *     discarded here and on the sub-hosts, its place in the flat RAM stays empty.
 *
 * A block is the same if its name, its size and the file behind it are: a DIMM
 * may be unplugged and another one of the same name be plugged.  So that a
 * worker which follows a dead one can tell them apart, the session keeps them.
 *
 * QEMU's numbers of blocks shift when one goes.  The layout keeps the numbers of
 * the first hand-off; worker.qemu_index has today's.
 *
 * All functions run in the worker's main thread.
 */
#ifndef UFFD_PAGER_BLOCKS_H
#define UFFD_PAGER_BLOCKS_H

#include "uffd-pager/worker.h"

#define BLOCKS_GONE UINT32_MAX

/** blocks_number() - the layout has just been handed over: QEMU's numbers are the layout's */
void blocks_number(struct worker *worker);

/** blocks_remember() - fill the session's list from the layout the guest has arrived with */
void blocks_remember(struct worker *worker);

/**
 * blocks_follow() - QEMU hands the split guest over again, maybe with other blocks
 * @now: what it says; only looked at
 * worker.lock held.  Blocks that are gone are to be dropped by blocks_retire().
 * Return: 0, or -EINVAL with @reason if none of its blocks is there, or one lies elsewhere than before.
 */
int blocks_follow(struct worker *worker, const struct layout *now, struct reason *reason);

/** blocks_retire() - discard the pages of blocks that are gone. No lock: it may wait for pages in flight. */
void blocks_retire(struct worker *worker);

/**
 * blocks_resume() - a worker follows a dead one: bring worker.layout into the form of the session
 * Blocks the session does not know are taken out, the others get their old flat offsets.
 * Return: 0, or -EINVAL with @reason if nothing is left.
 */
int blocks_resume(struct worker *worker, struct reason *reason);

/**
 * blocks_of_qemu() - the block that QEMU has the number @index for
 * Return: NULL if it is not of the split.
 */
const struct layout_block *blocks_of_qemu(const struct worker *worker, uint32_t index);

/**
 * blocks_to_qemu() - put QEMU's numbers into @ranges, leaving out what is gone
 * zap_lock held.  Return: how many are left.
 */
uint32_t blocks_to_qemu(const struct worker *worker, struct handoff_range *ranges, uint32_t n);

#endif
