// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * verb_abort.c - give up a move from outside
 *
 * The pager that has the guest ends its side; QEMU and the split-migrate that
 * drives the move hear of it and undo the rest.
 */
#include <string.h>

#include "split-migrate/output.h"
#include "split-migrate/verbs.h"

static int abort_guest(struct pager *pager)
{
    struct reason reason = {""};
    int err;
    json_t *guest = pager_guest(pager, pager->uuid, &err, &reason);

    if (err) {
        output_error("%s", reason.text);
        return EXIT_UNCHANGED;
    }
    const char *state = json_string_value(json_object_get(guest, "state"));
    const char *verb = NULL;
    if (state && strcmp(state, "sending") == 0) {
        verb = "outgoing-cancel";
    } else if (state && strcmp(state, "incoming") == 0) {
        verb = "incoming-cancel";
    }
    if (!verb) {
        output_error("guest %s is not being moved: it is %s", pager->uuid, state ? state : "?");
    } else {
        err = pager_call(pager, verb, json_pack("{s:s}", "uuid", pager->uuid), NULL, HOSTS_CALL_MS,
                         &reason);
        if (err) {
            output_error("%s", reason.text);
        }
    }
    json_decref(guest);
    return verb && !err ? EXIT_OK : EXIT_UNCHANGED;
}

int verb_abort(const struct arguments *arguments)
{
    struct pager pager;

    int status = verbs_look(&pager, arguments);
    if (status == EXIT_OK) {
        status = abort_guest(&pager);
    }
    pager_close(&pager);
    return status;
}
