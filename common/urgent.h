/* SPDX-License-Identifier: GPL-2.0-or-later */
/* urgent.h - threads for whose answer a guest waits, and threads that make way for them */
#ifndef COMMON_URGENT_H
#define COMMON_URGENT_H

/**
 * urgent_thread() - have the calling thread run soon after it wakes up, for a short while each time
 *
 * It asks the scheduler for a short slice, for which no privilege is needed: from Linux 6.12 on, a thread
 * that wakes up with a shorter slice comes before those that compute.  Its share of the CPU stays
 * the same.  Older kernels take no notice.
 */
void urgent_thread(void);

/**
 * unhurried_thread() - have the calling thread run for long once it runs, and make way for who wakes up
 *
 * The opposite: it asks for a long slice.  Its share of the CPU stays the same here, too: work that makes room for
 * faults must go on where CPUs are short, which it would not if it were nicer.
 */
void unhurried_thread(void);

#endif
