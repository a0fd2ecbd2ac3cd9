/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * receive.h - take in an arriving guest's hot pages and page map, as NBD exports
 *
 * docs/protocols.md, "Arrival of a guest on the main host".
 */
#ifndef UFFD_PAGER_RECEIVE_H
#define UFFD_PAGER_RECEIVE_H

#include <stdint.h>

#include "common/endpoint.h"
#include "common/layout.h"
#include "common/log.h"
#include "common/pagemap.h"

struct receive;

struct receive_config {
    char uuid[UUID_TEXT_LEN];
    char ticket[65];
    uint64_t ticket_end_us; /* of units_now_us(): nothing is opened after this; 0: no limit */
    struct endpoint listen; /* data address; port 0: chosen, and stored back */
    uint64_t budget;        /* bytes: writes beyond it are ENOSPC */
    unsigned n_subhosts;    /* a REMOTE page's index must be below */
    /*
     * FLUSH on the map export: @map holds the checked map (PAGE_UNTOUCHED, PAGE_LOCAL,
     * PAGE_REMOTE; sub-host indices; history).  Called at most once with success; its result is the
     * answer to FLUSH.  Runs in a connection's thread.
     */
    int (*on_map)(void *opaque, struct pagemap *map, struct reason *reason);
    void *opaque;
};

/**
 * receive_start() - listen; clients that open an export before receive_layout() wait for it
 * Return: 0 or -errno with a sentence in @reason.
 */
int receive_start(struct receive **receive, struct receive_config *config, struct reason *reason);

/**
 * receive_layout() - QEMU has handed its memory over: empty it, and serve the exports; once
 * @layout: valid until receive_stop()
 * @map: a fresh pagemap of the layout's size, to be filled; valid until receive_stop()
 * Return: 0 or -errno with a sentence in @reason.
 */
int receive_layout(struct receive *receive, const struct layout *layout, struct pagemap *map,
                   struct reason *reason);

/** receive_bytes() - payload received so far; any thread */
uint64_t receive_bytes(const struct receive *receive);

/** receive_connections() - how many clients are connected; any thread */
unsigned receive_connections(struct receive *receive);

/** receive_stop() - close everything, wait for the threads, free; not from on_map */
void receive_stop(struct receive *receive);

#endif
