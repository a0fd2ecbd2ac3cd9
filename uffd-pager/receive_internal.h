/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * receive_internal.h - inside the receiver of an arriving guest
 *
 * Theory of operation
 * -------------------
 * Two NBD exports.  RAM (receive_ram.c): a write is received into a buffer of
 * its connection and then written to the memfd with pwrite, which fills new
 * pages without clearing them first and never maps them.  Every page written is
 * a bit in `held`, so that the budget is kept to the page.  The map
 * (receive_map.c) is received into an image of the export; FLUSH copies what was
 * written of it into the page map, checks it against the memfds, punches what is
 * not in it, and hands the guest over.  What was never written is UNTOUCHED and
 * costs nothing: a guest may be declared far larger than it is.
 *
 * `gate` is held for reading while a memfd changes and for writing during the
 * commit: after it the guest runs, and nothing that comes late may touch its memory.
 *
 * Locks, in this order: lock, commit_lock, gate, write_lock, count_lock.
 */
#ifndef UFFD_PAGER_RECEIVE_INTERNAL_H
#define UFFD_PAGER_RECEIVE_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/bounce.h"
#include "common/nbd.h"
#include "common/nbd_server.h"
#include "uffd-pager/receive.h"

#define RECEIVE_ARRIVAL_TIMEOUT_S 30
#define RECEIVE_KEEP_BYTES (2u << 20) /* larger buffers are freed after use */
#define RECEIVE_READ_BYTES (256u << 20) /* read buffers of one client at most */

struct receive {
    struct receive_config config;
    struct nbd_server *server;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool ready; /* the fields below are valid */
    bool stop;

    const struct layout *layout;
    struct pagemap *map;
    uint64_t n_pages;
    uint64_t n_chunks;
    _Atomic uint64_t bytes;

    pthread_rwlock_t gate;
    bool committed;

    pthread_mutex_t write_lock; /* for large writes: whoever waited for the memfd's own lock would spin */
    pthread_mutex_t count_lock;
    uint64_t *held; /* bits: pages written here */
    uint64_t held_pages;

    pthread_mutex_t commit_lock;
    uint8_t *image; /* the map export: pages, sub-host indices, history */
    _Atomic uint8_t *image_written; /* a byte for PAGE_BYTES of it: written since the start */
};

struct receive_read {
    struct receive_read *next;
    uint64_t offset;
    uint32_t length;
    uint8_t bytes[];
};

/* One client of the RAM export; used by its connection's thread only. */
struct receive_client {
    struct receive *receive;
    struct bounce bounce;
    struct receive_read *reads;
    uint64_t read_bytes;
};

/** receive_map_size() - bytes of the map export */
static inline uint64_t receive_map_size(const struct receive *receive)
{
    return receive->n_pages + 2 * receive->n_chunks;
}

extern const struct nbd_export_ops receive_ram_ops; /* opaque: struct receive_client */
extern const struct nbd_export_ops receive_map_ops; /* opaque: struct receive */

/** receive_ram_drop() - punch [first, first + count) flat pages and forget them; gate held */
int receive_ram_drop(struct receive *receive, uint64_t first, uint64_t count);

#endif
