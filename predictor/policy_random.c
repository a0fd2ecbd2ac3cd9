// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * policy_random.c - all chunks are equal, so the seeded order decides: the floor for any policy
 */
#include "predictor/policy.h"

static uint8_t random_heat(uint8_t history, uint8_t noted)
{
    (void)history;
    (void)noted;
    return 0;
}

const struct predictor_ops policy_random = {"random", random_heat, random_heat, false};
