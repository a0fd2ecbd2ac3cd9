/* SPDX-License-Identifier: GPL-2.0-or-later */
/* chunk_move.h - bring a chunk's pages from one place to another while the guest runs */
#ifndef UFFD_PAGER_CHUNK_MOVE_H
#define UFFD_PAGER_CHUNK_MOVE_H

#include <stdint.h>

struct engine;
struct chunk_mover; /* of one thread, with connections of its own */

/** chunk_mover_new() - Return: NULL if memory is out */
struct chunk_mover *chunk_mover_new(struct engine *engine);

/** chunk_mover_free() - NULL is allowed */
void chunk_mover_free(struct chunk_mover *mover);

/** chunk_mover_rest() - close the connections until they are needed again */
void chunk_mover_rest(struct chunk_mover *mover);

/**
 * chunk_move() - have place @copy (0 or 1) of @chunk be @to, with all that is in the chunk's places now
 * The place it had is trimmed, if it answers.
 * Return: 0; -ENOSPC: @to has no room; -EBUSY: somebody else moves the chunk; another -errno: not now.
 */
int chunk_move(struct chunk_mover *mover, uint64_t chunk, unsigned copy, uint8_t to);

/** chunk_trim_all() - free whatever the guest has on sub-host @index. Return: 0 or -errno. */
int chunk_trim_all(struct chunk_mover *mover, unsigned index);

#endif
