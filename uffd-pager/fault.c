// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * fault.c - read faults, answer them
 *
 * One turn of a fault thread's loop: read up to FAULT_EVENTS faults without waiting; answer what can
 * be answered here; queue READs for the rest; send them, one send a sub-host; take answers.  While
 * something happens it turns again, then it spins for a bounded time (waking up costs about 35 us,
 * half of a page-in), then it sleeps in epoll.
 *
 * Only the first thread waits for faults.  If all did, a fault would wake a sleeping one although
 * another one that spins would find it at once, and both would be in each other's way.  When more
 * come at once than one thread should answer (FAULT_MANY) it has the others read, too, as long as
 * they find any.
 *
 * Spinning pays only if a core is free: not more than a quarter of the cores spin, it yields, and its
 * time is doubled when what was waited for came soon enough to be spun for, and halved when it did not.  An
 * answer that is under way is waited for longer than a fault that may never come, and the two times adapt
 * on their own.
 */
#include "uffd-pager/fault.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/urgent.h"
#include "uffd-pager/uffd_abi.h"

#define FAULT_TICK_MS 20 /* while something is parked or owed */
#define FAULT_STUCK_US 1000000u
#define FAULT_ZERO_PAGES 64u
#define FAULT_MANY 4u /* faults that come together */
#define FAULT_SPIN_ANSWER 2u /* how much longer an answer is waited for than a fault */

/* ---- parking ---- */

void fault_park(struct fault_thread *thread, uint64_t page, uint64_t flags, uint64_t began_us)
{
    if (thread->parked_n == FAULT_PARKED) {
        thread->overflow = true;
        return;
    }
    unsigned at = (thread->parked_first + thread->parked_n) % FAULT_PARKED;
    thread->parked[at] = (struct fault_parked){
        .page = page, .began_us = began_us, .parked_us = thread->now_us, .flags = flags};
    thread->parked_n++;
    atomic_fetch_add_explicit(&thread->engine->parked, 1, memory_order_acq_rel);
    pageout_kick(thread->engine);
}

void fault_again(struct fault_thread *thread, uint64_t page, uint64_t flags, uint64_t began_us,
                 int err)
{
    if (err == -ENOENT) { /* unmapped by the guest's process: whoever waits may see for himself */
        page_wake(thread->engine, layout_by_flat(thread->engine->layout, page * PAGE_BYTES), page,
                  1);
    } else if (err != -ESRCH) {
        fault_park(thread, page, flags, began_us);
    }
}

static void fault_unpark(struct fault_thread *thread)
{
    struct engine *engine = thread->engine;
    unsigned n = thread->parked_n;

    for (unsigned i = 0; i < n; i++) {
        struct fault_parked parked = thread->parked[thread->parked_first];
        unsigned before = thread->parked_n;
        thread->parked_first = (thread->parked_first + 1) % FAULT_PARKED;
        thread->parked_n--;
        atomic_fetch_sub_explicit(&engine->parked, 1, memory_order_acq_rel);
        fault_handle(thread, parked.page, parked.flags, parked.began_us);
        if (thread->parked_n == before) { /* parked again: the others would be too */
            unsigned last = (thread->parked_first + thread->parked_n - 1) % FAULT_PARKED;
            thread->parked[last].parked_us = parked.parked_us;
            break;
        }
    }
    if (thread->overflow && thread->parked_n == 0) {
        thread->overflow = false;
        for (uint32_t i = 0; i < engine->layout->n_blocks; i++) {
            const struct layout_block *block = &engine->layout->block[i];
            page_wake(engine, block, block->flat / PAGE_BYTES, block->size / PAGE_BYTES);
        }
    }
}

/* Nothing was freed for a second, and somebody has waited for that long. */
static void fault_judge_parked(struct fault_thread *thread)
{
    uint64_t freed = atomic_load_explicit(&thread->engine->freed_us, memory_order_relaxed);
    uint64_t oldest = UINT64_MAX;

    for (unsigned i = 0; i < thread->parked_n; i++) {
        uint64_t at = thread->parked[(thread->parked_first + i) % FAULT_PARKED].parked_us;
        oldest = at < oldest ? at : oldest;
    }
    if (thread->parked_n && thread->now_us > oldest + FAULT_STUCK_US &&
        thread->now_us > freed + FAULT_STUCK_US) {
        room_stuck(thread->engine, "nothing could be paged out for a second");
    }
}

/* ---- the kinds of faults; each returns false if the page has changed hands meanwhile ---- */

/* How many pages a run of zero faults that has come to @page is worth: it doubles while it goes on. */
static unsigned fault_zero_run(struct engine *engine, uint64_t page)
{
    unsigned run = atomic_load_explicit(&engine->zero_run, memory_order_relaxed);

    if (atomic_load_explicit(&engine->zero_next, memory_order_relaxed) != page) {
        run = 0;
    }
    run = run ? run * 2 : 1;
    return run > FAULT_ZERO_PAGES ? FAULT_ZERO_PAGES : run;
}

static bool fault_zero(struct fault_thread *thread, const struct layout_block *block, uint64_t page,
                       uint64_t flags, uint64_t began_us)
{
    struct engine *engine = thread->engine;
    uint64_t chunk = page_chunk(page);

    if (!room_take(engine, chunk)) {
        fault_park(thread, page, flags, began_us);
        return true;
    }
    if (!pagemap_lock(engine->map, page, PAGE_UNTOUCHED)) {
        room_give(engine, chunk, 1);
        return false;
    }
    unsigned want = fault_zero_run(engine, page);
    unsigned n = 1;
    while (n < want && page + n < page_end(block) && page_chunk(page + n) == chunk &&
           pagemap_get(engine->map, page + n) == PAGE_UNTOUCHED &&
           room_take_spare(engine, chunk)) {
        if (!pagemap_lock(engine->map, page + n, PAGE_UNTOUCHED)) {
            room_give(engine, chunk, 1);
            break;
        }
        n++;
    }
    atomic_store_explicit(&engine->zero_next, page + n, memory_order_relaxed);
    atomic_store_explicit(&engine->zero_run, n, memory_order_relaxed);
    int err = install_zero(engine, block, page, n);
    if (err < 0) {
        fault_again(thread, page, flags, began_us, err);
    } else {
        engine_arrived(engine, page, n);
    }
    stats_add(&engine->stats.zero_fills, 1);
    return true;
}

static bool fault_remote(struct fault_thread *thread, uint64_t page, uint64_t flags,
                         uint64_t began_us)
{
    struct engine *engine = thread->engine;

    if (!fetch_can_begin(thread) || !room_take(engine, page_chunk(page))) {
        fault_park(thread, page, flags, began_us);
        return true;
    }
    if (!pagemap_lock(engine->map, page, PAGE_REMOTE)) {
        room_give(engine, page_chunk(page), 1);
        return false;
    }
    fetch_begin(thread, page, flags & UFFD_PAGEFAULT_FLAG_WRITE, began_us);
    return true;
}

/* A hole where the guest has discarded the page, or an old fault on a page that is there now. */
static bool fault_local_hole(struct fault_thread *thread, const struct layout_block *block,
                             uint64_t page, uint64_t flags, uint64_t began_us)
{
    struct engine *engine = thread->engine;

    if (!pagemap_lock(engine->map, page, PAGE_LOCAL)) {
        return false;
    }
    page_retag(engine->map, page, PAGE_UNTOUCHED); /* should we die now, a hole is not REMOTE */
    int err = install_zero(engine, block, page, 1);
    if (err < 0) {
        fault_again(thread, page, flags, began_us, err);
    }
    return true;
}

static bool fault_clean_hole(struct fault_thread *thread, const struct layout_block *block,
                             uint64_t page, uint64_t flags, uint64_t began_us)
{
    struct engine *engine = thread->engine;
    off_t at = layout_file(block, page * PAGE_BYTES);

    if (!fetch_can_begin(thread)) {
        fault_park(thread, page, flags, began_us);
        return true;
    }
    if (!pagemap_lock(engine->map, page, PAGE_CLEAN)) {
        return false;
    }
    if (lseek(block->fd, at, SEEK_DATA) == at) {
        page_release(engine->map, page, PAGE_CLEAN);
        page_wake(engine, block, page, 1);
        return true;
    }
    page_retag(engine->map, page, PAGE_REMOTE); /* its room is taken already */
    fetch_begin(thread, page, flags & UFFD_PAGEFAULT_FLAG_WRITE, began_us);
    return true;
}

static bool fault_missing(struct fault_thread *thread, const struct layout_block *block,
                          uint64_t page, uint64_t flags, uint8_t state, uint64_t began_us)
{
    switch (state) {
    case PAGE_UNTOUCHED:
        return fault_zero(thread, block, page, flags, began_us);
    case PAGE_REMOTE:
        return fault_remote(thread, page, flags, began_us);
    case PAGE_LOCAL:
        return fault_local_hole(thread, block, page, flags, began_us);
    default:
        return fault_clean_hole(thread, block, page, flags, began_us);
    }
}

static bool fault_protected(struct fault_thread *thread, const struct layout_block *block,
                            uint64_t page, uint8_t state)
{
    struct engine *engine = thread->engine;

    if (state != PAGE_CLEAN && state != PAGE_LOCAL) {
        page_wake(engine, block, page, 1); /* it was evicted meanwhile */
        return true;
    }
    if (!pagemap_lock(engine->map, page, state)) {
        return false;
    }
    int err = uffd_unprotect(engine->uffd, page_hva(block, page), PAGE_BYTES);
    if (err == -ESRCH) {
        engine_gone(engine);
    }
    install_used(engine, page);
    page_unlock(engine, block, page, PAGE_LOCAL);
    stats_add(&engine->stats.wp_faults, 1);
    install_learn(engine, page, true);
    return true;
}

void fault_handle(struct fault_thread *thread, uint64_t page, uint64_t flags, uint64_t began_us)
{
    struct engine *engine = thread->engine;
    const struct layout_block *block = layout_by_flat(engine->layout, page * PAGE_BYTES);
    bool done = false;

    while (!done && !engine_over(engine)) {
        uint8_t byte = pagemap_get(engine->map, page);
        uint8_t state = page_state(byte);
        if (byte & PAGE_BUSY) {
            done = page_missed(engine->map, page);
        } else if (state == PAGE_LOST) {
            done = true;
            if (uffd_poison(engine->uffd, page_hva(block, page)) == -ESRCH) {
                engine_gone(engine);
            }
        } else if (flags & UFFD_PAGEFAULT_FLAG_WP) {
            done = fault_protected(thread, block, page, state);
        } else {
            done = fault_missing(thread, block, page, flags, state, began_us);
        }
    }
}

/* ---- the loop ---- */

/* Have one more thread read faults. */
static void fault_call_help(struct engine *engine)
{
    unsigned n = atomic_load_explicit(&engine->n_fault, memory_order_acquire);

    for (unsigned i = 1; i < n; i++) {
        struct fault_thread *thread = engine->fault[i];
        if (!atomic_load_explicit(&thread->reads, memory_order_relaxed) &&
            !atomic_exchange_explicit(&thread->reads, true, memory_order_acq_rel)) {
            engine_kick(thread->kick);
            return;
        }
    }
}

static bool fault_read(struct fault_thread *thread)
{
    struct uffd_msg messages[FAULT_EVENTS];
    ssize_t size = read(thread->engine->uffd, messages, sizeof(messages));
    size_t n = size > 0 ? (size_t)size / sizeof(messages[0]) : 0;

    if (n == 0) {
        atomic_store_explicit(&thread->reads, thread->index == 0, memory_order_release);
        return false;
    }
    if (n >= FAULT_MANY) {
        fault_call_help(thread->engine);
    }
    thread->now_us = units_now_us();
    for (size_t i = 0; i < n; i++) {
        const struct uffd_msg *message = &messages[i];
        if (message->event != UFFD_EVENT_PAGEFAULT) {
            continue;
        }
        uint64_t address = message->arg.pagefault.address & ~(PAGE_BYTES - 1);
        const struct layout_block *block = layout_by_hva(thread->engine->layout, address);
        if (block) {
            fault_handle(thread, (block->flat + (address - block->hva)) / PAGE_BYTES,
                         message->arg.pagefault.flags, thread->now_us);
        }
    }
    return true;
}

static void fault_attend(struct fault_thread *thread)
{
    fetch_attend(thread);
    fault_judge_parked(thread);
    fault_unpark(thread);
    thread->attend_us = thread->now_us + FAULT_TICK_MS * 1000;
}

static bool fault_turn(struct fault_thread *thread)
{
    bool busy =
        atomic_load_explicit(&thread->reads, memory_order_acquire) && fault_read(thread);

    if (atomic_load_explicit(&thread->kicked, memory_order_relaxed) &&
        atomic_exchange_explicit(&thread->kicked, false, memory_order_acq_rel)) {
        fault_attend(thread);
        busy = true;
    } else if (thread->now_us > thread->attend_us) {
        fault_attend(thread);
    }
    if (thread->in_flight) {
        fetch_flush(thread);
        busy |= fetch_receive(thread);
    }
    return busy;
}

/* Return: true if something happened. */
static bool fault_spin(struct fault_thread *thread, unsigned spin_us)
{
    struct engine *engine = thread->engine;
    uint64_t until = units_now_us() + spin_us;
    bool busy = false;

    if (!atomic_load_explicit(&thread->reads, memory_order_relaxed) && !thread->in_flight) {
        return false;
    }
    if (atomic_fetch_add_explicit(&engine->spinners, 1, memory_order_relaxed) >=
        engine->max_spinners) {
        atomic_fetch_sub_explicit(&engine->spinners, 1, memory_order_relaxed);
        return false;
    }
    while (!busy && units_now_us() < until && !engine_over(engine)) {
        sched_yield();
        busy = fault_turn(thread);
    }
    atomic_fetch_sub_explicit(&engine->spinners, 1, memory_order_relaxed);
    return busy;
}

/*
 * By how long was waited in all, asleep or not, and not by what was found spinning: a time that has come
 * below what is waited for finds nothing any more, and would stay there.
 */
static void fault_adapt(unsigned *spin_us, unsigned most, uint64_t waited_us)
{
    if (waited_us <= most) {
        *spin_us = *spin_us * 2 > most ? most : *spin_us * 2;
    } else if (*spin_us > 2) {
        *spin_us /= 2;
    }
}

static void fault_sleep(struct fault_thread *thread)
{
    struct epoll_event events[16];
    bool waits = thread->parked_n || thread->in_flight || thread->overflow;
    int n = 0;

    if (fetch_may_sleep(thread)) {
        n = epoll_wait(thread->epoll, events, 16, waits ? FAULT_TICK_MS : -1);
    }

    thread->now_us = units_now_us();
    for (int i = 0; i < n; i++) {
        uint64_t source = events[i].data.u64;
        if (source == FAULT_POLL_KICK) {
            uint64_t count;
            ssize_t ignored = read(thread->kick, &count, sizeof(count));
            (void)ignored;
            atomic_store_explicit(&thread->kicked, true, memory_order_release);
        } else if (source != FAULT_POLL_UFFD && thread->links[source].owed == 0) {
            atomic_store_explicit(&thread->kicked, true, memory_order_release);
        }
    }
}

static void *fault_main(void *arg)
{
    struct fault_thread *thread = arg;
    struct engine *engine = thread->engine;

    urgent_thread();
    thread->now_us = units_now_us();
    while (!engine_over(engine)) {
        if (fault_turn(thread)) {
            continue;
        }
        bool answer = thread->in_flight > 0;
        unsigned *spin_us = answer ? &thread->spin_answer_us : &thread->spin_us;
        uint64_t began_us = units_now_us();
        if (!fault_spin(thread, *spin_us)) {
            fault_sleep(thread);
        }
        fault_adapt(spin_us, engine->config.spin_us * (answer ? FAULT_SPIN_ANSWER : 1),
                    units_now_us() - began_us);
    }
    return NULL;
}

int fault_poll_add(struct fault_thread *thread, int fd, uint32_t events, uint64_t source)
{
    struct epoll_event event = {.events = events, .data.u64 = source};

    return epoll_ctl(thread->epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

int fault_start(struct engine *engine, unsigned index)
{
    struct fault_thread *thread = calloc(1, sizeof(*thread));

    if (!thread) {
        return -ENOMEM;
    }
    engine->fault[index] = thread;
    thread->engine = engine;
    thread->index = index;
    atomic_init(&thread->reads, index == 0);
    thread->spin_us = thread->spin_answer_us = engine->config.spin_us;
    thread->epoll = epoll_create1(EPOLL_CLOEXEC);
    thread->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    for (unsigned i = 0; i < FAULT_SLOTS; i++) {
        thread->slot[i].next = i + 1 < FAULT_SLOTS ? (uint16_t)(i + 1) : FAULT_NO_SLOT;
    }
    int err = thread->epoll < 0 || thread->kick < 0 ? -EMFILE : 0;
    err = err < 0 ? err : fault_poll_add(thread, thread->kick, EPOLLIN, FAULT_POLL_KICK);
    if (err == 0 && index == 0) {
        err = fault_poll_add(thread, engine->uffd, EPOLLIN, FAULT_POLL_UFFD);
    }
    err = err < 0 ? err : fetch_open(thread);
    err = err < 0 ? err : engine_thread(&thread->thread, "fault", index, fault_main, thread);
    thread->started = err == 0;
    if (err == 0) {
        atomic_fetch_add_explicit(&engine->n_fault, 1, memory_order_acq_rel);
    }
    return err;
}

void fault_join(struct engine *engine, unsigned index)
{
    struct fault_thread *thread = engine->fault[index];

    if (thread && thread->started) {
        engine_kick(thread->kick);
        pthread_join(thread->thread, NULL);
        thread->started = false;
    }
}

void fault_free(struct engine *engine, unsigned index)
{
    struct fault_thread *thread = engine->fault[index];

    if (!thread) {
        return;
    }
    fetch_close(thread);
    close(thread->epoll);
    close(thread->kick);
    engine->fault[index] = NULL;
    free(thread);
}

void fault_kick(struct engine *engine)
{
    unsigned n = atomic_load_explicit(&engine->n_fault, memory_order_acquire);

    for (unsigned i = 0; i < n; i++) {
        struct fault_thread *thread = engine->fault[i];
        if (!atomic_exchange_explicit(&thread->kicked, true, memory_order_acq_rel)) {
            engine_kick(thread->kick);
        }
    }
}
