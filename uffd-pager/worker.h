/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * worker.h - the process that serves one guest
 *
 * Theory of operation
 * -------------------
 * The daemon starts a worker (uffd-pager --worker UUID) when QEMU hands a guest
 * over or when a guest is announced (incoming-prepare).  The worker's main
 * thread reads the hand-off connection, the mover's socket and QEMU's pidfd;
 * control verbs run in threads of the control server; the engine (engine.h)
 * has threads of its own and is the only one on the page path.
 *
 *   state        meaning, and what may happen
 *   WAITING      no QEMU yet.  hand-off -> ATTACHED, or INCOMING if announced
 *   ATTACHED     an unsplit guest; nothing is registered.  outgoing-profile -> PROFILING;
 *                outgoing-prepare -> SENDING; incoming-prepare -> INCOMING (destination QEMU)
 *   PROFILING    access sampling runs.  its end -> ATTACHED
 *   SENDING      the mover sends the guest.  failure, cancel, lease lost before the destination
 *                has acknowledged -> ATTACHED; acknowledged -> SENT
 *   SENT         the destination owns the guest.  QEMU's exit -> gone; MIG_END with an error (QEMU
 *                could not send its device state) -> ATTACHED
 *   INCOMING     the guest's memory arrives.  map committed -> COMMITTING; lease lost -> WAITING or ATTACHED
 *   COMMITTING   regions are taken over, the engine starts.  done -> SPLIT; failed -> INCOMING (dead)
 *   SPLIT        faults are served.  Only QEMU's exit ends it.
 *
 * QEMU's exit ends the worker in every state; a split guest's regions are then
 * deleted.  A hand-off connection that drops while QEMU lives changes nothing:
 * QEMU connects again.
 *
 * Locks: worker.lock guards the fields; send_lock keeps frames to QEMU whole and
 * is taken after it; zap_lock is taken alone.  Nobody waits for QEMU's answer
 * with worker.lock held but by pthread_cond_wait.
 */
#ifndef UFFD_PAGER_WORKER_H
#define UFFD_PAGER_WORKER_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/control.h"
#include "common/handoff_io.h"
#include "common/layout.h"
#include "common/pagemap.h"
#include "predictor/predictor.h"
#include "uffd-pager/engine.h"
#include "uffd-pager/receive.h"
#include "uffd-pager/session.h"

enum worker_state {
    WORKER_WAITING,
    WORKER_ATTACHED,
    WORKER_PROFILING,
    WORKER_SENDING,
    WORKER_SENT,
    WORKER_INCOMING,
    WORKER_COMMITTING,
    WORKER_SPLIT,
};

/* An outgoing migration; all of it guarded by worker.lock. */
struct outgoing {
    struct control_peer *lease; /* NULL: void */
    uint8_t migration[16];
    pid_t mover_pid; /* 0: none */
    int mover_fd;    /* -1: none */
    int partition_fd;
    void *partition; /* mapped: see mover.h */
    uint64_t partition_size;
    unsigned n_subhosts;
    bool mover_ready;  /* MIG_BEGUN came from the mover */
    bool begun;        /* QEMU has sent MIG_BEGIN */
    bool finishing;    /* QEMU has sent MIG_FINISH */
    bool failed;
    bool armed_answer; /* ARMED came; its result: */
    int armed_err;
    struct reason armed_reason;
    uint32_t finish_cookie;
    struct reason reason;
};

struct worker {
    pthread_mutex_t lock;
    pthread_cond_t changed; /* state, outgoing, qemu_fd */
    enum worker_state state;
    uint8_t uuid[16];
    char uuid_text[UUID_TEXT_LEN];
    char dir[256]; /* RUN/guests/UUID */
    struct endpoint data;
    uint64_t started_us;

    /* QEMU */
    pthread_mutex_t send_lock;
    int qemu_fd;    /* -1: not connected */
    int qemu_pidfd; /* -1: none yet */
    pid_t qemu_pid;
    bool qemu_incoming;
    int uffd;
    int pagemap; /* QEMU's /proc/self/pagemap (mapped.h); -1: none */
    struct layout layout;
    bool have_layout;
    uint32_t qemu_index[HANDOFF_MAX_BLOCKS]; /* blocks.h; written under zap_lock */
    bool retired[HANDOFF_MAX_BLOCKS];        /* main thread only */
    uint64_t unpaged; /* bytes of RAM that QEMU has and the split has not */
    bool quit;
    int wake; /* eventfd: look at the state again */

    uint8_t *page_heat; /* [pages] of the last profile (page_heat.h); NULL: there was none */

    /* zap requests waiting for ZAPPED */
    pthread_mutex_t zap_lock;
    pthread_cond_t zap_done;
    uint32_t next_cookie;
    struct zap_wait *zaps;

    /* destination */
    struct session session;
    struct pagemap map;
    bool have_map;
    struct receive *receive;
    struct control_peer *incoming_lease;
    struct reason incoming_reason; /* why the arrival failed */
    bool incoming_failed;
    uint32_t in_wait_cookie; /* QEMU's IN_WAIT that is not answered yet */
    bool in_wait;
    uint64_t receive_stop_us; /* when to stop the receiver after the commit; 0: no */
    struct engine *engine;
    uint64_t resident_max;

    /* source */
    struct predictor *predictor;
    struct outgoing out;

    struct control_server *control;
};

/** worker_main() - the whole life of a worker. @ready_fd: gets a byte when its sockets answer; -1: none */
int worker_main(const char *run_dir, const char *uuid, const struct endpoint *data, int ready_fd);

/** worker_state_name() - as `query-guest` shows it */
const char *worker_state_name(enum worker_state state);

/** worker_send() - a frame to QEMU; any thread; Return: 0, -ENOTCONN, or -errno (the connection is then shut down) */
int worker_send(struct worker *worker, uint16_t type, uint32_t cookie, const void *body,
                uint32_t length);

/** worker_send_result() - a struct handoff_result to QEMU; any thread */
int worker_send_result(struct worker *worker, uint16_t type, uint32_t cookie, int err,
                       const struct reason *reason);

/** worker_zap() - have QEMU zap ranges, wait for it; any thread but the main one. (engine.h, sample.h) */
int worker_zap(void *worker, const struct handoff_range *ranges, uint32_t n);

/** worker_pause() - stop QEMU's process, or let it go on (engine.h); any thread */
void worker_pause(void *worker, bool pause);

/** worker_event() - an event to whoever is connected; steals data; any thread */
void worker_event(void *worker, const char *name, json_t *data);

/** worker_wake() - make the main thread look at the state */
void worker_wake(struct worker *worker);

/* attach.c */
/** attach_accept() - a hand-off connection: read it all, answer WELCOME. Main thread. */
void attach_accept(struct worker *worker, int fd);
/** attach_dispatch() - one frame of QEMU's. Main thread. Return: 0, or -errno to drop the connection. */
int attach_dispatch(struct worker *worker, struct handoff_frame *frame);

/* incoming.c; the verbs run in control threads */
json_t *incoming_prepare(struct worker *worker, struct control_peer *peer, const json_t *args,
                         int *err, struct reason *reason);
json_t *incoming_cancel(struct worker *worker, int *err, struct reason *reason);
/** incoming_lease_lost() - the controller's connection closed */
void incoming_lease_lost(struct worker *worker, struct control_peer *peer);
/** incoming_attached() - QEMU is there: serve the exports. worker.lock held. */
int incoming_attached(struct worker *worker, struct reason *reason);
/** incoming_begin()/incoming_wait() - IN_BEGIN, IN_WAIT of QEMU. Main thread, worker.lock held. */
int incoming_begin(struct worker *worker, const uint8_t id[16], struct reason *reason);
void incoming_wait(struct worker *worker, uint32_t cookie);
/** incoming_resume() - a split guest whose worker died: go on from its session and map. worker.lock held. */
int incoming_resume(struct worker *worker, struct reason *reason);
/** incoming_tidy() - stop the receiver once it is not needed. Main thread, no lock. */
void incoming_tidy(struct worker *worker);

/* outgoing.c */
/** outgoing_free() - what is left of an outgoing migration that has ended. worker.lock held. */
void outgoing_free(struct worker *worker);
json_t *outgoing_profile(struct worker *worker, const json_t *args, int *err,
                         struct reason *reason);
json_t *outgoing_prepare(struct worker *worker, struct control_peer *peer, const json_t *args,
                         int *err, struct reason *reason);
json_t *outgoing_status(struct worker *worker, int *err, struct reason *reason);
json_t *outgoing_cancel(struct worker *worker, int *err, struct reason *reason);
void outgoing_lease_lost(struct worker *worker, struct control_peer *peer);
/** outgoing_from_qemu() - MIG_* of QEMU. Main thread, worker.lock held. */
int outgoing_from_qemu(struct worker *worker, struct handoff_frame *frame);
/** outgoing_from_mover() - the mover's socket is readable. Main thread, worker.lock held. */
void outgoing_from_mover(struct worker *worker);
/** outgoing_qemu_lost() - the hand-off connection dropped. Main thread, worker.lock held. */
void outgoing_qemu_lost(struct worker *worker);

/* guest_query.c */
/** guest_query() - what `query-guest` returns. worker.lock held. */
json_t *guest_query(struct worker *worker);
/** guest_query_pages() - what `query-pages` returns. worker.lock held. */
json_t *guest_query_pages(struct worker *worker, int *err, struct reason *reason);
/** guest_query_heatmap() - what `query-heatmap` returns. worker.lock held. */
json_t *guest_query_heatmap(struct worker *worker, int *err, struct reason *reason);
/** guest_present() - pages that exist, per chunk, by SEEK_DATA; @present [n_chunks] may be NULL. Return: pages in all */
uint64_t guest_present(const struct layout *layout, uint32_t *present);

/* budget.c */
/** budget_set() - `set-budget`: check that it can be, then do it. No lock held: it asks the sub-hosts. */
json_t *budget_set(struct worker *worker, const json_t *args, int *err, struct reason *reason);

/* worker_verbs.c */
/** worker_verbs_start() - serve the worker's control socket */
int worker_verbs_start(struct worker *worker, struct reason *reason);

#endif
