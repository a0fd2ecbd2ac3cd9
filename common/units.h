/* SPDX-License-Identifier: GPL-2.0-or-later */
/* units.h - page and chunk sizes, scaled integers, UUIDs */
#ifndef COMMON_UNITS_H
#define COMMON_UNITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_SHIFT 12
#define PAGE_BYTES ((uint64_t)1 << PAGE_SHIFT)
#define CHUNK_SHIFT 21
#define CHUNK_BYTES ((uint64_t)1 << CHUNK_SHIFT)
#define CHUNK_PAGES ((uint64_t)1 << (CHUNK_SHIFT - PAGE_SHIFT))

#define KIB ((uint64_t)1 << 10)
#define MIB ((uint64_t)1 << 20)
#define GIB ((uint64_t)1 << 30)

/**
 * units_parse_size() - parse a scaled integer as virsh does
 * @text: digits and an optional unit: b, k/KiB, M/MiB, G/GiB, T/TiB (1024), KB, MB, GB, TB (1000)
 * @default_unit: bytes per unit when @text names none
 * @bytes: the result
 *
 * Return: 0; -EINVAL if @text is not of that form or negative; -ERANGE if it does not fit.
 */
int units_parse_size(const char *text, uint64_t default_unit, uint64_t *bytes);

/**
 * units_format_size() - write a size for people: "512 MiB", "1.5 GiB", "4096 B"
 * Return: @buffer
 */
const char *units_format_size(uint64_t bytes, char *buffer, size_t size);

#define UUID_TEXT_LEN 37
/** units_parse_uuid() - 8-4-4-4-12 hexadecimal digits. Return: 0 or -EINVAL. */
int units_parse_uuid(const char *text, uint8_t uuid[16]);
/** units_format_uuid() - the lower-case text form. Return: @text. */
const char *units_format_uuid(const uint8_t uuid[16], char text[UUID_TEXT_LEN]);

/** units_random() - fill with bytes of the kernel's generator; aborts if there is none */
void units_random(void *buffer, size_t size);

/** units_now_us() - CLOCK_MONOTONIC in microseconds */
uint64_t units_now_us(void);

/**
 * units_timeout_ms() - what is left until @deadline_us, as poll(2) takes it
 * @deadline_us: of units_now_us(); UINT64_MAX: none
 * Return: at least 1 ms before the deadline, 0 after it, -1 for none.
 */
int units_timeout_ms(uint64_t deadline_us);

#endif
