// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * sweep.c - which pages leave local memory
 *
 * A pager does not see hits.  What it can do is to take the mapping of a resident page away and to look later
 * whether it is back; an access in between is a soft fault, which costs a twentieth of a page-in.  So accesses
 * are only looked for where the answer decides something:
 *
 *   - A hand goes round all resident pages in address order.  A page that is touched it has marked as
 *     idle ("watch"); a page that is still idle when the hand comes again leaves.  It is CLOCK, whose
 *     reference bit is a mapping.
 *   - A page that the hand had marked n times and is still here has been in use that often.  It is marked
 *     again in one lap of 2^n only, up to four, so what is always in use costs few minor faults.  A window has
 *     its turn as a whole: holes of single pages would break the runs that prefetch lives on.
 *   - Pages that arrive go on probation: a ring that holds a ninth of local memory.  Half-way through
 *     they are marked; whoever is idle at the end leaves, whoever was touched is left to the hand.  A
 *     scan so flows through the ring and drives nothing out, and pages prefetched in vain go first.
 *
 * Both together come close to CLOCK, LRU, ARC and LIRS that see every access (docs/benchmarks.md).
 *
 * Cost: a victim is found in constant time.  No more than SWEEP_LOOKS pages are looked at for each that
 * leaves; when more are touched the hand takes what it meets.  Chunks without resident pages are
 * skipped by two bytes each, four at once.  Memory: twelve bytes a place in the ring, one place for 512 pages.
 *
 * Ring: a place is a window of 64 pages and those that arrived of it, so a scan takes few places.
 * Producers take a place by counting up the tail, then store; they never wait.  If they overrun a
 * consumer, or a place is read before it is stored, a page is judged early or left to the hand.
 */
#include "predictor/sweep.h"

#include <stdlib.h>

#include "common/units.h"

#define PROBATION_SHARE 9 /* of local memory: how many pages are on probation */
#define RING_SHARE CHUNK_PAGES /* of all pages: the ring's places */
#define RING_MIN 64
#define TURNS_MAX 2
#define LOOKS_MAX ((int64_t)(SWEEP_LOOKS * SWEEP_WINDOW)) /* saved up, before touched pages leave */

/* One who follows the tail: marks pages half-way, or judges them at the end. */
struct follower {
    uint64_t place;
    uint64_t pages; /* that arrived before it, as far as it knows */
};

struct sweep {
    struct sweep_view view;
    uint64_t n_chunks;
    uint64_t hand; /* page; a multiple of SWEEP_WINDOW */
    uint64_t lap;
    int64_t looks; /* pages that were touched, less SWEEP_LOOKS for each that left */
    struct follower judge, marker;
    uint64_t room;
    _Atomic uint64_t tail, arrived; /* places, pages */
    _Atomic uint64_t *pages;        /* [room] bits */
    _Atomic uint32_t *window;       /* [room] */
};

static uint64_t ring_room(uint64_t n_pages)
{
    return n_pages / RING_SHARE > RING_MIN ? n_pages / RING_SHARE : RING_MIN;
}

uint64_t sweep_bytes(uint64_t n_pages)
{
    return sizeof(struct sweep) + ring_room(n_pages) * (sizeof(uint64_t) + sizeof(uint32_t));
}

struct sweep *sweep_new(const struct sweep_view *view)
{
    struct sweep *sweep = calloc(1, sizeof(*sweep));

    if (!sweep) {
        return NULL;
    }
    sweep->view = *view;
    sweep->n_chunks = (view->n_pages + CHUNK_PAGES - 1) / CHUNK_PAGES;
    sweep->room = ring_room(view->n_pages);
    sweep->pages = calloc(sweep->room, sizeof(*sweep->pages));
    sweep->window = calloc(sweep->room, sizeof(*sweep->window));
    if (!sweep->pages || !sweep->window) {
        sweep_free(sweep);
        return NULL;
    }
    return sweep;
}

void sweep_free(struct sweep *sweep)
{
    if (sweep) {
        free((void *)sweep->pages);
        free((void *)sweep->window);
        free(sweep);
    }
}

bool sweep_arrived(struct sweep *sweep, uint64_t page)
{
    uint64_t bit = (uint64_t)1 << page % SWEEP_WINDOW;
    uint32_t window = (uint32_t)(page / SWEEP_WINDOW);
    uint64_t place = atomic_load_explicit(&sweep->tail, memory_order_relaxed) - 1;
    uint64_t arrived = atomic_fetch_add_explicit(&sweep->arrived, 1, memory_order_relaxed);

    if (place != UINT64_MAX && atomic_load_explicit(&sweep->window[place % sweep->room],
                                                    memory_order_relaxed) == window) {
        atomic_fetch_or_explicit(&sweep->pages[place % sweep->room], bit, memory_order_relaxed);
    } else {
        place = atomic_fetch_add_explicit(&sweep->tail, 1, memory_order_relaxed) % sweep->room;
        atomic_store_explicit(&sweep->pages[place], bit, memory_order_relaxed);
        atomic_store_explicit(&sweep->window[place], window, memory_order_relaxed);
    }
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

/*
 * Let a follower go on until it is @distance pages behind, or has found pages that are idle, or touched.
 * Return: those, as bits; *first is their window.
 */
static uint64_t follow(struct sweep *sweep, struct follower *follower, uint64_t distance, bool idle,
                       uint64_t *first)
{
    uint64_t tail = atomic_load_explicit(&sweep->tail, memory_order_relaxed);
    uint64_t arrived = atomic_load_explicit(&sweep->arrived, memory_order_relaxed);
    uint64_t found = 0;

    if (tail - follower->place > sweep->room) { /* overrun: the oldest are left to the hand */
        follower->place = tail - sweep->room;
    }
    /* The last place may still be added to. */
    while (!found && follower->place + 1 < tail && arrived > follower->pages + distance) {
        uint64_t place = follower->place++ % sweep->room;
        uint64_t pages = atomic_load_explicit(&sweep->pages[place], memory_order_relaxed);
        *first = (uint64_t)atomic_load_explicit(&sweep->window[place], memory_order_relaxed) *
                 SWEEP_WINDOW;
        follower->pages += (uint64_t)__builtin_popcountll(pages);
        if (idle) {
            sweep_window(sweep, *first);
        }
        for (; pages; pages &= pages - 1) {
            unsigned bit = (unsigned)__builtin_ctzll(pages);
            enum sweep_state state = sweep_look(sweep, *first + bit);
            found |= (uint64_t)(idle ? state == SWEEP_IDLE : state >= SWEEP_TOUCHED) << bit;
        }
    }
    if (follower->place + 1 >= tail) { /* what was not counted shall not add up */
        follower->pages = arrived;
    }
    return found;
}

bool sweep_probation(struct sweep *sweep, uint64_t local_pages, struct sweep_step *step)
{
    *step = (struct sweep_step){0};
    step->watch = follow(sweep, &sweep->marker, local_pages / PROBATION_SHARE / 2, false,
                         &step->first);
    return step->watch;
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

/* Move the hand to the next window of a chunk that has resident pages. */
static bool hand_advance(struct sweep *sweep)
{
    sweep->hand += SWEEP_WINDOW;
    if (sweep->hand % CHUNK_PAGES) {
        return true;
    }
    uint64_t from = sweep->hand / CHUNK_PAGES;
    uint64_t chunk = resident_chunk(sweep, from, sweep->n_chunks);
    if (chunk == sweep->n_chunks) {
        chunk = resident_chunk(sweep, 0, from < chunk ? from : chunk);
        if (chunk >= from) {
            return false;
        }
    }
    sweep->lap += chunk < from;
    sweep->hand = chunk * CHUNK_PAGES;
    return true;
}

/* In one lap of so many a page is marked; @turn differs by window, so that each lap has its share. */
static bool its_turn(uint64_t turn, unsigned marked)
{
    return turn % (1u << (marked < TURNS_MAX ? marked : TURNS_MAX)) == 0;
}

static void hand_look(struct sweep *sweep, struct sweep_step *step)
{
    uint64_t touched = 0, idle = 0;
    uint64_t turn = sweep->lap + sweep->hand / SWEEP_WINDOW;

    sweep_window(sweep, sweep->hand);
    for (unsigned i = 0; i < SWEEP_WINDOW; i++) {
        enum sweep_state state = sweep_look(sweep, sweep->hand + i);
        if (state >= SWEEP_TOUCHED) {
            sweep->looks++;
            touched |= (uint64_t)its_turn(turn, (unsigned)state - SWEEP_TOUCHED) << i;
        }
        idle |= (uint64_t)(state == SWEEP_IDLE) << i;
    }
    int64_t paid = (int64_t)SWEEP_LOOKS * __builtin_popcountll(idle);
    sweep->looks = sweep->looks > paid ? sweep->looks - paid : 0;
    for (; touched && sweep->looks > LOOKS_MAX; sweep->looks -= SWEEP_LOOKS) {
        uint64_t one = touched & -touched;
        touched &= ~one;
        idle |= one;
    }
    *step = (struct sweep_step){.first = sweep->hand, .watch = touched, .counts = true, .leave = idle};
}

bool sweep_next(struct sweep *sweep, uint64_t local_pages, struct sweep_step *step)
{
    uint64_t before;

    *step = (struct sweep_step){0};
    step->leave = follow(sweep, &sweep->judge, local_pages / PROBATION_SHARE, true, &step->first);
    if (step->leave) {
        return true;
    }
    for (unsigned laps = 0; laps <= 1u << TURNS_MAX; laps += sweep->hand <= before) {
        before = sweep->hand;
        if (!hand_advance(sweep)) {
            return false;
        }
        hand_look(sweep, step);
        if (step->watch || step->leave) {
            return true;
        }
    }
    return false;
}
