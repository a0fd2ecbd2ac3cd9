/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pagemap.h - where each page of a split guest is
 *
 * Theory of operation
 * -------------------
 * One byte per 4 KiB page of the guest's flat RAM (see layout.h), two sub-host
 * indices and one byte of access history per 2 MiB chunk.  It is a file
 * on tmpfs, mapped shared by the worker, so it survives the worker; QEMU keeps
 * the memfds and the userfaultfd.  Together they are enough to go on.
 *
 * A page's byte is a stable state in the low bits, and PAGE_BUSY while one
 * thread is changing it.  Whoever sets PAGE_BUSY (pagemap_lock) owns the page:
 * only the owner may install it (UFFDIO_COPY, ZEROPAGE, CONTINUE), change its
 * protection, punch it, or write its byte.  A fault on a busy page needs no
 * answer of its own: the owner wakes the page when it is done (the engine notes
 * that somebody was turned away in a further bit, uffd-pager/install.h; readers
 * mask with PAGE_STATE_MASK).
 *
 *   state           where the bytes are                 who may leave it, and to what
 *   UNTOUCHED       nowhere: it reads as zero           fault: ZEROING -> LOCAL
 *   LOCAL           memfd only                          page-out: EVICTING -> REMOTE;
 *                                                       discard: -> UNTOUCHED
 *   REMOTE          place(s) of its chunk only          fault, prefetch: FETCHING -> CLEAN
 *                                                       (write fault: -> LOCAL); lost: -> LOST
 *   CLEAN           both, equal; write-protected        write fault: -> LOCAL;
 *                                                       page-out: DROPPING -> REMOTE, unsent
 *   LOST            nowhere, and it did have bytes      nobody; it was poisoned
 *   ZEROING   = UNTOUCHED | BUSY     FETCHING = REMOTE | BUSY
 *   EVICTING  = LOCAL | BUSY         DROPPING = CLEAN | BUSY
 *
 * (LOCAL_CLEAN of the design is CLEAN here.)
 *
 * A slab (64 MiB unless the policy says otherwise) is what a guest takes on a
 * sub-host at a time: its home is where chunks of it go that have no place yet,
 * chosen when its first page is sent out (uffd-pager/pageout_place.c).  A chunk's
 * own index says where its pages are: a home that becomes full in the middle of
 * a slab, or is emptied, is followed by another, and no page has to move for it.
 * Homes are kept here so that the next worker goes on with them, and what kind
 * of copies a slab has, so that there may be others one day (erasure coding).
 *
 * A chunk has one place or two: subhost[] and second[] (redundancy; a place is a sub-host, or
 * PAGEMAP_BACKUP, the file on the main host).  If it has two, *every* REMOTE or CLEAN page of it
 * has a good copy in both.  So a second place is written down only when all has been copied there,
 * and a page becomes REMOTE only when all of its chunk's places have acknowledged it; a place is
 * taken away by making the other one the first and only then second[] PAGEMAP_NO_SUBHOST, so that
 * whoever looks in between finds a good one (uffd-pager/homes.h).
 *
 * PAGE_IDLE is no state but a remark on a stable LOCAL or CLEAN page: its mapping was taken away to see
 * whether it is accessed, and nobody has seen it mapped since (uffd-pager/engine_watch.c, engine_look.c).
 * pagemap_get() hides it, and pagemap_lock() clears it, because whoever takes the page does so for an
 * access, or evicts it.
 * PAGE_GUESS is another: the page was fetched on a guess, and the predictor has not been told yet whether the
 * guess was right.  PAGE_WANTED is a third: it was fetched for a fault, so if it leaves unchanged, it was
 * read and not written.  These two stay while the page is taken, and go when the page does.
 *
 * After a crash of the worker the stable part and the memfd tell the truth
 * (pagemap_recover): a busy page that has data in the memfd is LOCAL (its copy
 * there is at least as new as any other); a busy page that is a hole is what
 * it was, except that LOCAL and CLEAN became REMOTE (the hole is punched only
 * after the sub-host's acknowledgement).
 */
#ifndef COMMON_PAGEMAP_H
#define COMMON_PAGEMAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/log.h"
#include "common/units.h"

enum page_state {
    PAGE_UNTOUCHED = 0,
    PAGE_LOCAL = 1,
    PAGE_REMOTE = 2,
    PAGE_CLEAN = 3,
    PAGE_LOST = 4,
};
#define PAGE_STATE_MASK 0x07u
#define PAGE_BUSY 0x08u
#define PAGE_IDLE 0x20u
#define PAGE_GUESS 0x40u
#define PAGE_WANTED 0x80u
#define PAGE_KEPT (PAGE_GUESS | PAGE_WANTED) /* remarks that outlast an owner */
#define PAGE_REMARKS (PAGE_IDLE | PAGE_KEPT)
#define PAGE_ZEROING (PAGE_UNTOUCHED | PAGE_BUSY)
#define PAGE_EVICTING (PAGE_LOCAL | PAGE_BUSY)
#define PAGE_FETCHING (PAGE_REMOTE | PAGE_BUSY)
#define PAGE_DROPPING (PAGE_CLEAN | PAGE_BUSY)

#define PAGEMAP_MAGIC 0x50414d5053504d33ull /* "PAMPSPM3" */
#define PAGEMAP_MAX_SUBHOSTS 127u
#define PAGEMAP_BACKUP 0xfeu
#define PAGEMAP_NO_SUBHOST 0xffu
#define PAGEMAP_COPIES 2u
#define PAGEMAP_SLAB_BYTES (64 * MIB) /* by default */
#define PAGEMAP_SLAB_MIN CHUNK_BYTES
#define PAGEMAP_SLAB_MAX (4 * GIB)

#define PAGEMAP_SLAB_COPIES 0u /* whole pages at each home */

struct pagemap_slab {
    _Atomic uint8_t home[PAGEMAP_COPIES]; /* sub-host; PAGEMAP_NO_SUBHOST: none */
    uint8_t kind;                         /* PAGEMAP_SLAB_COPIES */
    uint8_t reserved[5];
};

/*
 * The file: this header (one page), then pages[], subhost[], history[], slab[], second[]; each part
 * begins on a page.
 */
struct pagemap_header {
    uint64_t magic;
    uint64_t n_pages;
    uint64_t n_chunks;
    uint64_t pages_offset;
    uint64_t subhost_offset;
    uint64_t history_offset;
    uint64_t slab_offset; /* room for slabs of one chunk each */
    uint64_t file_size;
    uint8_t uuid[16];
    uint64_t slab_bytes; /* a power of two, PAGEMAP_SLAB_MIN to PAGEMAP_SLAB_MAX */
    uint64_t second_offset;
    /* What is from here on changes.  Sets of sub-hosts, by number: */
    _Atomic uint64_t draining[2]; /* those the operator has emptied (uffd-pager/engine_drain.c) */
    _Atomic uint64_t pulling[2];  /* those that may still be copying pages for us (uffd-pager/chunk_pull.c) */
};

/** pagemap_set_bit() - put sub-host @index into a set of the header, or take it out */
static inline void pagemap_set_bit(_Atomic uint64_t set[2], unsigned index, bool in)
{
    uint64_t bit = (uint64_t)1 << (index % 64);

    if (in) {
        atomic_fetch_or(&set[index / 64], bit);
    } else {
        atomic_fetch_and(&set[index / 64], ~bit);
    }
}

static inline bool pagemap_bit(const _Atomic uint64_t set[2], unsigned index)
{
    return atomic_load(&set[index / 64]) >> (index % 64) & 1;
}

struct pagemap {
    struct pagemap_header *header;
    _Atomic uint8_t *pages;   /* [n_pages], enum page_state | PAGE_BUSY */
    _Atomic uint8_t *subhost; /* [n_chunks], index into the guest's sub-hosts */
    _Atomic uint8_t *second;  /* [n_chunks], where the other copy is; PAGEMAP_NO_SUBHOST: nowhere */
    _Atomic uint8_t *history; /* [n_chunks], the predictor's aging byte */
    struct pagemap_slab *slab; /* [n_slabs] */
    uint64_t n_pages;
    uint64_t n_chunks;
    uint64_t n_slabs;
    unsigned slab_shift; /* of a chunk's number */
    int fd;
};

/** pagemap_size() - bytes a map file for @n_pages takes */
uint64_t pagemap_size(uint64_t n_pages);

/**
 * pagemap_create() - make and map a fresh file, all pages UNTOUCHED, no sub-host, history 0
 * @path: must not exist; NULL makes an unnamed one (memfd)
 * Return: 0 or -errno with a sentence in @reason.
 */
int pagemap_create(struct pagemap *map, const char *path, const uint8_t uuid[16], uint64_t n_pages,
                   struct reason *reason);

/** pagemap_open() - map an existing file, checking every offset. Return: 0 or -errno, @reason. */
int pagemap_open(struct pagemap *map, const char *path, struct reason *reason);

/** pagemap_open_fd() - the same for a descriptor, which the map then owns */
int pagemap_open_fd(struct pagemap *map, int fd, bool writable, struct reason *reason);

/**
 * pagemap_set_slabs() - slabs of @bytes, a valid size, without homes
 * For a map that nobody uses yet.
 */
void pagemap_set_slabs(struct pagemap *map, uint64_t bytes);

/** pagemap_slab_size_ok() - is it a power of two within the limits? */
static inline bool pagemap_slab_size_ok(uint64_t bytes)
{
    return bytes >= PAGEMAP_SLAB_MIN && bytes <= PAGEMAP_SLAB_MAX && !(bytes & (bytes - 1));
}

static inline struct pagemap_slab *pagemap_slab_of(const struct pagemap *map, uint64_t chunk)
{
    return &map->slab[chunk >> map->slab_shift];
}

/** pagemap_home() - place @copy (0 or 1) of a chunk, PAGEMAP_NO_SUBHOST if there is none; any thread */
static inline uint8_t pagemap_home(const struct pagemap *map, uint64_t chunk, unsigned copy)
{
    return atomic_load_explicit(copy ? &map->second[chunk] : &map->subhost[chunk],
                                memory_order_acquire);
}

/** pagemap_set_home() - see the head comment for when this may be done, and in which order */
static inline void pagemap_set_home(struct pagemap *map, uint64_t chunk, unsigned copy,
                                    uint8_t place)
{
    atomic_store_explicit(copy ? &map->second[chunk] : &map->subhost[chunk], place,
                          memory_order_release);
}

/** pagemap_close() - unmap and close; the file stays */
void pagemap_close(struct pagemap *map);

static inline uint8_t pagemap_get(const struct pagemap *map, uint64_t page)
{
    uint8_t byte = atomic_load_explicit(&map->pages[page], memory_order_acquire);

    return byte & (uint8_t)~PAGE_REMARKS;
}

static inline bool pagemap_idle(const struct pagemap *map, uint64_t page)
{
    return atomic_load_explicit(&map->pages[page], memory_order_relaxed) & PAGE_IDLE;
}

/** pagemap_kept() - which of PAGE_KEPT it has; any thread */
static inline uint8_t pagemap_kept(const struct pagemap *map, uint64_t page)
{
    return atomic_load_explicit(&map->pages[page], memory_order_relaxed) & PAGE_KEPT;
}

/** pagemap_used() - the page was accessed: it is not idle, and no guess; any thread. Return: it had PAGE_GUESS. */
static inline bool pagemap_used(struct pagemap *map, uint64_t page)
{
    return atomic_fetch_and_explicit(&map->pages[page], (uint8_t)~(PAGE_IDLE | PAGE_GUESS),
                                     memory_order_relaxed) &
           PAGE_GUESS;
}

/**
 * pagemap_mark_idle() - mark a page, if it is LOCAL or CLEAN
 * Return: whether it is marked now.
 */
static inline bool pagemap_mark_idle(struct pagemap *map, uint64_t page)
{
    uint8_t byte = atomic_load_explicit(&map->pages[page], memory_order_acquire);
    uint8_t state = byte & (uint8_t)~PAGE_KEPT;

    return (state == PAGE_LOCAL || state == PAGE_CLEAN) &&
           atomic_compare_exchange_strong_explicit(&map->pages[page], &byte,
                                                   (uint8_t)(byte | PAGE_IDLE),
                                                   memory_order_acq_rel, memory_order_acquire);
}

/**
 * pagemap_lock() - take ownership of a page that is stable in @state
 * Return: true, and the byte is @state | PAGE_BUSY (and its PAGE_KEPT); false if it was anything else.
 */
static inline bool pagemap_lock(struct pagemap *map, uint64_t page, uint8_t state)
{
    uint8_t byte = state;

    while (!atomic_compare_exchange_strong_explicit(&map->pages[page], &byte,
                                                    (uint8_t)(state | PAGE_BUSY | (byte & PAGE_KEPT)),
                                                    memory_order_acq_rel, memory_order_acquire)) {
        if ((byte & (uint8_t)~PAGE_REMARKS) != state) {
            return false;
        }
    }
    return true;
}

/** pagemap_unlock() - owner only: end the change in stable state @state */
static inline void pagemap_unlock(struct pagemap *map, uint64_t page, uint8_t state)
{
    atomic_store_explicit(&map->pages[page], state, memory_order_release);
}

/**
 * pagemap_extent() - the next pages of a map that were ever anything but UNTOUCHED
 * @page: in: where to look from; out: the first page of the extent
 * @end: out: behind its last page
 *
 * A byte of the file that was never written is a hole, and the page UNTOUCHED.  A walk by
 * extents neither allocates the holes nor spends time on them: a sparse guest of 1 TiB has
 * 256 MiB of them.  Extents begin and end with pages of the file, so they have UNTOUCHED pages too.
 * Any thread; a snapshot.  Return: false if there are no more.
 */
bool pagemap_extent(const struct pagemap *map, uint64_t *page, uint64_t *end);

struct pagemap_counts {
    uint64_t untouched, local, remote, clean, lost, busy;
};

/** pagemap_count() - count states over [first, first + n); any thread, a snapshot */
void pagemap_count(const struct pagemap *map, uint64_t first, uint64_t n,
                   struct pagemap_counts *counts);

#endif
