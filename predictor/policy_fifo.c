// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * policy_fifo.c - first in, first out, by the period of a chunk's last page-in
 *
 * Accesses to resident memory do not count: what a pager can do without any access sampling, and a
 * baseline for those that sample.
 */
#include "predictor/policy.h"

static uint8_t fifo_age(uint8_t history, uint8_t noted)
{
    if (noted & NOTED_FAULT) {
        return UINT8_MAX;
    }
    return history ? (uint8_t)(history - 1) : 0;
}

static uint8_t fifo_heat(uint8_t history, uint8_t noted)
{
    return noted & NOTED_FAULT ? UINT8_MAX : history;
}

const struct predictor_ops policy_fifo = {"fifo", fifo_age, fifo_heat, false};
