// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * chunk_move.c - bring a chunk's pages from one place to another while the guest runs
 *
 *   CHUNK_MOVING  page-out leaves the chunk alone (engine.move_lock); batches under way end
 *   settle        CLEAN -> LOCAL; REMOTE -> FETCHING, by us; pages others have in hands are waited
 *                 for.  Nothing of the chunk is on its way to or from a place then, and nothing
 *                 can be, as that takes a REMOTE or CLEAN page, or page-out.
 *   copy          READ there, WRITE here, until all is acknowledged
 *   switch        the page map says the new place, our pages are REMOTE again; who wanted one
 *                 meanwhile is woken and fetches it from where it is now
 *   TRIM          the old copies, and what was left there of pages that have long been LOCAL
 *
 * A crash before the switch leaves the chunk where it was, one after it where it is.  A page that
 * cannot be read because no place has it is not copied: it is an error for the guest in the new place
 * as in the old.
 */
#include "uffd-pager/chunk_move.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/nbd_client.h"
#include "uffd-pager/install.h"
#include "uffd-pager/uffd_abi.h"

#define MOVE_CALL_MS 5000
#define MOVE_SETTLE_US 2000000u /* a chunk that is not settled by then is tried again later */
#define MOVE_NAP_US 200u
#define MOVE_READ_PAGES 64u /* of one READ and WRITE */
#define MOVE_FENCE_US 10000000u
#define MOVE_TRIM_BYTES (GIB)

/* A sub-host as this thread uses it. */
struct move_peer {
    struct nbd_client reader, writer;
    bool reads, writes; /* connected */
};

struct chunk_mover {
    struct engine *engine;
    struct move_peer *peers; /* [n_subhosts] */
    uint8_t *buffer;         /* MOVE_READ_PAGES pages */
    uint64_t mine[CHUNK_PAGES / 64];
};

/* ---- connections ---- */

static int move_connect(struct chunk_mover *mover, unsigned index, bool strict,
                        struct nbd_client *client)
{
    const struct engine_subhost *subhost = &mover->engine->config.subhost[index];
    char name[sizeof(subhost->export_name) + sizeof("/strict")];
    struct reason reason = {""};

    snprintf(name, sizeof(name), "%s%s", subhost->export_name, strict ? "/strict" : "");
    int err = nbd_client_connect(client, &subhost->data, name, MOVE_CALL_MS, &reason);
    if (err < 0) {
        log_debug("sub-host '%s': %s", subhost->name, reason.text);
        return err;
    }
    nbd_client_set_timeout(client, MOVE_CALL_MS);
    return 0;
}

static struct nbd_client *move_reader(struct chunk_mover *mover, unsigned index)
{
    struct move_peer *peer = &mover->peers[index];

    peer->reads = peer->reads || move_connect(mover, index, true, &peer->reader) == 0;
    return peer->reads ? &peer->reader : NULL;
}

static struct nbd_client *move_writer(struct chunk_mover *mover, unsigned index)
{
    struct move_peer *peer = &mover->peers[index];

    peer->writes = peer->writes || move_connect(mover, index, false, &peer->writer) == 0;
    return peer->writes ? &peer->writer : NULL;
}

/* A request that failed may still take effect, and must not do so over a later one. */
static void move_fence(struct chunk_mover *mover, unsigned index)
{
    atomic_store_explicit(&mover->engine->hosts[index].fence_us, units_now_us() + MOVE_FENCE_US,
                          memory_order_release);
}

static void move_hang_up(struct chunk_mover *mover, unsigned index)
{
    struct move_peer *peer = &mover->peers[index];

    if (peer->reads) {
        nbd_client_close(&peer->reader, false);
    }
    if (peer->writes) {
        nbd_client_close(&peer->writer, false);
    }
    peer->reads = peer->writes = false;
}

void chunk_mover_rest(struct chunk_mover *mover)
{
    for (unsigned i = 0; i < mover->engine->config.n_subhosts; i++) {
        move_hang_up(mover, i);
    }
}

/* ---- places ---- */

/* Return: 0; -EIO: pages are missing there; another -errno: it cannot be read now. */
static int move_read(struct chunk_mover *mover, uint8_t place, uint64_t page, unsigned n)
{
    struct engine *engine = mover->engine;

    if (place >= engine->config.n_subhosts ||
        atomic_load_explicit(&engine->hosts[place].trouble_us, memory_order_relaxed)) {
        return -ENOTCONN;
    }
    struct nbd_client *reader = move_reader(mover, place);
    int err = reader ? nbd_client_read(reader, mover->buffer, page * PAGE_BYTES,
                                       (uint32_t)(n * PAGE_BYTES))
                     : -ENOTCONN;
    if (err && err != -EIO) {
        move_hang_up(mover, place);
    }
    return err;
}

static int move_write(struct chunk_mover *mover, uint8_t place, uint64_t page, unsigned n,
                      bool contents)
{
    struct nbd_client *writer = move_writer(mover, place);
    uint32_t length = (uint32_t)(n * PAGE_BYTES);

    if (!writer) {
        return -ENOTCONN;
    }
    int err = contents ? nbd_client_write(writer, mover->buffer, page * PAGE_BYTES, length)
                       : nbd_client_trim(writer, page * PAGE_BYTES, length);
    if (err && err != -ENOSPC) {
        move_fence(mover, place);
        move_hang_up(mover, place);
    }
    return err;
}

/* ---- one chunk ---- */

static bool move_is_mine(const struct chunk_mover *mover, unsigned i)
{
    return mover->mine[i / 64] >> (i % 64) & 1;
}

/* One look at all pages of a chunk. Return: true if it is settled. */
static bool move_settle_once(struct chunk_mover *mover, const struct layout_block *block,
                             uint64_t first, unsigned n)
{
    struct engine *engine = mover->engine;
    bool settled = true;

    for (unsigned i = 0; i < n; i++) {
        uint64_t page = first + i;
        uint8_t byte = pagemap_get(engine->map, page);
        if (move_is_mine(mover, i)) {
            continue;
        }
        if (byte == PAGE_REMOTE && pagemap_lock(engine->map, page, PAGE_REMOTE)) {
            mover->mine[i / 64] |= (uint64_t)1 << (i % 64);
        } else if (byte == PAGE_CLEAN && pagemap_lock(engine->map, page, PAGE_CLEAN)) {
            uffd_unprotect(engine->uffd, page_hva(block, page), PAGE_BYTES);
            page_unlock(engine, block, page, PAGE_LOCAL);
        } else if (byte & PAGE_BUSY || byte == PAGE_REMOTE || byte == PAGE_CLEAN) {
            settled = false;
        }
    }
    return settled;
}

static bool move_settle(struct chunk_mover *mover, const struct layout_block *block, uint64_t first,
                        unsigned n)
{
    uint64_t deadline = units_now_us() + MOVE_SETTLE_US;
    struct timespec nap = {.tv_nsec = MOVE_NAP_US * 1000};

    memset(mover->mine, 0, sizeof(mover->mine));
    while (!move_settle_once(mover, block, first, n)) {
        if (engine_over(mover->engine) || units_now_us() > deadline) {
            return false;
        }
        nanosleep(&nap, NULL);
    }
    return true;
}

static void move_release(struct chunk_mover *mover, const struct layout_block *block,
                         uint64_t first, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        if (move_is_mine(mover, i)) {
            page_unlock(mover->engine, block, first + i, PAGE_REMOTE);
        }
    }
}

static int move_run(struct chunk_mover *mover, uint64_t chunk, uint8_t to, uint64_t page,
                    unsigned n)
{
    const struct pagemap *map = mover->engine->map;
    int err = move_read(mover, pagemap_home(map, chunk, 0), page, n);

    if (err && pagemap_home(map, chunk, 1) != PAGEMAP_NO_SUBHOST) {
        int other = move_read(mover, pagemap_home(map, chunk, 1), page, n);
        err = other == 0 || err != -EIO ? other : err;
    }
    if (err == -EIO && n > 1) {
        err = 0;
        for (unsigned i = 0; i < n && !err; i++) {
            err = move_run(mover, chunk, to, page + i, 1);
        }
        return err;
    }
    /* If it is not there, it must not be where it is looked for next, either. */
    return err && err != -EIO ? err : move_write(mover, to, page, n, err == 0);
}

static int move_copy(struct chunk_mover *mover, uint64_t chunk, uint8_t to, unsigned n)
{
    uint64_t first = chunk * CHUNK_PAGES;
    int err = 0;

    for (unsigned i = 0; i < n && !err;) {
        unsigned run = 0;
        while (i + run < n && run < MOVE_READ_PAGES && move_is_mine(mover, i + run)) {
            run++;
        }
        err = run ? move_run(mover, chunk, to, first + i, run) : 0;
        i += run ? run : 1;
    }
    return err;
}

/* Nobody pages out of the chunk from here on. Return: false if somebody else moves it. */
static bool move_begin(struct engine *engine, uint64_t chunk)
{
    pthread_mutex_lock(&engine->move_lock);
    bool ours = !(atomic_fetch_or_explicit(&engine->chunk_flags[chunk], CHUNK_MOVING,
                                           memory_order_acq_rel) &
                  CHUNK_MOVING);
    pthread_mutex_unlock(&engine->move_lock);
    return ours;
}

int chunk_move(struct chunk_mover *mover, uint64_t chunk, unsigned copy, uint8_t to)
{
    struct engine *engine = mover->engine;
    const struct layout_block *block = layout_by_flat(engine->layout, chunk * CHUNK_BYTES);
    uint64_t first = chunk * CHUNK_PAGES;
    int err = -EAGAIN;

    if (!block) {
        return 0;
    }
    if (!move_begin(engine, chunk)) {
        return -EBUSY;
    }
    uint64_t end = first + CHUNK_PAGES < page_end(block) ? first + CHUNK_PAGES : page_end(block);
    unsigned n = (unsigned)(end - first);
    uint8_t from = pagemap_home(engine->map, chunk, copy);
    if (move_settle(mover, block, first, n)) {
        err = move_copy(mover, chunk, to, n);
    }
    if (!err) {
        pagemap_set_home(engine->map, chunk, copy, to);
        stats_add(&engine->stats.chunks_moved, 1);
    }
    move_release(mover, block, first, n);
    atomic_fetch_and_explicit(&engine->chunk_flags[chunk], (uint8_t)~CHUNK_MOVING,
                              memory_order_acq_rel);
    if (!err && from < engine->config.n_subhosts &&
        !atomic_load_explicit(&engine->hosts[from].trouble_us, memory_order_relaxed)) {
        move_write(mover, from, first, n, false);
    }
    return err;
}

int chunk_trim_all(struct chunk_mover *mover, unsigned index)
{
    uint64_t size = mover->engine->layout->flat_size;
    struct nbd_client *writer = move_writer(mover, index);
    int err = writer ? 0 : -ENOTCONN;

    for (uint64_t at = 0; at < size && !err; at += MOVE_TRIM_BYTES) {
        uint64_t n = size - at < MOVE_TRIM_BYTES ? size - at : MOVE_TRIM_BYTES;
        err = nbd_client_trim(writer, at, (uint32_t)n);
    }
    if (err) {
        move_fence(mover, index);
        move_hang_up(mover, index);
    }
    return err;
}

/* ---- beginning and end ---- */

struct chunk_mover *chunk_mover_new(struct engine *engine)
{
    struct chunk_mover *mover = calloc(1, sizeof(*mover));

    if (!mover) {
        return NULL;
    }
    mover->engine = engine;
    mover->peers = calloc(engine->config.n_subhosts + 1, sizeof(*mover->peers));
    mover->buffer = engine_buffer(MOVE_READ_PAGES * PAGE_BYTES);
    if (!mover->peers || !mover->buffer) {
        chunk_mover_free(mover);
        return NULL;
    }
    return mover;
}

void chunk_mover_free(struct chunk_mover *mover)
{
    if (mover) {
        if (mover->peers) {
            chunk_mover_rest(mover);
        }
        engine_buffer_free(mover->buffer, MOVE_READ_PAGES * PAGE_BYTES);
        free(mover->peers);
        free(mover);
    }
}
