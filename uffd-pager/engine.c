// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine.c - start and stop of the page path, and what others may ask of it
 *
 * Order of the start: reconcile the map, count what is resident, register, put write-protection as
 * the map says, start the threads, and at last wake everything: faults that an earlier worker has
 * read and not answered come again.  No thread runs while the map is being looked at.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "uffd-pager/backup.h"
#include "uffd-pager/homes.h"
#include "uffd-pager/install.h"
#include "uffd-pager/uffd_abi.h"

void engine_event(struct engine *engine, const char *name, json_t *data)
{
    if (engine->config.event && !engine_over(engine)) {
        engine->config.event(engine->config.opaque, name, data);
    } else {
        json_decref(data);
    }
}

int engine_thread(pthread_t *thread, const char *name, unsigned n, void *(*run)(void *), void *arg)
{
    char text[16];
    int err = pthread_create(thread, NULL, run, arg);

    if (err) {
        return -err;
    }
    snprintf(text, sizeof(text), "%.10s-%u", name, n % 1000);
    pthread_setname_np(*thread, text);
    return 0;
}

void *engine_buffer(size_t size)
{
    void *buffer = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (buffer == MAP_FAILED) {
        return NULL;
    }
    madvise(buffer, size, MADV_DONTDUMP);
    return buffer;
}

void engine_buffer_free(void *buffer, size_t size)
{
    if (buffer) {
        munmap(buffer, size);
    }
}

void engine_kick(int fd)
{
    uint64_t one = 1;
    ssize_t ignored = write(fd, &one, sizeof(one));

    (void)ignored;
}

void engine_gone(struct engine *engine)
{
    if (!atomic_exchange_explicit(&engine->gone, true, memory_order_acq_rel)) {
        log_info("the guest's process is ending");
    }
}

static void engine_defaults(struct engine_config *config)
{
    if (!config->fault_threads) {
        config->fault_threads = ENGINE_FAULT_THREADS;
    }
    if (config->fault_threads > ENGINE_MAX_FAULT_THREADS) {
        config->fault_threads = ENGINE_MAX_FAULT_THREADS;
    }
    if (!config->spin_us) {
        config->spin_us = ENGINE_SPIN_US;
    }
    if (!config->lost_after_ms) {
        config->lost_after_ms = ENGINE_LOST_AFTER_MS;
    }
    if (!config->choices) {
        config->choices = ENGINE_CHOICES;
    }
    if (config->choices > ENGINE_MAX_CHOICES) {
        config->choices = ENGINE_MAX_CHOICES;
    }
    if (config->granule < PAGE_BYTES || config->granule > CHUNK_BYTES) {
        config->granule = 64 * KIB;
    }
}

static void engine_free(struct engine *engine)
{
    backup_close(engine->backup);
    predictor_free(engine->predictor);
    sweep_free(engine->sweep);
    free((void *)engine->chunk_resident);
    free((void *)engine->chunk_flags);
    trim_free(engine->trim);
    pthread_mutex_destroy(&engine->move_lock);
    pthread_mutex_destroy(&engine->pause_lock);
    pthread_mutex_destroy(&engine->limit_lock);
    free(engine);
}

static enum sweep_state engine_page_state(void *opaque, uint64_t page)
{
    const struct engine *engine = opaque;
    uint8_t byte = pagemap_get(engine->map, page);

    if (byte != PAGE_LOCAL && byte != PAGE_CLEAN) {
        return SWEEP_ABSENT;
    }
    return pagemap_idle(engine->map, page) ? SWEEP_IDLE : SWEEP_TOUCHED;
}

static void engine_look(void *opaque, uint64_t first)
{
    look_window(opaque, first);
}

/* Pages are marked by zapping them; where that cannot be, chunks are chosen. */
static bool engine_new_sweep(struct engine *engine)
{
    struct sweep_view view = {.n_pages = engine->map->n_pages,
                              .resident = engine->chunk_resident,
                              .look = engine_look,
                              .state = engine_page_state,
                              .opaque = engine};

    if (!predictor_sweeps(engine->predictor) || !engine->config.zap) {
        return true;
    }
    engine->sweep = sweep_new(&view);
    return engine->sweep != NULL;
}

static int engine_new(struct engine **result, const struct engine_config *config,
                      struct reason *reason)
{
    uint64_t n_chunks = config->map->n_chunks;
    const char *policy = config->predictor[0] ? config->predictor : NULL;
    struct engine *engine = calloc(1, sizeof(*engine));

    if (!engine) {
        return reason_set(reason, -ENOMEM, "out of memory");
    }
    engine->config = *config;
    engine_defaults(&engine->config);
    engine->layout = config->layout;
    engine->map = config->map;
    engine->uffd = config->uffd;
    pthread_mutex_init(&engine->limit_lock, NULL);
    pthread_mutex_init(&engine->pause_lock, NULL);
    pthread_mutex_init(&engine->move_lock, NULL);
    engine->chunk_resident = calloc(n_chunks, sizeof(*engine->chunk_resident));
    engine->chunk_flags = calloc(n_chunks, sizeof(*engine->chunk_flags));
    engine->trim = trim_new();
    engine->predictor = predictor_new(policy, n_chunks, 1);
    int cpus = (int)sysconf(_SC_NPROCESSORS_ONLN);
    engine->max_spinners = cpus / 4 > 1 ? cpus / 4 : 1;
    if (!engine->predictor || !engine->chunk_resident || !engine->chunk_flags || !engine->trim ||
        !engine_new_sweep(engine)) {
        engine_free(engine);
        return reason_set(reason, -EINVAL, "the predictor '%s' is not known or memory is out",
                          config->predictor);
    }
    predictor_import(engine->predictor, (const uint8_t *)engine->map->history);
    atomic_store(&engine->freed_us, units_now_us());
    *result = engine;
    return 0;
}

static int engine_check(const struct engine_config *config, struct reason *reason)
{
    if (config->map->n_pages * PAGE_BYTES != config->layout->flat_size) {
        return reason_set(reason, -EINVAL, "the page map is not for this guest: wrong size");
    }
    if (config->n_subhosts > PAGEMAP_MAX_SUBHOSTS) {
        return reason_set(reason, -EINVAL, "too many sub-hosts");
    }
    return 0;
}

static void engine_count_resident(struct engine *engine)
{
    int64_t resident = 0;
    uint64_t end;

    for (uint64_t page = 0; pagemap_extent(engine->map, &page, &end);) {
        for (; page < end; page++) {
            uint8_t state = page_state(pagemap_get(engine->map, page));
            if (state == PAGE_LOCAL || state == PAGE_CLEAN) {
                atomic_fetch_add_explicit(&engine->chunk_resident[page_chunk(page)], 1,
                                          memory_order_relaxed);
                resident++;
            }
        }
    }
    atomic_store(&engine->resident, resident);
}

static void engine_unregister(struct engine *engine, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uffd_unregister(engine->uffd, engine->layout->block[i].hva, engine->layout->block[i].size);
    }
}

static int engine_register(struct engine *engine, bool recover, struct reason *reason)
{
    int flags = fcntl(engine->uffd, F_GETFL);
    int err = uffd_api(engine->uffd);

    if (flags >= 0) {
        fcntl(engine->uffd, F_SETFL, flags | O_NONBLOCK); /* a blocking one cannot be polled */
    }
    if (err < 0) {
        return reason_set(reason, err, "the userfaultfd cannot be used: %s", strerror(-err));
    }
    if (!(uffd_features() & UFFD_FEATURE_POISON)) {
        log_warn("this kernel has no UFFDIO_POISON (Linux 6.6): a lost page will block the guest");
    }
    for (uint32_t i = 0; i < engine->layout->n_blocks; i++) {
        const struct layout_block *block = &engine->layout->block[i];
        err = uffd_register(engine->uffd, block->hva, block->size,
                            UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
        if (err < 0) {
            if (!recover) {
                engine_unregister(engine, i);
            }
            return reason_set(reason, err, "RAM block '%s' cannot be registered for faults: %s",
                              block->idstr, strerror(-err));
        }
    }
    return 0;
}

static void engine_stop_threads(struct engine *engine)
{
    atomic_store_explicit(&engine->stop, true, memory_order_release);
    drain_join(engine);
    repair_join(engine);
    quiet_join(engine);
    watch_join(engine);
    prefetch_join(engine);
    for (unsigned i = 0; i < ENGINE_MAX_FAULT_THREADS; i++) {
        fault_join(engine, i);
    }
    pageout_join(engine);
    atomic_store(&engine->n_fault, 0);
    quiet_free(engine);
    watch_free(engine);
    prefetch_free(engine);
    for (unsigned i = 0; i < ENGINE_MAX_FAULT_THREADS; i++) {
        fault_free(engine, i);
    }
    pageout_free(engine);
    repair_free(engine);
    link_hosts_stop(engine);
    drain_end(engine);
}

static int engine_start_threads(struct engine *engine, bool fresh)
{
    int err = drain_prepare(engine);

    err = err < 0 ? err : link_hosts_start(engine);
    err = err < 0 ? err : drain_start(engine);
    err = err < 0 ? err : repair_start(engine, !fresh);
    err = err < 0 ? err : watch_start(engine);
    err = err < 0 ? err : pageout_start(engine);
    err = err < 0 ? err : prefetch_start(engine);
    for (unsigned i = 0; err == 0 && i < engine->config.fault_threads; i++) {
        err = fault_start(engine, i);
    }
    return err < 0 ? err : quiet_start(engine);
}

static void engine_wake_all(struct engine *engine)
{
    for (uint32_t i = 0; i < engine->layout->n_blocks; i++) {
        uffd_wake(engine->uffd, engine->layout->block[i].hva, engine->layout->block[i].size);
    }
}

int engine_start(struct engine **result, const struct engine_config *config, bool recover,
                 struct reason *reason)
{
    struct engine *engine = NULL;
    int err = engine_check(config, reason);

    err = err < 0 ? err : engine_new(&engine, config, reason);
    if (err < 0 || !engine) {
        return err;
    }
    if (config->redundancy == ENGINE_REDUNDANCY_BACKUP) {
        err = backup_open(&engine->backup, config->backup, config->layout->flat_size, recover,
                          reason);
    }
    if (err == 0 && recover) {
        err = recover_map(engine, reason);
    }
    engine_count_resident(engine);
    place_begin(engine, !recover);
    err = err < 0 ? err
                  : room_set(engine, config->budget, config->low_watermark, config->high_watermark,
                             reason);
    err = err < 0 ? err : engine_register(engine, recover, reason);
    if (err < 0) {
        engine_free(engine);
        return err;
    }
    if (recover) {
        err = recover_protection(engine, reason);
    }
    if (err == 0) {
        err = engine_start_threads(engine, !recover);
        if (err < 0) {
            reason_set(reason, err, "cannot start the engine's threads: %s", strerror(-err));
        }
    }
    if (err < 0) {
        engine_stop_threads(engine);
        if (!recover) {
            engine_unregister(engine, engine->layout->n_blocks);
        }
        engine_free(engine);
        return err;
    }
    engine_wake_all(engine);
    *result = engine;
    return 0;
}

void engine_stop(struct engine *engine)
{
    engine_stop_threads(engine);
    predictor_export(engine->predictor, (uint8_t *)engine->map->history);
    engine_free(engine);
}

int engine_set_budget(struct engine *engine, uint64_t budget, uint64_t low_watermark,
                      uint64_t high_watermark, struct reason *reason)
{
    int err = room_set(engine, budget, low_watermark, high_watermark, reason);

    if (err == 0) {
        pageout_kick(engine);
        fault_kick(engine);
    }
    return err;
}

/* ---- discard ---- */

/* Wait for the page and take it. Return: its state, or PAGE_LOST, which stays unlocked. */
static uint8_t engine_seize(struct engine *engine, uint64_t page)
{
    struct timespec nap = {.tv_nsec = 50000};

    while (!engine_over(engine)) {
        uint8_t byte = pagemap_get(engine->map, page);
        if (byte == PAGE_LOST) {
            break;
        }
        if (!(byte & PAGE_BUSY) && pagemap_lock(engine->map, page, byte)) {
            return byte;
        }
        nanosleep(&nap, NULL);
    }
    return PAGE_LOST;
}

static int engine_discard_page(struct engine *engine, const struct layout_block *block,
                               uint64_t page)
{
    uint8_t was = engine_seize(engine, page);
    int err = 0;

    if (was == PAGE_LOST) {
        return 0;
    }
    /* First the byte: what is a hole after a crash is then UNTOUCHED, and not REMOTE. */
    page_retag(engine->map, page, PAGE_UNTOUCHED);
    if (was == PAGE_LOCAL || was == PAGE_CLEAN) {
        if (fallocate(block->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      layout_file(block, page * PAGE_BYTES), (off_t)PAGE_BYTES) < 0) {
            err = -errno;
        }
        room_give(engine, page_chunk(page), 1);
    }
    if (was != PAGE_UNTOUCHED) {
        engine_want_trim(engine, page);
    }
    page_unlock(engine, block, page, PAGE_UNTOUCHED);
    stats_add(&engine->stats.discards, 1);
    return err;
}

int engine_discard(struct engine *engine, uint64_t flat, uint64_t length)
{
    uint64_t page = (flat + PAGE_BYTES - 1) / PAGE_BYTES;
    uint64_t end = (flat + length) / PAGE_BYTES;
    int err = 0;

    for (; page < end && err == 0; page++) {
        const struct layout_block *block = layout_by_flat(engine->layout, page * PAGE_BYTES);
        err = block ? engine_discard_page(engine, block, page) : -EINVAL;
    }
    pageout_kick(engine);
    if (atomic_load_explicit(&engine->parked, memory_order_acquire)) {
        fault_kick(engine);
    }
    return engine_over(engine) ? -ESRCH : err;
}

/* ---- statistics ---- */

static json_t *engine_subhosts(struct engine *engine)
{
    uint64_t pages[PAGEMAP_MAX_SUBHOSTS] = {0};
    uint64_t remote[PAGEMAP_MAX_SUBHOSTS] = {0};
    json_t *array = json_array();

    for (uint64_t chunk = 0; chunk < engine->map->n_chunks; chunk++) {
        struct homes homes = homes_of(engine, chunk);
        struct pagemap_counts counts;
        if (homes.n) {
            pagemap_count(engine->map, chunk * CHUNK_PAGES, CHUNK_PAGES, &counts);
        }
        for (unsigned i = 0; i < homes.n; i++) {
            if (homes.place[i] != PAGEMAP_BACKUP) {
                pages[homes.place[i]] += counts.remote + counts.clean;
                remote[homes.place[i]] += i == 0 ? counts.remote : 0; /* each once: they are added up */
            }
        }
    }
    for (unsigned i = 0; i < engine->config.n_subhosts; i++) {
        struct link_host *host = &engine->hosts[i];
        json_array_append_new(
            array, json_pack("{s:I, s:I, s:I, s:b, s:b, s:b, s:b}", "pages", (json_int_t)pages[i], "remote",
                             (json_int_t)remote[i], "at_risk",
                             (json_int_t)(homes_at_risk(engine, i) / PAGE_BYTES), "draining",
                             atomic_load(&host->draining), "settling", atomic_load(&host->unsettled),
                             "unwritable", link_unwritable(host), "connected",
                             atomic_load(&host->up) > 0 && !atomic_load(&host->trouble_us)));
    }
    return array;
}

void engine_stats(struct engine *engine, json_t *object)
{
    stats_report(&engine->stats, object);
    json_object_set_new(object, "subhosts", engine_subhosts(engine));
    int64_t resident = atomic_load_explicit(&engine->resident, memory_order_relaxed);
    json_object_set_new(object, "resident_counted",
                        json_integer((json_int_t)(resident * (int64_t)PAGE_BYTES)));
}

void engine_reset_stats(struct engine *engine)
{
    stats_reset(&engine->stats);
}

uint8_t engine_heat(const struct engine *engine, uint64_t chunk)
{
    return predictor_heat(engine->predictor, chunk);
}

uint64_t engine_resident(const struct layout *layout)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < layout->n_blocks; i++) {
        struct stat st;
        bool seen = fstat(layout->block[i].fd, &st) < 0;
        /* Two blocks may lie in one file. */
        for (uint32_t j = 0; j < i && !seen; j++) {
            struct stat other;
            seen = fstat(layout->block[j].fd, &other) == 0 && other.st_ino == st.st_ino &&
                   other.st_dev == st.st_dev;
        }
        bytes += seen ? 0 : (uint64_t)st.st_blocks * 512;
    }
    return bytes;
}
