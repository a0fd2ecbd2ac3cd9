// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * policy_sweep.c - victims by page (sweep.c); chunks are only told apart for a migration, by aging
 */
#include "predictor/policy.h"

const struct predictor_ops policy_sweep = {"sweep", policy_smemv_age, policy_smemv_heat, true};
