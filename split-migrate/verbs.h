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
extern const struct option_def verb_enable_options[];
extern const struct option_def verb_check_options[];

int verb_migrate(const struct arguments *arguments);
int verb_plan(const struct arguments *arguments);
int verb_status(const struct arguments *arguments);
int verb_abort(const struct arguments *arguments);
int verb_pages(const struct arguments *arguments);
int verb_enable(const struct arguments *arguments);
int verb_disable(const struct arguments *arguments);
int verb_check(const struct arguments *arguments);

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
 * verbs_look() - connect to the pager of the guest that the first word names
 * Return: 0 with pager->uuid set, or an exit status after having written the error.
 */
int verbs_look(struct pager *pager, const struct arguments *arguments);

#endif
