/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * handoff.h - the local protocol between QEMU's ram-pager object and uffd-pager
 *
 * Theory of operation
 * -------------------
 * QEMU connects to the pager's UNIX stream socket and sends HELLO (with the
 * userfaultfd), one BLOCK per external RAM block (each with its memfd) and
 * LAYOUT_END, with its /proc/self/pagemap if it may open that (without it the
 * pager cannot see which memory is in use, uffd-pager/mapped.h).  The pager
 * answers WELCOME.  From then on both sides may send at any time.  A request that wants an answer carries a non-zero cookie, which
 * the answer repeats.  If the socket drops, QEMU connects again and sends all
 * of it again; the userfaultfd and its registrations live on in QEMU.
 *
 * Every message is a struct handoff_header followed by `length` bytes of body.
 * All integers are little-endian (this header is used on little-endian hosts
 * only; a big-endian build must convert).  File descriptors travel by
 * SCM_RIGHTS with the first byte of the message they belong to.
 *
 * The same frames carry a migration between the worker and its mover child.
 *
 * docs/protocols.md, "Local hand-off", is the specification.  The QEMU series
 * carries its own copy of these definitions (include/system/ram-pager-proto.h);
 * a test compares the two.
 */
#ifndef COMMON_HANDOFF_H
#define COMMON_HANDOFF_H

#include <stdint.h>

#define HANDOFF_MAGIC 0x484d5053u /* "SPMH" */
#define HANDOFF_VERSION 1u
#define HANDOFF_MAX_BODY (64u * 1024)
#define HANDOFF_MAX_BLOCKS 64u
#define HANDOFF_IDSTR_LEN 256u
#define HANDOFF_REASON_LEN 256u

/* Q: sent by QEMU.  P: sent by the pager.  "->" names the answer. */
enum handoff_type {
    HANDOFF_HELLO = 1,       /* Q: struct handoff_hello, 1 fd (userfaultfd) */
    HANDOFF_BLOCK = 2,       /* Q: struct handoff_block, 1 fd (memfd) */
    HANDOFF_LAYOUT_END = 3,  /* Q: no body, 1 fd (its /proc/self/pagemap) or none -> WELCOME */
    HANDOFF_WELCOME = 4,     /* P: struct handoff_result */

    HANDOFF_ZAP = 5,         /* P: struct handoff_ranges -> ZAPPED */
    HANDOFF_ZAPPED = 6,      /* Q: struct handoff_result */
    HANDOFF_DISCARD = 7,     /* Q: struct handoff_ranges -> DISCARDED */
    HANDOFF_DISCARDED = 8,   /* P: struct handoff_result */

    HANDOFF_ARM = 9,         /* P: struct handoff_migration -> ARMED */
    HANDOFF_DISARM = 10,     /* P: struct handoff_migration -> ARMED */
    HANDOFF_ARMED = 11,      /* Q: struct handoff_result */

    HANDOFF_MIG_BEGIN = 12,    /* Q: struct handoff_migration -> MIG_BEGUN */
    HANDOFF_MIG_BEGUN = 13,    /* P: struct handoff_result */
    HANDOFF_MIG_RUNS = 14,     /* Q: struct handoff_runs */
    HANDOFF_MIG_PROGRESS = 15, /* P: struct handoff_progress */
    HANDOFF_MIG_FINISH = 16,   /* Q: no body -> MIG_FINISHED */
    HANDOFF_MIG_FINISHED = 17, /* P: struct handoff_result */
    HANDOFF_MIG_FAILED = 18,   /* P: struct handoff_result, unasked */
    HANDOFF_MIG_END = 19,      /* Q: struct handoff_result (0: completed) */

    HANDOFF_IN_BEGIN = 20, /* Q (destination): struct handoff_migration -> IN_BEGUN */
    HANDOFF_IN_BEGUN = 21, /* P: struct handoff_result */
    HANDOFF_IN_WAIT = 22,  /* Q (destination): no body -> IN_READY */
    HANDOFF_IN_READY = 23, /* P: struct handoff_result */

    HANDOFF_MOVER_CONFIG = 32, /* worker to mover: JSON text, fds as it says */
};

struct handoff_header {
    uint32_t magic;
    uint16_t version;
    uint16_t type;
    uint32_t length; /* of the body, at most HANDOFF_MAX_BODY */
    uint32_t cookie; /* answers repeat it; 0: no answer wanted */
};

#define HANDOFF_HELLO_INCOMING 1u /* QEMU waits for an incoming migration */

struct handoff_hello {
    uint8_t uuid[16]; /* of the guest, RFC 4122 byte order */
    uint32_t n_blocks;
    uint32_t flags; /* HANDOFF_HELLO_* */
    uint64_t pid;
};

struct handoff_block {
    uint32_t index; /* position in this hand-off, from 0; later messages name blocks by it */
    uint32_t flags; /* 0 */
    uint64_t hva;   /* where QEMU maps it */
    uint64_t size;  /* bytes, a multiple of page_size */
    uint64_t page_size;
    uint64_t fd_offset; /* where the block begins in its memfd */
    char idstr[HANDOFF_IDSTR_LEN]; /* NUL-terminated, e.g. "pc.ram" */
};

struct handoff_result {
    uint32_t status; /* 0 or a positive errno */
    uint32_t flags;  /* 0 */
    char reason[HANDOFF_REASON_LEN]; /* one sentence, NUL-terminated; empty if status is 0 */
};

struct handoff_range {
    uint32_t block;
    uint32_t pad;
    uint64_t offset; /* bytes within the block */
    uint64_t length; /* bytes */
};

struct handoff_ranges {
    uint32_t n;
    uint32_t pad;
    struct handoff_range range[];
};

struct handoff_migration {
    uint8_t id[16];
};

/*
 * Dirty pages handed over for sending.  QEMU clears the dirty log and its
 * bitmap for a run before it sends the message, so the reader may read the
 * pages at any later time.  `round` only grows; within one round a page is
 * handed over at most once, and nothing of a round is sent before every page
 * of the round before is acknowledged by its new home.
 */
struct handoff_run {
    uint32_t block;
    uint32_t pad;
    uint64_t page;  /* first 4 KiB page within the block */
    uint64_t count; /* 4 KiB pages */
};

struct handoff_runs {
    uint32_t round;
    uint32_t n;
    struct handoff_run run[];
};

/* All counters are totals since MIG_BEGIN. */
struct handoff_progress {
    uint64_t pages_done; /* handed-over pages that need nothing more: stored or found empty */
    uint64_t zero_pages; /* of these, holes and zero pages, which were not sent */
    uint64_t wire_bytes; /* bytes written to sockets */
};

_Static_assert(sizeof(struct handoff_header) == 16, "wire layout");
_Static_assert(sizeof(struct handoff_hello) == 32, "wire layout");
_Static_assert(sizeof(struct handoff_block) == 296, "wire layout");
_Static_assert(sizeof(struct handoff_result) == 264, "wire layout");
_Static_assert(sizeof(struct handoff_range) == 24, "wire layout");
_Static_assert(sizeof(struct handoff_run) == 24, "wire layout");
_Static_assert(sizeof(struct handoff_progress) == 24, "wire layout");

#endif
