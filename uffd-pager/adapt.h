/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * adapt.h - which way of compressing brings memory across fastest?
 *
 * What limits a move may be the link, a processor here, or one there, and it changes with what the
 * memory holds; so no rate is computed, the ways are tried: plain first, then another for some MiB.
 * The fastest stays, and the others are tried again from time to time, the more rarely the more
 * often they were slower.  Bytes that were under way when the way changed do not count.
 *
 * A trial on a fast link costs more than it can bring.  So a way is tried only if it could win with
 * all processors at work and the link as busy as now: how fast it packs, and how much is left, is
 * known from samples, which are packed and not sent.
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
    uint64_t speed; /* bytes/s one thread packs; 0: not known */
    unsigned wire;  /* thousandths of the bytes that are left to send */
};

struct adapt {
    struct adapt_way way[PACK_METHODS];
    enum pack_method best;
    enum pack_method now;
    uint64_t skip; /* bytes of the way before that are still to come in */
    uint64_t bytes;
    uint64_t begun_us;
    unsigned threads; /* that can pack at the same time */
};

/** adapt_begin() - everything from the beginning; ->now is PACK_NONE */
void adapt_begin(struct adapt *adapt, unsigned threads);

/** adapt_sample() - @length bytes took one thread @ns ns to pack into @packed (0: did not become less) */
void adapt_sample(struct adapt *adapt, enum pack_method method, uint64_t length, uint64_t packed,
                  uint64_t ns);

/**
 * adapt_step() - memory has come across
 * @bytes: so much of it, as the guest has it
 * @busy_us: for so long there was something to send
 * @under_way: bytes that are sent and not acknowledged
 * Return: true if ->now has changed.
 */
bool adapt_step(struct adapt *adapt, uint64_t bytes, uint64_t busy_us, uint64_t under_way);

#endif
