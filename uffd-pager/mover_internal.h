/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mover_internal.h - inside the mover
 *
 * Theory of operation
 * -------------------
 * The main thread reads frames.  A page handed over becomes a bit in one of two
 * maps, by where it is to go: to the main host or to its chunk's sub-host.
 * A chunk with bits set waits in its target's queue.  Every NBD connection has
 * a thread (a stream) which takes a chunk from its target's queue, finds out
 * which of the pages are holes or zero, and sends the others.
 *
 *   MIG_RUNS -> mover_queue.c -> mover_send.c (holes, zero pages) -> mover_stream.c -> NBD
 *                   ^                  | replies: where a page is now
 *                   +------------------+ pages the main host has no room for
 *
 * `place` has each page's state as the destination will see it: UNTOUCHED,
 * LOCAL (on the main host), REMOTE (on its chunk's sub-host).  It is written
 * only when a reply says so, and is the page map in the end.  A page that has
 * a place is sent there again; one that has become zero is trimmed there.  So
 * each page is in at most one place, and the two copies never compete.
 *
 * Rounds.  A page is handed over again because it was written again.  Nothing
 * of a round is sent before all of the round before is acknowledged, so an old
 * copy never lands on a new one.  What comes of the next round meanwhile waits
 * in a third map; a page which is in it and was not yet taken for sending need
 * not be sent twice, and is done with as far as the earlier round is concerned.
 *
 * Connecting.  Sub-hosts' regions are opened at once.  The main host's exports
 * exist only when QEMU runs there, which may be later than MIG_BEGUN but not
 * later than the first page: until then it is only known that the host answers.
 *
 * Holes are found by SEEK_DATA on the memfd.  That a page has data may be
 * remembered (if it was punched since, reading it finds zeros), but never that
 * it has none: the guest may have written it since.
 *
 * Compression (common/pack.h) is each stream's own affair: it packs what would be a WRITE, if that makes it
 * smaller and the destination takes packs.  Which way is the best one adapt.c finds out.
 *
 * Locks: mover.lock guards the maps, the queues and the rounds; data_lock the
 * memory of what has data.  Neither is held while anything is sent or read.
 */
#ifndef UFFD_PAGER_MOVER_INTERNAL_H
#define UFFD_PAGER_MOVER_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/endpoint.h"
#include "common/handoff_io.h"
#include "common/layout.h"
#include "common/nbd_client.h"
#include "common/pack.h"
#include "common/pagemap.h"
#include "uffd-pager/adapt.h"
#include "uffd-pager/mover.h"

#define MOVER_MAIN 0u               /* of mover.target[]; sub-host i is 1 + i */
#define MOVER_MAX_CONNECTIONS 16u   /* per destination */
#define MOVER_CONNECT_TIMEOUT_MS 10000
#define MOVER_ARRIVAL_TIMEOUT_MS 35000 /* the main host's QEMU must be there by then */
#define MOVER_STALL_TIMEOUT_MS 60000 /* a destination that answers nothing for so long has failed */
#define MOVER_COMMIT_TIMEOUT_MS 120000
#define MOVER_REPORT_US 10000u       /* MIG_PROGRESS at most this often ... */
#define MOVER_REPORT_PAGES 4096u     /* ... or after so many pages */
#define MOVER_CHUNK_WORDS (CHUNK_PAGES / 64)
#define MOVER_NO_CHUNK UINT32_MAX

#define STREAM_IOVS 1024                /* IOV_MAX */
#define STREAM_FILE_PAGES 16u           /* from so many on a payload goes by sendfile */
#define STREAM_SLOTS 1024               /* requests in flight */
#define STREAM_BATCH_BYTES (1u << 20)   /* payload of one sendmsg */
#define STREAM_WINDOW_BYTES (8u << 20)  /* payload in flight */
#define STREAM_CREDIT_US 20000u         /* of bandwidth that was not used */
#define MOVER_SAMPLE_BYTES (8u << 20)   /* adaptive compression: between two samples ... */
#define STREAM_SAMPLE_BYTES (32u << 10) /* ... and bytes of one */
#define MOVER_RDMA_STAGING (4u << 20)   /* of an RDMA connection */

/* A request that is being put together or has no reply yet. */
struct mover_slot {
    struct nbd_request header;
    uint16_t type;
    uint16_t next;   /* free list */
    bool busy;
    uint32_t count;  /* pages */
    uint32_t fresh;  /* of these, counted against main's budget for this request */
    uint32_t wire;   /* payload bytes */
    uint64_t first;  /* flat page */
};

/* One NBD connection and its thread, which alone uses what is not marked otherwise. */
struct mover_stream {
    struct mover *mover;
    struct mover_target *target;
    pthread_t thread;
    bool started;    /* main thread */
    bool connecting; /* mover.lock: in a call that cannot be interrupted */
    bool connected;  /* mover.lock: its socket may be shut down */
    bool idle;       /* mover.lock: sleeps until `wake` is written */
    int wake;  /* eventfd */
    struct nbd_client client;
    struct mover_slot *slots;
    uint16_t free_slot;
    unsigned n_busy;
    uint64_t in_flight; /* payload bytes, batch included */
    struct packer *packer; /* NULL: pages go as they are */
    uint8_t *packs;        /* of the batch: room for all of its payload */
    size_t packs_used;
    struct iovec iov[STREAM_IOVS];
    unsigned n_iov;
    bool by_file;      /* its socket takes sendfile(2); it does not block then */
    int file;          /* -1, or the memfd of the last iovec's bytes, which are sent from there */
    off_t file_offset;
    uint64_t batch_bytes;
    uint8_t rx[4096];
    size_t rx_used;
};

struct mover_target {
    char title[96]; /* "the main host" or "sub-host 'name'", for sentences */
    struct endpoint endpoint;
    struct endpoint rdma; /* used if has_rdma */
    bool has_rdma;
    bool tcp_will_do; /* ... and endpoint if RDMA does not come up */
    char export_name[512];
    uint32_t head, tail; /* mover.lock: queue of chunks, MOVER_NO_CHUNK: empty */
    _Atomic uint64_t *bytes; /* in the totals */
    struct mover_stream *stream[MOVER_MAX_CONNECTIONS];
};

/* Memory of one block, and a stretch of it which had data when last looked at. */
struct mover_memory {
    uint8_t *base;
    uint64_t data_start, data_end; /* data_lock; bytes of the memfd */
};

enum mover_fault {
    MOVER_FAULT_NONE,
    MOVER_FAULT_EXIT_ROUND_1,
    MOVER_FAULT_EXIT_ROUND_2,
    MOVER_FAULT_EXIT_FINISH,
    MOVER_FAULT_STOP_FINISH,
    MOVER_FAULT_STALL_ROUND_1,
};

struct mover {
    int fd;    /* the worker */
    int event; /* eventfd: main thread, look again */
    enum mover_fault fault;

    /* configuration; constant once configured */
    bool configured;
    struct layout layout;
    struct mover_memory memory[HANDOFF_MAX_BLOCKS]; /* by position in the layout */
    uint64_t n_pages, n_chunks;
    unsigned connections;
    unsigned n_targets;
    struct mover_target *target;
    uint64_t bandwidth;
    uint32_t batch_bytes; /* payload of one request and of one sendmsg at most */
    bool packing;         /* destinations are asked whether they take packs */
    bool adaptive;        /* pack_method follows adapt */
    _Atomic unsigned pack_method; /* enum pack_method */
    _Atomic bool sample_due;      /* adapt wants to know how the memory packs */
    _Atomic uint64_t under_way;   /* bytes of pages sent and not acknowledged */
    void *partition_file; /* mapped */
    uint64_t partition_size;
    struct mover_totals *totals;
    uint8_t *partition; /* [n_chunks], checked */
    const uint64_t *hot; /* bits by page: to the main host, whatever partition says */
    uint8_t *history;   /* [n_chunks]; main thread */

    /* where pages are */
    _Atomic uint8_t *place;       /* [n_pages] enum page_state */
    _Atomic uint8_t *place_dirty; /* [pages of place] to be written to the map export */
    _Atomic uint64_t main_pages;  /* on the main host, or on the way there */
    _Atomic uint64_t main_limit;

    pthread_mutex_t lock;
    bool stop;
    bool failed;
    int err;
    struct reason reason;
    unsigned n_ready;   /* streams that are connected, or know that their host answers */
    bool main_wanted;   /* the main host's exports are to be opened */
    bool map_connected;
    uint64_t *todo[2];  /* bits: pages to send to 0: the main host, 1: their sub-host */
    uint32_t *link[2];  /* [n_chunks] queues */
    uint8_t *queued[2]; /* [n_chunks] */
    uint64_t *next;     /* bits: pages of the round to come */
    uint64_t next_pages;
    uint64_t outstanding; /* pages of the current round that are not done */
    uint32_t round;       /* the number in the frames */
    bool deferring;       /* frames of the next round go to `next` */
    bool stalled;         /* fault injection */
    struct adapt adapt;
    uint64_t since_sample; /* bytes */
    uint64_t send_time_us; /* bandwidth limit: when the next bytes may go */

    pthread_mutex_t data_lock;

    struct nbd_client map; /* main thread, once map_connected */

    /* main thread */
    bool begun; /* MIG_BEGUN was sent */
    bool finishing, finished, told_failure;
    uint32_t begin_cookie, finish_cookie;
    struct handoff_progress reported;
    uint64_t reported_us;
};

/* mover_config.c */
/** mover_configure() - take in MOVER_CONFIG: map everything, make the tables. Return: 0 or -errno, @reason. */
int mover_configure(struct mover *mover, struct handoff_frame *frame, struct reason *reason);
/** mover_release() - free what mover_configure() made; no thread runs any more */
void mover_release(struct mover *mover);

/* mover_queue.c */
/** mover_hand_over() - MIG_RUNS. Return: 0 or -EPROTO with a sentence in @reason. Main thread. */
int mover_hand_over(struct mover *mover, const struct handoff_runs *runs, struct reason *reason);
/**
 * mover_take() - the next chunk for @stream, and which of its pages
 * Return: false if there is none; @stream is then idle, and its `wake` will be written.
 */
bool mover_take(struct mover_stream *stream, uint64_t *chunk, uint64_t bits[MOVER_CHUNK_WORDS]);
/** mover_want_main() - open the main host's exports now */
void mover_want_main(struct mover *mover);
/** mover_requeue() - pages which could not be sent go to the main host (@kind 0) or their sub-host (1) */
void mover_requeue(struct mover *mover, unsigned kind, uint64_t first, uint64_t count);
/** mover_done() - pages of the current round need nothing more; @zero: of these, were not sent */
void mover_done(struct mover *mover, uint64_t pages, uint64_t zero);
/** mover_sample() - how @length bytes packed, for adapt. Any thread. */
void mover_sample(struct mover *mover, enum pack_method method, uint64_t length, uint64_t packed, uint64_t ns);
/** mover_next_round() - if all of a round is done, begin the next. Return: true if all rounds are done. */
bool mover_next_round(struct mover *mover);
/** mover_fail() - the migration cannot go on; the first reason stays. Any thread. Return: @err. */
int mover_fail(struct mover *mover, int err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/** mover_notify() - wake the main thread */
void mover_notify(struct mover *mover);

/* mover_connect.c */
/** mover_connect() - a stream's thread begins with this. Return: 0 or -errno (the migration has failed). */
int mover_connect(struct mover_stream *stream);
/** mover_stopped() - is there nothing more to do? */
bool mover_stopped(struct mover *mover);

/* mover_stream.c */
/** mover_stream_new() - Return: NULL if there is no memory */
struct mover_stream *mover_stream_new(struct mover *mover, struct mover_target *target);
void mover_stream_free(struct mover_stream *stream);
/** mover_stream_put() - add a request to the batch, sending and waiting as needed; @fresh: see the slot */
int mover_stream_put(struct mover_stream *stream, uint16_t type, uint64_t first, uint32_t count,
                     uint32_t fresh);
/** mover_stream_pack() - the destination takes packs. Return: 0 or -ENOMEM. */
int mover_stream_pack(struct mover_stream *stream);
/** mover_stream_most() - pages of one request at most */
uint64_t mover_stream_most(const struct mover_stream *stream);
/** mover_stream_flush() - send the batch */
int mover_stream_flush(struct mover_stream *stream);
/** mover_stream_wait() - sleep until there are replies (and treat them) or `wake` was written */
int mover_stream_wait(struct mover_stream *stream);

/* mover_send.c */
/** mover_send_main() - a stream's thread */
void *mover_send_main(void *stream);
/** mover_send_reply() - the answer to a request: 0 or -errno. Return: 0 or -errno (the migration has failed). */
int mover_send_reply(struct mover_stream *stream, const struct mover_slot *slot, int err);
/**
 * mover_data_extent() - pages from flat page @first on, at most @count, that all have data or all
 * have none (@data); they are in @block. Any thread; no lock held.
 */
uint64_t mover_data_extent(struct mover *mover, const struct layout_block *block, uint64_t first,
                           uint64_t count, bool *data);
/** mover_memory_at() - a flat page's bytes */
const uint8_t *mover_memory_at(const struct mover *mover, uint64_t page);

/* mover_map.c */
/** mover_map_write() - write what changed of `place` to the map export. Main thread. Return: 0 or -errno. */
int mover_map_write(struct mover *mover);
/** mover_map_commit() - write the rest, FLUSH. Return: 0 or -errno with a sentence in @reason. */
int mover_map_commit(struct mover *mover, struct reason *reason);

#endif
