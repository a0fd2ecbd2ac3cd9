// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engine_look.c - which pages the guest has accessed since their mapping was taken away
 *
 * A page that is mapped was accessed since, or paged in (mapped.h).  If it carries PAGE_IDLE, the mark is
 * wrong by now and is taken away.  Whoever has pages zapped looks at them first: a zap would wipe
 * out what nobody has seen yet.
 */
#include "uffd-pager/install.h"
#include "uffd-pager/mapped.h"

_Static_assert(MAPPED_WINDOW == SWEEP_WINDOW, "what the sweep steps through is looked at at once");

uint64_t look_window(struct engine *engine, uint64_t first)
{
    const struct layout_block *block = layout_by_flat(engine->layout, first * PAGE_BYTES);
    uint64_t bits = 0;

    if (!block || engine->config.pagemap < 0) {
        return 0;
    }
    uint64_t left = page_end(block) - first;
    unsigned n = left < MAPPED_WINDOW ? (unsigned)left : MAPPED_WINDOW;
    if (mapped_window(engine->config.pagemap, page_hva(block, first), n, &bits) < 0) {
        return 0;
    }
    unsigned in_use = 0;
    for (uint64_t rest = bits; rest; rest &= rest - 1) {
        uint64_t page = first + (unsigned)__builtin_ctzll(rest);
        if (pagemap_idle(engine->map, page)) {
            install_used(engine, page);
            in_use++;
        }
    }
    if (in_use) {
        stats_add(&engine->stats.in_use, in_use);
        predictor_note(engine->predictor, page_chunk(first), PREDICTOR_READ);
    }
    return bits;
}
