// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * chunk_move.c - bring a chunk's pages from one place to another while the guest runs
 *
 *   CHUNK_MOVING  page-out leaves the chunk alone (engine.move_lock)
 *   quiet         batches that were under way are waited for.  From here on nobody writes the chunk's
 *                 pages in their places, and no further page becomes REMOTE.
 *   pull          the new sub-host fetches what is REMOTE from the old one (chunk_pull.h).  Page-ins go on,
 *                 from where the pages are; what the guest takes back meanwhile is copied for nothing.
 *   settle        CLEAN -> LOCAL; REMOTE -> FETCHING, by us; pages others have in hands are waited
 *                 for.  Nothing of the chunk is on its way to or from a place then, and nothing
 *                 can be, as that takes a REMOTE or CLEAN page, or page-out.
 *   copy          what was not pulled: READ there, WRITE here, until all is acknowledged
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
#include "uffd-pager/backup.h"
#include "uffd-pager/chunk_pull.h"
#include "uffd-pager/homes.h"
#include "uffd-pager/install.h"
#include "uffd-pager/uffd_abi.h"

#define MOVE_CALL_MS 5000
#define MOVE_SETTLE_US 2000000u /* a chunk that is not settled by then is tried again later */
#define MOVE_NAP_US 200u
#define MOVE_READ_PAGES 64u /* of one READ and WRITE */
#define MOVE_TRIM_PAGES (GIB / PAGE_BYTES)
#define MOVE_FORGET_CHUNKS 64u /* held back from page-out together */

/* A sub-host as this thread uses it. */
struct move_peer {
    struct nbd_client reader, writer;
    bool reads, writes; /* connected */
};

struct chunk_mover {
    struct engine *engine;
    struct move_peer *peers; /* [n_subhosts] */
    struct puller puller;
    uint8_t *buffer;         /* MOVE_READ_PAGES pages */
    uint64_t pulled[CHUNK_PAGES / 64]; /* pages of the chunk that the new place has fetched */
    uint64_t mine[CHUNK_PAGES / 64];   /* those we have made FETCHING */
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
    pull_fence(&mover->engine->hosts[index]);
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
    pull_rest(&mover->puller);
}

/* ---- places ---- */

/* Return: 0; -EIO: pages are missing there; another -errno: it cannot be read now. */
static int move_read(struct chunk_mover *mover, uint8_t place, uint64_t page, unsigned n)
{
    struct engine *engine = mover->engine;

    if (place == PAGEMAP_BACKUP && engine->backup) {
        return backup_read(engine->backup, mover->buffer, page, n) ? -ENOTCONN : 0;
    }
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
    uint32_t length = (uint32_t)(n * PAGE_BYTES);

    if (place == PAGEMAP_BACKUP) {
        struct backup *backup = mover->engine->backup;
        return contents ? backup_write(backup, mover->buffer, page, n)
                        : backup_punch(backup, page, n);
    }
    struct nbd_client *writer = move_writer(mover, place);
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

static bool move_bit(const uint64_t *set, unsigned i)
{
    return set[i / 64] >> (i % 64) & 1;
}

static bool move_is_mine(const struct chunk_mover *mover, unsigned i)
{
    return move_bit(mover->mine, i);
}

/* Each page was seen at least once not to be leaving: none is, since none can begin to. */
static bool move_quiet_once(struct chunk_mover *mover, const struct layout_block *block,
                            uint64_t first, unsigned n)
{
    uint64_t *seen = mover->pulled; /* borrowed for this */
    bool quiet = true;

    (void)block;
    for (unsigned i = 0; i < n; i++) {
        uint8_t byte = pagemap_get(mover->engine->map, first + i);
        uint8_t state = page_state(byte);
        if (!(byte & PAGE_BUSY && (state == PAGE_LOCAL || state == PAGE_CLEAN))) {
            seen[i / 64] |= (uint64_t)1 << (i % 64);
        }
        quiet = quiet && move_bit(seen, i);
    }
    return quiet;
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

/* Return: false if there is still something to wait for. */
static bool move_wait(struct chunk_mover *mover, const struct layout_block *block, uint64_t first,
                      unsigned n,
                      bool (*once)(struct chunk_mover *, const struct layout_block *, uint64_t, unsigned))
{
    uint64_t deadline = units_now_us() + MOVE_SETTLE_US;
    struct timespec nap = {.tv_nsec = MOVE_NAP_US * 1000};

    while (!once(mover, block, first, n)) {
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

/* Return: 0; -EIO: no place has all of it; another -errno: not now. */
static int move_read_any(struct chunk_mover *mover, uint64_t chunk, uint64_t page, unsigned n)
{
    struct homes homes = homes_of(mover->engine, chunk);
    unsigned missing = 0;

    for (unsigned i = 0; i < homes.n; i++) {
        int err = move_read(mover, homes.place[i], page, n);
        if (!err) {
            return 0;
        }
        missing += err == -EIO;
    }
    /* Page by page, one may have what the other has not. */
    return missing && (missing == homes.n || n > 1) ? -EIO : -ENOTCONN;
}

static int move_run(struct chunk_mover *mover, uint64_t chunk, uint8_t to, uint64_t page,
                    unsigned n)
{
    int err = move_read_any(mover, chunk, page, n);

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
        while (i + run < n && run < MOVE_READ_PAGES && move_is_mine(mover, i + run) &&
               !move_bit(mover->pulled, i + run)) {
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

static void move_end(struct engine *engine, uint64_t chunk)
{
    atomic_fetch_and_explicit(&engine->chunk_flags[chunk], (uint8_t)~CHUNK_MOVING,
                              memory_order_acq_rel);
}

/* Return: a place of the chunk that another sub-host can fetch from; PAGEMAP_NO_SUBHOST: none. */
static uint8_t move_source(const struct engine *engine, uint64_t chunk)
{
    struct homes homes = homes_of(engine, chunk);

    for (unsigned i = 0; i < homes.n; i++) {
        uint8_t place = homes.place[i];
        if (place != PAGEMAP_BACKUP && homes_good(engine, place) &&
            !atomic_load_explicit(&engine->hosts[place].trouble_us, memory_order_relaxed)) {
            return place;
        }
    }
    return PAGEMAP_NO_SUBHOST;
}

/* Return: 0, also if the pages have to be copied in another way; -ENOSPC; -EAGAIN. */
static int move_pull(struct chunk_mover *mover, uint64_t chunk, uint8_t to, unsigned n)
{
    struct engine *engine = mover->engine;
    uint8_t from = move_source(engine, chunk);
    uint64_t first = chunk * CHUNK_PAGES;
    int err = -EOPNOTSUPP;

    memset(mover->pulled, 0, sizeof(mover->pulled));
    for (unsigned i = 0; i < n; i++) {
        bool remote = page_state(pagemap_get(engine->map, first + i)) == PAGE_REMOTE;
        mover->pulled[i / 64] |= (uint64_t)remote << (i % 64);
    }
    if (to < engine->config.n_subhosts && from < engine->config.n_subhosts) {
        err = pull_pages(&mover->puller, from, to, first, n, mover->pulled);
    }
    if (err == -EOPNOTSUPP) {
        memset(mover->pulled, 0, sizeof(mover->pulled));
        return 0;
    }
    return err;
}

/* What was fetched for nothing: taken back by the guest meanwhile, or all of it if there was no switch. */
static void move_tidy(struct chunk_mover *mover, uint8_t to, uint64_t first, unsigned n,
                      bool switched)
{
    for (unsigned i = 0; i < n;) {
        unsigned run = 0;
        while (i + run < n && move_bit(mover->pulled, i + run) &&
               !(switched && move_is_mine(mover, i + run))) {
            run++;
        }
        if (run && move_write(mover, to, first + i, run, false) < 0) {
            atomic_store(&mover->engine->hosts[to].leftovers, true);
            return;
        }
        i += run ? run : 1;
    }
}

/* CHUNK_MOVING is set: bring place @copy's pages to @to. */
static int move_held(struct chunk_mover *mover, const struct layout_block *block, uint64_t chunk,
                     unsigned copy, uint8_t to, unsigned n)
{
    struct engine *engine = mover->engine;
    uint64_t first = chunk * CHUNK_PAGES;

    memset(mover->pulled, 0, sizeof(mover->pulled));
    memset(mover->mine, 0, sizeof(mover->mine));
    if (!move_wait(mover, block, first, n, move_quiet_once)) {
        memset(mover->pulled, 0, sizeof(mover->pulled));
        return -EAGAIN;
    }
    int err = move_pull(mover, chunk, to, n);
    if (err) {
        return err;
    }
    uint8_t from = pagemap_home(engine->map, chunk, copy);
    bool settled = move_wait(mover, block, first, n, move_settle_once);
    err = settled ? move_copy(mover, chunk, to, n) : -EAGAIN;
    if (!err) {
        pagemap_set_home(engine->map, chunk, copy, to);
        stats_add(from < engine->config.n_subhosts ? &engine->stats.chunks_moved
                                           : &engine->stats.chunks_copied,
                  1);
    }
    move_release(mover, block, first, n);
    return err;
}

/* ---- back to this host ---- */

/* Is there room that page-out would not have to make again? */
static bool move_has_room(struct engine *engine)
{
    return atomic_load(&engine->resident) < atomic_load(&engine->low);
}

/* Up to MOVE_READ_PAGES pages from @page that are REMOTE, and for which there is room, taken for us. */
static unsigned move_take_run(struct engine *engine, uint64_t page, uint64_t end)
{
    unsigned n = 0;

    while (page + n < end && n < MOVE_READ_PAGES &&
           pagemap_get(engine->map, page + n) == PAGE_REMOTE && move_has_room(engine) &&
           room_take_spare(engine, page_chunk(page))) {
        if (!pagemap_lock(engine->map, page + n, PAGE_REMOTE)) {
            room_give(engine, page_chunk(page), 1);
            break;
        }
        n++;
    }
    return n;
}

static int move_fetch_run(struct chunk_mover *mover, const struct layout_block *block,
                          uint64_t page, unsigned n)
{
    struct engine *engine = mover->engine;
    int err = move_read_any(mover, page_chunk(page), page, n);

    for (unsigned i = 0; i < n; i++) {
        if (err) {
            room_give(engine, page_chunk(page), 1);
            page_unlock(engine, block, page + i, PAGE_REMOTE);
        } else if (install_fetched(engine, block, page + i, mover->buffer + i * PAGE_BYTES, true) ==
                   0) {
            engine_arrived(engine, page + i, 1);
        }
    }
    return err;
}

/* CHUNK_MOVING is set: the chunk is to be in no place, and its pages are here. */
static int move_home(struct chunk_mover *mover, const struct layout_block *block, uint64_t chunk,
                     unsigned n)
{
    struct engine *engine = mover->engine;
    uint64_t first = chunk * CHUNK_PAGES;
    int err = 0;

    memset(mover->mine, 0, sizeof(mover->mine));
    memset(mover->pulled, 0, sizeof(mover->pulled));
    if (!move_wait(mover, block, first, n, move_quiet_once)) {
        return -EAGAIN;
    }
    for (uint64_t page = first; page < first + n && !err;) {
        unsigned run = move_take_run(engine, page, first + n);
        if (run) {
            err = move_fetch_run(mover, block, page, run);
        } else if (pagemap_get(engine->map, page) == PAGE_REMOTE) {
            err = -ENOSPC;
        }
        page += run ? run : 1;
    }
    if (!err && !move_wait(mover, block, first, n, move_settle_once)) {
        err = -EAGAIN;
    }
    for (unsigned i = 0; i < CHUNK_PAGES / 64 && !err; i++) {
        err = mover->mine[i] ? -EAGAIN : 0; /* some could not be installed */
    }
    if (!err) {
        pagemap_set_home(engine->map, chunk, 1, (uint8_t)PAGEMAP_NO_SUBHOST);
        pagemap_set_home(engine->map, chunk, 0, (uint8_t)PAGEMAP_NO_SUBHOST);
    }
    move_release(mover, block, first, n);
    return err;
}

/* Free what is in a place that the chunk has no more; later, if it does not answer. */
static void move_leave(struct chunk_mover *mover, uint8_t place, uint64_t first, unsigned n)
{
    struct link_host *host = place == PAGEMAP_BACKUP ? NULL : &mover->engine->hosts[place];
    bool freed = (!host || link_takes(host)) && move_write(mover, place, first, n, false) >= 0;

    if (host && !freed) {
        atomic_store(&host->leftovers, true);
    }
}

int chunk_move(struct chunk_mover *mover, uint64_t chunk, unsigned copy, uint8_t to)
{
    struct engine *engine = mover->engine;
    const struct layout_block *block = layout_by_flat(engine->layout, chunk * CHUNK_BYTES);
    uint64_t first = chunk * CHUNK_PAGES;

    if (!block) {
        return 0;
    }
    if (!move_begin(engine, chunk)) {
        return -EBUSY;
    }
    uint64_t end = first + CHUNK_PAGES < page_end(block) ? first + CHUNK_PAGES : page_end(block);
    unsigned n = (unsigned)(end - first);
    struct homes before = homes_of(engine, chunk);
    int err = to == PAGEMAP_NO_SUBHOST ? move_home(mover, block, chunk, n)
                                       : move_held(mover, block, chunk, copy, to, n);
    struct homes now = homes_of(engine, chunk);
    /* Before page-out may choose the old place again. */
    for (unsigned i = 0; i < before.n && !err; i++) {
        uint8_t from = before.place[i];
        if (!homes_have(&now, from)) {
            move_leave(mover, from, first, n);
        }
    }
    if (to < engine->config.n_subhosts && !atomic_load(&engine->hosts[to].unsettled)) {
        move_tidy(mover, to, first, n, !err);
    }
    move_end(engine, chunk);
    return err;
}

/* ---- what is left behind ---- */

static bool move_is_on(const struct engine *engine, uint64_t chunk, unsigned index)
{
    return pagemap_home(engine->map, chunk, 0) == index || pagemap_home(engine->map, chunk, 1) == index;
}

/* Chunks from @first that are not on the sub-host, and cannot come to be while they are held. */
static uint64_t forget_hold(struct engine *engine, unsigned index, uint64_t first, uint64_t end)
{
    uint64_t n = 0;

    pthread_mutex_lock(&engine->move_lock);
    while (first + n < end && n < MOVE_FORGET_CHUNKS && !move_is_on(engine, first + n, index) &&
           !(atomic_load(&engine->chunk_flags[first + n]) & CHUNK_MOVING)) {
        atomic_fetch_or_explicit(&engine->chunk_flags[first + n], CHUNK_MOVING, memory_order_acq_rel);
        n++;
    }
    pthread_mutex_unlock(&engine->move_lock);
    return n;
}

static int forget_trim(struct chunk_mover *mover, unsigned index, uint64_t page, uint64_t n)
{
    int err = 0;

    while (n && !err) {
        unsigned part = (unsigned)(n < MOVE_TRIM_PAGES ? n : MOVE_TRIM_PAGES);
        err = move_write(mover, (uint8_t)index, page, part, false);
        page += part;
        n -= part;
    }
    return err;
}

int chunk_forget(struct chunk_mover *mover, unsigned index, uint64_t first, uint64_t end)
{
    struct engine *engine = mover->engine;
    int err = 0;

    while (first < end && !err && !engine_over(engine)) {
        uint64_t n = forget_hold(engine, index, first, end);
        if (n) {
            uint64_t pages = engine->map->n_pages - first * CHUNK_PAGES;
            err = forget_trim(mover, index, first * CHUNK_PAGES,
                              pages < n * CHUNK_PAGES ? pages : n * CHUNK_PAGES);
        }
        for (uint64_t i = 0; i < n; i++) {
            move_end(engine, first + i);
        }
        first += n ? n : 1;
    }
    return err;
}

bool chunk_tidy(struct chunk_mover *mover)
{
    struct engine *engine = mover->engine;
    bool more = false;

    for (unsigned i = 0; i < engine->config.n_subhosts; i++) {
        struct link_host *host = &engine->hosts[i];
        if (atomic_load(&host->leftovers) && !atomic_load(&host->unsettled) &&
            link_takes(host) && atomic_exchange(&host->leftovers, false) &&
            chunk_forget(mover, i, 0, engine->map->n_chunks) < 0) {
            atomic_store(&host->leftovers, true);
        }
        more = more || atomic_load(&host->leftovers);
    }
    return more;
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
    if (pull_init(&mover->puller, engine) < 0 || !mover->peers || !mover->buffer) {
        chunk_mover_free(mover);
        return NULL;
    }
    return mover;
}

void chunk_mover_free(struct chunk_mover *mover)
{
    if (mover) {
        for (unsigned i = 0; mover->peers && i < mover->engine->config.n_subhosts; i++) {
            move_hang_up(mover, i);
        }
        pull_free(&mover->puller);
        engine_buffer_free(mover->buffer, MOVE_READ_PAGES * PAGE_BYTES);
        free(mover->peers);
        free(mover);
    }
}

struct puller *chunk_mover_puller(struct chunk_mover *mover)
{
    return &mover->puller;
}
