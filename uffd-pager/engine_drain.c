// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_drain.c - empty a sub-host while the guest runs
 *
 * A sub-host that is being drained gets no more pages (place_takes()), and this thread moves the
 * chunks it has to others, one at a time:
 *
 *   CHUNK_MOVING  page-out leaves the chunk alone (engine.move_lock); batches under way end
 *   settle        CLEAN -> LOCAL; REMOTE -> FETCHING, by us; pages others have in hands are waited
 *                 for.  Nothing of the chunk is on its way to or from a sub-host then, and nothing
 *                 can be, as that takes a REMOTE or CLEAN page, or page-out.
 *   copy          READ there, WRITE here, until all is acknowledged
 *   switch        the chunk's index says the new sub-host, our pages are REMOTE again; who wanted
 *                 one meanwhile is woken and fetches it from where it is now
 *   TRIM          the old copies, and what was left there of pages that have long been LOCAL
 *
 * A crash before the switch leaves the chunk where it was, one after it where it is.  A page that
 * cannot be read because the sub-host does not have it is not copied: it is an error for the guest
 * on the new one as on the old.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/nbd_client.h"
#include "uffd-pager/install.h"
#include "uffd-pager/uffd_abi.h"

#define DRAIN_CALL_MS 5000
#define DRAIN_SETTLE_US 2000000u /* a chunk that is not settled by then is tried again later */
#define DRAIN_NAP_US 200u
#define DRAIN_PAUSE_MAX_US 100000u
#define DRAIN_RETRY_MS 500
#define DRAIN_READ_PAGES 64u /* of one READ and WRITE */
#define DRAIN_FENCE_US 10000000u
#define DRAIN_TRIM_BYTES (GIB)

/* A sub-host as this thread uses it. */
struct drain_peer {
    struct nbd_client reader, writer;
    bool reads, writes; /* connected */
};

struct drain {
    struct engine *engine;
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stop;                  /* guarded by lock */
    struct drain_peer *peers;   /* [n_subhosts]; the rest: thread only */
    uint64_t *emptied;          /* bitmap of sub-hosts: nothing is left, all was trimmed */
    uint8_t *buffer;            /* DRAIN_READ_PAGES pages */
    uint64_t mine[CHUNK_PAGES / 64];
    bool told_full;
};

static void drain_nap(uint64_t us)
{
    struct timespec nap = {.tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000};

    nanosleep(&nap, NULL);
}

static bool drain_wanted(const struct engine *engine, unsigned index)
{
    return atomic_load_explicit(&engine->hosts[index].draining, memory_order_acquire);
}

/* ---- connections ---- */

static int drain_connect(struct drain *drain, unsigned index, bool strict, struct nbd_client *client)
{
    const struct engine_subhost *subhost = &drain->engine->config.subhost[index];
    char name[sizeof(subhost->export_name) + sizeof("/strict")];
    struct reason reason = {""};

    snprintf(name, sizeof(name), "%s%s", subhost->export_name, strict ? "/strict" : "");
    int err = nbd_client_connect(client, &subhost->data, name, DRAIN_CALL_MS, &reason);
    if (err < 0) {
        log_debug("drain: sub-host '%s': %s", subhost->name, reason.text);
        return err;
    }
    nbd_client_set_timeout(client, DRAIN_CALL_MS);
    return 0;
}

static struct nbd_client *drain_reader(struct drain *drain, unsigned index)
{
    struct drain_peer *peer = &drain->peers[index];

    peer->reads = peer->reads || drain_connect(drain, index, true, &peer->reader) == 0;
    return peer->reads ? &peer->reader : NULL;
}

static struct nbd_client *drain_writer(struct drain *drain, unsigned index)
{
    struct drain_peer *peer = &drain->peers[index];

    peer->writes = peer->writes || drain_connect(drain, index, false, &peer->writer) == 0;
    return peer->writes ? &peer->writer : NULL;
}

/* A request that failed may still take effect, and must not do so over a later one. */
static void drain_fence(struct drain *drain, unsigned index)
{
    atomic_store_explicit(&drain->engine->hosts[index].fence_us, units_now_us() + DRAIN_FENCE_US,
                          memory_order_release);
}

static void drain_hang_up(struct drain *drain, unsigned index)
{
    struct drain_peer *peer = &drain->peers[index];

    if (peer->reads) {
        nbd_client_close(&peer->reader, false);
    }
    if (peer->writes) {
        nbd_client_close(&peer->writer, false);
    }
    peer->reads = peer->writes = false;
}

/* ---- one chunk ---- */

static bool drain_is_mine(const struct drain *drain, unsigned i)
{
    return drain->mine[i / 64] >> (i % 64) & 1;
}

/* One look at all pages of a chunk. Return: true if it is settled. */
static bool drain_settle_once(struct drain *drain, const struct layout_block *block, uint64_t first,
                              unsigned n)
{
    struct engine *engine = drain->engine;
    bool settled = true;

    for (unsigned i = 0; i < n; i++) {
        uint64_t page = first + i;
        uint8_t byte = pagemap_get(engine->map, page);
        if (drain_is_mine(drain, i)) {
            continue;
        }
        if (byte == PAGE_REMOTE && pagemap_lock(engine->map, page, PAGE_REMOTE)) {
            drain->mine[i / 64] |= (uint64_t)1 << (i % 64);
        } else if (byte == PAGE_CLEAN && pagemap_lock(engine->map, page, PAGE_CLEAN)) {
            uffd_unprotect(engine->uffd, page_hva(block, page), PAGE_BYTES);
            page_unlock(engine, block, page, PAGE_LOCAL);
        } else if (byte & PAGE_BUSY || byte == PAGE_REMOTE || byte == PAGE_CLEAN) {
            settled = false;
        }
    }
    return settled;
}

static bool drain_settle(struct drain *drain, const struct layout_block *block, uint64_t first,
                         unsigned n)
{
    uint64_t deadline = units_now_us() + DRAIN_SETTLE_US;

    memset(drain->mine, 0, sizeof(drain->mine));
    while (!drain_settle_once(drain, block, first, n)) {
        if (engine_over(drain->engine) || units_now_us() > deadline) {
            return false;
        }
        drain_nap(DRAIN_NAP_US);
    }
    return true;
}

static void drain_release(struct drain *drain, const struct layout_block *block, uint64_t first,
                          unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        if (drain_is_mine(drain, i)) {
            page_unlock(drain->engine, block, first + i, PAGE_REMOTE);
        }
    }
}

static int drain_copy_run(struct drain *drain, unsigned from, unsigned to, uint64_t page, unsigned n)
{
    struct nbd_client *reader = drain_reader(drain, from);
    struct nbd_client *writer = drain_writer(drain, to);
    uint32_t length = (uint32_t)(n * PAGE_BYTES);

    if (!reader || !writer) {
        return -ENOTCONN;
    }
    int err = nbd_client_read(reader, drain->buffer, page * PAGE_BYTES, length);
    if (err == -EIO && n > 1) {
        err = 0;
        for (unsigned i = 0; i < n && !err; i++) {
            err = drain_copy_run(drain, from, to, page + i, 1);
        }
        return err;
    }
    if (err == -EIO) {
        /* It is not there: nor must it be where it is looked for next. */
        return nbd_client_trim(writer, page * PAGE_BYTES, length);
    }
    if (err) {
        drain_hang_up(drain, from);
        return err;
    }
    err = nbd_client_write(writer, drain->buffer, page * PAGE_BYTES, length);
    if (err && err != -ENOSPC) {
        drain_fence(drain, to);
        drain_hang_up(drain, to);
    }
    return err;
}

static int drain_copy(struct drain *drain, unsigned from, unsigned to, uint64_t first, unsigned n)
{
    int err = 0;

    for (unsigned i = 0; i < n && !err;) {
        unsigned run = 0;
        while (i + run < n && run < DRAIN_READ_PAGES && drain_is_mine(drain, i + run)) {
            run++;
        }
        err = run ? drain_copy_run(drain, from, to, first + i, run) : 0;
        i += run ? run : 1;
    }
    return err;
}

/* Return: 0; -ENOSPC: not to this one; other -errno: later. */
static int drain_chunk(struct drain *drain, uint64_t chunk, unsigned from, unsigned to)
{
    struct engine *engine = drain->engine;
    const struct layout_block *block = layout_by_flat(engine->layout, chunk * CHUNK_BYTES);
    uint64_t first = chunk * CHUNK_PAGES;
    int err = -EAGAIN;

    if (!block) {
        return 0;
    }
    uint64_t end = first + CHUNK_PAGES < page_end(block) ? first + CHUNK_PAGES : page_end(block);
    unsigned n = (unsigned)(end - first);
    pthread_mutex_lock(&engine->move_lock);
    atomic_fetch_or_explicit(&engine->chunk_flags[chunk], CHUNK_MOVING, memory_order_acq_rel);
    pthread_mutex_unlock(&engine->move_lock);
    if (atomic_load(&engine->map->subhost[chunk]) == from) {
        if (drain_settle(drain, block, first, n)) {
            err = drain_copy(drain, from, to, first, n);
        }
        if (!err) {
            atomic_store_explicit(&engine->map->subhost[chunk], (uint8_t)to, memory_order_release);
            stats_add(&engine->stats.chunks_moved, 1);
        }
        drain_release(drain, block, first, n);
    }
    atomic_fetch_and_explicit(&engine->chunk_flags[chunk], (uint8_t)~CHUNK_MOVING,
                              memory_order_acq_rel);
    struct nbd_client *writer = err ? NULL : drain_writer(drain, from);
    if (writer && nbd_client_trim(writer, first * PAGE_BYTES, n * (uint32_t)PAGE_BYTES) < 0) {
        drain_fence(drain, from);
        drain_hang_up(drain, from);
    }
    return err;
}

/* ---- where to ---- */

static bool drain_may_take(const struct engine *engine, unsigned index)
{
    const struct link_host *host = &engine->hosts[index];

    return !drain_wanted(engine, index) &&
           !atomic_load_explicit(&host->trouble_us, memory_order_relaxed) &&
           units_now_us() >= atomic_load_explicit(&host->fence_us, memory_order_acquire);
}

/* The sub-host with the most room of those that stay; -1: none. @without: those that have refused. */
static int drain_target(struct drain *drain, uint64_t chunk, const bool *without)
{
    struct engine *engine = drain->engine;
    uint8_t home = atomic_load(&pagemap_slab_of(engine->map, chunk)->home[0]);
    uint64_t most = 0;
    int best = -1;

    if (home < engine->config.n_subhosts && !without[home] && drain_may_take(engine, home)) {
        return home;
    }
    for (unsigned i = 0; i < engine->config.n_subhosts; i++) {
        struct link_host *host = &engine->hosts[i];
        if (without[i] || !drain_may_take(engine, i)) {
            continue;
        }
        link_ask_room(host); /* for the next one: an answer of the last second will do for this */
        uint64_t room = atomic_load(&host->room_us) ? atomic_load(&host->room) : LINK_ROOM_UNKNOWN;
        room = room == LINK_ROOM_UNKNOWN ? 1 : room;
        if (room >= most) {
            best = (int)i;
            most = room;
        }
    }
    return best;
}

static int drain_move(struct drain *drain, uint64_t chunk, unsigned from)
{
    struct engine *engine = drain->engine;
    bool without[PAGEMAP_MAX_SUBHOSTS] = {false};
    int to;

    while ((to = drain_target(drain, chunk, without)) >= 0) {
        int err = drain_chunk(drain, chunk, from, (unsigned)to);
        if (!err) {
            atomic_store(&pagemap_slab_of(engine->map, chunk)->home[0], (uint8_t)to);
        }
        if (err != -ENOSPC) {
            return err;
        }
        without[to] = true;
    }
    if (!drain->told_full) {
        drain->told_full = true;
        log_error("sub-host '%s' cannot be emptied: the others have no room",
                  engine->config.subhost[from].name);
        engine_event(engine, "DRAIN_STALLED",
                     json_pack("{s:s, s:s}", "subhost", engine->config.subhost[from].name, "reason",
                               "the other sub-hosts have no room"));
    }
    return -ENOSPC;
}

/* ---- the thread ---- */

static void drain_trim_all(struct drain *drain, unsigned index)
{
    uint64_t size = drain->engine->layout->flat_size;
    struct nbd_client *writer = drain_writer(drain, index);
    int err = writer ? 0 : -ENOTCONN;

    for (uint64_t at = 0; at < size && !err; at += DRAIN_TRIM_BYTES) {
        uint64_t n = size - at < DRAIN_TRIM_BYTES ? size - at : DRAIN_TRIM_BYTES;
        err = nbd_client_trim(writer, at, (uint32_t)n);
    }
    if (!err) {
        drain->emptied[index / 64] |= (uint64_t)1 << (index % 64);
        log_info("sub-host '%s' is empty", drain->engine->config.subhost[index].name);
        engine_event(drain->engine, "SUBHOST_EMPTY",
                     json_pack("{s:s}", "subhost", drain->engine->config.subhost[index].name));
    } else {
        drain_fence(drain, index);
        drain_hang_up(drain, index);
    }
}

/* Return: true if all of it was moved. */
static bool drain_subhost(struct drain *drain, unsigned index)
{
    struct engine *engine = drain->engine;
    bool all = true;

    /* What page-out has begun by now is seen; what it begins from now on goes elsewhere. */
    pthread_mutex_lock(&engine->move_lock);
    pthread_mutex_unlock(&engine->move_lock);
    for (uint64_t chunk = 0; chunk < engine->map->n_chunks; chunk++) {
        if (engine_over(engine) || !drain_wanted(engine, index)) {
            return false;
        }
        if (atomic_load(&engine->map->subhost[chunk]) == index) {
            uint64_t began = units_now_us();
            int err = drain_move(drain, chunk, index);
            uint64_t took = units_now_us() - began;
            /* Half of the time, and of the sub-hosts, belongs to the guest. */
            drain_nap(took < DRAIN_PAUSE_MAX_US ? took : DRAIN_PAUSE_MAX_US);
            all = all && !err;
            if (err == -ENOSPC || err == -ENOTCONN) {
                return false;
            }
        }
    }
    if (all) {
        drain->told_full = false;
        drain_trim_all(drain, index);
    }
    return all;
}

/* Return: true if something is still to be done. */
static bool drain_round(struct drain *drain)
{
    bool more = false;

    for (unsigned i = 0; i < drain->engine->config.n_subhosts; i++) {
        uint64_t bit = (uint64_t)1 << (i % 64);
        if (!drain_wanted(drain->engine, i)) {
            drain->emptied[i / 64] &= ~bit;
        } else if (!(drain->emptied[i / 64] & bit)) {
            drain_subhost(drain, i);
            more = more || !(drain->emptied[i / 64] & bit);
        }
    }
    return more;
}

static void *drain_main(void *arg)
{
    struct drain *drain = arg;

    pthread_mutex_lock(&drain->lock);
    while (!drain->stop) {
        pthread_mutex_unlock(&drain->lock);
        bool more = drain_round(drain);
        for (unsigned i = 0; !more && i < drain->engine->config.n_subhosts; i++) {
            drain_hang_up(drain, i);
        }
        pthread_mutex_lock(&drain->lock);
        struct timespec at;
        clock_gettime(CLOCK_REALTIME, &at);
        at.tv_sec += (at.tv_nsec + DRAIN_RETRY_MS * 1000000L) / 1000000000L;
        at.tv_nsec = (at.tv_nsec + DRAIN_RETRY_MS * 1000000L) % 1000000000L;
        if (drain->stop) {
            break;
        }
        if (more) {
            pthread_cond_timedwait(&drain->changed, &drain->lock, &at);
        } else {
            pthread_cond_wait(&drain->changed, &drain->lock);
        }
    }
    pthread_mutex_unlock(&drain->lock);
    return NULL;
}

static void drain_free(struct drain *drain)
{
    for (unsigned i = 0; drain->peers && i < drain->engine->config.n_subhosts; i++) {
        drain_hang_up(drain, i);
    }
    pthread_mutex_destroy(&drain->lock);
    pthread_cond_destroy(&drain->changed);
    engine_buffer_free(drain->buffer, DRAIN_READ_PAGES * PAGE_BYTES);
    free(drain->emptied);
    free(drain->peers);
    free(drain);
}

int drain_start(struct engine *engine)
{
    struct drain *drain = calloc(1, sizeof(*drain));
    int err = -ENOMEM;

    if (!drain) {
        return err;
    }
    drain->engine = engine;
    pthread_mutex_init(&drain->lock, NULL);
    pthread_cond_init(&drain->changed, NULL);
    drain->peers = calloc(engine->config.n_subhosts + 1, sizeof(*drain->peers));
    drain->emptied = calloc(PAGEMAP_MAX_SUBHOSTS / 64 + 1, sizeof(*drain->emptied));
    drain->buffer = engine_buffer(DRAIN_READ_PAGES * PAGE_BYTES);
    if (drain->peers && drain->emptied && drain->buffer) {
        err = engine_thread(&drain->thread, "drain", 0, drain_main, drain);
    }
    if (err < 0) {
        drain_free(drain);
        return err;
    }
    drain->started = true;
    engine->drain = drain;
    return 0;
}

void drain_join(struct engine *engine)
{
    struct drain *drain = engine->drain;

    if (drain) {
        pthread_mutex_lock(&drain->lock);
        drain->stop = true;
        pthread_cond_signal(&drain->changed);
        pthread_mutex_unlock(&drain->lock);
        pthread_join(drain->thread, NULL);
        drain_free(drain);
        engine->drain = NULL;
    }
}

int engine_drain(struct engine *engine, unsigned subhost, bool drain, struct reason *reason)
{
    unsigned others = 0;

    for (unsigned i = 0; i < engine->config.n_subhosts; i++) {
        others += i != subhost && !drain_wanted(engine, i);
    }
    if (drain && !others) {
        return reason_set(reason, -ENOSPC, "the guest has no other sub-host that could take its pages");
    }
    atomic_store_explicit(&engine->hosts[subhost].draining, drain, memory_order_release);
    pthread_mutex_lock(&engine->drain->lock);
    pthread_cond_signal(&engine->drain->changed);
    pthread_mutex_unlock(&engine->drain->lock);
    return 0;
}
