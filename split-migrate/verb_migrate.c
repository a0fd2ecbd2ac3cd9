// SPDX-License-Identifier: GPL-2.0-or-later
#include <string.h>

#include "split-migrate/output.h"
#include "split-migrate/report.h"
#include "split-migrate/verbs.h"

const struct option_def verb_migrate_options[] = {
    {"live", 0, NULL, "the guest runs while it moves (else it is stopped first)"},
    {"policy", 0, "FILE", "read the policy from FILE (default /etc/split-migrate/policy.ini)"},
    {"dry-run", 0, NULL, "check everything, show the plan, change nothing"},
    {"keep-source", 0, NULL, "leave the source QEMU, stopped, when the guest has moved (qmp: only)"},
    {"persistent", 0, NULL, "define the domain at the destination"},
    {"undefinesource", 0, NULL, "undefine the domain at the source"},
    {"dname", 0, "NAME", "call the domain so at the destination"},
    {"migrateuri", 0, "URI", "where QEMU's own stream goes, e.g. tcp://HOST"},
    {"abort-on-error", 0, NULL, "cancel when the guest's disks fail meanwhile"},
    {"auto-converge", 0, NULL, "slow the guest down if it writes faster than it can be moved"},
    {"unsafe", 0, NULL, "move even if libvirt finds the disks' caching unsafe"},
    {"pager", 0, "ADDR", "the pager of the host the domain is on"},
    {"dest-pager", 0, "ADDR", "the pager of the main host"},
    {"dest-data", 0, "ADDR", "where the main host's pager takes hot pages, if not as it was started"},
    {"bandwidth", 0, "SIZE", "limit per second, in MiB unless a unit is given; 0: none"},
    {"downtime", 0, "MS", "how long the guest may stand still at the switch-over"},
    {"timeout", 0, "SECONDS", "cancel if it is not finished by then; 0: never"},
    {"timeout-suspend", 0, NULL, "suspend the guest then, instead"},
    {"timeout-abort", 0, NULL, "cancel then, which is the default"},
    {"connections", 0, "NUMBER", "connections to each host"},
    {"parallel-connections", 0, "NUMBER", "the same, by virsh's name"},
    {"compress", 0, "HOW", "memory on its way: none, lz4, zstd or adaptive"},
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
        err = move_estimate(move, &reason);
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

/* Options that mean something to one of the drivers only. */
static int verb_migrate_check(const struct arguments *arguments)
{
    static const char *const managed[] = {"persistent", "undefinesource", "dname",
                                          "migrateuri", "abort-on-error", "unsafe"};
    bool libvirt = strncmp(arguments->word[0], "qmp:", 4) != 0;

    for (size_t i = 0; i < sizeof(managed) / sizeof(managed[0]) && !libvirt; i++) {
        if (options_get(arguments, managed[i])) {
            output_error("option '--%s' is for domains of libvirt", managed[i]);
            return EXIT_USAGE;
        }
    }
    if (libvirt && options_get(arguments, "keep-source")) {
        output_error("option '--keep-source' is for qmp: guests: libvirt ends the source itself");
        return EXIT_USAGE;
    }
    if (options_get(arguments, "timeout-suspend") && options_get(arguments, "timeout-abort")) {
        output_error("options '--timeout-suspend' and '--timeout-abort' exclude each other");
        return EXIT_USAGE;
    }
    return EXIT_OK;
}

/* What happens when the time is over means something only if there is a time. */
static int verb_migrate_check_timeout(const struct move *move, const struct arguments *arguments)
{
    static const char *const options[] = {"timeout-suspend", "timeout-abort"};

    for (size_t i = 0; i < 2; i++) {
        if (options_get(arguments, options[i]) && !move->policy.timeout_s) {
            output_error("option '--%s' needs '--timeout SECONDS'", options[i]);
            return EXIT_USAGE;
        }
    }
    return EXIT_OK;
}

int verb_migrate(const struct arguments *arguments)
{
    struct move *move = move_new();

    move->options = (struct move_options){
        .live = options_get(arguments, "live"),
        .offline_plan = options_get(arguments, "dry-run") || !options_get(arguments, "live"),
        .keep_source = options_get(arguments, "keep-source"),
        .verbose = options_get(arguments, "verbose"),
        .suspend_late = options_get(arguments, "timeout-suspend"),
        .driver =
            {
                .persistent = options_get(arguments, "persistent"),
                .undefine_source = options_get(arguments, "undefinesource"),
                .abort_on_error = options_get(arguments, "abort-on-error"),
                .auto_converge = options_get(arguments, "auto-converge"),
                .unsafe = options_get(arguments, "unsafe"),
                .dname = options_get(arguments, "dname"),
                .migrate_uri = options_get(arguments, "migrateuri"),
            },
    };
    int status = verb_migrate_check(arguments);
    if (status == EXIT_OK) {
        status = verbs_move(move, arguments);
    }
    if (status == EXIT_OK) {
        status = verb_migrate_check_timeout(move, arguments);
    }
    if (status == EXIT_OK) {
        status = verb_migrate_move(move, arguments);
    }
    move_free(move);
    return status;
}
