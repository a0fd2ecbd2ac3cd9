// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * verb_drain.c - subhost-drain: empty a sub-host for maintenance while guests run
 *
 * The pages are moved by the pagers of the guests they belong to; we tell them, and watch the
 * sub-host until nothing is left.  It is asked which guests it has, so one whose pager was not
 * named is found out before anything is begun.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "split-migrate/interrupt.h"
#include "split-migrate/output.h"
#include "split-migrate/verbs.h"

#define DRAIN_STEP_MS 200
#define DRAIN_CALL_MS 30000

const struct option_def verb_subhost_drain_options[] = {
    {"undo", 0, NULL, "let it be used again"},
    {"no-wait", 0, NULL, "do not wait until it is empty"},
    OPTIONS_END,
};

struct drain {
    struct policy_subhost policy;
    struct subhost subhost;
    char control[ENDPOINT_TEXT_LEN];
    bool undo;
    unsigned n_pagers;
    struct pager pager[OPTIONS_MAX_WORDS];
};

static int drain_open(struct drain *drain, const struct arguments *arguments, struct reason *reason)
{
    drain->subhost.policy = &drain->policy;
    int err = subhost_connect(&drain->subhost, &drain->policy, reason);

    for (unsigned i = 1; !err && (i < arguments->n_words || i == 1); i++) {
        const char *text = i < arguments->n_words ? arguments->word[i] : TARGET_DEFAULT_PAGER;
        struct endpoint endpoint;
        err = endpoint_parse(text, &endpoint, reason);
        if (!err) {
            err = pager_open(&drain->pager[drain->n_pagers++], "pager", &endpoint, reason);
        }
    }
    return err;
}

static void drain_close(struct drain *drain)
{
    for (unsigned i = 0; i < drain->n_pagers; i++) {
        pager_close(&drain->pager[i]);
    }
    subhost_close(&drain->subhost);
}

/* Does a pager of ours serve guest @uuid, split?  Return: its number, or -1. */
static int drain_pager_of(struct drain *drain, const char *uuid)
{
    for (unsigned i = 0; i < drain->n_pagers; i++) {
        struct reason ignored = {""};
        int err;
        json_t *guest = pager_guest(&drain->pager[i], uuid, &err, &ignored);
        bool split = guest && strcmp(hosts_text(guest, "state"), "split") == 0;
        json_decref(guest);
        if (split) {
            return (int)i;
        }
    }
    return -1;
}

/* What the sub-host keeps, of guests that have arrived. */
static json_t *drain_regions(struct drain *drain, uint64_t *stored, int *err, struct reason *reason)
{
    json_t *regions = NULL;
    json_t *region;
    size_t i;

    *stored = 0;
    *err = subhost_call(&drain->subhost, "region-list", NULL, &regions, reason);
    json_array_foreach(regions, i, region) {
        *stored += hosts_bytes(region, "stored");
    }
    return regions;
}

static int drain_tell(struct drain *drain, const json_t *regions, bool really, struct reason *reason)
{
    json_t *region;
    size_t i;
    int err = 0;

    json_array_foreach((json_t *)(uintptr_t)regions, i, region) {
        const char *uuid = hosts_text(region, "name");
        int pager = drain_pager_of(drain, uuid);
        if (err) {
            break;
        }
        if (pager < 0 && (json_is_true(json_object_get(region, "transient")) ||
                          (!drain->undo && hosts_bytes(region, "stored")))) {
            return reason_set(reason, -EBUSY,
                              "guest %s has memory on it, and is split at none of these pagers: "
                              "name the pager of its main host, or wait until it has arrived",
                              uuid);
        }
        if (really && pager >= 0) {
            err = pager_call(&drain->pager[pager], "subhost-drain",
                             json_pack("{s:s, s:s, s:b}", "uuid", uuid, "control", drain->control,
                                       "undo", drain->undo),
                             NULL, DRAIN_CALL_MS, reason);
        }
    }
    return err;
}

/* Has the guest nothing there any more but copies that its pager cannot free? */
static bool drain_left_old_copies(struct drain *drain, const char *uuid)
{
    int pager = drain_pager_of(drain, uuid);
    struct reason ignored = {""};
    bool old = false;
    int err;
    json_t *guest = pager < 0 ? NULL : pager_guest(&drain->pager[pager], uuid, &err, &ignored);
    const json_t *subhost;
    size_t i;

    json_array_foreach(json_object_get(guest, "subhosts"), i, subhost) {
        old = old || (strcmp(hosts_text(subhost, "control"), drain->control) == 0 &&
                      json_is_true(json_object_get(subhost, "unwritable")) &&
                      json_is_true(json_object_get(subhost, "draining")) &&
                      hosts_bytes(subhost, "pages") == 0);
    }
    json_decref(guest);
    return old;
}

static bool drain_all_old_copies(struct drain *drain, const json_t *regions)
{
    const json_t *region;
    bool all = true;
    size_t i;

    json_array_foreach(regions, i, region) {
        all = all && (!hosts_bytes(region, "stored") ||
                      drain_left_old_copies(drain, hosts_text(region, "name")));
    }
    return all;
}

/* @stored: what is left: nothing, or copies that are of no use.  Return: 0 when it may go, -errno. */
static int drain_wait(struct drain *drain, bool show, uint64_t *stored, struct reason *reason)
{
    char text[32];
    int err = 0;

    while (!err) {
        json_t *regions = drain_regions(drain, stored, &err, reason);
        bool done = !err && (!*stored || drain_all_old_copies(drain, regions));
        json_decref(regions);
        if (err || done) {
            break;
        }
        if (interrupt_pending()) {
            return reason_set(reason, -EINTR,
                              "interrupted: the pagers go on emptying it; --undo stops that");
        }
        if (show) {
            fprintf(stderr, "\r%s left   ", units_format_size(*stored, text, sizeof(text)));
        }
        poll(NULL, 0, DRAIN_STEP_MS);
    }
    if (show) {
        fputs("\r                    \r", stderr);
    }
    return err;
}

int verb_subhost_drain(const struct arguments *arguments)
{
    struct drain *drain = calloc(1, sizeof(*drain));
    struct reason reason = {""};
    uint64_t stored = 0;
    char text[32];

    int status = drain ? verbs_subhost_uri(arguments->word[0], &drain->policy) : EXIT_UNCHANGED;
    if (!drain || status != EXIT_OK) {
        free(drain);
        return status;
    }
    drain->undo = options_get(arguments, "undo");
    endpoint_format(&drain->policy.control, drain->control);
    interrupt_init();
    int err = drain_open(drain, arguments, &reason);
    json_t *regions = err ? NULL : drain_regions(drain, &stored, &err, &reason);
    err = err ? err : drain_tell(drain, regions, false, &reason);
    err = err ? err : drain_tell(drain, regions, true, &reason);
    json_decref(regions);
    if (!err && !drain->undo && !options_get(arguments, "no-wait")) {
        err = drain_wait(drain, !arguments->quiet && isatty(STDERR_FILENO), &stored, &reason);
    } else {
        stored = 0;
    }
    if (err) {
        output_error("%s", reason.text);
        status = EXIT_UNCHANGED;
    } else if (!arguments->quiet && stored) {
        printf("%s holds none of the guests' memory any more, only %s of old copies, which are freed when it can "
               "be written again\n",
               arguments->word[0], units_format_size(stored, text, sizeof(text)));
    } else if (!arguments->quiet) {
        printf(drain->undo                            ? "%s is used again\n"
               : options_get(arguments, "no-wait") ? "%s is being emptied\n"
                                                      : "%s is empty\n",
               arguments->word[0]);
    }
    drain_close(drain);
    free(drain);
    return status;
}
