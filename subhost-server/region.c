// SPDX-License-Identifier: GPL-2.0-or-later
/* region.c - how a region comes and goes; pages.c has what happens in between */
#include "subhost-server/region.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/units.h"
#include "subhost-server/chunk.h"

static int map_region(struct region *region)
{
    region->fd = memfd_create("subhost-region", MFD_CLOEXEC);
    if (region->fd < 0 || ftruncate(region->fd, (off_t)region->size) < 0) {
        return -errno;
    }
    void *memory = mmap(NULL, region->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                        region->fd, 0);
    if (memory == MAP_FAILED) {
        return -errno;
    }
    region->memory = memory;
    madvise(memory, region->size, MADV_DONTDUMP);
    madvise(memory, region->size, MADV_NOHUGEPAGE); /* a huge page would not match the accounting */
    void *chunks = mmap(NULL, region->n_chunks * sizeof(struct chunk), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (chunks == MAP_FAILED) {
        return -errno;
    }
    region->chunks = chunks;
    return 0;
}

int region_new(struct region **result, struct quota *quota, uint64_t size, uint64_t reserve,
               uint64_t limit, struct reason *reason)
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
    for (int i = 0; i < N_LOCKS; i++) {
        pthread_mutex_init(&region->locks[i], NULL);
    }
    int err = quota_claim_open(quota, &region->claim, reserve < size ? reserve : size,
                               limit < size ? limit : size, reason);
    if (!err) {
        err = map_region(region);
        if (err) {
            reason_set(reason, err, "cannot map a region: %s", strerror(-err));
        }
        if (err && err != -ENOMEM) {
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

uint64_t region_size(const struct region *region)
{
    return region->size;
}

const struct quota_claim *region_claim(const struct region *region)
{
    return &region->claim;
}

uint64_t region_allocated(const struct region *region)
{
    struct stat status;

    return fstat(region->fd, &status) == 0 ? (uint64_t)status.st_blocks * 512 : 0;
}
