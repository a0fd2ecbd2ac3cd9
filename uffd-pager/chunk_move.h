/* SPDX-License-Identifier: GPL-2.0-or-later */
/* chunk_move.h - bring a chunk's pages from one place to another while the guest runs */
#ifndef UFFD_PAGER_CHUNK_MOVE_H
#define UFFD_PAGER_CHUNK_MOVE_H

#include <stdbool.h>
#include <stdint.h>

struct engine;
struct puller;
struct chunk_mover; /* of one thread, with connections of its own */

/** chunk_mover_new() - Return: NULL if memory is out */
struct chunk_mover *chunk_mover_new(struct engine *engine);

/** chunk_mover_free() - NULL is allowed */
void chunk_mover_free(struct chunk_mover *mover);

/** chunk_mover_rest() - close the connections until they are needed again */
void chunk_mover_rest(struct chunk_mover *mover);

/**
 * chunk_move() - have place @copy (0 or 1) of @chunk be @to, with all that is in the chunk's places now
 * @to: PAGEMAP_NO_SUBHOST: back to this host, if there is room to spare: it then has no place at all
 * The place it had is trimmed, if it answers.
 * Return: 0; -ENOSPC: @to has no room; -EBUSY: somebody else moves the chunk; another -errno: not now.
 */
int chunk_move(struct chunk_mover *mover, uint64_t chunk, unsigned copy, uint8_t to);

/** chunk_forget() - free copies on sub-host @index of chunks [first, end) that are elsewhere. Return: 0 or -errno. */
int chunk_forget(struct chunk_mover *mover, unsigned index, uint64_t first, uint64_t end);

/** chunk_tidy() - free what moves that were cut short have left. Return: true if some of it is still there. */
bool chunk_tidy(struct chunk_mover *mover);

/** chunk_mover_puller() - its control connections */
struct puller *chunk_mover_puller(struct chunk_mover *mover);

#endif
