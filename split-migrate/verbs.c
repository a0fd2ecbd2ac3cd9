// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/verbs.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/version.h"
#include "split-migrate/interrupt.h"
#include "split-migrate/output.h"
#include "split-migrate/qmp.h"

#define VERBS_DEFAULT_POLICY "/etc/split-migrate/policy.ini"

static const struct option_def verb_no_options[] = {OPTIONS_END};
static const struct option_def verb_pager_options[] = {OPTION_PAGER, OPTIONS_END};

static int verb_help(const struct arguments *arguments)
{
    if (!arguments->n_words) {
        options_usage(stdout, verbs_table);
        return EXIT_OK;
    }
    const struct verb *verb = options_find_verb(verbs_table, arguments->word[0]);
    if (!verb) {
        output_error("verb '%s' is not known", arguments->word[0]);
        return EXIT_USAGE;
    }
    options_verb_usage(stdout, verb);
    return EXIT_OK;
}

const struct verb verbs_table[] = {
    {"migrate", "DOMAIN DESTURI", 2, 2,
     "move a guest to a main host and sub-hosts that share its memory", verb_migrate_options, false,
     verb_migrate},
    {"enable", "DOMAIN", 1, 1, "change a domain of libvirt so that it can be split",
     verb_enable_options, false, verb_enable},
    {"disable", "DOMAIN", 1, 1, "take that back", verb_no_options, false, verb_disable},
    {"check", "DOMAIN [DESTURI]", 1, 2, "show what a domain and the hosts lack for splitting",
     verb_check_options, false, verb_check},
    {"plan", "DOMAIN [DESTURI]", 1, 2, "show what would go where, and change nothing",
     verb_plan_options, false, verb_plan},
    {"status", "[DOMAIN]", 0, 1, "show how far a move is, or how a guest is", verb_status_options,
     false, verb_status},
    {"abort", "DOMAIN", 1, 1, "give up the move of a guest, which runs on at the source",
     verb_pager_options, false, verb_abort},
    {"dommemstat", "DOMAIN", 1, 1, "show a guest's memory statistics: resident, remote, page-ins",
     verb_dommemstat_options, false, verb_dommemstat},
    {"pages", "DOMAIN", 1, 1, "show where a guest's memory is, and how hot", verb_pages_options,
     false, verb_pages},
    {"setbudget", "DOMAIN SIZE", 2, 2, "change how much of a guest may be on the main host",
     verb_setbudget_options, false, verb_setbudget},
    {"top", "", 0, 0, "show all guests of a host's pager, again and again", verb_top_options, false,
     verb_top},
    {"subhost-list", "[URI]...", 0, OPTIONS_MAX_WORDS, "show what sub-hosts lend and have free",
     verb_subhost_list_options, false, verb_subhost_list},
    {"subhost-info", "URI", 1, 1, "show a sub-host and what it keeps for which guest",
     verb_subhost_info_options, false, verb_subhost_info},
    {"subhost-drain", "URI [PAGER]...", 1, OPTIONS_MAX_WORDS,
     "empty a sub-host for maintenance while guests run", verb_subhost_drain_options, false,
     verb_subhost_drain},
    {"help", "[VERB]", 0, 1, "show this help, or that of a verb", verb_no_options, false,
     verb_help},
    {"self-test", "", 0, 0, "check the tables of verbs and options", verb_self_test_options, true,
     verb_self_test},
    {"complete", "[WORD]...", 0, OPTIONS_MAX_WORDS, "show what a command line may go on with",
     verb_no_options, true, verb_complete},
    {NULL, NULL, 0, 0, NULL, NULL, false, NULL},
};

/* ---- shared by verbs ---- */

static bool verbs_has_option(const struct verb *verb, const char *name)
{
    for (const struct option_def *option = verb->options; option->name; option++) {
        if (strcmp(option->name, name) == 0) {
            return true;
        }
    }
    return false;
}

static int verbs_policy_options(struct policy *policy, const struct arguments *arguments,
                                struct reason *reason)
{
    int err = 0;

    for (const struct option_def *option = arguments->verb->options; option->name && !err;
         option++) {
        const char *value = options_get(arguments, option->name);
        if (value && policy_has_option(option->name)) {
            err = policy_set_option(policy, option->name, value, reason);
        }
    }
    const char *same = verbs_has_option(arguments->verb, "parallel-connections")
                           ? options_get(arguments, "parallel-connections")
                           : NULL;
    if (!err && same) {
        err = policy_set_option(policy, "connections", same, reason);
    }
    bool profiles = verbs_has_option(arguments->verb, "profile");
    const char *profile = profiles ? options_get(arguments, "profile") : NULL;
    return !err && profile ? policy_set_option(policy, "profile-seconds", profile, reason) : err;
}

const char *verbs_uri(const struct arguments *arguments)
{
    const char *uri = arguments->connect ? arguments->connect : getenv("LIBVIRT_DEFAULT_URI");

    return uri ? uri : "";
}

/* An option that says what a parameter of @target would. */
static int verbs_address(struct target *target, const struct arguments *arguments,
                         const char *option, const char *parameter, struct reason *reason)
{
    const char *value =
        verbs_has_option(arguments->verb, option) ? options_get(arguments, option) : NULL;

    if (!value) {
        return 0;
    }
    if (!target->scheme[0]) {
        return reason_set(reason, -EINVAL, "option '--%s' needs a DESTURI", option);
    }
    return target_set_address(target, parameter, value, reason);
}

int verbs_targets(struct move *move, const struct arguments *arguments)
{
    struct target *source = &move->source;
    struct target *destination = &move->destination;
    struct reason reason = {""};

    int err = target_parse(source, arguments->word[0], TARGET_SOURCE, &reason);
    if (!err && arguments->n_words > 1) {
        err = target_parse(destination, arguments->word[1], TARGET_DESTINATION, &reason);
    }
    if (!err && strcmp(source->scheme, "libvirt") == 0) {
        target_set_uri(source, verbs_uri(arguments));
    }
    if (!err && destination->scheme[0] && strcmp(source->scheme, destination->scheme) != 0) {
        err = reason_set(&reason, -EINVAL,
                         "DOMAIN and DESTURI must both be of libvirt or both qmp:, and they are "
                         "'%.80s' and '%.80s'",
                         source->text, destination->text);
    }
    if (!err) {
        err = verbs_address(source, arguments, "pager", "pager", &reason);
    }
    if (!err) {
        err = verbs_address(destination, arguments, "dest-pager", "pager", &reason);
    }
    if (!err) {
        err = verbs_address(destination, arguments, "dest-data", "listen", &reason);
    }
    if (err) {
        output_error("%s", reason.text);
        return EXIT_USAGE;
    }
    return EXIT_OK;
}

int verbs_tls(const struct policy *policy, const struct arguments *arguments,
              struct reason *reason)
{
    struct tls_config tls = {
        .certificates =
            policy->tls_certificates[0] && !policy->tls_psk[0] ? policy->tls_certificates : NULL,
        .psk = policy->tls_psk[0] ? policy->tls_psk : NULL,
        .username = policy->tls_username[0] ? policy->tls_username : NULL,
    };
    bool typed = arguments->tls.certificates || arguments->tls.psk;

    return typed ? 0 : tls_configure(&tls, reason);
}

int verbs_policy(struct policy *policy, const struct arguments *arguments)
{
    const char *file = options_get(arguments, "policy");
    struct reason reason = {""};

    /* What was typed first: it needs no file to be wrong. */
    int err = verbs_policy_options(policy, arguments, &reason);
    if (err) {
        output_error("%s", reason.text);
        return EXIT_USAGE;
    }
    if (file || access(VERBS_DEFAULT_POLICY, F_OK) == 0) {
        err = policy_load(policy, file ? file : VERBS_DEFAULT_POLICY, &reason);
        if (!err) {
            err = verbs_policy_options(policy, arguments, &reason);
        }
        if (!err) {
            err = policy_check(policy, &reason);
        }
        if (!err) {
            err = verbs_tls(policy, arguments, &reason);
        }
    } else {
        err = reason_set(&reason, -ENOENT,
                         "no policy is given and there is no %s: add "
                         "--policy FILE",
                         VERBS_DEFAULT_POLICY);
    }
    if (err) {
        output_error("%s", reason.text);
        return EXIT_UNCHANGED;
    }
    return EXIT_OK;
}

int verbs_move(struct move *move, const struct arguments *arguments)
{
    int status = verbs_targets(move, arguments);

    return status == EXIT_OK ? verbs_policy(&move->policy, arguments) : status;
}

static int verbs_look_uuid(const struct target *target, char uuid[UUID_TEXT_LEN],
                           struct reason *reason)
{
    struct qmp qmp;

    if (strcmp(target->scheme, "uuid") == 0) {
        memcpy(uuid, target->uuid, UUID_TEXT_LEN);
        return 0;
    }
    const struct driver_ops *ops = driver_find(target);
    if (!ops) {
        return reason_set(reason, -EOPNOTSUPP,
                          "'%.80s' is for libvirt, and this split-migrate was built without it",
                          target->text);
    }
    if (ops->uuid) {
        return ops->uuid(target, uuid, reason);
    }
    int err = qmp_open(&qmp, "QEMU", &target->monitor, reason);
    if (err == -ETIMEDOUT) {
        return reason_set(reason, err,
                          "the monitor %.100s does not answer, another program may be using it: "
                          "name the guest by its UUID",
                          target->monitor.host);
    }
    if (!err) {
        err = qmp_uuid(&qmp, uuid, reason);
        qmp_close(&qmp);
    }
    return err;
}

static int verbs_look_target(struct target *target, const struct arguments *arguments,
                             struct reason *reason)
{
    int err = target_parse(target, arguments->word[0], TARGET_LOOK, reason);

    if (!err && strcmp(target->scheme, "qmp") != 0) {
        target_set_uri(target, verbs_uri(arguments));
    }
    if (!err && target->pager_given && options_get(arguments, "pager")) {
        err = reason_set(reason, -EINVAL, "'%.100s' names a pager, and so does --pager",
                         target->text);
    }
    return err ? err : verbs_address(target, arguments, "pager", "pager", reason);
}

int verbs_look(struct pager *pager, const struct arguments *arguments)
{
    struct target target;
    struct reason reason = {""};
    char uuid[UUID_TEXT_LEN];

    memset(pager, 0, sizeof(*pager));
    if (verbs_look_target(&target, arguments, &reason) < 0) {
        output_error("%s", reason.text);
        return EXIT_USAGE;
    }
    int err = verbs_look_uuid(&target, uuid, &reason);
    if (!err) {
        err = pager_open(pager, "pager", &target.pager, &reason);
    }
    if (err) {
        output_error("%s", reason.text);
        return EXIT_UNCHANGED;
    }
    memcpy(pager->uuid, uuid, sizeof(pager->uuid));
    return EXIT_OK;
}

int verbs_pager(struct pager *pager, const struct arguments *arguments)
{
    struct target target = {.scheme = "libvirt"};
    struct reason reason = {""};

    memset(pager, 0, sizeof(*pager));
    endpoint_parse(TARGET_DEFAULT_PAGER, &target.pager, NULL);
    target_set_uri(&target, verbs_uri(arguments));
    if (verbs_address(&target, arguments, "pager", "pager", &reason) < 0) {
        output_error("%s", reason.text);
        return EXIT_USAGE;
    }
    if (pager_open(pager, "pager", &target.pager, &reason) < 0) {
        output_error("%s", reason.text);
        return EXIT_UNCHANGED;
    }
    return EXIT_OK;
}

int verbs_interval(const struct arguments *arguments, unsigned *ms)
{
    const char *text = options_get(arguments, "interval");
    char *end;

    *ms = VERBS_INTERVAL_MS;
    if (!text) {
        return EXIT_OK;
    }
    double seconds = strtod(text, &end);
    if (*end || text[0] < '0' || text[0] > '9' || !(seconds >= 0.1 && seconds <= 3600)) {
        output_error("--interval '%s' must be a number of seconds from 0.1 to 3600", text);
        return EXIT_USAGE;
    }
    *ms = (unsigned)(seconds * 1000);
    return EXIT_OK;
}

/* ---- the program ---- */

int verbs_main(int argc, char **argv)
{
    struct arguments arguments;
    struct reason reason = {""};

    interrupt_init();
    if (options_parse(&arguments, verbs_table, argc, argv, &reason) < 0) {
        output_error("%s; see split-migrate %s%s", reason.text, arguments.verb ? "help " : "--help",
                     arguments.verb ? arguments.verb->name : "");
        return EXIT_USAGE;
    }
    log_init("split-migrate", arguments.debug);
    if (arguments.version) {
        printf("split-migrate %s\n", SPLIT_MIGRATE_VERSION);
        return EXIT_OK;
    }
    if (arguments.help && arguments.verb) {
        options_verb_usage(stdout, arguments.verb);
        return EXIT_OK;
    }
    if (arguments.help) {
        options_usage(stdout, verbs_table);
        return EXIT_OK;
    }
    if (tls_configure(&arguments.tls, &reason) < 0) {
        output_error("%s", reason.text);
        return EXIT_USAGE;
    }
    return arguments.verb->run(&arguments);
}
