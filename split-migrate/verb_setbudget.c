// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * verb_setbudget.c - how much of a guest may be on the main host, from now on
 *
 * The pager checks that it can be, and holds the guest to it at once: nothing
 * comes in beyond it while the rest leaves.  We wait until so much has left.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "split-migrate/interrupt.h"
#include "split-migrate/output.h"
#include "split-migrate/verbs.h"

#define SETBUDGET_STEP_MS 50
#define SETBUDGET_TIMEOUT_S 60
#define SETBUDGET_CALL_MS 120000 /* the pager asks each sub-host */
#define SETBUDGET_STALL_US 5000000u /* nothing has left for so long, and the guest goes over it */

const struct option_def verb_setbudget_options[] = {
    OPTION_PAGER,
    {"timeout", 0, "SECONDS", "wait so long until it is reached (default 60); 0: do not wait"},
    OPTIONS_END,
};

struct setbudget {
    struct pager pager;
    uint64_t budget;
    uint64_t resident;
    unsigned timeout_s;
    bool waited;   /* it was not reached at once */
    char text[32]; /* the budget */
};

static int setbudget_parse(struct setbudget *set, const struct arguments *arguments)
{
    const char *timeout = options_get(arguments, "timeout");
    const char *size = arguments->word[1];
    char *end;

    if (units_parse_size(size, MIB, &set->budget) < 0 || set->budget > INT64_MAX) {
        output_error("size '%.64s' must be a whole number with or without a unit (KiB, MiB, GiB, "
                     "TiB; MiB if there is none)",
                     size);
        return EXIT_USAGE;
    }
    if (set->budget < POLICY_MIN_BUDGET) {
        output_error("size '%.64s' is too small: a budget is at least 16 MiB", size);
        return EXIT_USAGE;
    }
    units_format_size(set->budget, set->text, sizeof(set->text));
    set->timeout_s = SETBUDGET_TIMEOUT_S;
    if (timeout) {
        errno = 0;
        unsigned long value = strtoul(timeout, &end, 10);
        if (timeout[0] < '0' || timeout[0] > '9' || *end || errno || value > 604800) {
            output_error("--timeout '%.64s' must be a number of seconds from 0 to 604800", timeout);
            return EXIT_USAGE;
        }
        set->timeout_s = (unsigned)value;
    }
    return EXIT_OK;
}

static int setbudget_look(struct setbudget *set, struct reason *reason)
{
    int err;
    json_t *guest = pager_guest(&set->pager, set->pager.uuid, &err, reason);

    if (!err) {
        set->resident = hosts_bytes(guest, "resident");
    }
    json_decref(guest);
    return err;
}

/*
 * A guest that was let over its budget for a moment, on a busy host say, comes below it all the same; one
 * whose pages have nowhere to go does not.
 * Return: 1 when it is reached, 0 when the time is over, -errno.
 */
static int setbudget_wait(struct setbudget *set, uint64_t deadline, struct reason *reason)
{
    uint64_t least = UINT64_MAX;
    uint64_t least_us = 0;

    for (;;) {
        int err = setbudget_look(set, reason);
        if (err) {
            return err;
        }
        if (set->resident <= set->budget) {
            return 1;
        }
        if (set->resident < least) {
            least = set->resident;
            least_us = units_now_us();
        }
        if (set->pager.over[0] && units_now_us() > least_us + SETBUDGET_STALL_US) {
            return reason_set(reason, -ENOSPC, "the guest goes over its budget of %s: %.160s",
                              set->text, set->pager.over);
        }
        if (interrupt_pending()) {
            return reason_set(reason, -EINTR, "interrupted: the budget is %s all the same",
                              set->text);
        }
        if (units_now_us() >= deadline) {
            return 0;
        }
        set->waited = true;
        poll(NULL, 0, SETBUDGET_STEP_MS);
    }
}

static int setbudget_run(struct setbudget *set, bool quiet)
{
    struct reason reason = {""};
    uint64_t begin = units_now_us();
    char resident[32];

    int err = pager_call(&set->pager, "set-budget",
                         json_pack("{s:s, s:I}", "uuid", set->pager.uuid, "budget",
                                   (json_int_t)set->budget),
                         NULL, SETBUDGET_CALL_MS, &reason);
    int reached = err || !set->timeout_s
                      ? err
                      : setbudget_wait(set, begin + set->timeout_s * UINT64_C(1000000), &reason);
    if (reached < 0) {
        output_error("%s", reason.text);
        return EXIT_UNCHANGED;
    }
    units_format_size(set->resident, resident, sizeof(resident));
    if (!reached && set->timeout_s) {
        output_error("the budget is %s, and after %u s %s are still resident", set->text,
                     set->timeout_s, resident);
        return EXIT_UNCHANGED;
    }
    if (!quiet && !set->timeout_s) {
        printf("Budget is %s\n", set->text);
    } else if (!quiet && set->waited) {
        printf("Budget is %s, reached after %.1f s: %s resident\n", set->text,
               (double)(units_now_us() - begin) / 1e6, resident);
    } else if (!quiet) {
        printf("Budget is %s: %s resident\n", set->text, resident);
    }
    return EXIT_OK;
}

int verb_setbudget(const struct arguments *arguments)
{
    struct setbudget set = {.budget = 0};

    int status = setbudget_parse(&set, arguments);
    if (status != EXIT_OK) {
        return status;
    }
    status = verbs_look(&set.pager, arguments);
    if (status == EXIT_OK) {
        status = setbudget_run(&set, arguments->quiet);
    }
    pager_close(&set.pager);
    return status;
}
