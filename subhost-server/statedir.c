// SPDX-License-Identifier: GPL-2.0-or-later
#include "subhost-server/statedir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <linux/magic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "subhost-server/chunk.h"
#include "subhost-server/store.h"

#define STATEDIR_VERSION 1
#define STATEDIR_LOCK ".lock"
#define STATEDIR_KEPT ".json"
#define STATEDIR_NEW ".json.new"

#define STATEDIR_FILE_LEN (STORE_WORD_MAX + 16)

/* ---- the directory ---- */

static int statedir_check(const struct statedir *state, struct reason *reason)
{
    struct statfs fs;
    struct stat st;

    if (fstatfs(state->dir, &fs) < 0 || fstat(state->dir, &st) < 0) {
        return reason_set(reason, -errno, "--state-dir: %.150s cannot be looked at: %s",
                          state->path, strerror(errno));
    }
    if (fs.f_type != TMPFS_MAGIC) {
        return reason_set(reason, -EINVAL,
                          "--state-dir: %.150s is not on tmpfs, and guests' memory must not reach a "
                          "disk: mount -t tmpfs -o mode=0700,size=SIZE tmpfs DIR",
                          state->path);
    }
    if (st.st_uid != geteuid() || st.st_mode & 077) {
        return reason_set(reason, -EINVAL,
                          "--state-dir: others than this server's user may enter %.150s: chmod 0700",
                          state->path);
    }
    return 0;
}

int statedir_open(struct statedir *state, const char *path, struct reason *reason)
{
    *state = (struct statedir){.dir = -1, .lock = -1};
    if (*path != '/' || strlen(path) >= sizeof(state->path)) {
        return reason_set(reason, -EINVAL, "--state-dir: '%.150s' must begin with / and be shorter "
                          "than %zu characters", path, sizeof(state->path));
    }
    memcpy(state->path, path, strlen(path) + 1);
    if (mkdir(path, 0700) < 0 && errno != EEXIST) {
        return reason_set(reason, -errno, "--state-dir: cannot make %.150s: %s", path,
                          strerror(errno));
    }
    state->dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (state->dir < 0) {
        return reason_set(reason, -errno, "--state-dir: cannot open %.150s: %s", path,
                          strerror(errno));
    }
    int err = statedir_check(state, reason);
    if (!err) {
        state->lock = openat(state->dir, STATEDIR_LOCK, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW,
                             0600);
        if (state->lock < 0) {
            err = reason_set(reason, -errno, "--state-dir: cannot write in %.150s: %s", path,
                             strerror(errno));
        } else if (flock(state->lock, LOCK_EX | LOCK_NB) < 0) {
            err = reason_set(reason, -EBUSY, "--state-dir: another server uses %.150s", path);
        }
    }
    if (err) {
        statedir_close(state);
    }
    return err;
}

void statedir_close(struct statedir *state)
{
    if (state->lock >= 0) {
        close(state->lock);
    }
    if (state->dir >= 0) {
        close(state->dir);
    }
    state->dir = state->lock = -1;
}

uint64_t statedir_room(const struct statedir *state)
{
    struct statfs fs;

    if (fstatfs(state->dir, &fs) < 0 || fs.f_blocks == 0) {
        return UINT64_MAX; /* without a limit */
    }
    return (uint64_t)fs.f_blocks * (uint64_t)fs.f_bsize;
}

/* ---- one region ---- */

static const char *file_name(char text[STATEDIR_FILE_LEN], const char *name, const char *suffix)
{
    snprintf(text, STATEDIR_FILE_LEN, "%.*s%s", STORE_WORD_MAX, name, suffix);
    return text;
}

int statedir_keep(const struct statedir *state, const struct statedir_entry *entry,
                  struct reason *reason)
{
    char file[STATEDIR_FILE_LEN], fresh[STATEDIR_FILE_LEN];
    int fd = openat(state->dir, file_name(fresh, entry->name, STATEDIR_NEW),
                    O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0) {
        return reason_set(reason, -errno, "region '%s' cannot be kept: %s", entry->name,
                          strerror(errno));
    }
    json_t *object = json_pack("{s:i, s:I, s:s, s:I, s:I, s:I, s:I}", "version", STATEDIR_VERSION,
                               "chunk", (json_int_t)sizeof(struct chunk), "ticket", entry->ticket,
                               "size", (json_int_t)entry->size, "reserve",
                               (json_int_t)entry->reserve, "limit", (json_int_t)entry->limit, "slab",
                               (json_int_t)entry->slab);
    int err = object && json_dumpfd(object, fd, 0) == 0 ? 0 : -ENOSPC;
    json_decref(object);
    if (close(fd) < 0 && !err) {
        err = -errno;
    }
    if (!err && renameat(state->dir, fresh, state->dir,
                         file_name(file, entry->name, STATEDIR_KEPT)) < 0) {
        err = -errno;
    }
    if (err) {
        unlinkat(state->dir, fresh, 0);
        return reason_set(reason, err, "region '%s' cannot be kept: %s", entry->name,
                          strerror(-err));
    }
    return 0;
}

void statedir_remove(const struct statedir *state, const char *name)
{
    static const char *const suffixes[] = {STATEDIR_KEPT, STATEDIR_NEW, REGION_BITS, REGION_PAGES};
    char file[STATEDIR_FILE_LEN];

    for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]); i++) {
        if (unlinkat(state->dir, file_name(file, name, suffixes[i]), 0) < 0 && errno != ENOENT) {
            log_error("%s/%s cannot be removed: %m", state->path, file);
        }
    }
}

/* ---- all of them ---- */

static int entry_load(const struct statedir *state, const char *name, json_t **object,
                      struct statedir_entry *entry, struct reason *reason)
{
    char file[STATEDIR_FILE_LEN];
    json_int_t version = 0, chunk = 0, size = 0, reserve = 0, limit = 0, slab = 0;
    const char *ticket = NULL;
    int fd = openat(state->dir, file_name(file, name, STATEDIR_KEPT),
                    O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

    *object = fd < 0 ? NULL : json_loadfd(fd, 0, NULL);
    if (fd >= 0) {
        close(fd);
    }
    if (!*object ||
        json_unpack(*object, "{s:I, s:I, s:s, s:I, s:I, s:I, s:I}", "version", &version, "chunk", &chunk,
                    "ticket", &ticket, "size", &size, "reserve", &reserve, "limit", &limit, "slab", &slab) < 0 ||
        version != STATEDIR_VERSION || chunk != (json_int_t)sizeof(struct chunk) || size < 0 ||
        reserve < 0 || limit < 0 || slab < (json_int_t)CHUNK_BYTES) {
        return reason_set(reason, -EINVAL,
                          "%.150s/%.80s was not written by this version of the server: start the one "
                          "that wrote it, or free all regions with --forget",
                          state->path, file);
    }
    *entry = (struct statedir_entry){.name = name,
                                     .ticket = ticket,
                                     .size = (uint64_t)size,
                                     .reserve = (uint64_t)reserve,
                                     .limit = (uint64_t)limit,
                                     .slab = (uint64_t)slab};
    return 0;
}

/* The name of a region that @file belongs to; false if it belongs to none. */
static bool region_of(const char *file, char name[STORE_WORD_MAX + 1], bool *kept)
{
    const char *dot = strchr(file, '.');
    size_t length = dot ? (size_t)(dot - file) : 0;

    if (length == 0 || length > STORE_WORD_MAX) {
        return false;
    }
    memcpy(name, file, length);
    name[length] = '\0';
    *kept = strcmp(dot, STATEDIR_KEPT) == 0;
    return *kept || strcmp(dot, STATEDIR_NEW) == 0 || strcmp(dot, REGION_BITS) == 0 ||
           strcmp(dot, REGION_PAGES) == 0;
}

/* Look through the files: @visit the kept regions, or remove them; the others go. */
static int walk(const struct statedir *state, bool forget, unsigned *n_kept,
                int (*visit)(void *to, const struct statedir_entry *entry, struct reason *reason),
                void *to, struct reason *reason)
{
    char name[STORE_WORD_MAX + 1], file[STATEDIR_FILE_LEN];
    struct statedir_entry entry;
    struct dirent *found;
    int err = 0;
    int fd = openat(state->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);

    while (dir && !err && (found = readdir(dir))) {
        json_t *object = NULL;
        bool kept;
        if (!region_of(found->d_name, name, &kept)) {
            continue;
        }
        if (forget || (!kept && faccessat(state->dir, file_name(file, name, STATEDIR_KEPT), F_OK,
                                          0) < 0)) {
            *n_kept += kept;
            statedir_remove(state, name);
        } else if (kept) {
            err = entry_load(state, name, &object, &entry, reason);
            err = err ? err : visit(to, &entry, reason);
            json_decref(object);
        }
    }
    if (dir) {
        closedir(dir);
    }
    return err;
}

int statedir_each(const struct statedir *state,
                  int (*visit)(void *to, const struct statedir_entry *entry, struct reason *reason),
                  void *to, struct reason *reason)
{
    unsigned none = 0;

    return walk(state, false, &none, visit, to, reason);
}

unsigned statedir_forget(const struct statedir *state)
{
    unsigned kept = 0;

    walk(state, true, &kept, NULL, NULL, NULL);
    return kept;
}
