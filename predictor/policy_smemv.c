// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * policy_smemv.c - LRU with aging, as in S-memV
 *
 * Eight bits a chunk, the newest period in the highest: h = (accessed << 7) | (h >> 1).  Read as a
 * number it orders chunks by when they were last used first and by how often second, over the last
 * eight periods.
 *
 * Source: S-memV (Suetake et al., IEEE CLOUD 2018).  It keeps a byte per 4 KiB page and takes the
 * bitwise OR as the history of a 2 MiB chunk; since aging shifts all bytes alike, that is the same
 * as aging one byte a chunk, which is what we keep.  An access in the current period shows at once,
 * so that a chunk just paged in is never the victim.
 */
#include "predictor/policy.h"

uint8_t policy_smemv_age(uint8_t history, uint8_t noted)
{
    return (uint8_t)((noted ? 0x80u : 0u) | history >> 1);
}

uint8_t policy_smemv_heat(uint8_t history, uint8_t noted)
{
    return (uint8_t)((noted ? 0x80u : 0u) | history);
}

const struct predictor_ops policy_smemv = {"smemv", policy_smemv_age, policy_smemv_heat, false};
