// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * sweep.c - which pages leave local memory
 *
 * A pager does not see hits.  What it can do is to take the mapping of a resident page away and to
 * see later whether the page was mapped again; an access in between costs the guest a soft fault,
 * about a twentieth of a page-in.
 *
 *   - A hand goes round all resident pages in address order.  A page that is touched it has marked
 *     as idle ("watch"); a page that is still idle when the hand comes again leaves.  It is CLOCK,
 *     whose reference bit is a mapping.
 *   - In every second lap the hand passes over chunks into which a page came lately, so regions
 *     that are left behind go before those that are being worked on.
 *   - Pages that arrive are marked soon after: one that is used once leaves when the hand first
 *     comes.
 *   - If many of a window arrived together, as in a scan or by prefetch, they go on probation: a
 *     ring that holds a twelfth of local memory.  Whoever is idle at the end of it leaves, whoever
 *     was touched is left to the hand.  A scan so flows through the ring and drives nothing out,
 *     and pages prefetched in vain go first.  What arrives singly does not go there: it comes back
 *     later.
 *
 * Together they are at the level of CLOCK, LRU, ARC and LIRS that see every access
 * (docs/benchmarks.md).
 *
 * Cost: a victim is found in constant time.  No more than SWEEP_LOOKS pages are looked at for each
 * that leaves; when more are touched the hand takes what it meets.  Chunks without resident pages
 * are skipped by two bytes each, four at once.  Memory: four bytes a chunk, and twelve a place on
 * probation, one place for 768 pages.
 *
 * Rings: a place is a window of 64 pages and those that arrived of it, so a scan takes few places.
 * Producers take a place by counting up the tail, then store; they never wait.  If they overrun a
 * consumer, or a place is read before it is stored, a page is judged early or left to the hand.
 * Any thread adds to the first ring; sweep_probation() moves on to the second, sweep_next() reads
 * that.
 */
#include "predictor/sweep.h"

#include <stdlib.h>

#include "common/units.h"

#define RECENT_ROOM 1024        /* places between arrival and mark */
#define MARK_AFTER 128          /* so many arrivals later pages are marked */
#define TOGETHER 16             /* so many of a window have to arrive together to go on probation */
#define PROBATION_SHARE 12      /* of local memory: how many pages are on probation */
#define PROBATION_PER (CHUNK_PAGES * 3 / 2) /* pages of the guest for a place of that ring */
#define PROBATION_MIN 16
#define YOUNG_SHARE 40 /* of local memory: a page that came so many arrivals ago came lately */
#define LOOKS_MAX ((int64_t)(SWEEP_LOOKS * SWEEP_WINDOW)) /* saved up, before touched pages leave */

struct ring {
    uint64_t room;
    _Atomic uint64_t tail, added; /* places, pages */
    _Atomic uint64_t *pages;      /* [room] bits */
    _Atomic uint32_t *window;     /* [room] */
};

/* One who reads a ring behind its tail. */
struct follower {
    uint64_t place;
    uint64_t pages; /* that were added before it, as far as it knows */
};

struct sweep {
    struct sweep_view view;
    uint64_t n_chunks;
    uint64_t hand; /* page; a multiple of SWEEP_WINDOW */
    uint64_t lap;
    int64_t looks; /* pages that were touched, less SWEEP_LOOKS for each that left */
    struct ring recent, probation;
    struct follower marker, judge; /* of the one and the other */
    _Atomic uint32_t *came;        /* [n_chunks] the arrivals' count with its last one; 0: none */
};

static uint64_t probation_room(uint64_t n_pages)
{
    return n_pages / PROBATION_PER > PROBATION_MIN ? n_pages / PROBATION_PER : PROBATION_MIN;
}

static uint64_t ring_bytes(uint64_t room)
{
    return room * (sizeof(uint64_t) + sizeof(uint32_t));
}

uint64_t sweep_bytes(uint64_t n_pages)
{
    return sizeof(struct sweep) + ring_bytes(RECENT_ROOM) + ring_bytes(probation_room(n_pages)) +
           (n_pages + CHUNK_PAGES - 1) / CHUNK_PAGES * sizeof(uint32_t);
}

static bool ring_new(struct ring *ring, uint64_t room)
{
    ring->room = room;
    ring->pages = calloc(room, sizeof(*ring->pages));
    ring->window = calloc(room, sizeof(*ring->window));
    return ring->pages && ring->window;
}

static void ring_free(struct ring *ring)
{
    free((void *)ring->pages);
    free((void *)ring->window);
}

struct sweep *sweep_new(const struct sweep_view *view)
{
    struct sweep *sweep = calloc(1, sizeof(*sweep));

    if (!sweep) {
        return NULL;
    }
    sweep->view = *view;
    sweep->n_chunks = (view->n_pages + CHUNK_PAGES - 1) / CHUNK_PAGES;
    sweep->came = calloc(sweep->n_chunks + 1, sizeof(*sweep->came));
    if (!sweep->came || !ring_new(&sweep->recent, RECENT_ROOM) ||
        !ring_new(&sweep->probation, probation_room(view->n_pages))) {
        sweep_free(sweep);
        return NULL;
    }
    return sweep;
}

void sweep_free(struct sweep *sweep)
{
    if (sweep) {
        ring_free(&sweep->recent);
        ring_free(&sweep->probation);
        free((void *)sweep->came);
        free(sweep);
    }
}

/*
 * Add pages to the last place if it is of the same window, else to a new one.
 * Return: how many had been added before.
 */
static uint64_t ring_add(struct ring *ring, uint32_t window, uint64_t pages)
{
    uint64_t place = atomic_load_explicit(&ring->tail, memory_order_relaxed) - 1;

    if (place != UINT64_MAX && atomic_load_explicit(&ring->window[place % ring->room],
                                                    memory_order_relaxed) == window) {
        atomic_fetch_or_explicit(&ring->pages[place % ring->room], pages, memory_order_relaxed);
    } else {
        place = atomic_fetch_add_explicit(&ring->tail, 1, memory_order_relaxed) % ring->room;
        atomic_store_explicit(&ring->pages[place], pages, memory_order_relaxed);
        atomic_store_explicit(&ring->window[place], window, memory_order_relaxed);
    }
    return atomic_fetch_add_explicit(&ring->added, (uint64_t)__builtin_popcountll(pages),
                                     memory_order_relaxed);
}

/* Read the next place, if @distance pages came after it. Return: its pages, 0 if there is none. */
static uint64_t ring_read(struct ring *ring, struct follower *follower, uint64_t distance,
                          uint64_t *first)
{
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    uint64_t added = atomic_load_explicit(&ring->added, memory_order_relaxed);

    if (tail - follower->place > ring->room) { /* overrun: the oldest are left to the hand */
        follower->place = tail - ring->room;
    }
    if (follower->place + 1 >= tail) { /* the last place may still be added to; */
        follower->pages = added;       /* what was not counted shall not add up */
        return 0;
    }
    if (added <= follower->pages + distance) {
        return 0;
    }
    uint64_t place = follower->place++ % ring->room;
    uint64_t pages = atomic_load_explicit(&ring->pages[place], memory_order_relaxed);
    *first = (uint64_t)atomic_load_explicit(&ring->window[place], memory_order_relaxed) *
             SWEEP_WINDOW;
    follower->pages += (uint64_t)__builtin_popcountll(pages);
    return pages;
}

bool sweep_arrived(struct sweep *sweep, uint64_t page)
{
    uint64_t arrived = ring_add(&sweep->recent, (uint32_t)(page / SWEEP_WINDOW),
                                (uint64_t)1 << page % SWEEP_WINDOW);

    atomic_store_explicit(&sweep->came[page / CHUNK_PAGES], (uint32_t)arrived + 1,
                          memory_order_relaxed);
    return arrived % SWEEP_WINDOW == 0;
}

static void sweep_window(const struct sweep *sweep, uint64_t first)
{
    if (sweep->view.look && first < sweep->view.n_pages) {
        sweep->view.look(sweep->view.opaque, first);
    }
}

static enum sweep_state sweep_look(const struct sweep *sweep, uint64_t page)
{
    return page < sweep->view.n_pages ? sweep->view.state(sweep->view.opaque, page) : SWEEP_ABSENT;
}

/* Those of @pages that are in the state @wanted. */
static uint64_t sweep_filter(const struct sweep *sweep, uint64_t first, uint64_t pages,
                             enum sweep_state wanted)
{
    uint64_t found = 0;

    if (wanted == SWEEP_IDLE) {
        sweep_window(sweep, first);
    }
    for (; pages; pages &= pages - 1) {
        unsigned bit = (unsigned)__builtin_ctzll(pages);
        found |= (uint64_t)(sweep_look(sweep, first + bit) == wanted) << bit;
    }
    return found;
}

bool sweep_probation(struct sweep *sweep, struct sweep_step *step)
{
    uint64_t pages, first;

    *step = (struct sweep_step){0};
    while ((pages = ring_read(&sweep->recent, &sweep->marker, MARK_AFTER, &first)) != 0) {
        if (__builtin_popcountll(pages) >= TOGETHER) {
            ring_add(&sweep->probation, (uint32_t)(first / SWEEP_WINDOW), pages);
        }
        step->first = first;
        step->watch = sweep_filter(sweep, first, pages, SWEEP_TOUCHED);
        if (step->watch) {
            return true;
        }
    }
    return false;
}

/* Probation's end: pages that are idle leave. */
static bool sweep_judge(struct sweep *sweep, uint64_t local_pages, struct sweep_step *step)
{
    uint64_t pages;

    while ((pages = ring_read(&sweep->probation, &sweep->judge, local_pages / PROBATION_SHARE,
                              &step->first))) {
        step->leave = sweep_filter(sweep, step->first, pages, SWEEP_IDLE);
        if (step->leave) {
            return true;
        }
    }
    return false;
}

/* Counts are looked at four at a time: a sparse guest of 1 TiB has half a million, nearly all 0. */
typedef uint64_t __attribute__((may_alias)) four_counts;

static bool four_are_absent(const _Atomic uint16_t *count)
{
    return (uintptr_t)count % sizeof(four_counts) == 0 &&
           __atomic_load_n((const four_counts *)(const void *)count, __ATOMIC_RELAXED) == 0;
}

/* The first of chunks [chunk, end) that has resident pages, or @end. */
static uint64_t resident_chunk(const struct sweep *sweep, uint64_t chunk, uint64_t end)
{
    while (chunk < end) {
        const _Atomic uint16_t *count = &sweep->view.resident[chunk];
        if (chunk + 4 <= end && four_are_absent(count)) {
            chunk += 4;
        } else if (atomic_load_explicit(count, memory_order_relaxed)) {
            return chunk;
        } else {
            chunk++;
        }
    }
    return end;
}

/* A page of the chunk came lately, as seen from @local_pages. */
static bool chunk_is_young(const struct sweep *sweep, uint64_t chunk, uint64_t local_pages)
{
    uint32_t now = (uint32_t)atomic_load_explicit(&sweep->recent.added, memory_order_relaxed);
    uint32_t came = atomic_load_explicit(&sweep->came[chunk], memory_order_relaxed);

    return came && now - came < local_pages / YOUNG_SHARE;
}

/* Move the hand to the next window of a chunk that has resident pages. */
static bool hand_advance(struct sweep *sweep, uint64_t local_pages)
{
    uint64_t chunk, from;

    sweep->hand += SWEEP_WINDOW;
    if (sweep->hand % CHUNK_PAGES) {
        return true;
    }
    do {
        from = sweep->hand / CHUNK_PAGES;
        chunk = resident_chunk(sweep, from, sweep->n_chunks);
        if (chunk == sweep->n_chunks) {
            chunk = resident_chunk(sweep, 0, from < chunk ? from : chunk);
            if (chunk >= from) {
                return false;
            }
            sweep->lap++;
        }
        sweep->hand = (chunk + 1) * CHUNK_PAGES;
    } while (sweep->lap % 2 && chunk_is_young(sweep, chunk, local_pages));
    sweep->hand = chunk * CHUNK_PAGES;
    return true;
}

static void hand_look(struct sweep *sweep, struct sweep_step *step)
{
    uint64_t touched = 0, idle = 0;

    sweep_window(sweep, sweep->hand);
    for (unsigned i = 0; i < SWEEP_WINDOW; i++) {
        enum sweep_state state = sweep_look(sweep, sweep->hand + i);
        touched |= (uint64_t)(state == SWEEP_TOUCHED) << i;
        idle |= (uint64_t)(state == SWEEP_IDLE) << i;
    }
    int64_t paid = (int64_t)SWEEP_LOOKS * __builtin_popcountll(idle);
    sweep->looks += __builtin_popcountll(touched);
    sweep->looks = sweep->looks > paid ? sweep->looks - paid : 0;
    for (; touched && sweep->looks > LOOKS_MAX; sweep->looks -= SWEEP_LOOKS) {
        uint64_t one = touched & -touched;
        touched &= ~one;
        idle |= one;
    }
    *step = (struct sweep_step){.first = sweep->hand, .watch = touched, .leave = idle};
}

bool sweep_next(struct sweep *sweep, uint64_t local_pages, struct sweep_step *step)
{
    *step = (struct sweep_step){0};
    if (sweep_judge(sweep, local_pages, step)) {
        return true;
    }
    for (uint64_t began = sweep->lap; sweep->lap <= began + 2;) {
        if (!hand_advance(sweep, local_pages)) {
            return false;
        }
        hand_look(sweep, step);
        if (step->watch || step->leave) {
            return true;
        }
    }
    return false;
}
