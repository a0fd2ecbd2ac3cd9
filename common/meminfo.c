// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/meminfo.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/units.h"

uint64_t meminfo_bytes(const char *key)
{
    FILE *file = fopen("/proc/meminfo", "re");
    uint64_t bytes = UINT64_MAX;
    char line[128];

    while (file && fgets(line, sizeof(line), file)) {
        if (strncmp(line, key, strlen(key)) == 0) {
            bytes = strtoull(line + strlen(key), NULL, 10) * KIB;
        }
    }
    if (file) {
        fclose(file);
    }
    return bytes;
}
