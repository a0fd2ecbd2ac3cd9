/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef COMMON_VERSION_H
#define COMMON_VERSION_H

#define SPLIT_MIGRATE_VERSION "0.1.0"

#endif
