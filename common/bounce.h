/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bounce.h - a buffer for what is received before it is written to a file
 *
 * Fresh pages of a memfd that are written whole with pwrite() are not cleared
 * first and not mapped, which costs less than receiving into the mapping
 * although the bytes are copied twice: the buffer stays in the cache.
 */
#ifndef COMMON_BOUNCE_H
#define COMMON_BOUNCE_H

#include <stddef.h>

/* All zero: empty.  Used by one thread at a time. */
struct bounce {
    void *memory;
    size_t size;
};

/**
 * bounce_get() - at least @length bytes; what was in them is lost
 * Not in core dumps, as they hold a guest's memory.  Return: the buffer's own memory; NULL: no memory.
 */
void *bounce_get(struct bounce *bounce, size_t length);

/** bounce_trim() - free the buffer if it is larger than @most bytes */
void bounce_trim(struct bounce *bounce, size_t most);

/** bounce_free() - free it */
void bounce_free(struct bounce *bounce);

#endif
