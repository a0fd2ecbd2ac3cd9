// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/pagemap.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static uint64_t pagemap_round(uint64_t bytes)
{
    return (bytes + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1);
}

static uint64_t pagemap_chunks(uint64_t n_pages)
{
    return (n_pages + CHUNK_PAGES - 1) / CHUNK_PAGES;
}

uint64_t pagemap_size(uint64_t n_pages)
{
    uint64_t n_chunks = pagemap_chunks(n_pages);

    return PAGE_BYTES + pagemap_round(n_pages) + 3 * pagemap_round(n_chunks) +
           pagemap_round(n_chunks * sizeof(struct pagemap_slab));
}

static void pagemap_fill_header(struct pagemap_header *header, const uint8_t uuid[16],
                                uint64_t n_pages)
{
    uint64_t n_chunks = pagemap_chunks(n_pages);

    header->magic = PAGEMAP_MAGIC;
    header->n_pages = n_pages;
    header->n_chunks = n_chunks;
    header->pages_offset = PAGE_BYTES;
    header->subhost_offset = header->pages_offset + pagemap_round(n_pages);
    header->history_offset = header->subhost_offset + pagemap_round(n_chunks);
    header->slab_offset = header->history_offset + pagemap_round(n_chunks);
    header->second_offset =
        header->slab_offset + pagemap_round(n_chunks * sizeof(struct pagemap_slab));
    header->file_size = pagemap_size(n_pages);
    memcpy(header->uuid, uuid, 16);
}

static int pagemap_map(struct pagemap *map, int fd, uint64_t size, bool writable)
{
    void *base = mmap(NULL, size, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);

    if (base == MAP_FAILED) {
        return -errno;
    }
    map->header = base;
    map->fd = fd;
    return 0;
}

static void pagemap_point(struct pagemap *map)
{
    uint8_t *base = (uint8_t *)map->header;

    map->n_pages = map->header->n_pages;
    map->n_chunks = map->header->n_chunks;
    map->pages = (_Atomic uint8_t *)(base + map->header->pages_offset);
    map->subhost = (_Atomic uint8_t *)(base + map->header->subhost_offset);
    map->second = (_Atomic uint8_t *)(base + map->header->second_offset);
    map->history = (_Atomic uint8_t *)(base + map->header->history_offset);
    map->slab = (struct pagemap_slab *)(base + map->header->slab_offset);
    map->slab_shift = (unsigned)__builtin_ctzll(map->header->slab_bytes / CHUNK_BYTES);
    map->n_slabs = (map->n_chunks + ((uint64_t)1 << map->slab_shift) - 1) >> map->slab_shift;
}

void pagemap_set_slabs(struct pagemap *map, uint64_t bytes)
{
    map->header->slab_bytes = bytes;
    pagemap_point(map);
    for (uint64_t i = 0; i < map->n_slabs; i++) {
        for (unsigned copy = 0; copy < PAGEMAP_COPIES; copy++) {
            atomic_store(&map->slab[i].home[copy], (uint8_t)PAGEMAP_NO_SUBHOST);
        }
    }
}

int pagemap_create(struct pagemap *map, const char *path, const uint8_t uuid[16], uint64_t n_pages,
                   struct reason *reason)
{
    uint64_t size = pagemap_size(n_pages);
    int fd = path ? open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)
                  : memfd_create("pagemap", MFD_CLOEXEC);
    int err;

    if (fd < 0) {
        return reason_set(reason, -errno, "cannot create the page map %s: %m", path ? path : "");
    }
    if (ftruncate(fd, (off_t)size) < 0) {
        err = -errno;
    } else {
        err = pagemap_map(map, fd, size, true);
    }
    if (err < 0) {
        close(fd);
        if (path) {
            unlink(path);
        }
        return reason_set(reason, err, "cannot create the page map %s: %s", path ? path : "",
                          strerror(-err));
    }
    pagemap_fill_header(map->header, uuid, n_pages);
    pagemap_set_slabs(map, PAGEMAP_SLAB_BYTES);
    memset((void *)map->subhost, PAGEMAP_NO_SUBHOST, map->n_chunks);
    memset((void *)map->second, PAGEMAP_NO_SUBHOST, map->n_chunks);
    return 0;
}

int pagemap_open_fd(struct pagemap *map, int fd, bool writable, struct reason *reason)
{
    struct pagemap_header want = {0};
    struct stat st;

    if (fstat(fd, &st) < 0 || (uint64_t)st.st_size < PAGE_BYTES) {
        close(fd);
        return reason_set(reason, -EINVAL, "the page map is too short");
    }
    int err = pagemap_map(map, fd, (uint64_t)st.st_size, writable);
    if (err < 0) {
        close(fd);
        return reason_set(reason, err, "cannot map the page map: %s", strerror(-err));
    }
    uint64_t n_pages = map->header->n_pages;
    if (n_pages <= ((uint64_t)1 << 36)) {
        pagemap_fill_header(&want, map->header->uuid, n_pages);
    }
    want.slab_bytes = pagemap_slab_size_ok(map->header->slab_bytes) ? map->header->slab_bytes
                                                                    : PAGEMAP_SLAB_BYTES;
    if (memcmp(&want, map->header, offsetof(struct pagemap_header, draining)) != 0 || want.file_size != (uint64_t)st.st_size) {
        munmap(map->header, (size_t)st.st_size);
        close(fd);
        return reason_set(reason, -EINVAL, "the page map's header is damaged");
    }
    pagemap_point(map);
    return 0;
}

int pagemap_open(struct pagemap *map, const char *path, struct reason *reason)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);

    if (fd < 0) {
        return reason_set(reason, -errno, "cannot open the page map %s: %m", path);
    }
    return pagemap_open_fd(map, fd, true, reason);
}

void pagemap_close(struct pagemap *map)
{
    if (map->header) {
        munmap(map->header, map->header->file_size);
        close(map->fd);
        map->header = NULL;
    }
}

bool pagemap_extent(const struct pagemap *map, uint64_t *page, uint64_t *end)
{
    off_t base = (off_t)map->header->pages_offset;
    off_t past = base + (off_t)map->n_pages;

    if (*page >= map->n_pages) {
        return false;
    }
    off_t data = lseek(map->fd, base + (off_t)*page, SEEK_DATA);
    if (data < 0 && errno != ENXIO) {
        *end = map->n_pages; /* a file system without holes */
        return true;
    }
    if (data < 0 || data >= past) {
        return false;
    }
    off_t hole = lseek(map->fd, data, SEEK_HOLE);
    *page = (uint64_t)(data - base);
    *end = hole < 0 || hole > past ? map->n_pages : (uint64_t)(hole - base);
    return true;
}

void pagemap_count(const struct pagemap *map, uint64_t first, uint64_t n,
                   struct pagemap_counts *counts)
{
    uint64_t by_state[16] = {0};
    uint64_t limit = n < map->n_pages - first ? first + n : map->n_pages;
    uint64_t end;

    for (uint64_t page = first; page < limit && pagemap_extent(map, &page, &end); page = end) {
        end = end < limit ? end : limit;
        for (uint64_t at = page; at < end; at++) {
            uint8_t byte = atomic_load_explicit(&map->pages[at], memory_order_relaxed);
            by_state[byte & (PAGE_STATE_MASK | PAGE_BUSY)]++;
        }
    }
    *counts = (struct pagemap_counts){
        .local = by_state[PAGE_LOCAL] + by_state[PAGE_EVICTING],
        .remote = by_state[PAGE_REMOTE] + by_state[PAGE_FETCHING],
        .clean = by_state[PAGE_CLEAN] + by_state[PAGE_DROPPING],
        .lost = by_state[PAGE_LOST],
        .busy = by_state[PAGE_ZEROING] + by_state[PAGE_EVICTING] + by_state[PAGE_FETCHING] +
                by_state[PAGE_DROPPING],
    };
    counts->untouched = first < limit ? limit - first - counts->local - counts->remote -
                                            counts->clean - counts->lost
                                      : 0;
}
