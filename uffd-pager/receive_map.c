// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * receive_map.c - the map export of an arriving guest; FLUSH is the commit
 *
 * The map comes from another host: nothing of it is believed before it was
 * compared with what is in the memfds.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/racy.h"
#include "uffd-pager/receive_internal.h"

static int map_read_begin(struct nbd_export *export, uint64_t offset, uint32_t length,
                          const void **memory)
{
    struct receive *receive = export->opaque;

    (void)length;
    *memory = receive->image + offset;
    return 0;
}

static int map_write_begin(struct nbd_export *export, uint64_t offset, uint32_t length,
                           void **memory)
{
    struct receive *receive = export->opaque;

    (void)length;
    *memory = receive->image + offset;
    return 0;
}

/* A write that broke off has changed the image too. */
static int map_write_end(struct nbd_export *export, uint64_t offset, uint32_t length, void *memory,
                         bool complete)
{
    struct receive *receive = export->opaque;

    (void)memory;
    for (uint64_t at = offset / PAGE_BYTES; length && at <= (offset + length - 1) / PAGE_BYTES; at++) {
        atomic_store_explicit(&receive->image_written[at], 1, memory_order_release);
    }
    return complete ? 0 : -EIO;
}

/* ---- commit ---- */

/* The next pages from *@page on, before @limit, whose states were written; as pagemap_extent(). */
static bool commit_extent(const struct receive *receive, uint64_t *page, uint64_t *end,
                          uint64_t limit)
{
    uint64_t granule = *page / PAGE_BYTES;
    uint64_t first = granule;

    while (first * PAGE_BYTES < limit && !atomic_load(&receive->image_written[first])) {
        first++;
    }
    if (*page >= limit || first * PAGE_BYTES >= limit) {
        return false;
    }
    *page = first > granule ? first * PAGE_BYTES : *page;
    *end = (first + 1) * PAGE_BYTES < limit ? (first + 1) * PAGE_BYTES : limit;
    return true;
}

static bool commit_gap_untouched(const struct receive *receive, uint64_t from, uint64_t to)
{
    uint64_t page = from / PAGE_BYTES;
    uint64_t end;

    while (commit_extent(receive, &page, &end, to / PAGE_BYTES)) {
        for (; page < end; page++) {
            if (pagemap_get(receive->map, page) != PAGE_UNTOUCHED) {
                return false;
            }
        }
    }
    return true;
}

static int commit_check_page(const struct receive *receive, uint64_t page, struct reason *reason)
{
    const struct pagemap *map = receive->map;
    uint8_t state = pagemap_get(map, page);

    if (state > PAGE_REMOTE) {
        return reason_set(reason, -EINVAL, "the page map has a state %u", state);
    }
    if (state == PAGE_REMOTE && map->subhost[page / CHUNK_PAGES] >= receive->config.n_subhosts) {
        return reason_set(reason, -EINVAL, "the page map names a sub-host that is not there");
    }
    return 0;
}

/* States, sub-host indices and gaps: what can be checked without looking at memory. */
static int commit_check_map(const struct receive *receive, struct reason *reason)
{
    const struct layout *layout = receive->layout;
    uint64_t end;

    for (uint64_t page = 0; commit_extent(receive, &page, &end, receive->n_pages);) {
        for (; page < end; page++) {
            int err = commit_check_page(receive, page, reason);
            if (err) {
                return err;
            }
        }
    }
    for (uint32_t i = 0; i < layout->n_blocks; i++) {
        const struct layout_block *block = &layout->block[i];
        uint64_t next = i + 1 < layout->n_blocks ? block[1].flat : layout->flat_size;
        if (!commit_gap_untouched(receive, block->flat + block->size, next)) {
            return reason_set(reason, -EINVAL, "the page map has pages where the guest has no RAM");
        }
    }
    return 0;
}

/* Pages that have data: those the map does not call LOCAL are stale, and go. */
static int commit_data(struct receive *receive, uint64_t page, uint64_t end)
{
    while (page < end) {
        uint64_t first = page;
        while (page < end && pagemap_get(receive->map, page) != PAGE_LOCAL) {
            page++;
        }
        if (page > first) {
            int err = receive_ram_drop(receive, first, page - first);
            if (err) {
                return err;
            }
        }
        while (page < end && pagemap_get(receive->map, page) == PAGE_LOCAL) {
            page++;
        }
    }
    return 0;
}

static int commit_hole(const struct receive *receive, uint64_t page, uint64_t end,
                       struct reason *reason)
{
    for (; page < end; page++) {
        if (pagemap_get(receive->map, page) == PAGE_LOCAL) {
            return reason_set(reason, -EINVAL,
                              "the page map says that a page is here which never came");
        }
    }
    return 0;
}

/* Walk a block's memfd by SEEK_DATA and SEEK_HOLE along the map. */
static int commit_check_block(struct receive *receive, const struct layout_block *block,
                              struct reason *reason)
{
    uint64_t at = 0;
    int err = 0;

    while (at < block->size && !err) {
        off_t from = layout_file(block, block->flat + at);
        off_t start = lseek(block->fd, from, SEEK_DATA);
        if (start < 0 && errno != ENXIO) {
            return reason_set(reason, -errno, "RAM block '%s' cannot be examined: %m",
                              block->idstr);
        }
        uint64_t data = start < 0 ? block->size : at + (uint64_t)(start - from);
        data = data < block->size ? data : block->size;
        uint64_t end = block->size;
        if (data < block->size) {
            off_t hole = lseek(block->fd, start, SEEK_HOLE);
            uint64_t past = hole < 0 ? block->size : at + (uint64_t)(hole - from);
            end = past < block->size ? past : block->size;
        }
        uint64_t base = block->flat / PAGE_BYTES;
        err = commit_hole(receive, base + at / PAGE_BYTES, base + data / PAGE_BYTES, reason);
        if (!err && data < end) {
            err = commit_data(receive, base + data / PAGE_BYTES,
                              base + (end + PAGE_BYTES - 1) / PAGE_BYTES);
        }
        at = end;
    }
    return err;
}

/* Is the map LOCAL for exactly the pages that were written here? */
static bool commit_is_held(const struct receive *receive)
{
    uint64_t pages = 0;
    uint64_t end;

    for (uint64_t page = 0; commit_extent(receive, &page, &end, receive->n_pages);) {
        for (; page < end; page += 64) {
            uint64_t local = 0;
            for (uint64_t i = 0; i < 64; i++) {
                local |= (uint64_t)(pagemap_get(receive->map, page + i) == PAGE_LOCAL) << i;
            }
            if (local != receive->held[page / 64]) {
                return false;
            }
            pages += (uint64_t)__builtin_popcountll(local);
        }
    }
    return pages == receive->held_pages;
}

/* Pages the memfds have, by their size on tmpfs; UINT64_MAX if blocks share a memfd. */
static uint64_t commit_pages_stored(const struct receive *receive)
{
    uint64_t pages = 0;
    struct stat st[HANDOFF_MAX_BLOCKS];

    for (uint32_t i = 0; i < receive->layout->n_blocks; i++) {
        if (fstat(receive->layout->block[i].fd, &st[i]) < 0) {
            return UINT64_MAX;
        }
        for (uint32_t j = 0; j < i; j++) {
            if (st[j].st_ino == st[i].st_ino && st[j].st_dev == st[i].st_dev) {
                return UINT64_MAX;
            }
        }
        pages += (uint64_t)st[i].st_blocks * 512 / PAGE_BYTES;
    }
    return pages;
}

/*
 * This runs in the guest's downtime.  The memfds were empty when QEMU came.  If
 * they have as many pages as were written, and these are the LOCAL ones, there
 * is nothing to look for; else every extent is compared with the map.
 */
static int commit_check_memory(struct receive *receive, struct reason *reason)
{
    int err = 0;

    if (commit_is_held(receive) && commit_pages_stored(receive) == receive->held_pages) {
        return 0;
    }
    for (uint32_t i = 0; i < receive->layout->n_blocks && !err; i++) {
        err = commit_check_block(receive, &receive->layout->block[i], reason);
    }
    return err;
}

/* The page map is fresh: what was not written is UNTOUCHED in it. */
static void commit_copy(struct receive *receive)
{
    const uint8_t *image = receive->image;
    struct pagemap *map = receive->map;
    uint64_t end;

    racy_begin(); /* a client that writes while it commits gets what it asked for */
    for (uint64_t page = 0; commit_extent(receive, &page, &end, receive->n_pages); page = end) {
        memcpy((void *)&map->pages[page], image + page, end - page);
    }
    memcpy((void *)map->subhost, image + receive->n_pages, receive->n_chunks);
    memcpy((void *)map->history, image + receive->n_pages + receive->n_chunks, receive->n_chunks);
    racy_end();
}

/* commit_lock and gate (for writing) held */
static int commit_map(struct receive *receive, struct reason *reason)
{
    commit_copy(receive);
    int err = commit_check_map(receive, reason);
    if (!err) {
        err = commit_check_memory(receive, reason);
    }
    return err ? err : receive->config.on_map(receive->config.opaque, receive->map, reason);
}

static int map_flush(struct nbd_export *export)
{
    struct receive *receive = export->opaque;
    struct reason reason = {""};
    int err = 0;

    pthread_mutex_lock(&receive->commit_lock);
    pthread_rwlock_wrlock(&receive->gate);
    if (!receive->committed) {
        uint64_t start = units_now_us();
        err = commit_map(receive, &reason);
        receive->committed = err == 0;
        if (err) {
            log_warn("the page map was refused: %s",
                     reason.text[0] ? reason.text : strerror(-err));
        } else {
            log_debug("the page map was taken in %llu us",
                      (unsigned long long)(units_now_us() - start));
        }
    }
    pthread_rwlock_unlock(&receive->gate);
    pthread_mutex_unlock(&receive->commit_lock);
    return err;
}

const struct nbd_export_ops receive_map_ops = {
    .read_begin = map_read_begin,
    .write_begin = map_write_begin,
    .write_end = map_write_end,
    .flush = map_flush,
};
