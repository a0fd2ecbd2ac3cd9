/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * engine_impl.h - inside the engine: what its threads share
 *
 * Threads
 * -------
 *   fault-N    reads faults, answers them, READs pages in              fault.c
 *   pageout    writes cold pages to the sub-hosts, frees memory        pageout*.c
 *   prefetch   READs pages in that will be wanted soon                 engine_prefetch.c
 *   quiet      samples accesses by chunk, ages                         engine_quiet.c
 *   drain      moves chunks away from a sub-host that is to be empty   engine_drain.c,
 *              or wants memory back                                    chunk_*.c
 *   repair     makes missing second copies                             engine_repair.c
 *   backup     writes second copies to a file                          backup.c
 *   watch      marks pages as idle for page-out, has them unmapped     engine_watch.c
 *   subhost-N  (re)connects the others' links to one sub-host,         link_host.c
 *              tells the operator
 *
 * What they share is the page map, whose PAGE_BUSY is the only lock on pages
 * (common/pagemap.h); counters, which are atomics; and struct link_host, with a
 * mutex that is never held over anything slow.
 *
 * Answers to faults
 * -----------------
 * Every fault that is read from the userfaultfd comes to exactly one of these
 * ends, else a guest would hang:
 *   - the page is installed or its protection lifted, which wakes;
 *   - it is woken without a change, and faults again for what is true now;
 *   - the page is busy: PAGE_MISSED is set in its byte, by which the owner
 *     knows that it has to wake once more after it has unlocked the page;
 *   - it is parked in the thread's list until there is room.
 *
 * Room
 * ----
 * Each page that exists in the memfds is counted in engine.resident before it
 * is installed and until after it is punched, so the memfds' blocks are never
 * above the counter, and the counter is held at or below engine.limit.
 */
#ifndef UFFD_PAGER_ENGINE_IMPL_H
#define UFFD_PAGER_ENGINE_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "predictor/predictor.h"
#include "predictor/sweep.h"
#include "uffd-pager/engine.h"
#include "uffd-pager/link.h"
#include "uffd-pager/stats.h"

#define ENGINE_LOST_AFTER_MS 30000u
#define ENGINE_FAULT_THREADS 2u
#define ENGINE_MAX_FAULT_THREADS 16u
#define ENGINE_SPIN_US 50u
#define ENGINE_CHOICES 2u

/* engine.chunk_flags */
#define CHUNK_FENCED 0x01u  /* an old WRITE or TRIM may still land on the sub-host: do not page out */
#define CHUNK_TRIM 0x02u    /* it has pages that are to be trimmed first (pageout_trim.c) */
#define CHUNK_MOVING 0x10u  /* on its way to another sub-host: do not page out (chunk_move.c) */
#define CHUNK_WRITTEN 0x20u /* this times 0 to 7: how likely a page of it is written while it is here */
#define CHUNK_WRITTEN_MAX 7u

struct backup;
struct fault_thread;
struct drain;
struct pageout;
struct prefetch;
struct quiet;
struct trim;
struct repair;

struct engine {
    struct engine_config config;
    const struct layout *layout;
    struct pagemap *map;
    int uffd;
    struct predictor *predictor;
    struct sweep *sweep; /* victims by page; NULL: by chunk, by the predictor */

    _Atomic bool stop;
    _Atomic bool gone; /* the guest's process is; everything quiet from here on */

    /* Room, in pages */
    _Atomic int64_t resident;
    _Atomic int64_t limit; /* the budget, or more while page-out works down to it */
    _Atomic int64_t budget, low, high;
    _Atomic bool stuck; /* page-out cannot make room: the limit does not hold */
    _Atomic uint64_t freed_us; /* when page-out last freed something */
    _Atomic unsigned parked;   /* faults that wait for room */
    pthread_mutex_t limit_lock;
    uint64_t window_us, window_pages; /* limit_lock: freed lately, while stuck */
    uint64_t stuck_told_us;           /* limit_lock */
    _Atomic uint16_t *chunk_resident; /* [n_chunks] */
    _Atomic uint8_t *chunk_flags;     /* [n_chunks] */

    struct trim *trim; /* discarded pages that may have copies on sub-hosts */
    _Atomic unsigned trim_chunks;

    _Atomic uint64_t zero_next; /* the page a run of zero faults would touch next */
    _Atomic unsigned zero_run;
    _Atomic int spinners; /* fault threads that spin now */
    int max_spinners;

    _Atomic unsigned pausing; /* sub-hosts for which the guest is stopped */
    pthread_mutex_t pause_lock;
    struct link_host *hosts; /* [config.n_subhosts] */
    struct fault_thread *fault[ENGINE_MAX_FAULT_THREADS];
    _Atomic unsigned n_fault;
    struct pageout *pageout;
    struct drain *drain;
    struct repair *repair; /* NULL: no redundancy */
    struct backup *backup; /* NULL: none */
    pthread_mutex_t move_lock; /* held while CHUNK_MOVING is set, and while a batch begins */
    struct prefetch *prefetch;
    struct quiet *quiet;
    struct watch *watch;
    struct stats stats;
};

/** engine_event() - tell the operator; steals @data */
void engine_event(struct engine *engine, const char *name, json_t *data);

/** engine_thread() - start a named thread. Return: 0 or -errno. */
int engine_thread(pthread_t *thread, const char *name, unsigned n, void *(*run)(void *), void *arg);

/** engine_buffer() - memory for page contents: not in cores. Return: NULL if there is none. */
void *engine_buffer(size_t size);
void engine_buffer_free(void *buffer, size_t size);

/** engine_kick() - write an eventfd */
void engine_kick(int fd);

/**
 * engine_want_trim() - @page is UNTOUCHED now: whatever its sub-host holds of it is to be freed
 * By the page's owner, before it is unlocked (pageout_trim.c).
 */
void engine_want_trim(struct engine *engine, uint64_t page);

/** trim_new()/trim_free() - the pages that are to be trimmed: none. Return: NULL if memory is out. */
struct trim *trim_new(void);
void trim_free(struct trim *trim);

/** watch_kick() - pages have arrived: see which of them are used; any thread (engine_watch.c) */
void watch_kick(struct engine *engine);

/** engine_arrived() - @n pages were installed that were not here before; any thread */
static inline void engine_arrived(struct engine *engine, uint64_t first, uint64_t n)
{
    for (uint64_t i = 0; engine->sweep && i < n; i++) {
        if (sweep_arrived(engine->sweep, first + i)) {
            watch_kick(engine);
        }
    }
}

/** engine_gone() - the guest's process is exiting: stop working, without a word */
void engine_gone(struct engine *engine);

static inline bool engine_over(const struct engine *engine)
{
    return atomic_load_explicit(&engine->stop, memory_order_acquire) ||
           atomic_load_explicit(&engine->gone, memory_order_acquire);
}

/* ---- engine_room.c: room in memory ---- */

/**
 * room_take() - count one page of @chunk as resident, if there is room
 * Wakes page-out above the high watermark.  Any thread.
 */
bool room_take(struct engine *engine, uint64_t chunk);

/** room_take_spare() - the same, but only below the high watermark: for what nobody waits for */
bool room_take_spare(struct engine *engine, uint64_t chunk);

/** room_force() - count a page that is there already, whether there is room or not */
void room_force(struct engine *engine, uint64_t chunk);

/** room_give() - @n pages of @chunk are not resident any more */
void room_give(struct engine *engine, uint64_t chunk, unsigned n);

/** room_freed() - page-out has given @n pages back: lower the limit, let parked faults go on */
void room_freed(struct engine *engine, unsigned n);

/** room_stuck() - page-out cannot make room: let the guest go on, tell the operator once */
void room_stuck(struct engine *engine, const char *why);

/** room_set() - new limits, in bytes, checked. Return: 0 or -EINVAL. */
int room_set(struct engine *engine, uint64_t budget, uint64_t low, uint64_t high,
             struct reason *reason);

/*
 * Starting and ending threads: X_start() may fail in the middle; X_join() ends the thread, X_free()
 * comes when all threads have been joined.  Both do nothing for what was not started.
 */

/* ---- fault.c ---- */
int fault_start(struct engine *engine, unsigned index);
void fault_join(struct engine *engine, unsigned index);
void fault_free(struct engine *engine, unsigned index);
/** fault_kick() - there may be room for parked faults; any thread */
void fault_kick(struct engine *engine);

/* ---- pageout.c ---- */
int pageout_start(struct engine *engine);
void pageout_join(struct engine *engine);
void pageout_free(struct engine *engine);
/** pageout_kick() - there is something to page out or to trim; any thread */
void pageout_kick(struct engine *engine);

/* ---- pageout_place.c ---- */
/**
 * place_begin() - a home for each slab that has pages on a sub-host; no other thread runs
 * @fresh: the guest has just arrived: what is on no sub-host has no place yet
 */
void place_begin(struct engine *engine, bool fresh);

/* ---- engine_drain.c ---- */
/** drain_prepare() - before any thread runs that may call drain_want() */
int drain_prepare(struct engine *engine);
/** drain_start() - after link_hosts_start(), before pageout_start(): it says which sub-hosts take pages */
int drain_start(struct engine *engine);
void drain_join(struct engine *engine);
/** drain_end() - free, when the sub-hosts' threads have ended, too */
void drain_end(struct engine *engine);
/** drain_kick() - there is something to settle, to move or to tidy; any thread */
void drain_kick(struct engine *engine);
/** drain_want() - sub-host @index wants back what is in [offset, offset + length) of its region; any thread */
void drain_want(struct engine *engine, unsigned index, uint64_t offset, uint64_t length);

/* ---- engine_repair.c ---- */
/** @recover: an earlier worker's WRITEs may still be on their way */
int repair_start(struct engine *engine, bool recover);
void repair_join(struct engine *engine);
void repair_free(struct engine *engine);
/** repair_hint() - pages of @chunk cannot leave before its second copy is made; any thread */
void repair_hint(struct engine *engine, uint64_t chunk);

/* ---- engine_prefetch.c ---- */
int prefetch_start(struct engine *engine);
void prefetch_join(struct engine *engine);
void prefetch_free(struct engine *engine);
/** prefetch_push() - @page was paged in: look around it; dropped if much is waiting; any thread */
void prefetch_push(struct engine *engine, uint64_t page);

/* ---- engine_quiet.c ---- */
int quiet_start(struct engine *engine);
void quiet_join(struct engine *engine);
void quiet_free(struct engine *engine);

/* ---- engine_look.c ---- */
/**
 * look_window() - take PAGE_IDLE away from those of SWEEP_WINDOW pages that were accessed since they were marked
 * @first: page, a multiple of SWEEP_WINDOW.  Any thread.
 * Return: bit i: page @first + i is mapped; 0 if that cannot be seen.
 */
uint64_t look_window(struct engine *engine, uint64_t first);

/* ---- engine_watch.c ---- */
int watch_start(struct engine *engine);
void watch_join(struct engine *engine);
void watch_free(struct engine *engine);
/**
 * watch_push() - mark pages as idle and take their mapping away, soon
 * @mask: bit i is page @first + i.  Dropped if much is waiting.  Any thread.
 */
void watch_push(struct engine *engine, uint64_t first, uint64_t mask);

/* ---- recover.c ---- */
/** recover_map() - make the map agree with the memfds; no other thread runs. Return: 0 or -errno. */
int recover_map(struct engine *engine, struct reason *reason);
/** recover_protection() - lift or renew write-protection by the map. Return: 0 or -errno. */
int recover_protection(struct engine *engine, struct reason *reason);

#endif
