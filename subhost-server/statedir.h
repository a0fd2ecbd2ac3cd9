/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * statedir.h - regions that outlive the server: files in a directory on tmpfs
 *
 * Theory of operation
 * -------------------
 * With --state-dir a region is two files instead of a memfd and private memory:
 *
 *   NAME.pages    its pages, sparse, as large as the guest's flat RAM
 *   NAME.bits     struct chunk of each 2 MiB (chunk.h)
 *   NAME.json     ticket, size, reservation, limit; written when the region is kept
 *
 * A server that is killed, or stopped to be upgraded, leaves the files where they are; the
 * next one maps them again.  What is there without NAME.json was transient: the controller
 * that made it has lost its connection, so it is freed, as is what NAME.pages holds of
 * writes that were cut short (region_adopt()).  Deleting goes the other way round, NAME.json
 * first, so that a region whose deletion was begun never comes back.
 *
 * Only tmpfs will do: pages must not reach a disk, and must be gone when the host is.  The
 * directory and its files are readable by their owner alone.  One server has it, by a lock.
 */
#ifndef SUBHOST_SERVER_STATEDIR_H
#define SUBHOST_SERVER_STATEDIR_H

#include <stdint.h>

#include "common/log.h"
#include "subhost-server/region.h"

struct statedir {
    int dir;
    int lock;
    char path[256];
};

/* What NAME.json says. */
struct statedir_entry {
    const char *name;
    const char *ticket; /* "": none */
    uint64_t size, reserve, limit, slab;
};

/**
 * statedir_open() - make @path if only its last part is missing, check it, lock it
 * Return: 0; -EINVAL (not tmpfs, or others may read it), -EBUSY (another server has it) or
 * another -errno, with a sentence in @reason.
 */
int statedir_open(struct statedir *state, const char *path, struct reason *reason);

/** statedir_close() - the files stay */
void statedir_close(struct statedir *state);

/** statedir_room() - bytes the file system could hold, all in all */
uint64_t statedir_room(const struct statedir *state);

/** statedir_keep() - write NAME.json, whole or not at all. Return: 0 or -errno with @reason. */
int statedir_keep(const struct statedir *state, const struct statedir_entry *entry,
                  struct reason *reason);

/** statedir_remove() - remove a region's files: it does not come back; who has it mapped keeps it so long */
void statedir_remove(const struct statedir *state, const char *name);

/**
 * statedir_each() - call @visit for each kept region, and remove what is left of others
 * Return: 0, or the first -errno of @visit or of a file that cannot be understood, with @reason.
 */
int statedir_each(const struct statedir *state,
                  int (*visit)(void *to, const struct statedir_entry *entry, struct reason *reason),
                  void *to, struct reason *reason);

/** statedir_forget() - remove every region; Return: how many were kept ones */
unsigned statedir_forget(const struct statedir *state);

#endif
