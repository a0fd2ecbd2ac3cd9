// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * sweep.c - which pages leave local memory
 *
 * A pager does not see hits.  What it can do is to take the mapping of a resident page away; the next
 * access is then a minor fault, which costs a quarter of a page-in.  So accesses are only looked for
 * where the answer decides something:
 *
 *   - A hand goes round all resident pages in address order.  A page that is touched it has marked as
 *     idle ("watch"); a page that is still idle when the hand comes again leaves.  It is CLOCK, whose
 *     reference bit is a mapping.
 *   - Pages that arrive go on probation: a ring that holds a fiftieth of local memory.  Half-way through
 *     they are marked; whoever is idle at the end leaves, whoever was touched is left to the hand.  A
 *     scan so flows through the ring and drives nothing out, and pages prefetched in vain go first.
 *
 * Both together come close to CLOCK, LRU, ARC and LIRS that see every access (docs/benchmarks.md).
 *
 * Cost: a victim is found in constant time.  No more than SWEEP_LOOKS pages are looked at for each that
 * leaves; when more are touched the hand takes what it meets.  Chunks without resident pages are skipped
 * by two bytes each.  Memory: four bytes a place in the ring, and at most one place for 256 pages.
 *
 * Ring: producers take a place by counting up the tail, then store; they never wait.  If they overrun
 * the consumer, or a place is read before it is stored, a page is judged early or left to the hand.
 */
#include "predictor/sweep.h"

#include <stdlib.h>

#include "common/units.h"

#define PROBATION_SHARE 50 /* of local memory: the ring's length */
#define RING_SHARE 256     /* of all pages: its room */
#define RING_MIN 64
#define LOOKS_MAX ((int64_t)(SWEEP_LOOKS * SWEEP_WINDOW)) /* saved up, before touched pages leave */

struct sweep {
    struct sweep_view view;
    uint64_t n_chunks;
    uint64_t hand; /* page; a multiple of SWEEP_WINDOW */
    uint64_t room;
    uint64_t head, middle; /* places judged; places marked */
    _Atomic uint64_t tail;
    int64_t looks; /* pages that were touched, less SWEEP_LOOKS for each that left */
    _Atomic uint32_t ring[];
};

static uint64_t ring_room(uint64_t n_pages)
{
    return n_pages / RING_SHARE > RING_MIN ? n_pages / RING_SHARE : RING_MIN;
}

uint64_t sweep_bytes(uint64_t n_pages)
{
    return sizeof(struct sweep) + ring_room(n_pages) * sizeof(uint32_t);
}

struct sweep *sweep_new(const struct sweep_view *view)
{
    struct sweep *sweep = calloc(1, sweep_bytes(view->n_pages));

    if (sweep) {
        sweep->view = *view;
        sweep->n_chunks = (view->n_pages + CHUNK_PAGES - 1) / CHUNK_PAGES;
        sweep->room = ring_room(view->n_pages);
    }
    return sweep;
}

void sweep_free(struct sweep *sweep)
{
    free(sweep);
}

void sweep_arrived(struct sweep *sweep, uint64_t page)
{
    uint64_t place = atomic_fetch_add_explicit(&sweep->tail, 1, memory_order_relaxed);

    atomic_store_explicit(&sweep->ring[place % sweep->room], (uint32_t)page, memory_order_relaxed);
}

static enum sweep_state sweep_look(const struct sweep *sweep, uint64_t page)
{
    return page < sweep->view.n_pages ? sweep->view.state(sweep->view.opaque, page) : SWEEP_ABSENT;
}

/*
 * Take pages from the ring at *@place, before @end, as long as they are of one window.
 * Return: those in @wanted state, as bits; *first is the window.
 */
static uint64_t ring_take(struct sweep *sweep, uint64_t *place, uint64_t end,
                          enum sweep_state wanted, uint64_t *first)
{
    uint64_t found = 0;

    for (bool any = false; *place < end; (*place)++) {
        uint64_t page =
            atomic_load_explicit(&sweep->ring[*place % sweep->room], memory_order_relaxed);
        uint64_t window = page - page % SWEEP_WINDOW;
        if (any && window != *first) {
            break;
        }
        any = true;
        *first = window;
        if (sweep_look(sweep, page) == wanted) {
            found |= (uint64_t)1 << page % SWEEP_WINDOW;
        }
    }
    return found;
}

/* Return: whether there is something to do for pages on probation. */
static bool sweep_ring(struct sweep *sweep, uint64_t local_pages, struct sweep_step *step)
{
    uint64_t tail = atomic_load_explicit(&sweep->tail, memory_order_relaxed);
    uint64_t length = local_pages / PROBATION_SHARE;

    length = length < sweep->room ? length : sweep->room;
    if (tail - sweep->head > sweep->room) { /* overrun: the oldest are left to the hand */
        sweep->head = tail - sweep->room;
    }
    sweep->middle = sweep->middle < sweep->head ? sweep->head : sweep->middle;
    while (sweep->middle + length / 2 < tail) {
        step->watch =
            ring_take(sweep, &sweep->middle, tail - length / 2, SWEEP_TOUCHED, &step->first);
        if (step->watch) {
            return true;
        }
    }
    while (sweep->head + length < tail) {
        step->leave = ring_take(sweep, &sweep->head, tail - length, SWEEP_IDLE, &step->first);
        if (step->leave) {
            return true;
        }
    }
    return false;
}

/* Move the hand to the next window of a chunk that has resident pages. */
static bool hand_advance(struct sweep *sweep)
{
    sweep->hand += SWEEP_WINDOW;
    if (sweep->hand % CHUNK_PAGES) {
        return true;
    }
    uint64_t chunk = sweep->hand / CHUNK_PAGES;
    for (uint64_t i = 0; i <= sweep->n_chunks; i++, chunk++) {
        chunk = chunk >= sweep->n_chunks ? 0 : chunk;
        if (atomic_load_explicit(&sweep->view.resident[chunk], memory_order_relaxed)) {
            sweep->hand = chunk * CHUNK_PAGES;
            return true;
        }
    }
    return false;
}

static void hand_look(struct sweep *sweep, struct sweep_step *step)
{
    uint64_t touched = 0, idle = 0;

    for (unsigned i = 0; i < SWEEP_WINDOW; i++) {
        enum sweep_state state = sweep_look(sweep, sweep->hand + i);
        touched |= (uint64_t)(state == SWEEP_TOUCHED) << i;
        idle |= (uint64_t)(state == SWEEP_IDLE) << i;
    }
    sweep->looks += __builtin_popcountll(touched);
    int64_t paid = (int64_t)SWEEP_LOOKS * __builtin_popcountll(idle);
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
    uint64_t before;

    *step = (struct sweep_step){0};
    if (sweep_ring(sweep, local_pages, step)) {
        return true;
    }
    for (unsigned laps = 0; laps < 2; laps += sweep->hand <= before) {
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
