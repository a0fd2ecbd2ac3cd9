/* SPDX-License-Identifier: GPL-2.0-or-later */
/* verbs.h - the verb table and what several verbs share */
#ifndef SPLIT_MIGRATE_VERBS_H
#define SPLIT_MIGRATE_VERBS_H

#include "split-migrate/hosts.h"
#include "split-migrate/move.h"
#include "split-migrate/options.h"

extern const struct verb verbs_table[];

extern const struct option_def verb_migrate_options[];
extern const struct option_def verb_plan_options[];
extern const struct option_def verb_status_options[];
extern const struct option_def verb_pages_options[];
extern const struct option_def verb_dommemstat_options[];
extern const struct option_def verb_setbudget_options[];
extern const struct option_def verb_top_options[];
extern const struct option_def verb_subhost_list_options[];
extern const struct option_def verb_subhost_info_options[];
extern const struct option_def verb_subhost_drain_options[];
extern const struct option_def verb_enable_options[];
extern const struct option_def verb_check_options[];
extern const struct option_def verb_self_test_options[];

int verb_migrate(const struct arguments *arguments);
int verb_plan(const struct arguments *arguments);
int verb_status(const struct arguments *arguments);
int verb_abort(const struct arguments *arguments);
int verb_pages(const struct arguments *arguments);
int verb_dommemstat(const struct arguments *arguments);
int verb_setbudget(const struct arguments *arguments);
int verb_top(const struct arguments *arguments);
int verb_subhost_list(const struct arguments *arguments);
int verb_subhost_info(const struct arguments *arguments);
int verb_subhost_drain(const struct arguments *arguments);

/** verbs_subhost_uri() - a sub-host named on the command line. Return: an exit status, told if it is bad. */
int verbs_subhost_uri(const char *uri, struct policy_subhost *subhost);
int verb_enable(const struct arguments *arguments);
int verb_disable(const struct arguments *arguments);
int verb_check(const struct arguments *arguments);
int verb_self_test(const struct arguments *arguments);
int verb_complete(const struct arguments *arguments);

/** verbs_main() - the program. Return: its exit status. */
int verbs_main(int argc, char **argv);

/** verbs_uri() - libvirt's URI as -c or LIBVIRT_DEFAULT_URI says; "" for libvirt's default */
const char *verbs_uri(const struct arguments *arguments);

/**
 * verbs_targets() - DOMAIN and DESTURI, and the options that belong to them, into @move
 * Return: EXIT_OK, or EXIT_USAGE after having written the error.
 */
int verbs_targets(struct move *move, const struct arguments *arguments);

/**
 * verbs_move() - a move as the command line and the policy file describe it
 * Return: EXIT_OK, or an exit status after having written the error.
 */
int verbs_move(struct move *move, const struct arguments *arguments);

/**
 * verbs_policy() - the policy that --policy names, or the default one, over what @policy holds
 * Return: EXIT_OK, or an exit status after having written the error.
 */
int verbs_policy(struct policy *policy, const struct arguments *arguments);

/**
 * verbs_look() - connect to the pager of the guest that the first word names; the verb has --pager
 * verbs_tls() - the TLS identity of the policy, unless one was typed
 * Return: 0, or -EINVAL with a sentence in @reason.
 */
int verbs_tls(const struct policy *policy, const struct arguments *arguments,
              struct reason *reason);

/**
 * verbs_look() - connect to the pager of the guest that the first word names
 * Return: 0 with pager->uuid set, or an exit status after having written the error.
 */
int verbs_look(struct pager *pager, const struct arguments *arguments);

/**
 * verbs_pager() - connect to the pager of the host that -c and --pager name
 * Return: 0, or an exit status after having written the error.
 */
int verbs_pager(struct pager *pager, const struct arguments *arguments);

#define VERBS_INTERVAL_MS 1000

/** verbs_interval() - --interval in ms. Return: EXIT_OK, or EXIT_USAGE after having written the error. */
int verbs_interval(const struct arguments *arguments, unsigned *ms);

#endif
