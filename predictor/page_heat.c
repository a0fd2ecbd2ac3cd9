// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * page_heat.c - do the pages of a chunk differ, or is it chance which were found in use?
 *
 * A guest that works all over a chunk has, after a few looks, some pages with more hits than others.  To
 * go by that would strew the chunk over two hosts and gain nothing.  If all pages had the same
 * chance p of a hit, the hits of a page that was looked at n times would vary by n p (1 - p).  Only if
 * they vary clearly more do the pages count each for itself; with one look a page they never do.
 */
#include "predictor/page_heat.h"

#define DIFFER_NUM 3 /* times chance / DIFFER_DEN: pages differ */
#define DIFFER_DEN 2

void page_heat_keys(const uint8_t heat[CHUNK_PAGES], bool whole, uint8_t keys[CHUNK_PAGES])
{
    double hits = 0, looks = 0, varied = 0, chance = 0;

    for (unsigned i = 0; i < CHUNK_PAGES; i++) {
        unsigned of_page = heat[i] / PAGE_HEAT_HIT;
        hits += of_page;
        looks += heat[i] & PAGE_HEAT_LOOKS;
        keys[i] = page_heat_key(heat[i]);
    }
    if (!whole || hits == 0) {
        return;
    }
    double p = hits / looks;
    for (unsigned i = 0; i < CHUNK_PAGES; i++) {
        unsigned of_page = heat[i] / PAGE_HEAT_HIT;
        double n = heat[i] & PAGE_HEAT_LOOKS, more = of_page - n * p;
        varied += more * more;
        chance += n * p * (1 - p);
    }
    for (unsigned i = 0; i < CHUNK_PAGES && varied * DIFFER_DEN <= chance * DIFFER_NUM; i++) {
        keys[i] = (uint8_t)(p * 255);
    }
}
