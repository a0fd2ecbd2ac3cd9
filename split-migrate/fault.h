/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fault.h - fault injection for tests: SPLIT_MIGRATE_FAULT names a place, and there the program
 * kills itself as a crash would
 */
#ifndef SPLIT_MIGRATE_FAULT_H
#define SPLIT_MIGRATE_FAULT_H

#define FAULT_BEFORE_ROUND_1 "controller-exit-before-round-1"
#define FAULT_ROUND "controller-exit-round"
#define FAULT_SWITCHOVER "controller-exit-switchover"

/** fault_point() - does not return if this is the place */
void fault_point(const char *place);

#endif
