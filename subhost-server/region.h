/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * region.h - a sparse store of 4 KiB pages, one per guest
 *
 * Offsets and lengths are bytes inside the region; the caller has checked
 * them.  All functions may be called by several threads at once.
 * pages.c tells how it works.
 */
#ifndef SUBHOST_SERVER_REGION_H
#define SUBHOST_SERVER_REGION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/log.h"
#include "common/nbd_server.h"
#include "subhost-server/quota.h"

#define REGION_MAX_SIZE ((uint64_t)1 << 46)

struct region;

/**
 * region_new() - an empty region; the caller gets the first reference
 * @size: a multiple of PAGE_BYTES, at most REGION_MAX_SIZE
 *
 * Return: 0; -EINVAL, -ENOSPC (the reservation does not fit) or -ENOMEM with a sentence in @reason.
 */
int region_new(struct region **region, struct quota *quota, uint64_t size, uint64_t reserve,
               uint64_t limit, struct reason *reason);

/* Where a region's files are, so that it outlives this process (statedir.h). */
#define REGION_PAGES ".pages"
#define REGION_BITS ".bits"
struct region_place {
    int dir;
    const char *name;
};

/** region_new_at() - the same, in files at @place, which must not exist; they are not removed with it */
int region_new_at(struct region **region, struct quota *quota, uint64_t size, uint64_t reserve,
                  uint64_t limit, const struct region_place *place, struct reason *reason);

/**
 * region_adopt() - take up the files of a region whose server has ended, perhaps in the middle of anything
 * What was acknowledged is there; pages that were being written or freed are freed.
 * Return: 0; -EINVAL (the files do not fit), -ENOSPC (the quota has no room) with @reason.
 */
int region_adopt(struct region **region, struct quota *quota, uint64_t size, uint64_t reserve,
                 uint64_t limit, const struct region_place *place, struct reason *reason);

/** region_ref()/region_unref() - the last reference frees it */
struct region *region_ref(struct region *region);
void region_unref(struct region *region);

/**
 * region_kill() - free all its memory and its claim now, whoever still holds references
 * Every later operation fails with -ESHUTDOWN.
 */
void region_kill(struct region *region);

/** region_client_came(), region_client_left() - count the connections that use it */
void region_client_came(struct region *region);
void region_client_left(struct region *region);
unsigned region_clients(const struct region *region);

/** region_epoch(), region_new_epoch() - clients of an earlier epoch than now's may do nothing any more */
unsigned region_epoch(const struct region *region);
void region_new_epoch(struct region *region);

uint64_t region_size(const struct region *region);
const struct quota_claim *region_claim(const struct region *region);

/** region_room() - bytes it could store more now */
uint64_t region_room(struct region *region);

/** region_allocated() - bytes of memory behind its pages, as the kernel counts them */
uint64_t region_allocated(const struct region *region);

/** region_slabs() - how many slabs of @bytes (a multiple of 2 MiB) hold at least one page that is stored */
uint64_t region_slabs(struct region *region, uint64_t bytes);

/* A part of a region. */
struct region_slab {
    uint64_t offset;
    uint64_t stored; /* bytes */
    uint64_t heat;   /* requests lately; those by RDMA are not seen */
    bool lent;       /* by RDMA: it stays while anything is in it */
};

/** region_slab() - look at the slab of @bytes (a multiple of 2 MiB) at @offset; nothing is stored in a dead region */
void region_slab(struct region *region, uint64_t offset, uint64_t bytes, struct region_slab *slab);

/*
 * Copies from another sub-host (copy.c).  Whoever asks for them numbers them with the region's serial.  When an
 * answer fails to come, region_settle() makes sure that none of them writes to the region any more.
 */

/** region_settle() - end copies that are under way, refuse late ones; Return: the serial for the next */
uint64_t region_settle(struct region *region);

/** region_pull_begin() - one copy at a time; Return: 0, or -ESTALE: @serial has been settled */
int region_pull_begin(struct region *region, uint64_t serial);
void region_pull_end(struct region *region);

/** region_pull_is_on() - may it go on? */
bool region_pull_is_on(const struct region *region, uint64_t serial);

/**
 * region_read_begin() - pin [offset, offset + length) for reading
 * @strict: a page that does not exist is -EIO
 * @memory: NULL if there is not memory behind all of it; then nothing is pinned
 */
int region_read_begin(struct region *region, bool strict, uint64_t offset, uint32_t length,
                      const void **memory);
void region_read_end(struct region *region, uint64_t offset, uint32_t length);

/**
 * region_write_begin() - charge and allocate what [offset, offset + length) needs, and pin it
 * @memory: where the bytes go.  NULL, if the caller has @may_fill, for whole pages some of which
 *     are fresh: then nothing is allocated yet, and region_fill() comes before a complete end.
 * Return: 0; -ENOSPC, and nothing has changed; -ESHUTDOWN.
 */
int region_write_begin(struct region *region, uint64_t offset, uint32_t length, bool may_fill,
                       void **memory);

/** region_fill() - between begin and end: write whole pages without clearing them first; 0 or -errno */
int region_fill(struct region *region, uint64_t offset, uint32_t length, const void *bytes);
/** region_fill_pipe() - as region_fill(), with what waits in @pipe, and perhaps a part of it */
int region_fill_pipe(struct region *region, uint64_t offset, uint32_t length, int pipe);

/** region_write_end() - @complete: the pages exist now; otherwise fresh ones are taken back */
int region_write_end(struct region *region, uint64_t offset, uint32_t length, bool complete);

/**
 * region_lend() - a range that region_write_begin() pinned stays so until region_take_back()
 * All its pages exist from now on, as nobody sees which are written; whole chunks, or to the end.
 */
void region_lend(struct region *region, uint64_t offset, uint32_t length);

/**
 * region_take_back() - a range that was lent is all zero, and nobody reaches it any more
 * Its pages go on to exist, without memory or quota; of a chunk that somebody is at work in, with them.
 */
void region_take_back(struct region *region, uint64_t offset, uint32_t length);

/** region_lent_trimmed() - was anything trimmed, since the last such question, of what is lent? */
bool region_lent_trimmed(struct region *region);

/** region_trim() - whole pages within the range do not exist any more and take no memory */
int region_trim(struct region *region, uint64_t offset, uint32_t length);

/** region_zero() - the range exists and is zero; whole pages take no memory */
int region_zero(struct region *region, uint64_t offset, uint32_t length);

/** region_status() - as nbd_export_ops.block_status; @strict: a missing page does not read as zero */
int region_status(struct region *region, bool strict, uint64_t offset, uint32_t length,
                  struct nbd_extent *extents, size_t *n);

#endif
