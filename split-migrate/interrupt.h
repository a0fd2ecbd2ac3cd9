/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * interrupt.h - Ctrl-C
 *
 * The first SIGINT, SIGTERM or SIGHUP asks for a clean cancel: a flag that the
 * sequence looks at between its steps, and the end of the one connection that
 * a long call may be waiting on.  The second one ends the program at once; its
 * leases then end too, and pagers and sub-hosts clean up by themselves.
 */
#ifndef SPLIT_MIGRATE_INTERRUPT_H
#define SPLIT_MIGRATE_INTERRUPT_H

#include <stdbool.h>

/** interrupt_init() - install the handlers */
void interrupt_init(void);

/** interrupt_pending() - true once a signal has come */
bool interrupt_pending(void);

/** interrupt_shut() - the socket a signal shall shut down, so that a call waiting on it ends; -1:
 * none */
void interrupt_shut(int fd);

#endif
