/* SPDX-License-Identifier: GPL-2.0-or-later */
/* outgoing.h - what the files that send a guest away share */
#ifndef UFFD_PAGER_OUTGOING_H
#define UFFD_PAGER_OUTGOING_H

#include <jansson.h>

#include "uffd-pager/worker.h"

/**
 * outgoing_may_begin() - may this guest be sent? worker.lock held.
 * One that was sent and then resumed here (its destination never ran it) may be sent again: nothing of
 * it was dropped.  QEMU itself refuses to be armed while a migration runs.
 */
bool outgoing_may_begin(const struct worker *worker);

/** outgoing_chunks() - chunks of the guest's flat RAM */
uint64_t outgoing_chunks(const struct worker *worker);

/** outgoing_integer() - args[key], or @missing; 0 to @most. Return: 0 or -EINVAL with a sentence in @reason. */
int outgoing_integer(const json_t *args, const char *key, json_int_t missing, json_int_t most,
                     uint64_t *to, struct reason *reason);

#endif
