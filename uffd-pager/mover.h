/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mover.h - the child process that sends a guest's memory away
 *
 * The worker starts `uffd-pager --mover FD` with a stream socketpair and speaks
 * hand-off frames (common/handoff.h) with it:
 *
 *   worker -> mover   MOVER_CONFIG (JSON, below; fds: partition, then one memfd per block),
 *                     MIG_RUNS, MIG_FINISH (relayed from QEMU as they come)
 *   mover -> worker   MIG_BEGUN once every sub-host's connections are up and the main host answers (or its
 *                     reason; main's exports are opened with the first MIG_RUNS, because they exist only
 *                     when QEMU runs there), MIG_PROGRESS,
 *                     MIG_FINISHED, MIG_FAILED (relayed to QEMU)
 *
 * The mover ends when the socket does.  If it dies, only the migration fails.
 *
 * MOVER_CONFIG: { "migration": UUID, "uuid": UUID, "connections": n (per destination), "bandwidth": bytes/s or 0,
 *   "blocks": [{"index", "idstr", "size", "fd_offset", "flat"}] (fds in this order), "flat_size": bytes,
 *   "main": {"data": address, "export": "UUID.TICKET", "budget": bytes main may hold},
 *   "subhosts": [{"name", "data", "export"}], "history": "hex" is not here: it is in the partition fd }
 * and "compress": as in struct policy, which may be missing.
 * The partition fd (memfd) holds [n_chunks] partition bytes as predictor_split() made them (low 7 bits: sub-host,
 * PREDICTOR_HOT: main), then [n_chunks] history bytes to pass on, then a struct mover_totals, which
 * the mover updates for outgoing-status (the worker maps the file), then a bit for each page that goes to the
 * main host although its chunk does not.
 */
#ifndef UFFD_PAGER_MOVER_H
#define UFFD_PAGER_MOVER_H

#include <stdint.h>

#include "common/pagemap.h"
#include "common/units.h"

_Static_assert(CHUNK_PAGES % 64 == 0, "bits of a chunk are whole words");

struct mover_totals {
    _Atomic uint64_t rounds;
    _Atomic uint64_t pages_done;
    _Atomic uint64_t zero_pages;
    _Atomic uint64_t wire_bytes;
    _Atomic uint64_t main_bytes;                          /* payload sent to the main host */
    _Atomic uint64_t subhost_bytes[PAGEMAP_MAX_SUBHOSTS]; /* payload sent to each sub-host */
    _Atomic uint64_t busy_us;       /* for so long there were pages to send or to be answered for */
    _Atomic uint64_t busy_since_us; /* of units_now_us(): there are some since then; 0: there are none */
};

/** mover_totals_offset() - where the totals are in the partition file */
static inline uint64_t mover_totals_offset(uint64_t n_chunks)
{
    return (2 * n_chunks + 63) & ~(uint64_t)63;
}

/** mover_hot_offset() - where the bits of hot pages are in the partition file */
static inline uint64_t mover_hot_offset(uint64_t n_chunks)
{
    return mover_totals_offset(n_chunks) + sizeof(struct mover_totals);
}

/** mover_partition_size() - bytes of the partition file */
static inline uint64_t mover_partition_size(uint64_t n_chunks)
{
    return mover_hot_offset(n_chunks) + n_chunks * (CHUNK_PAGES / 8);
}

/** mover_busy_us() - for how long there were pages to send, until now */
static inline uint64_t mover_busy_us(const struct mover_totals *totals)
{
    uint64_t since = atomic_load(&totals->busy_since_us);

    return atomic_load(&totals->busy_us) + (since ? units_now_us() - since : 0);
}

/** mover_main() - the whole life of a mover on socket @fd. Return: the process's exit status. */
int mover_main(int fd);

#endif
