/* SPDX-License-Identifier: GPL-2.0-or-later */
/* fault.h - inside a fault thread: what fault.c and fault_fetch.c share */
#ifndef UFFD_PAGER_FAULT_H
#define UFFD_PAGER_FAULT_H

#include "uffd-pager/backup.h"
#include "uffd-pager/homes.h"
#include "uffd-pager/install.h"

#define FAULT_SLOTS 256u  /* READs under way, of one thread */
#define FAULT_PARKED 1024u
#define FAULT_EVENTS 32u
#define FAULT_POLL_UFFD UINT64_MAX /* what an epoll event is about; else the number of a link */
#define FAULT_POLL_KICK (UINT64_MAX - 1)
#define FAULT_NO_SLOT UINT16_MAX

struct fault_request {
    uint64_t page;
    uint64_t began_us;
    uint32_t generation; /* of the slot, in the cookie: an answer to something else is not ours */
    uint16_t host;
    uint16_t missing; /* a place that does not have it; PAGEMAP_NO_SUBHOST: none yet */
    uint16_t next; /* in the free list */
    bool used;
    bool sent; /* on the connection that is up now, or to the backup's readers */
    bool write;
};

struct fault_parked {
    uint64_t page;
    uint64_t began_us;
    uint64_t parked_us;
    uint64_t flags; /* UFFD_PAGEFAULT_FLAG_* */
};

struct fault_thread {
    struct engine *engine;
    unsigned index;
    pthread_t thread;
    bool started;
    int epoll;
    int kick;
    _Atomic bool kicked;
    _Atomic bool reads; /* faults; the first thread always, the others when they are called */
    uint64_t attend_us; /* when to look at links and parked faults again */
    uint64_t now_us; /* as of the beginning of this turn of the loop */

    struct link *links; /* [n_subhosts] */
    unsigned *given_up; /* [n_subhosts] answers that are owed, and not waited for any more */
    struct backup_answers answers;
    struct backup_read *disk_reads; /* [FAULT_SLOTS] of the slots that wait for the backup; NULL: there is none */
    uint8_t *disk_pages;            /* [FAULT_SLOTS] */
    struct fault_request slot[FAULT_SLOTS];
    uint16_t free_slot;
    unsigned in_flight;

    /* A ring; when it is full, faults are left unanswered and everything is woken later. */
    struct fault_parked parked[FAULT_PARKED];
    unsigned parked_first, parked_n;
    bool overflow;

    unsigned spin_us, spin_answer_us; /* for a fault, for an answer; adapted to what it brought lately */
};

/** fault_handle() - answer one fault. @flags: UFFD_PAGEFAULT_FLAG_* */
void fault_handle(struct fault_thread *thread, uint64_t page, uint64_t flags, uint64_t began_us);

/** fault_park() - answer it when there is room */
void fault_park(struct fault_thread *thread, uint64_t page, uint64_t flags, uint64_t began_us);

/** fault_again() - it could not be answered because of @err: try again later, unless that is no use */
void fault_again(struct fault_thread *thread, uint64_t page, uint64_t flags, uint64_t began_us,
                 int err);

/** fault_poll_add() - have the thread woken by @fd. Return: 0 or -errno. */
int fault_poll_add(struct fault_thread *thread, int fd, uint32_t events, uint64_t source);

/* ---- fault_fetch.c ---- */

/** fetch_can_begin() - is there a free slot for another READ? */
static inline bool fetch_can_begin(const struct fault_thread *thread)
{
    return thread->free_slot != FAULT_NO_SLOT;
}

/** fetch_begin() - READ a FETCHING page that has its room; there must be a free slot */
void fetch_begin(struct fault_thread *thread, uint64_t page, bool write, uint64_t began_us);

/** fetch_flush() - send what was begun */
void fetch_flush(struct fault_thread *thread);

/** fetch_receive() - take answers from all sub-hosts that owe some. Return: true if there were any. */
bool fetch_receive(struct fault_thread *thread);

/** fetch_may_sleep() - false: there are answers already */
bool fetch_may_sleep(struct fault_thread *thread);

/** fetch_attend() - new connections, silent and lost sub-hosts */
void fetch_attend(struct fault_thread *thread);

/** fetch_open()/fetch_close() - the thread's links; close gives unfinished pages up, unwoken */
int fetch_open(struct fault_thread *thread);
void fetch_close(struct fault_thread *thread);

#endif
