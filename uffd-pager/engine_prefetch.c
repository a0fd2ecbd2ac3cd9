// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_prefetch.c - fetch what will be wanted soon, while there is room to spare
 *
 * Fault threads push the pages they have paged in; this thread asks the predictor what lies around
 * them and fetches it in small runs on links of its own, one READ at a time.  It never takes room
 * above the high watermark.  A fault on a page that is being fetched finds it busy and is woken here;
 * it also tells that the guess was right, so the look-ahead goes on from there.
 *
 * Neighbours of a page-in that continues no run are guesses, and the predictor wants to know how many were right.
 * So they are put into the file and not mapped: if they are mapped later, they were used
 * (engine_look.c), and if they leave with PAGE_GUESS, they were not.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/urgent.h"
#include "uffd-pager/homes.h"
#include "uffd-pager/install.h"
#include "uffd-pager/uffd_abi.h"

#define PREFETCH_RING 64u
#define PREFETCH_MAX 256u
#define PREFETCH_RUN 16u
#define PREFETCH_RX (sizeof(struct nbd_simple_reply) + PREFETCH_RUN * PAGE_BYTES)
#define PREFETCH_TICK_MS 20

struct prefetch {
    struct engine *engine;
    pthread_t thread;
    bool started;
    int kick;
    struct link *links; /* [n_subhosts] */
    uint64_t cookie;

    pthread_mutex_t lock;
    pthread_cond_t pushed;
    uint64_t ring[PREFETCH_RING]; /* guarded by lock, as are the next two */
    unsigned first, n;
    _Atomic bool stop;
};

void prefetch_push(struct engine *engine, uint64_t page)
{
    struct prefetch *prefetch = engine->prefetch;

    if (!prefetch || atomic_load_explicit(&engine->resident, memory_order_relaxed) >=
                         atomic_load_explicit(&engine->high, memory_order_relaxed)) {
        return;
    }
    pthread_mutex_lock(&prefetch->lock);
    if (prefetch->n < PREFETCH_RING) {
        prefetch->ring[(prefetch->first + prefetch->n++) % PREFETCH_RING] = page;
        if (prefetch->n == 1) {
            pthread_cond_signal(&prefetch->pushed);
        }
    }
    pthread_mutex_unlock(&prefetch->lock);
}

static bool prefetch_pop(struct prefetch *prefetch, uint64_t *page)
{
    pthread_mutex_lock(&prefetch->lock);
    while (prefetch->n == 0 && !prefetch->stop) {
        pthread_cond_wait(&prefetch->pushed, &prefetch->lock);
    }
    bool more = !prefetch->stop;
    if (more) {
        *page = prefetch->ring[prefetch->first];
        prefetch->first = (prefetch->first + 1) % PREFETCH_RING;
        prefetch->n--;
    }
    pthread_mutex_unlock(&prefetch->lock);
    return more;
}

static bool prefetch_over(const struct prefetch *prefetch)
{
    return engine_over(prefetch->engine) ||
           atomic_load_explicit(&prefetch->stop, memory_order_relaxed);
}

/* Return: 1: a reply is there, 0: not yet, -errno: the connection is no good. */
static int prefetch_poll(struct link *link, uint32_t length, const void **contents)
{
    struct link_reply reply;
    struct pollfd pollfd = {.fd = link->channel.fd, .events = POLLIN};

    if (!channel_more(&link->channel) && poll(&pollfd, 1, PREFETCH_TICK_MS) <= 0) {
        return 0;
    }
    ssize_t n = link_receive(link);
    if (n < 0) {
        return (int)n;
    }
    int rc = link_peek(link, &reply);
    if (rc <= 0) {
        return rc;
    }
    if (reply.error < 0) {
        return reply.error;
    }
    *contents = link_payload(link, length);
    return *contents != NULL;
}

/* Somebody may want the pages by now, and get them elsewhere if there is redundancy. */
static bool prefetch_late(const struct prefetch *prefetch, const struct link *link)
{
    uint64_t now = units_now_us();

    return link_silent(link, now) ||
           (prefetch->engine->config.redundancy != ENGINE_REDUNDANCY_NONE && link->owed &&
            now > link->owed_us + LINK_LATE_US);
}

/* READ [page, page + n). Return: where the contents are, or NULL; then the link may be down. */
static const void *prefetch_read(struct prefetch *prefetch, struct link *link, uint64_t page,
                                 unsigned n)
{
    uint32_t length = (uint32_t)(n * PAGE_BYTES);
    const void *contents = NULL;

    link_queue(link, NBD_CMD_READ, ++prefetch->cookie, page * PAGE_BYTES, length);
    link_sent(link, units_now_us());
    int rc = link_flush(link);
    while (rc == 0 || rc == -EAGAIN) {
        rc = prefetch_poll(link, length, &contents);
        if (rc == 0 && (prefetch_over(prefetch) || prefetch_late(prefetch, link))) {
            rc = -ETIMEDOUT;
        }
    }
    if (rc < 0) {
        link_broken(link, strerror(-rc), units_now_us());
        return NULL;
    }
    return contents;
}

/*
 * Put pages into the file without mapping them.  Should there be contents already, they are right (install.c),
 * and nothing is put.  Return: bytes, whole pages.
 */
static uint64_t prefetch_put(struct engine *engine, const struct layout_block *block, uint64_t page,
                             unsigned n, const void *contents, bool protect)
{
    off_t at = layout_file(block, page * PAGE_BYTES);
    off_t length = (off_t)(n * PAGE_BYTES);
    off_t data = lseek(block->fd, at, SEEK_DATA);

    if (data >= 0 && data < at + length) {
        return 0;
    }
    /* A page that left while it was not mapped is marked as protected in the page tables still. */
    int err = (protect ? uffd_protect : uffd_unprotect)(engine->uffd, page_hva(block, page),
                                                        (uint64_t)length);
    if (err < 0) {
        return 0;
    }
    ssize_t put = pwrite(block->fd, contents, (size_t)length, at);
    off_t whole = put < 0 ? 0 : put - put % (off_t)PAGE_BYTES;
    if (whole < length) {
        fallocate(block->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at + whole, length - whole);
        uffd_unprotect(engine->uffd, page_hva(block, page) + (uint64_t)whole,
                       (uint64_t)(length - whole));
    }
    return (uint64_t)whole;
}

/* Return: the last page somebody was waiting for, or UINT64_MAX. */
static uint64_t prefetch_install(struct engine *engine, const struct layout_block *block,
                                 uint64_t page, unsigned n, const void *contents, bool guess)
{
    uint64_t missed = UINT64_MAX;
    uint64_t done = 0;
    bool written = install_guess_written(engine, page);
    uint8_t state = (uint8_t)((written ? PAGE_LOCAL : PAGE_CLEAN) | (guess ? PAGE_IDLE | PAGE_GUESS : 0));

    if (contents && guess) {
        done = prefetch_put(engine, block, page, n, contents, !written);
    } else if (contents) {
        uffd_copy_range(engine->uffd, page_hva(block, page), contents, n * PAGE_BYTES, !written,
                        &done);
    }
    unsigned good = (unsigned)(done / PAGE_BYTES);
    for (unsigned i = 0; i < n; i++) {
        if (page_release(engine->map, page + i, i < good ? state : PAGE_REMOTE)) {
            missed = page + i;
        }
    }
    if (good < n) {
        room_give(engine, page_chunk(page), n - good);
    }
    if (missed != UINT64_MAX) {
        page_wake(engine, block, page, n);
    }
    engine_arrived(engine, page, good);
    stats_add(&engine->stats.prefetched, good);
    return missed;
}

/* Lock the remote pages at the beginning of @pages that are in a row. */
static unsigned prefetch_lock(struct engine *engine, const uint64_t *pages, size_t n)
{
    unsigned locked = 0;

    while (locked < n && locked < PREFETCH_RUN && pages[locked] == pages[0] + locked &&
           page_chunk(pages[locked]) == page_chunk(pages[0]) &&
           pagemap_get(engine->map, pages[locked]) == PAGE_REMOTE &&
           room_take_spare(engine, page_chunk(pages[0]))) {
        if (!pagemap_lock(engine->map, pages[locked], PAGE_REMOTE)) {
            room_give(engine, page_chunk(pages[0]), 1);
            break;
        }
        locked++;
    }
    return locked;
}

/* The link to the first of the page's sub-hosts that is not in trouble; NULL: there is none. */
static struct link *prefetch_link(struct prefetch *prefetch, uint64_t page)
{
    struct engine *engine = prefetch->engine;
    struct homes homes = homes_of(engine, page_chunk(page));

    for (unsigned i = 0; i < homes.n; i++) {
        struct link *link = &prefetch->links[homes.place[i]];
        if (homes.place[i] == PAGEMAP_BACKUP) {
            continue; /* nobody waits for it */
        }
        link_take(link);
        if (link_up(link) && homes_good(engine, homes.place[i]) &&
            (homes.n == 1 || !atomic_load(&engine->hosts[homes.place[i]].trouble_us))) {
            return link;
        }
    }
    return NULL;
}

static bool prefetch_is_there(const struct engine *engine, uint64_t page, const struct link *link)
{
    struct homes homes = homes_of(engine, page_chunk(page));

    return homes_have(&homes, (uint8_t)link->host->index);
}

static int prefetch_compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static void prefetch_around(struct prefetch *prefetch, uint64_t page)
{
    struct engine *engine = prefetch->engine;
    uint64_t pages[PREFETCH_MAX];
    uint64_t missed = UINT64_MAX;
    unsigned max = engine->config.prefetch < PREFETCH_MAX ? engine->config.prefetch : PREFETCH_MAX;
    size_t n = predictor_prefetch(engine->predictor, page, pages, max);
    bool guess = engine->config.pagemap >= 0 && predictor_prefetch_guesses(engine->predictor, page);

    qsort(pages, n, sizeof(pages[0]), prefetch_compare);
    for (size_t at = 0; at < n && !prefetch_over(prefetch);) {
        const struct layout_block *block =
            layout_by_flat(engine->layout, pages[at] * PAGE_BYTES);
        struct link *link = block ? prefetch_link(prefetch, pages[at]) : NULL;
        unsigned run = link ? prefetch_lock(engine, pages + at, n - at) : 0;
        if (!run) {
            at++;
            continue;
        }
        /* The chunk may have moved before its pages were locked; now it cannot. */
        const void *contents = prefetch_is_there(engine, pages[at], link)
                                   ? prefetch_read(prefetch, link, pages[at], run)
                                   : NULL;
        uint64_t waited = prefetch_install(engine, block, pages[at], run, contents, guess);
        if (contents) {
            link_consume(link, (uint32_t)(run * PAGE_BYTES), true, units_now_us());
        }
        missed = waited != UINT64_MAX ? waited : missed;
        at += run;
    }
    if (missed != UINT64_MAX) {
        predictor_note(engine->predictor, page_chunk(missed), PREDICTOR_READ);
        prefetch_push(engine, missed);
    }
}

static void *prefetch_main(void *arg)
{
    struct prefetch *prefetch = arg;
    uint64_t page;

    unhurried_thread();
    while (prefetch_pop(prefetch, &page)) {
        if (!prefetch_over(prefetch)) {
            prefetch_around(prefetch, page);
        }
    }
    return NULL;
}

int prefetch_start(struct engine *engine)
{
    unsigned n = engine->config.n_subhosts;
    struct prefetch *prefetch;

    if (!engine->config.prefetch || !n) {
        return 0;
    }
    prefetch = calloc(1, sizeof(*prefetch));
    if (!prefetch) {
        return -ENOMEM;
    }
    prefetch->engine = engine;
    pthread_mutex_init(&prefetch->lock, NULL);
    pthread_cond_init(&prefetch->pushed, NULL);
    engine->prefetch = prefetch;
    prefetch->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    prefetch->links = calloc(n, sizeof(*prefetch->links));
    int err = !prefetch->links || prefetch->kick < 0 ? -ENOMEM : 0;
    for (unsigned i = 0; err == 0 && i < n; i++) {
        err = link_open(&prefetch->links[i], &engine->hosts[i], true, prefetch->kick, PREFETCH_RX,
                        sizeof(struct nbd_request));
    }
    err = err < 0 ? err : engine_thread(&prefetch->thread, "prefetch", 0, prefetch_main, prefetch);
    prefetch->started = err == 0;
    return err;
}

void prefetch_join(struct engine *engine)
{
    struct prefetch *prefetch = engine->prefetch;

    if (prefetch && prefetch->started) {
        pthread_mutex_lock(&prefetch->lock);
        prefetch->stop = true;
        pthread_cond_signal(&prefetch->pushed);
        pthread_mutex_unlock(&prefetch->lock);
        pthread_join(prefetch->thread, NULL);
        prefetch->started = false;
    }
}

void prefetch_free(struct engine *engine)
{
    struct prefetch *prefetch = engine->prefetch;

    if (!prefetch) {
        return;
    }
    for (unsigned i = 0; prefetch->links && i < engine->config.n_subhosts; i++) {
        link_close(&prefetch->links[i]);
    }
    close(prefetch->kick);
    free(prefetch->links);
    engine->prefetch = NULL;
    pthread_mutex_destroy(&prefetch->lock);
    pthread_cond_destroy(&prefetch->pushed);
    free(prefetch);
}
