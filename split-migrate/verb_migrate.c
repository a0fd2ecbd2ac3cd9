// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/output.h"
#include "split-migrate/report.h"
#include "split-migrate/verbs.h"

const struct option_def verb_migrate_options[] = {
    {"live", 0, NULL, "the guest runs while it moves (else it is stopped first)"},
    {"policy", 0, "FILE", "read the policy from FILE (default /etc/split-migrate/policy.ini)"},
    {"dry-run", 0, NULL, "check everything, show the plan, change nothing"},
    {"keep-source", 0, NULL, "leave the source QEMU, stopped, when the guest has moved"},
    {"bandwidth", 0, "SIZE", "limit per second, in MiB unless a unit is given; 0: none"},
    {"downtime", 0, "MS", "how long the guest may stand still at the switch-over"},
    {"timeout", 0, "SECONDS", "cancel if it is not finished by then; 0: never"},
    {"connections", 0, "NUMBER", "connections to each host"},
    {"profile", 0, "SECONDS", "how long to sample accesses first; 0: not at all"},
    {"budget", 0, "SIZE", "memory the guest may have on the main host"},
    {"low-watermark", 0, "SIZE", "page out down to this; size or percent of the budget"},
    {"high-watermark", 0, "SIZE", "page out above this; size or percent of the budget"},
    {"granule", 0, "SIZE", "how much is paged out at a time"},
    {"prefetch", 0, "PAGES", "how many pages to fetch around a page-in"},
    {"verbose", 0, NULL, "show progress on stderr"},
    {"json", 0, NULL, "print the outcome as one JSON object"},
    {NULL, 0, NULL, NULL},
};

static int verb_migrate_move(struct move *move, const struct arguments *arguments)
{
    bool json = options_get(arguments, "json");
    bool dry_run = options_get(arguments, "dry-run");
    struct reason reason = {""};
    int status = EXIT_UNCHANGED;

    progress_begin(&move->progress, move->options.verbose);
    int err = move_connect(move, &reason);
    if (!err) {
        err = move_plan(move, &reason);
    }
    if (!err && dry_run) {
        report_plan(move, json, arguments->quiet);
        return EXIT_OK;
    }
    if (!err) {
        status = move_run(move, &reason);
    }
    progress_end(&move->progress);
    if (status == EXIT_OK || json) {
        report_result(move, json, status == EXIT_OK ? NULL : reason.text);
    }
    if (status != EXIT_OK) {
        output_error("%s", reason.text);
    }
    return status;
}

int verb_migrate(const struct arguments *arguments)
{
    struct move *move = move_new();

    move->options = (struct move_options){
        .live = options_get(arguments, "live"),
        .offline_plan = options_get(arguments, "dry-run") || !options_get(arguments, "live"),
        .keep_source = options_get(arguments, "keep-source"),
        .verbose = options_get(arguments, "verbose"),
    };
    int status = verbs_move(move, arguments);
    if (status == EXIT_OK) {
        status = verb_migrate_move(move, arguments);
    }
    move_free(move);
    return status;
}
