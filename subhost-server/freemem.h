/* SPDX-License-Identifier: GPL-2.0-or-later */
/* freemem.h - how much memory this process could still have */
#ifndef SUBHOST_SERVER_FREEMEM_H
#define SUBHOST_SERVER_FREEMEM_H

#include <stdint.h>

/**
 * freemem_now() - the least of MemAvailable and what each cgroup above this process has left
 * @root: where /proc and /sys are; "" but in tests
 *
 * A cgroup (version 2, or 1 at its usual place) has left what is below its limit, memory.high included; files'
 * pages do not count as used, as the kernel takes them away when memory is short.
 * Return: bytes; UINT64_MAX if nobody says.
 */
uint64_t freemem_now(const char *root);

#endif
