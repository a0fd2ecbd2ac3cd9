/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * session.h - what a worker must know to go on with a split guest
 *
 * Kept as session.json beside the page map, on tmpfs, readable by root only
 * (it holds tickets).  Written when the guest has arrived and when its limits
 * change; read by the worker that follows a dead one, and by the daemon when a
 * guest has ended with its worker.
 */
#ifndef UFFD_PAGER_SESSION_H
#define UFFD_PAGER_SESSION_H

#include <jansson.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/endpoint.h"
#include "common/handoff.h"
#include "common/log.h"
#include "common/pagemap.h"
#include "uffd-pager/engine.h"

struct session_subhost {
    char name[64];
    struct endpoint data;
    struct endpoint control;
    struct endpoint rdma; /* pages go there if has_rdma, or to data if tcp_will_do */
    bool has_rdma, tcp_will_do;
    char export_name[512];
    char ticket[65];
    unsigned weight;
};

/* A block of the split layout, in its order. */
struct session_block {
    char idstr[HANDOFF_IDSTR_LEN];
    uint64_t size;  /* bytes */
    uint64_t inode; /* of its memfd */
};

struct session {
    uint8_t migration[16];
    uint64_t budget;
    uint64_t low_watermark;
    uint64_t high_watermark;
    uint64_t granule;
    unsigned prefetch;
    uint64_t slab;
    unsigned choices;
    unsigned sample_period_ms;
    unsigned lost_after_ms;
    enum engine_loss lost_action;
    enum engine_redundancy redundancy;
    char backup[256]; /* the folder; "": none */
    char predictor[32];
    unsigned n_subhosts;
    struct session_subhost subhost[PAGEMAP_MAX_SUBHOSTS];
    pid_t qemu_pid;
    uint64_t qemu_start; /* its start time, so that a reused pid is not taken for it */
    uint32_t n_blocks;   /* 0 until the guest has arrived */
    struct session_block block[HANDOFF_MAX_BLOCKS];
};

/** session_parse() - from the arguments of incoming-prepare or a saved file. Return: 0 or -EINVAL, @reason. */
int session_parse(struct session *session, const json_t *object, struct reason *reason);

/** session_save() - write DIR/session.json anew, whole or not at all. Return: 0 or -errno. */
int session_save(const struct session *session, const char *dir);

/** session_load() - read DIR/session.json. Return: 0, -ENOENT, or another -errno with @reason. */
int session_load(struct session *session, const char *dir, struct reason *reason);

/** session_process_start() - start time of process @pid in clock ticks since boot; 0 if it is not there */
uint64_t session_process_start(pid_t pid);

/** session_keep_regions() - region-keep on every sub-host, with new tickets. Return: 0 or the first -errno, @reason. */
int session_keep_regions(struct session *session, const char *uuid, struct reason *reason);

/** session_delete_regions() - region-delete on every sub-host, and the backup; what cannot be reached is logged */
void session_delete_regions(const struct session *session, const char *uuid);

/**
 * session_room() - what the guest's region on sub-host @i holds and may still take
 * @stored, @room: bytes; both 0 if the sub-host cannot be asked
 * Asks over the network: no lock held.  Return: 0 or -errno, @reason.
 */
int session_room(const struct session *session, unsigned i, const char *uuid, uint64_t *stored,
                 uint64_t *room, struct reason *reason);

/** session_remove() - delete DIR with all the files a worker keeps there */
void session_remove(const char *dir);

#endif
