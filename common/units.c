// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/units.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <time.h>

static bool units_factor(const char *unit, uint64_t *factor)
{
    static const struct {
        const char *name;
        uint64_t factor;
    } table[] = {
        {"b", 1},           {"byte", 1},        {"bytes", 1},
        {"k", KIB},         {"KiB", KIB},       {"KB", 1000},
        {"M", MIB},         {"MiB", MIB},       {"MB", 1000000},
        {"G", GIB},         {"GiB", GIB},       {"GB", 1000000000},
        {"T", 1024 * GIB},  {"TiB", 1024 * GIB}, {"TB", 1000000000000},
    };

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        if (strcasecmp(unit, table[i].name) == 0) {
            *factor = table[i].factor;
            return true;
        }
    }
    return false;
}

int units_parse_size(const char *text, uint64_t default_unit, uint64_t *bytes)
{
    while (isspace((unsigned char)*text)) {
        text++;
    }
    if (!isdigit((unsigned char)*text)) {
        return -EINVAL;
    }
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno) {
        return -ERANGE;
    }
    while (isspace((unsigned char)*end)) {
        end++;
    }
    uint64_t factor = default_unit;
    if (*end) {
        char unit[8];
        size_t n = 0;
        while (isalpha((unsigned char)*end) && n < sizeof(unit) - 1) {
            unit[n++] = *end++;
        }
        unit[n] = '\0';
        while (isspace((unsigned char)*end)) {
            end++;
        }
        if (*end || !units_factor(unit, &factor)) {
            return -EINVAL;
        }
    }
    if (value && factor > UINT64_MAX / value) {
        return -ERANGE;
    }
    *bytes = value * factor;
    return 0;
}

const char *units_format_size(uint64_t bytes, char *buffer, size_t size)
{
    static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double value = (double)bytes;
    size_t i = 0;

    while (value >= 1024 && i < sizeof(names) / sizeof(names[0]) - 1) {
        value /= 1024;
        i++;
    }
    bool whole = value == (double)(uint64_t)value || value >= 100;
    snprintf(buffer, size, whole ? "%.0f %s" : "%.1f %s", value, names[i]);
    return buffer;
}

int units_parse_uuid(const char *text, uint8_t uuid[16])
{
    size_t n = 0;

    for (size_t i = 0; i < 36; i++) {
        bool dash = i == 8 || i == 13 || i == 18 || i == 23;
        if (dash ? text[i] != '-' : !isxdigit((unsigned char)text[i])) {
            return -EINVAL;
        }
        if (dash) {
            continue;
        }
        int c = tolower((unsigned char)text[i]);
        uint8_t digit = (uint8_t)(c <= '9' ? c - '0' : c - 'a' + 10);
        uuid[n / 2] = (uint8_t)(n % 2 ? uuid[n / 2] | digit : digit << 4);
        n++;
    }
    return text[36] ? -EINVAL : 0;
}

const char *units_format_uuid(const uint8_t uuid[16], char text[UUID_TEXT_LEN])
{
    char *p = text;

    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10) {
            *p++ = '-';
        }
        p += sprintf(p, "%02x", uuid[i]);
    }
    return text;
}

void units_random(void *buffer, size_t size)
{
    uint8_t *p = buffer;

    while (size) {
        ssize_t n = getrandom(p, size, 0);
        if (n < 0) {
            if (errno == EINTR) {
                continue;
            }
            abort();
        }
        p += n;
        size -= (size_t)n;
    }
}

uint64_t units_now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

int units_timeout_ms(uint64_t deadline_us)
{
    if (deadline_us == UINT64_MAX) {
        return -1;
    }
    uint64_t now = units_now_us();
    if (deadline_us <= now) {
        return 0;
    }
    uint64_t left = (deadline_us - now) / 1000 + 1;
    return left < INT_MAX ? (int)left : INT_MAX;
}
