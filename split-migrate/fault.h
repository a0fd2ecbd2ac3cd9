/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fault.h - fault injection for tests: SPLIT_MIGRATE_FAULT=controller-exit-PLACE has the program
 * kill itself there as a crash would, controller-stop-PLACE has it stop itself (SIGSTOP)
 */
#ifndef SPLIT_MIGRATE_FAULT_H
#define SPLIT_MIGRATE_FAULT_H

#define FAULT_BEFORE_ROUND_1 "before-round-1"
#define FAULT_ROUND "round"
#define FAULT_SWITCHOVER "switchover"

/** fault_point() - does not return if this is the place to exit */
void fault_point(const char *place);

#endif
