/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * link.h - NBD connections of the engine's threads to the sub-hosts
 *
 * Theory of operation
 * -------------------
 * A link belongs to one thread (its owner), which alone uses the socket, never
 * waiting for it.  Connecting waits, so that is done by one thread a sub-host
 * (link_host.c): a link that is down asks for a connection; the new channel is
 * left in link.fresh and the owner is kicked.
 *
 * With RDMA (common/nbd_rdma.h) a link looks the same; whoever sleeps on its descriptor makes sure
 * of channel_more() first.
 *
 * A sub-host is in trouble from the first connection that cannot be made, or
 * breaks or stays silent while answers are owed, until there is a valid
 * answer.  Trouble that lasts is told to the operator (SUBHOST_LOST, then
 * SUBHOST_BACK); when it has lasted lost_after_ms the sub-host counts as lost,
 * until it answers again.  What then becomes of pages somebody waits for is the policy's
 * word (enum engine_loss): the owners poison them, or keep them waiting, and the guest is
 * stopped as a whole if it touches one (link.h's waited).
 *
 * A sub-host may answer READs and yet not be one that pages can be sent to: page-out's connection
 * cannot be made, for want of connections, of memory for RDMA, of a ticket; or its WRITEs are swallowed,
 * as on a network that loses large packets one way.  So page-out's link has trouble of its own,
 * write_trouble_us; whether it is the sub-host's, too, a connection for READs shows (link_probe()).
 * When it has lasted lost_after_ms the sub-host is unwritable: told once, its pages are read there as
 * ever, nothing is sent, and second copies are made elsewhere (engine_repair.c).
 *
 * Where requests of one kind went unanswered, a handshake is no answer, and one of the other kind is
 * none either, else trouble would end and begin all the time.  A new connection is then tried by a
 * request of that kind, before it is used (link_dial.c).
 */
#ifndef UFFD_PAGER_LINK_H
#define UFFD_PAGER_LINK_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/control.h"
#include "common/nbd_client.h"
#include "common/units.h"

struct engine;
struct link;

#define LINK_ROOM_UNKNOWN UINT64_MAX
#define LINK_TELL_US 500000u /* trouble shorter than this is only logged */
#define LINK_LATE_US 250000u /* silence for so long: ask the chunk's other place, if it has one */

struct link_host {
    struct engine *engine;
    unsigned index;
    pthread_t thread;
    bool started;
    int timeout_ms; /* for a handshake; and for the silence of a link that owes an answer */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct link *links; /* guarded by lock */
    bool stop;

    _Atomic uint64_t trouble_us; /* since when; 0: none */
    _Atomic bool lost;
    _Atomic uint64_t write_trouble_us; /* the same of page-out's connection; 0: none */
    _Atomic bool unwritable;           /* that has lasted for too long */
    _Atomic bool reads_unanswered;     /* a connection ended while READs were owed an answer, none came since */
    _Atomic bool writes_unanswered;    /* the same of page-out's */
    struct reason why_no_writes;       /* of the last attempt; thread only */
    uint64_t answered_us;              /* when it was last seen to answer all the same; thread only */
    uint64_t told_until_us; /* SUBHOST_LOST was the word until then: write trouble begins anew; thread only */
    _Atomic bool refused;    /* the server or the region is not there: its copies may be gone */
    _Atomic unsigned up;     /* links that are connected */
    _Atomic uint64_t lost_pages; /* poisoned, not told yet */
    _Atomic uint64_t fence_us; /* an old WRITE may still land there: nothing new until then */
    /* Pages it fetches from other sub-hosts (chunk_pull.c) */
    _Atomic uint64_t write_fence_us; /* what fence_us is without regard to these */
    _Atomic bool unsettled;          /* it may be copying something that was given up */
    _Atomic bool leftovers;          /* it may hold copies of pages that are elsewhere */
    _Atomic uint64_t pull_serial;    /* 0: ask */
    _Atomic unsigned pulls;          /* under way */
    _Atomic bool gone;     /* it answers, and has lost pages: its copies are worth nothing */
    _Atomic bool unclean;  /* it was dropped, and is trimmed before it is used again (engine_repair.c) */
    _Atomic bool stale;    /* page-out's connection broke under WRITEs, and there is no new one */
    _Atomic uint64_t stale_us; /* those WRITEs may still land there until then */
    _Atomic bool draining; /* it is to be empty: nothing is sent there (engine_drain.c) */
    /* The room its region has: asked for by page-out, answered by the thread. */
    _Atomic bool ask;
    _Atomic uint64_t room;    /* bytes; LINK_ROOM_UNKNOWN */
    _Atomic uint64_t room_us; /* when it was told; 0: never */
    _Atomic uint64_t at_risk; /* bytes that are there and nowhere else (link_note_risk()) */
    uint64_t noted;    /* what the sub-host was told of that; with each connection it is told anew.  Thread only */
    uint64_t note_us;  /* not to be told again before.  Thread only */
    struct control_client *control; /* thread only */
    uint64_t poll_us; /* ask for slabs it wants back then; UINT64_MAX: it does not watch its headroom.  Thread only */
    _Atomic bool waited;     /* the guest waits for a page of this sub-host, which is lost */
    bool paused;             /* and is stopped for it; thread only */
    bool told_tcp;           /* that TCP does it, as RDMA did not come up; thread only */
    bool told;               /* the operator knows of the trouble; thread only */
    uint64_t told_pages_us, lost_seen_us; /* thread only */
    bool demoted;            /* CLEAN pages have been made LOCAL; thread only */
};

struct link {
    struct link_host *host;
    bool strict;   /* which of the region's two exports */
    int kick;      /* owner's eventfd */
    struct channel channel; /* fd -1: down.  Owner */
    uint64_t connected_us;
    unsigned owed; /* answers that are outstanding.  Owner */
    uint64_t owed_us; /* since when the peer is silent while it owes.  Owner */
    uint8_t *rx;
    size_t rx_size, rx_have, rx_at;
    uint8_t *tx;
    size_t tx_size, tx_have, tx_at;

    struct link *next;        /* the rest: host->lock */
    bool wanted;
    uint64_t retry_us;        /* not before */
    unsigned backoff_ms;
    uint64_t made_us;
    _Atomic(struct channel *) fresh; /* a connection to take over; NULL: none */
};

struct link_reply {
    uint64_t cookie;
    int error; /* 0 or -errno */
};

/* ---- owner's side ---- */

/**
 * link_open() - prepare a link and ask for its connection
 * @rx_size: room for replies; at least the largest one
 * @tx_size: room for request headers
 */
int link_open(struct link *link, struct link_host *host, bool strict, int kick, size_t rx_size,
              size_t tx_size);

/** link_close() - the owner is finished with it */
void link_close(struct link *link);

/** link_up() - is it connected? */
static inline bool link_up(const struct link *link)
{
    return link->channel.fd >= 0;
}

/** link_fresh() - is there a new connection to take over? */
static inline bool link_fresh(struct link *link)
{
    return atomic_load_explicit(&link->fresh, memory_order_relaxed) != NULL;
}

/** link_take() - take a new connection over. Return: true if there was one: send again what is owed. */
bool link_take(struct link *link);

/** link_queue() - add a request header to what link_flush() sends. Return: false if there is no room. */
bool link_queue(struct link *link, uint16_t type, uint64_t cookie, uint64_t offset, uint32_t length);

/** link_flush() - send queued headers. Return: 0, -EAGAIN (wait for EPOLLOUT), or -errno: broken. */
int link_flush(struct link *link);

/** link_sendv() - send from @iov. Return: bytes sent, 0 if the socket is full, or -errno: broken. */
ssize_t link_sendv(struct link *link, struct iovec *iov, size_t n);

/** link_sent() - a request is on its way: an answer is owed */
void link_sent(struct link *link, uint64_t now_us);

/**
 * link_receive() - fill the receive buffer
 * Call it until it returns 0 before sleeping (channel.h tells why).
 * Return: bytes, 0 if there is nothing, -errno: broken.
 */
ssize_t link_receive(struct link *link);

/** link_peek() - look at the next reply's header. Return: 1; 0: not whole yet; -EPROTO */
int link_peek(struct link *link, struct link_reply *reply);

/**
 * link_payload() - the next reply's payload
 * Return: where its @length bytes are, or NULL if they have not all come yet.
 */
const void *link_payload(struct link *link, uint32_t length);

/** link_consume() - done with a reply that had @length bytes of payload; @valid: it was an answer */
void link_consume(struct link *link, uint32_t length, bool valid, uint64_t now_us);

/** link_silent() - true if the peer owes an answer and has been silent for too long */
bool link_silent(const struct link *link, uint64_t now_us);

/** link_broken() - close it and ask for another connection */
void link_broken(struct link *link, const char *why, uint64_t now_us);

/* ---- link_host.c ---- */

/** link_hosts_start()/link_hosts_stop() - the engine's sub-hosts and their threads */
int link_hosts_start(struct engine *engine);
void link_hosts_stop(struct engine *engine);

/** link_trouble() - something is wrong since @since_us; any thread */
void link_trouble(struct link_host *host, uint64_t since_us);

/** link_write_trouble() - page-out's link has trouble since @since_us; any thread */
void link_write_trouble(struct link_host *host, uint64_t since_us);

/** link_lost_page() - a page of this sub-host was poisoned; the operator is told soon; any thread */
void link_lost_page(struct link_host *host, bool refused);

/** link_ask_room() - have host->room told anew; page-out is kicked when it is; any thread */
void link_ask_room(struct link_host *host);

/** link_note_risk() - have the sub-host told that so many bytes are there and nowhere else, for its operator */
void link_note_risk(struct link_host *host, uint64_t bytes);

/**
 * link_give_up() - the sub-host is not connected: is a page that somebody waits for to be poisoned?
 * If it is not, although the sub-host is lost, whoever waits goes on waiting.  Any thread.
 */
bool link_give_up(struct link_host *host);

static inline bool link_host_lost(const struct link_host *host)
{
    return atomic_load_explicit(&host->lost, memory_order_acquire);
}

/** link_unwritable() - has there been no connection to send pages by for too long?  Any thread. */
static inline bool link_unwritable(const struct link_host *host)
{
    return atomic_load_explicit(&host->unwritable, memory_order_acquire);
}

/** link_takes() - does it seem to take pages now?  Any thread. */
static inline bool link_takes(const struct link_host *host)
{
    return !atomic_load_explicit(&host->trouble_us, memory_order_relaxed) &&
           !atomic_load_explicit(&host->write_trouble_us, memory_order_relaxed);
}

/** link_readable() - would what is sent there be had again, as far as one can tell?  Any thread. */
static inline bool link_readable(const struct link_host *host)
{
    return !link_host_lost(host) &&
           !(atomic_load_explicit(&host->reads_unanswered, memory_order_relaxed) &&
             atomic_load_explicit(&host->trouble_us, memory_order_relaxed));
}

/** link_stale() - may WRITEs of a connection that is no more still take effect there?  Any thread. */
static inline bool link_stale(const struct link_host *host)
{
    return atomic_load_explicit(&host->stale, memory_order_acquire) ||
           units_now_us() < atomic_load_explicit(&host->stale_us, memory_order_acquire);
}

#endif
