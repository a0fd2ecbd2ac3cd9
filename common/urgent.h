/* SPDX-License-Identifier: GPL-2.0-or-later */
/* urgent.h - threads for whose answer a guest waits */
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

#endif
