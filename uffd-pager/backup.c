// SPDX-License-Identifier: GPL-2.0-or-later
#include "uffd-pager/backup.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/units.h"

#define BACKUP_STEP (32 * MIB)
#define BACKUP_RETRY_US 1000000u
#define BACKUP_READERS 4u
#define BACKUP_SLOW_S 12 /* fault injection */

struct backup {
    int fd;
    int kick;
    bool started;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct backup_job *first, *last; /* guarded by lock, as are the next two */
    struct backup_job *done;
    bool stop;
    unsigned n_readers;
    pthread_t reader[BACKUP_READERS];
    pthread_cond_t wanted;
    struct backup_read *first_read, *last_read; /* guarded by lock */
    _Atomic bool slow; /* fault injection: the next page takes its time */
    _Atomic uint64_t failed_us; /* when a write failed; 0: none has lately */
    _Atomic int error;          /* not told yet */
    _Atomic uint64_t unsynced;  /* bytes written since the cache was dropped */
};

int backup_path(const char *dir, const char *uuid, char *path, unsigned size)
{
    int n = snprintf(path, size, "%s/%s.backup", dir, uuid);

    return n < 0 || (unsigned)n >= size ? -ENAMETOOLONG : 0;
}

int backup_check(const char *dir, uint64_t bytes, struct reason *reason)
{
    struct statvfs fs;
    struct stat st;
    char need[32];
    char have[32];

    if (stat(dir, &st) < 0) {
        return reason_set(reason, -errno, "the backup's folder %.200s cannot be used: %m", dir);
    }
    if (!S_ISDIR(st.st_mode)) {
        return reason_set(reason, -ENOTDIR, "the backup must go to a folder, and %.200s is none", dir);
    }
    if (access(dir, W_OK | X_OK) < 0) {
        return reason_set(reason, -errno, "the pager may not write to the backup's folder %.200s: %m", dir);
    }
    if (statvfs(dir, &fs) == 0 && (uint64_t)fs.f_bavail * fs.f_frsize < bytes) {
        return reason_set(reason, -ENOSPC, "the backup's folder %.160s has %s free, and up to %s are needed",
                          dir, units_format_size((uint64_t)fs.f_bavail * fs.f_frsize, have, sizeof(have)),
                          units_format_size(bytes, need, sizeof(need)));
    }
    return 0;
}

int backup_open(struct backup **result, const char *path, uint64_t bytes, bool again,
                struct reason *reason)
{
    struct backup *backup = calloc(1, sizeof(*backup));
    struct stat st;

    if (!backup) {
        return reason_set(reason, -ENOMEM, "out of memory");
    }
    if (!again && unlink(path) < 0 && errno != ENOENT) {
        int err = reason_set(reason, -errno, "the old backup %.200s cannot be removed: %m", path);
        free(backup);
        return err;
    }
    backup->fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | (again ? 0 : O_CREAT | O_EXCL), 0600);
    if (backup->fd < 0 || fstat(backup->fd, &st) < 0 ||
        (again ? (uint64_t)st.st_size < bytes : ftruncate(backup->fd, (off_t)bytes) < 0)) {
        int err = backup->fd < 0 || !again ? -errno : -EINVAL;
        reason_set(reason, err, "the backup %.200s cannot be %s: %s", path,
                   again ? "taken up again" : "made", strerror(-err));
        if (backup->fd >= 0) {
            close(backup->fd);
        }
        free(backup);
        return err;
    }
    pthread_mutex_init(&backup->lock, NULL);
    pthread_cond_init(&backup->changed, NULL);
    pthread_cond_init(&backup->wanted, NULL);
    const char *fault = getenv("SPLIT_MIGRATE_FAULT");
    atomic_init(&backup->slow, fault && strcmp(fault, "backup-slow-page") == 0);
    *result = backup;
    return 0;
}

void backup_close(struct backup *backup)
{
    if (backup) {
        close(backup->fd);
        pthread_mutex_destroy(&backup->lock);
        pthread_cond_destroy(&backup->changed);
        pthread_cond_destroy(&backup->wanted);
        free(backup);
    }
}

/* ---- at once ---- */

int backup_read(struct backup *backup, void *contents, uint64_t page, unsigned n)
{
    size_t length = n * PAGE_BYTES;

    if (n == 1 && atomic_load_explicit(&backup->slow, memory_order_relaxed) &&
        atomic_exchange(&backup->slow, false)) {
        log_warn("the disk is slow for %d s, as SPLIT_MIGRATE_FAULT wants", BACKUP_SLOW_S);
        sleep(BACKUP_SLOW_S);
    }
    ssize_t got = pread(backup->fd, contents, length, (off_t)(page * PAGE_BYTES));

    return got == (ssize_t)length ? 0 : -EIO;
}

/* What was written lately is on its way to the disk, what was before need not be remembered. */
static void backup_drop_cache(struct backup *backup, size_t length)
{
    if (atomic_fetch_add(&backup->unsynced, length) + length >= BACKUP_STEP) {
        atomic_store(&backup->unsynced, 0);
        sync_file_range(backup->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
        posix_fadvise(backup->fd, 0, 0, POSIX_FADV_DONTNEED);
    }
}

int backup_write(struct backup *backup, const void *contents, uint64_t page, unsigned n)
{
    const uint8_t *from = contents;
    size_t length = n * PAGE_BYTES;
    off_t at = (off_t)(page * PAGE_BYTES);

    while (length > 0) {
        ssize_t put = pwrite(backup->fd, from, length, at);
        if (put <= 0 && errno != EINTR) {
            int err = put < 0 ? -errno : -EIO;
            atomic_store(&backup->failed_us, units_now_us());
            atomic_store(&backup->error, err);
            return err;
        }
        put = put < 0 ? 0 : put;
        from += put;
        at += put;
        length -= (size_t)put;
    }
    backup_drop_cache(backup, n * PAGE_BYTES);
    return 0;
}

int backup_punch(const struct backup *backup, uint64_t page, uint64_t n)
{
    return fallocate(backup->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     (off_t)(page * PAGE_BYTES), (off_t)(n * PAGE_BYTES)) < 0
               ? -errno
               : 0;
}

bool backup_takes(const struct backup *backup)
{
    uint64_t failed = atomic_load_explicit(&backup->failed_us, memory_order_relaxed);

    return !failed || units_now_us() > failed + BACKUP_RETRY_US;
}

int backup_failed(struct backup *backup)
{
    return atomic_exchange(&backup->error, 0);
}

/* ---- pages for faults ---- */

void backup_fetch(struct backup *backup, struct backup_read *read)
{
    read->next = NULL;
    pthread_mutex_lock(&backup->lock);
    if (backup->first_read) {
        backup->last_read->next = read;
    } else {
        backup->first_read = read;
    }
    backup->last_read = read;
    pthread_cond_signal(&backup->wanted);
    pthread_mutex_unlock(&backup->lock);
}

struct backup_read *backup_answer(struct backup_answers *answers)
{
    return atomic_load_explicit(&answers->done, memory_order_relaxed)
               ? atomic_exchange_explicit(&answers->done, NULL, memory_order_acquire)
               : NULL;
}

static void backup_reply(struct backup_read *read)
{
    struct backup_answers *answers = read->answers;
    uint64_t one = 1;

    read->next = atomic_load_explicit(&answers->done, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&answers->done, &read->next, read,
                                                  memory_order_release, memory_order_relaxed)) {
    }
    ssize_t ignored = write(answers->kick, &one, sizeof(one));
    (void)ignored;
}

static void *backup_reader(void *arg)
{
    struct backup *backup = arg;

    pthread_mutex_lock(&backup->lock);
    while (!backup->stop) {
        struct backup_read *read = backup->first_read;
        if (!read) {
            pthread_cond_wait(&backup->wanted, &backup->lock);
            continue;
        }
        backup->first_read = read->next;
        pthread_mutex_unlock(&backup->lock);
        read->err = backup_read(backup, read->contents, read->page, 1);
        backup_reply(read);
        pthread_mutex_lock(&backup->lock);
    }
    pthread_mutex_unlock(&backup->lock);
    return NULL;
}

/* ---- jobs ---- */

static void backup_do(struct backup *backup, struct backup_job *job)
{
    job->written = 0;
    for (unsigned i = 0; i < 64;) {
        unsigned n = 0;
        uint64_t bits = 0;
        while (i + n < 64 && job->pages >> (i + n) & 1) {
            bits |= (uint64_t)1 << (i + n++);
        }
        if (n && backup_write(backup, job->contents + i * PAGE_BYTES, job->first + i, n) == 0) {
            job->written |= bits;
        }
        i += n ? n : 1;
    }
}

static void *backup_main(void *arg)
{
    struct backup *backup = arg;

    pthread_mutex_lock(&backup->lock);
    for (;;) {
        struct backup_job *job = backup->first;
        if (!job && backup->stop) {
            break;
        }
        if (!job) {
            pthread_cond_wait(&backup->changed, &backup->lock);
            continue;
        }
        backup->first = job->next;
        pthread_mutex_unlock(&backup->lock);
        backup_do(backup, job);
        pthread_mutex_lock(&backup->lock);
        job->next = backup->done;
        backup->done = job;
        uint64_t one = 1;
        ssize_t ignored = write(backup->kick, &one, sizeof(one));
        (void)ignored;
    }
    pthread_mutex_unlock(&backup->lock);
    return NULL;
}

int backup_start(struct backup *backup, int kick)
{
    backup->kick = kick;
    int err = -pthread_create(&backup->thread, NULL, backup_main, backup);
    backup->started = err == 0;
    if (err == 0) {
        pthread_setname_np(backup->thread, "backup");
    }
    while (err == 0 && backup->n_readers < BACKUP_READERS) {
        err = -pthread_create(&backup->reader[backup->n_readers], NULL, backup_reader, backup);
        if (err == 0) {
            pthread_setname_np(backup->reader[backup->n_readers++], "backup-read");
        }
    }
    return err;
}

void backup_stop(struct backup *backup)
{
    if (backup->started) {
        pthread_mutex_lock(&backup->lock);
        backup->stop = true;
        pthread_cond_signal(&backup->changed);
        pthread_cond_broadcast(&backup->wanted);
        pthread_mutex_unlock(&backup->lock);
        pthread_join(backup->thread, NULL);
        while (backup->n_readers) {
            pthread_join(backup->reader[--backup->n_readers], NULL);
        }
        backup->started = false;
    }
}

void backup_push(struct backup *backup, struct backup_job *job)
{
    job->next = NULL;
    pthread_mutex_lock(&backup->lock);
    if (backup->first) {
        backup->last->next = job;
    } else {
        backup->first = job;
    }
    backup->last = job;
    pthread_cond_signal(&backup->changed);
    pthread_mutex_unlock(&backup->lock);
}

struct backup_job *backup_done(struct backup *backup)
{
    pthread_mutex_lock(&backup->lock);
    struct backup_job *job = backup->done;
    if (job) {
        backup->done = job->next;
    }
    pthread_mutex_unlock(&backup->lock);
    return job;
}
