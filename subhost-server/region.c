// SPDX-License-Identifier: GPL-2.0-or-later
/* region.c - how a region comes and goes; pages.c has what happens in between */
#include "subhost-server/region.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/units.h"
#include "subhost-server/chunk.h"

static int open_at(const struct region_place *place, const char *suffix, bool fresh)
{
    char name[256];

    snprintf(name, sizeof(name), "%s%s", place->name, suffix);
    return openat(place->dir, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW | (fresh ? O_CREAT | O_EXCL : 0),
                  0600);
}

static int map_pages(struct region *region, const struct region_place *place, bool adopt)
{
    struct stat st;

    region->fd = place ? open_at(place, REGION_PAGES, !adopt)
                       : memfd_create("subhost-region", MFD_CLOEXEC);
    if (region->fd < 0 || (!adopt && ftruncate(region->fd, (off_t)region->size) < 0)) {
        return -errno;
    }
    if (fstat(region->fd, &st) < 0 || (uint64_t)st.st_size != region->size) {
        return -EINVAL;
    }
    void *memory = mmap(NULL, region->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                        region->fd, 0);
    if (memory == MAP_FAILED) {
        return -errno;
    }
    region->memory = memory;
    madvise(memory, region->size, MADV_DONTDUMP);
    madvise(memory, region->size, MADV_NOHUGEPAGE); /* a huge page would not match the accounting */
    return 0;
}

/* All of a file's chunks are allocated now: later there would be a SIGBUS if memory were short. */
static int map_chunks_at(struct region *region, const struct region_place *place, bool adopt)
{
    size_t size = region->n_chunks * sizeof(struct chunk);
    void *chunks = MAP_FAILED;
    struct stat st;
    int err = 0;
    int fd = open_at(place, REGION_BITS, !adopt);

    if (fd < 0) {
        return -errno;
    }
    if ((!adopt && fallocate(fd, 0, 0, (off_t)size) < 0) || fstat(fd, &st) < 0) {
        err = -errno;
    } else if ((uint64_t)st.st_size != size) {
        err = -EINVAL;
    } else {
        chunks = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        err = chunks == MAP_FAILED ? -errno : 0;
    }
    close(fd);
    region->chunks = err ? NULL : chunks;
    return err;
}

static int map_region(struct region *region, const struct region_place *place, bool adopt)
{
    int err = map_pages(region, place, adopt);

    if (err || place) {
        return err ? err : map_chunks_at(region, place, adopt);
    }
    void *chunks = mmap(NULL, region->n_chunks * sizeof(struct chunk), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (chunks == MAP_FAILED) {
        return -errno;
    }
    region->chunks = chunks;
    return 0;
}

static int make(struct region **result, struct quota *quota, uint64_t size, uint64_t reserve,
                uint64_t limit, const struct region_place *place, bool adopt,
                struct reason *reason)
{
    if (size == 0 || size % PAGE_BYTES || size > REGION_MAX_SIZE) {
        return reason_set(reason, -EINVAL, "a region's size must be a multiple of 4 KiB up to 64 TiB");
    }
    if (reserve > limit) {
        return reason_set(reason, -EINVAL, "a region cannot reserve more than its limit");
    }
    struct region *region = calloc(1, sizeof(*region));
    if (!region) {
        return reason_set(reason, -ENOMEM, "no memory for another region");
    }
    region->fd = -1;
    region->size = size;
    region->n_chunks = (size + CHUNK_BYTES - 1) / CHUNK_BYTES;
    atomic_init(&region->references, 1);
    pthread_mutex_init(&region->fill_lock, NULL);
    pthread_mutex_init(&region->pull_lock, NULL);
    for (int i = 0; i < N_LOCKS; i++) {
        pthread_mutex_init(&region->locks[i], NULL);
    }
    int err = quota_claim_open(quota, &region->claim, reserve < size ? reserve : size,
                               limit < size ? limit : size, reason);
    if (!err) {
        err = map_region(region, place, adopt);
        if (err) {
            reason_set(reason, err, "cannot map a region: %s", strerror(-err));
        }
        if (err && err != -ENOMEM && !adopt) {
            err = -ENOMEM;
        }
    }
    if (err) {
        region_unref(region);
        return err;
    }
    *result = region;
    return 0;
}

int region_new(struct region **result, struct quota *quota, uint64_t size, uint64_t reserve,
               uint64_t limit, struct reason *reason)
{
    return make(result, quota, size, reserve, limit, NULL, false, reason);
}

int region_new_at(struct region **result, struct quota *quota, uint64_t size, uint64_t reserve,
                  uint64_t limit, const struct region_place *place, struct reason *reason)
{
    return make(result, quota, size, reserve, limit, place, false, reason);
}

int region_adopt(struct region **result, struct quota *quota, uint64_t size, uint64_t reserve,
                 uint64_t limit, const struct region_place *place, struct reason *reason)
{
    struct region *region = NULL;
    uint64_t stored = 0;
    int err = make(&region, quota, size, reserve, limit, place, true, reason);

    if (err || !region) {
        return err;
    }
    err = pages_reconcile(region, &stored);
    if (err) {
        reason_set(reason, err, "its pages cannot be looked through: %s", strerror(-err));
    } else {
        err = quota_charge(&region->claim, stored);
        if (err) {
            reason_set(reason, err, "there is no room for what it stores");
        }
    }
    if (err) {
        region_unref(region);
        return err;
    }
    *result = region;
    return 0;
}

struct region *region_ref(struct region *region)
{
    atomic_fetch_add(&region->references, 1);
    return region;
}

void region_unref(struct region *region)
{
    if (atomic_fetch_sub(&region->references, 1) != 1) {
        return;
    }
    if (region->memory) {
        munmap(region->memory, region->size);
    }
    if (region->chunks) {
        munmap(region->chunks, region->n_chunks * sizeof(struct chunk));
    }
    if (region->fd >= 0) {
        close(region->fd);
    }
    if (region->claim.quota) {
        quota_claim_close(&region->claim);
    }
    for (int i = 0; i < N_LOCKS; i++) {
        pthread_mutex_destroy(&region->locks[i]);
    }
    pthread_mutex_destroy(&region->fill_lock);
    pthread_mutex_destroy(&region->pull_lock);
    free(region);
}

void region_kill(struct region *region)
{
    atomic_store(&region->dead, true);
    /* Once each lock has been ours, whoever takes it next sees that the region is dead. */
    for (int i = 0; i < N_LOCKS; i++) {
        pthread_mutex_lock(&region->locks[i]);
        pthread_mutex_unlock(&region->locks[i]);
    }
    /* A payload that is still being received is freed by its write_unpin(). */
    if (fallocate(region->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                  (off_t)region->size) < 0) {
        log_error("cannot free a region's memory: %m");
    }
    quota_claim_close(&region->claim);
}

void region_client_came(struct region *region)
{
    atomic_fetch_add(&region->clients, 1);
}

void region_client_left(struct region *region)
{
    atomic_fetch_sub(&region->clients, 1);
}

unsigned region_clients(const struct region *region)
{
    return atomic_load(&region->clients);
}

unsigned region_epoch(const struct region *region)
{
    return atomic_load_explicit(&region->epoch, memory_order_acquire);
}

void region_new_epoch(struct region *region)
{
    atomic_fetch_add(&region->epoch, 1);
}

uint64_t region_settle(struct region *region)
{
    uint64_t serial = atomic_fetch_add(&region->serial, 1) + 1;

    /* Who has the lock sees the new serial before its next write. */
    pthread_mutex_lock(&region->pull_lock);
    pthread_mutex_unlock(&region->pull_lock);
    return serial;
}

bool region_pull_is_on(const struct region *region, uint64_t serial)
{
    return atomic_load(&region->serial) == serial;
}

int region_pull_begin(struct region *region, uint64_t serial)
{
    pthread_mutex_lock(&region->pull_lock);
    if (region_pull_is_on(region, serial)) {
        return 0;
    }
    pthread_mutex_unlock(&region->pull_lock);
    return -ESTALE;
}

void region_pull_end(struct region *region)
{
    pthread_mutex_unlock(&region->pull_lock);
}

uint64_t region_size(const struct region *region)
{
    return region->size;
}

const struct quota_claim *region_claim(const struct region *region)
{
    return &region->claim;
}

uint64_t region_room(struct region *region)
{
    return quota_room(&region->claim);
}

uint64_t region_allocated(const struct region *region)
{
    struct stat status;

    return fstat(region->fd, &status) == 0 ? (uint64_t)status.st_blocks * 512 : 0;
}
