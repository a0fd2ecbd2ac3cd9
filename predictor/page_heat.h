/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * page_heat.h - which pages were in use when they were looked at, before a guest is divided
 *
 * A byte a page: how often it was looked at (low four bits), and how often it had been accessed since
 * the look before (high four).  Both are halved when there is no more room, so that the latest
 * looks weigh most.
 */
#ifndef PREDICTOR_PAGE_HEAT_H
#define PREDICTOR_PAGE_HEAT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/units.h"

#define PAGE_HEAT_LOOKS 0x0fu
#define PAGE_HEAT_HIT 0x10u

/** page_heat_note() - a page was looked at, and was accessed (@hit) or not; one thread at a time */
static inline void page_heat_note(uint8_t *heat, bool hit)
{
    if ((*heat & PAGE_HEAT_LOOKS) == PAGE_HEAT_LOOKS) {
        *heat = (uint8_t)(*heat >> 5 << 4 | (*heat & PAGE_HEAT_LOOKS) >> 1);
    }
    *heat = (uint8_t)(*heat + 1 + (hit ? PAGE_HEAT_HIT : 0));
}

/** page_heat_key() - the share of looks that found it in use, 0 to 255; 0 if there were none */
static inline uint8_t page_heat_key(uint8_t heat)
{
    unsigned looks = heat & PAGE_HEAT_LOOKS;

    return looks ? (uint8_t)(heat / PAGE_HEAT_HIT * 255u / looks) : 0;
}

/**
 * page_heat_keys() - the keys of a chunk's pages, which are all the same if they differ by chance only
 * @whole: (nearly) all pages of the chunk exist; else each counts for itself, for what does not exist has no hits
 * @keys: result, as page_heat_key()
 */
void page_heat_keys(const uint8_t heat[CHUNK_PAGES], bool whole, uint8_t keys[CHUNK_PAGES]);

#endif
