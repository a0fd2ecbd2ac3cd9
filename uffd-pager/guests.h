/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * guests.h - the daemon's workers: find, start, watch
 *
 * The daemon keeps little: a guest is a folder RUN/guests/UUID with the
 * worker's sockets, so a daemon that is started again finds its guests.  For
 * each worker one thread listens to its events and waits for its end.  A
 * worker that dies while its QEMU lives is followed by another as soon as QEMU
 * has connected again; if QEMU is gone too, what is left of the guest is removed.
 */
#ifndef UFFD_PAGER_GUESTS_H
#define UFFD_PAGER_GUESTS_H

#include <jansson.h>
#include <stdbool.h>

#include "common/control.h"
#include "common/endpoint.h"
#include "common/log.h"

struct guests;

struct guests_config {
    const char *run_dir;
    struct endpoint data;
    bool debug; /* workers log debug messages too */
    void (*event)(void *opaque, const char *name, json_t *data); /* steals data */
    void *opaque;
};

/** guests_new() - and adopt the workers that an earlier daemon left. Return: 0 or -errno, @reason. */
int guests_new(struct guests **guests, const struct guests_config *config, struct reason *reason);

/** guests_connect() - a control connection to a guest's worker; @start: start one if there is none */
int guests_connect(struct guests *guests, const char *uuid, bool start,
                   struct control_client **client, struct reason *reason);

/** guests_attach() - give an accepted hand-off connection (then closed here) to its guest's worker */
void guests_attach(struct guests *guests, int fd);

/** guests_list() - the UUIDs, as a new JSON array of strings */
json_t *guests_list(struct guests *guests);

#endif
