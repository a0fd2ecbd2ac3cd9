// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * mover_map.c - the page map of the arriving guest, written to the main host
 *
 * The map export is pages, sub-host indices and history, without padding.
 * What is settled when a round ends is written then, so that in the guest's
 * downtime only what changed since is left to do.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "common/racy.h"
#include "predictor/predictor.h"
#include "uffd-pager/mover_internal.h"

#define MAP_WRITE_BYTES (4u << 20)

static int map_write(struct mover *mover, const void *bytes, uint64_t offset, uint64_t length)
{
    const uint8_t *from = bytes;
    int err = 0;

    while (length && !err) {
        uint32_t n = length < MAP_WRITE_BYTES ? (uint32_t)length : MAP_WRITE_BYTES;
        err = nbd_client_write(&mover->map, from, offset, n);
        from += n;
        offset += n;
        length -= n;
    }
    return err;
}

static uint64_t map_granules(const struct mover *mover)
{
    return (mover->n_pages + PAGE_BYTES - 1) / PAGE_BYTES;
}

/* Clear the mark before the bytes are read: a later change sets it again. */
static bool map_take_dirty(struct mover *mover, uint64_t granule)
{
    return granule < map_granules(mover) &&
           atomic_exchange_explicit(&mover->place_dirty[granule], 0, memory_order_acquire);
}

int mover_map_write(struct mover *mover)
{
    uint64_t granule = 0;
    int err = 0;

    while (granule < map_granules(mover) && !err) {
        uint64_t first = granule;
        while (map_take_dirty(mover, granule)) {
            granule++;
        }
        if (granule > first) {
            uint64_t end = granule * PAGE_BYTES < mover->n_pages ? granule * PAGE_BYTES
                                                                 : mover->n_pages;
            /* What changes while it is sent is marked again, and sent again. */
            racy_begin();
            err = map_write(mover, (const void *)&mover->place[first * PAGE_BYTES],
                            first * PAGE_BYTES, end - first * PAGE_BYTES);
            racy_end();
        }
        granule++;
    }
    return err;
}

/* Sub-host indices and history: a byte a chunk each, adjacent in the export. */
static int map_write_chunks(struct mover *mover)
{
    for (uint64_t chunk = 0; chunk < mover->n_chunks; chunk++) {
        mover->partition[chunk] &= (uint8_t)~PREDICTOR_HOT;
    }
    int err = map_write(mover, mover->partition, mover->n_pages, mover->n_chunks);
    return err ? err
               : map_write(mover, mover->history, mover->n_pages + mover->n_chunks,
                           mover->n_chunks);
}

int mover_map_commit(struct mover *mover, struct reason *reason)
{
    if (mover->fault == MOVER_FAULT_STOP_FINISH) {
        raise(SIGSTOP); /* for a test to do its worst meanwhile */
    }
    nbd_client_set_timeout(&mover->map, MOVER_COMMIT_TIMEOUT_MS);
    int err = mover_map_write(mover);
    if (!err) {
        err = map_write_chunks(mover);
    }
    if (err) {
        return reason_set(reason, err, "the page map cannot be sent to the main host: %s",
                          strerror(-err));
    }
    if (mover->fault == MOVER_FAULT_EXIT_FINISH) {
        log_warn("ending here, as SPLIT_MIGRATE_FAULT wants");
        _exit(3);
    }
    err = nbd_client_flush(&mover->map);
    return err ? reason_set(reason, err, "the main host did not take the guest: %s",
                            strerror(-err))
               : 0;
}
