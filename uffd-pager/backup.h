/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * backup.h - a copy of the guest's remote memory in a file on this host
 *
 * Theory of operation
 * -------------------
 * The file is sparse, at a page's flat offset is the page.  Page-out gives a batch to the backup's
 * thread and to the sub-host at once, and drops no page before both have it, so nothing is ever in
 * doubt: what is not written yet is still here.  The window is what page-out has under way, at most
 * a few batches of 256 KiB a sub-host; when the disk is slow, page-out is.
 *
 * A fault thread that wants a page does not wait for the disk, as all faults would wait with it: one of a few
 * readers does, and puts the page on that thread's list of answers.
 *
 * A page counts as written when pwrite() has returned: should this host go down, so does the guest.
 * The kernel's cache of the file would take the memory that page-out is to free, so it is written
 * back and dropped every 32 MiB.
 */
#ifndef UFFD_PAGER_BACKUP_H
#define UFFD_PAGER_BACKUP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/log.h"

struct backup;
struct engine;

/* Runs of pages of one buffer, to be written.  The owner's again when backup_done() returns it. */
struct backup_job {
    struct backup_job *next;
    const uint8_t *contents; /* of page @first and those after it */
    uint64_t first;
    uint64_t pages; /* bit i: page first + i */
    uint64_t written; /* out: those that have been */
};

/* Where the pages a thread has asked for come to. */
struct backup_answers {
    _Atomic(struct backup_read *) done;
    int kick; /* eventfd, written for each */
};

/* A page that is wanted.  The owner's again when backup_answer() returns it. */
struct backup_read {
    struct backup_read *next;
    struct backup_answers *answers;
    uint64_t page;
    uint8_t *contents; /* out; room for a page */
    int err;           /* out: 0 or -errno */
};

/** backup_path() - where the backup of guest @uuid is. Return: 0 or -ENAMETOOLONG. */
int backup_path(const char *dir, const char *uuid, char *path, unsigned size);

/** backup_check() - can a backup be made in @dir?  Return: 0 or -errno, @reason says why not. */
int backup_check(const char *dir, uint64_t bytes, struct reason *reason);

/**
 * backup_open() - make the file, or take up (@again) that of an earlier worker
 * Return: 0 or -errno, @reason.
 */
int backup_open(struct backup **backup, const char *path, uint64_t bytes, bool again,
                struct reason *reason);

/** backup_start() - start its threads; @kick: an eventfd, written when jobs are done */
int backup_start(struct backup *backup, int kick);

/** backup_stop() - end the threads when all jobs are done; READs nobody has begun are given up */
void backup_stop(struct backup *backup);

/** backup_close() - the file stays. NULL is allowed. */
void backup_close(struct backup *backup);

/** backup_push() - have a job done; one thread */
void backup_push(struct backup *backup, struct backup_job *job);

/** backup_done() - a job that is done, or NULL; the same thread */
struct backup_job *backup_done(struct backup *backup);

/** backup_fetch() - have a page read; any thread.  Not before backup_start(). */
void backup_fetch(struct backup *backup, struct backup_read *read);

/** backup_answer() - pages that have been read, linked by next, or NULL; the thread that asked for them */
struct backup_read *backup_answer(struct backup_answers *answers);

/** backup_takes() - false for a moment after a write has failed; any thread */
bool backup_takes(const struct backup *backup);

/** backup_failed() - what the operator has not been told yet: -errno of a write, or 0; any thread */
int backup_failed(struct backup *backup);

/** backup_read()/backup_write()/backup_punch() - at once; any thread. Return: 0 or -errno. */
int backup_read(struct backup *backup, void *contents, uint64_t page, unsigned n);
int backup_write(struct backup *backup, const void *contents, uint64_t page, unsigned n);
int backup_punch(const struct backup *backup, uint64_t page, uint64_t n);

#endif
