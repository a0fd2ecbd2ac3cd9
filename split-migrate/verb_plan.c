// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/output.h"
#include "split-migrate/report.h"
#include "split-migrate/verbs.h"

const struct option_def verb_plan_options[] = {
    {"policy", 0, "FILE", "read the policy from FILE (default /etc/split-migrate/policy.ini)"},
    {"budget", 0, "SIZE", "memory the guest may have on the main host"},
    {"low-watermark", 0, "SIZE", "page out down to this; size or percent of the budget"},
    {"high-watermark", 0, "SIZE", "page out above this; size or percent of the budget"},
    {"bandwidth", 0, "SIZE", "bytes a second there will be: estimate how long it would take"},
    {"downtime", 0, "MS", "how long the guest may stand still at the switch-over"},
    {"pager", 0, "ADDR", "the pager of the host the domain is on"},
    {"dest-pager", 0, "ADDR", "the pager of the main host"},
    {"json", 0, NULL, "print one JSON object"},
    {NULL, 0, NULL, NULL},
};

int verb_plan(const struct arguments *arguments)
{
    struct move *move = move_new();
    struct reason reason = {""};

    move->options.offline_plan = true;
    int status = verbs_move(move, arguments);
    if (status == EXIT_OK) {
        int err = move_connect(move, &reason);
        if (!err) {
            err = move_plan(move, &reason);
        }
        if (!err) {
            err = move_estimate(move, &reason);
        }
        if (err) {
            output_error("%s", reason.text);
            status = EXIT_UNCHANGED;
        } else {
            report_plan(move, options_get(arguments, "json"), arguments->quiet);
        }
    }
    move_free(move);
    return status;
}
