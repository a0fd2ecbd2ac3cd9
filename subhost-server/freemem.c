// SPDX-License-Identifier: GPL-2.0-or-later
#include "subhost-server/freemem.h"

#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/units.h"

/* What the two versions of cgroups call things. */
static const struct version {
    const char *mount;
    const char *limits[2];
    const char *used;
    const char *files[2]; /* in memory.stat */
} versions[] = {
    {"/sys/fs/cgroup", {"memory.max", "memory.high"}, "memory.current", {"inactive_file", "active_file"}},
    {"/sys/fs/cgroup/memory", {"memory.limit_in_bytes", NULL}, "memory.usage_in_bytes",
     {"total_inactive_file", "total_active_file"}},
};

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* The number after @key in a file of lines "KEY NUMBER"; UINT64_MAX if it is not there. */
static uint64_t line_number(const char *path, const char *key)
{
    FILE *file = fopen(path, "re");
    uint64_t number = UINT64_MAX;
    size_t length = strlen(key);
    char line[256];

    while (file && number == UINT64_MAX && fgets(line, sizeof(line), file)) {
        if (strncmp(line, key, length) == 0 && line[length] == ' ') {
            number = strtoull(line + length, NULL, 10);
        }
    }
    if (file) {
        fclose(file);
    }
    return number;
}

/* The number in a file; UINT64_MAX if there is none ("max"). */
static uint64_t file_number(const char *folder, const char *name)
{
    char path[PATH_MAX + 64];
    uint64_t number;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *file = fopen(path, "re");
    if (!file || fscanf(file, "%" SCNu64, &number) != 1) {
        number = UINT64_MAX;
    }
    if (file) {
        fclose(file);
    }
    return number;
}

static uint64_t group_left(const struct version *version, const char *folder)
{
    char stat[PATH_MAX + 64];
    uint64_t limit = UINT64_MAX;
    uint64_t used = file_number(folder, version->used);

    for (unsigned i = 0; i < 2 && version->limits[i]; i++) {
        limit = least(limit, file_number(folder, version->limits[i]));
    }
    if (limit == UINT64_MAX || used == UINT64_MAX) {
        return UINT64_MAX;
    }
    snprintf(stat, sizeof(stat), "%s/memory.stat", folder);
    for (unsigned i = 0; i < 2; i++) {
        uint64_t files = line_number(stat, version->files[i]);
        used -= files == UINT64_MAX ? 0 : least(files, used);
    }
    return limit > used ? limit - used : 0;
}

/* This cgroup and all above it. */
static uint64_t groups_left(const char *root, const struct version *version, const char *group)
{
    char folder[PATH_MAX];
    uint64_t left = UINT64_MAX;
    int n = snprintf(folder, sizeof(folder), "%s%s%s", root, version->mount, group);

    if ((size_t)n >= sizeof(folder)) {
        return left;
    }
    size_t shortest = strlen(root) + strlen(version->mount);
    for (;;) {
        left = least(left, group_left(version, folder));
        char *slash = strrchr(folder + shortest, '/');
        if (!slash) {
            return left;
        }
        *slash = '\0';
    }
}

/* A line of /proc/self/cgroup, "NUMBER:CONTROLLERS:PATH": is it about memory? */
static const struct version *line_version(char *line, char **group)
{
    char *controllers = strchr(line, ':');
    char *end = controllers ? strchr(controllers + 1, ':') : NULL;

    if (!end) {
        return NULL;
    }
    *end = '\0';
    *group = end + 1;
    (*group)[strcspn(*group, "\n")] = '\0';
    controllers++;
    if (!*controllers) {
        return &versions[0];
    }
    for (char *word = strtok(controllers, ","); word; word = strtok(NULL, ",")) {
        if (strcmp(word, "memory") == 0) {
            return &versions[1];
        }
    }
    return NULL;
}

uint64_t freemem_now(const char *root)
{
    char path[PATH_MAX], line[PATH_MAX];

    snprintf(path, sizeof(path), "%s/proc/meminfo", root);
    uint64_t left = line_number(path, "MemAvailable:");
    left = left == UINT64_MAX ? left : left * KIB;
    snprintf(path, sizeof(path), "%s/proc/self/cgroup", root);
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof(line), file)) {
        char *group;
        const struct version *version = line_version(line, &group);
        if (version) {
            left = least(left, groups_left(root, version, group));
        }
    }
    if (file) {
        fclose(file);
    }
    return left;
}
