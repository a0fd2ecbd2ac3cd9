/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * adapt.h - which way of compressing brings memory across fastest?
 *
 * What limits a move may be the link, a processor here, or one there, and it changes with what the
 * memory holds; so no rate is computed, all ways are tried: plain first, then each for some MiB.
 * The fastest stays, and the others are tried again from time to time, the more rarely the more
 * often they were slower.  Bytes that were under way when the way changed do not count.
 */
#ifndef UFFD_PAGER_ADAPT_H
#define UFFD_PAGER_ADAPT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/pack.h"

struct adapt_way {
    uint64_t rate; /* bytes/s when it was last used; 0: not known */
    unsigned rest; /* stretches before the next trial */
    unsigned left; /* of these */
};

struct adapt {
    struct adapt_way way[PACK_METHODS];
    enum pack_method best;
    enum pack_method now;
    uint64_t skip; /* bytes of the way before that are still to come in */
    uint64_t bytes;
    uint64_t begun_us;
};

/** adapt_begin() - everything from the beginning; ->now is PACK_NONE */
void adapt_begin(struct adapt *adapt);

/**
 * adapt_step() - memory has come across
 * @bytes: so much of it, as the guest has it
 * @busy_us: for so long there was something to send
 * @under_way: bytes that are sent and not acknowledged
 * Return: true if ->now has changed.
 */
bool adapt_step(struct adapt *adapt, uint64_t bytes, uint64_t busy_us, uint64_t under_way);

#endif
