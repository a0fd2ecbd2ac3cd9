// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * export.c - regions as NBD exports
 *
 * A connection's export holds a reference to its region.  The strict view is the
 * same region with a table of operations of its own.
 */
#include "subhost-server/export.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/bounce.h"
#include "common/racy.h"
#include "common/urgent.h"
#include "subhost-server/region.h"

#define KEEP_BYTES (2u << 20) /* larger buffers are freed after use */

struct client {
    struct store *store;
    struct region *region;
    unsigned epoch; /* of the region when it was opened */
    struct bounce bounce;
};

static void count(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static struct region *region_of(struct nbd_export *export)
{
    return ((struct client *)export->opaque)->region;
}

/* The ticket that opened the connection has expired. */
static bool is_late(const struct nbd_export *export)
{
    const struct client *client = export->opaque;

    return client->epoch != region_epoch(client->region);
}

/* Count how a command ended. */
static int outcome(struct nbd_export *export, int err)
{
    struct store_stats *stats = &((struct client *)export->opaque)->store->stats;

    if (err == -ENOSPC) {
        count(&stats->enospc, 1);
    } else if (err) {
        count(&stats->errors, 1);
    }
    return err;
}

static int read_begin(struct nbd_export *export, bool strict, uint64_t offset, uint32_t length,
                      const void **memory)
{
    struct store_stats *stats = &((struct client *)export->opaque)->store->stats;
    int err = is_late(export)
                  ? -EPERM
                  : region_read_begin(region_of(export), strict, offset, length, memory);

    if (!err) {
        count(&stats->reads, 1);
        count(&stats->read_bytes, *memory ? length : 0);
    }
    return outcome(export, err);
}

static int export_read_begin(struct nbd_export *export, uint64_t offset, uint32_t length,
                             const void **memory)
{
    return read_begin(export, false, offset, length, memory);
}

static int strict_read_begin(struct nbd_export *export, uint64_t offset, uint32_t length,
                             const void **memory)
{
    return read_begin(export, true, offset, length, memory);
}

static void export_read_end(struct nbd_export *export, uint64_t offset, uint32_t length)
{
    region_read_end(region_of(export), offset, length);
}

static int export_write_begin(struct nbd_export *export, uint64_t offset, uint32_t length,
                              void **memory)
{
    struct client *client = export->opaque;
    int err = is_late(export) ? -EPERM
                              : region_write_begin(client->region, offset, length, true, memory);

    if (!err && !*memory && !export->pipes) {
        *memory = bounce_get(&client->bounce, length);
        if (!*memory) {
            region_write_end(client->region, offset, length, false);
            err = -ENOMEM;
        }
    }
    return outcome(export, err);
}

static int export_write_pipe(struct nbd_export *export, uint64_t offset, uint32_t length, int pipe)
{
    return outcome(export, region_fill_pipe(region_of(export), offset, length, pipe));
}

static int export_write_end(struct nbd_export *export, uint64_t offset, uint32_t length,
                            void *memory, bool complete)
{
    struct client *client = export->opaque;
    struct store_stats *stats = &client->store->stats;
    int err = 0;

    if (memory && memory == client->bounce.memory && complete) {
        err = region_fill(client->region, offset, length, memory);
    }
    int end = region_write_end(client->region, offset, length, complete && !err);
    err = end ? end : err;
    bounce_trim(&client->bounce, KEEP_BYTES);
    if (!err && complete) {
        count(&stats->writes, 1);
        count(&stats->write_bytes, length);
    }
    return outcome(export, err);
}

static int export_trim(struct nbd_export *export, uint64_t offset, uint32_t length)
{
    struct store *store = ((struct client *)export->opaque)->store;
    struct region *region = region_of(export);

    count(&store->stats.trims, 1);
    int err = is_late(export) ? -EPERM : region_trim(region, offset, length);
    if (!err && store->trimmed && region_lent_trimmed(region)) {
        store->trimmed(store->opaque, region);
    }
    return outcome(export, err);
}

static int export_write_zeroes(struct nbd_export *export, uint64_t offset, uint32_t length,
                               bool no_hole)
{
    struct region *region = region_of(export);
    void *memory;

    if (is_late(export)) {
        return outcome(export, -EPERM);
    }
    if (!no_hole) {
        return outcome(export, region_zero(region, offset, length));
    }
    /* The client wants to be sure of the memory. */
    int err = region_write_begin(region, offset, length, false, &memory);
    if (!err) {
        racy_begin();
        memset(memory, 0, length);
        racy_end();
        err = region_write_end(region, offset, length, true);
    }
    return outcome(export, err);
}

/* A write is in the region when it is answered. */
static int export_flush(struct nbd_export *export)
{
    (void)export;
    return 0;
}

static int export_block_status(struct nbd_export *export, uint64_t offset, uint32_t length,
                               struct nbd_extent *extents, size_t *n)
{
    return is_late(export) ? -EPERM
                           : region_status(region_of(export), false, offset, length, extents, n);
}

static int strict_block_status(struct nbd_export *export, uint64_t offset, uint32_t length,
                               struct nbd_extent *extents, size_t *n)
{
    return is_late(export) ? -EPERM
                           : region_status(region_of(export), true, offset, length, extents, n);
}

static void export_close(struct nbd_export *export)
{
    struct client *client = export->opaque;

    region_client_left(client->region);
    region_unref(client->region);
    bounce_free(&client->bounce);
    free(client);
}

static const struct nbd_export_ops export_ops = {
    .read_begin = export_read_begin,
    .read_end = export_read_end,
    .write_begin = export_write_begin,
    .write_pipe = export_write_pipe,
    .write_end = export_write_end,
    .trim = export_trim,
    .write_zeroes = export_write_zeroes,
    .flush = export_flush,
    .block_status = export_block_status,
    .close = export_close,
};

static const struct nbd_export_ops strict_ops = {
    .read_begin = strict_read_begin,
    .read_end = export_read_end,
    .write_begin = export_write_begin,
    .write_pipe = export_write_pipe,
    .write_end = export_write_end,
    .trim = export_trim,
    .write_zeroes = export_write_zeroes,
    .flush = export_flush,
    .block_status = strict_block_status,
    .close = export_close,
};

static int export_open(void *opaque, const char *name, size_t length, struct nbd_export *export)
{
    struct store *store = opaque;
    struct store_opened opened;
    int err = store_open(store, name, length, &opened);

    if (err) {
        return err;
    }
    struct client *client = malloc(sizeof(*client));
    if (!client) {
        region_unref(opened.region);
        return -ENOMEM;
    }
    *client = (struct client){.store = store, .region = opened.region, .epoch = opened.epoch};
    region_client_came(opened.region);
    if (opened.strict) { /* page-ins: a guest waits for each of them */
        urgent_thread();
    }
    *export = (struct nbd_export){
        .ops = opened.strict ? &strict_ops : &export_ops,
        .size = region_size(opened.region),
        .read_only = opened.read_only,
        .opaque = client,
    };
    return 0;
}

struct listing {
    void (*add)(void *to, const char *name);
    void *to;
};

static void list_entry(void *to, const struct store_entry *entry)
{
    const struct listing *listing = to;

    if (!entry->ticket[0]) {
        listing->add(listing->to, entry->name);
    }
}

static void export_list(void *opaque, void (*add)(void *to, const char *name), void *to)
{
    struct listing listing = {.add = add, .to = to};

    store_each(opaque, list_entry, &listing);
}

void export_config(struct nbd_server_config *config, struct store *store)
{
    config->opaque = store;
    config->open = export_open;
    config->list = export_list;
}

bool export_is_of(void *arg, const struct nbd_export *export)
{
    return ((const struct client *)export->opaque)->region == arg;
}
