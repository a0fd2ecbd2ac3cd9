/* SPDX-License-Identifier: GPL-2.0-or-later */
/* meminfo.h - what the kernel says about this host's memory */
#ifndef COMMON_MEMINFO_H
#define COMMON_MEMINFO_H

#include <stdint.h>

/**
 * meminfo_bytes() - a line of /proc/meminfo
 * @key: with its colon: "MemAvailable:"
 * Return: bytes; UINT64_MAX if the kernel does not say.
 */
uint64_t meminfo_bytes(const char *key);

#endif
