/* SPDX-License-Identifier: GPL-2.0-or-later */
/* report.h - a plan and the outcome of a move, for people and for programs */
#ifndef SPLIT_MIGRATE_REPORT_H
#define SPLIT_MIGRATE_REPORT_H

#include "split-migrate/move.h"

/** report_plan() - what would go where, on stdout */
void report_plan(const struct move *move, bool json, bool quiet);

/** report_result() - statistics on stdout; @failure: why it failed, or NULL */
void report_result(const struct move *move, bool json, const char *failure);

#endif
