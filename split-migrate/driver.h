/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * driver.h - what a move needs of whoever manages the two QEMUs
 *
 * The qmp driver talks to two monitors.  The libvirt driver leaves the steps to
 * virDomainMigrate3: start() returns at once, poll() says how far it is, and
 * hand_over() finds that there is nothing left to do.
 *
 * Order of calls: open, [prepare, start, poll..., proceed, poll..., arrived, hand_over, retire],
 * close; undo() at any time after open and before hand_over has sent anything.
 */
#ifndef SPLIT_MIGRATE_DRIVER_H
#define SPLIT_MIGRATE_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/log.h"
#include "common/units.h"
#include "split-migrate/target.h"

enum driver_phase {
    DRIVER_IDLE,
    DRIVER_SETUP,
    DRIVER_MOVING,
    DRIVER_PAUSED, /* the guest is stopped; proceed() lets it go on */
    DRIVER_DEVICE,
    DRIVER_CANCELLING,
    DRIVER_COMPLETED,
    DRIVER_FAILED,
    DRIVER_CANCELLED,
};

struct driver_guest {
    char uuid[UUID_TEXT_LEN];
    char status[32]; /* QEMU's word: "running", "paused", ... */
    bool running;
};

struct driver_config {
    uint64_t bandwidth; /* bytes/s; 0: no limit */
    uint64_t downtime_ms;
    bool live; /* false: stop the guest first */
    bool auto_converge;

    /* Of a driver that manages only, with libvirt's meaning. */
    bool persistent;
    bool undefine_source;
    bool abort_on_error;
    bool unsafe;
    const char *dname;       /* NULL: not given */
    const char *migrate_uri; /* NULL: not given */
};

struct driver_progress {
    enum driver_phase phase;
    uint64_t ram_total;
    uint64_t ram_remaining;
    uint64_t rounds;
    uint64_t dirty_rate; /* bytes/s the guest writes */
    unsigned throttle;   /* percent by which auto-converge slows it down */
    uint64_t total_ms;
    uint64_t downtime_ms;
    char error[REASON_LEN];
};

struct driver {
    const struct driver_ops *ops;
    uint64_t
        stopped_us; /* when the guest stopped at the source and when it ran again; 0: not yet */
    uint64_t resumed_us;
    uint64_t sent; /* by the pager: bytes, and for how long it had something to send */
    uint64_t busy_us;
};

struct driver_ops {
    const char *scheme;
    /*
     * It starts the destination's QEMU in start(), and once poll() has said DRIVER_COMPLETED the
     * guest runs there.
     */
    bool manages;

    /* Whose guest it is that @target names; changes nothing. May be NULL. */
    int (*uuid)(const struct target *target, char uuid[UUID_TEXT_LEN], struct reason *reason);

    /* Connect, and check that what is there can be moved; changes nothing. @destination may be
     * NULL. */
    int (*open)(struct driver **driver, const struct target *source,
                const struct target *destination, struct driver_guest *guest,
                struct reason *reason);

    /* Bytes a second of pages the running guest, of @ram bytes, writes: looks for a second, or two. */
    int (*dirty_rate)(struct driver *driver, uint64_t ram, uint64_t *rate, struct reason *reason);

    /* Make the destination listen and set both sides' parameters. */
    int (*prepare)(struct driver *driver, const struct driver_config *config,
                   struct reason *reason);
    int (*start)(struct driver *driver, struct reason *reason);
    int (*poll)(struct driver *driver, struct driver_progress *progress, struct reason *reason);
    int (*proceed)(struct driver *driver, struct reason *reason);
    /* Stop the guest while it moves, so that the rest is moved; it runs again afterwards. */
    int (*suspend)(struct driver *driver, struct reason *reason);

    /* Readable when poll() may have something new; events() takes what is there. */
    int (*fd)(struct driver *driver);
    void (*events)(struct driver *driver);

    /* Ask for the end of the migration and wait for it; *phase is what became of it. */
    int (*cancel)(struct driver *driver, enum driver_phase *phase, struct reason *reason);

    /* The source has completed: wait until the destination has everything; the guest does not run
     * yet. */
    int (*arrived)(struct driver *driver, struct reason *reason);
    /* Let it run there if it ran here. *sent: it may run there now, so it must never run here
     * again. */
    int (*hand_over)(struct driver *driver, bool *sent, struct reason *reason);
    /* End the source, or leave it stopped. */
    void (*retire)(struct driver *driver, bool keep_source);

    /* End the destination if it has begun, give the source its state and settings back. */
    int (*undo)(struct driver *driver, struct reason *reason);
    void (*close)(struct driver *driver);
};

extern const struct driver_ops driver_qmp;
extern const struct driver_ops driver_libvirt; /* if built with libvirt */

/** driver_find() - the driver of a target's scheme, or NULL */
const struct driver_ops *driver_find(const struct target *target);

#endif
