// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/plan.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/units.h"

#define PLAN_GROWTH_PART 16 /* of what is present, this part may be added while the guest moves */
#define PLAN_MAX_WEIGHT 1000000

static uint64_t plan_min(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t plan_round_up(uint64_t bytes)
{
    return (bytes + CHUNK_BYTES - 1) / CHUNK_BYTES * CHUNK_BYTES;
}

static unsigned plan_copies(const struct plan *plan)
{
    return plan->copies ? plan->copies : 1;
}

/* What sub-host @i can take, leaving out the chunk that is kept for rounding. */
static uint64_t plan_room(const struct plan *plan, unsigned i)
{
    const struct plan_subhost *subhost = &plan->subhost[i];
    uint64_t most = plan_min(subhost->free, plan->ram);

    if (subhost->memory) {
        most = plan_min(most, subhost->memory);
    }
    if (plan_copies(plan) > 1) {
        most = plan_min(most, plan_round_up(plan->sub_bytes + plan->growth) + CHUNK_BYTES);
    }
    most = most / CHUNK_BYTES * CHUNK_BYTES;
    return most > CHUNK_BYTES ? most - CHUNK_BYTES : 0;
}

/*
 * Hand @bytes out to the sub-hosts that have @weighted weights, in proportion to weight times
 * room.  Who would get more than its room gets its room, and the rest is divided again.
 */
static uint64_t plan_fill(struct plan *plan, uint64_t bytes, bool weighted)
{
    for (;;) {
        unsigned __int128 total = 0;
        for (unsigned i = 0; i < plan->n_subhosts; i++) {
            const struct plan_subhost *subhost = &plan->subhost[i];
            if (plan_room(plan, i) > subhost->reserve && (subhost->weight != 0) == weighted) {
                total += (unsigned __int128)plan_room(plan, i) * (weighted ? subhost->weight : 1);
            }
        }
        if (bytes == 0 || total == 0) {
            return bytes;
        }
        uint64_t left = bytes;
        for (unsigned i = 0; i < plan->n_subhosts && left; i++) {
            struct plan_subhost *subhost = &plan->subhost[i];
            uint64_t room = plan_room(plan, i);
            if (room <= subhost->reserve || (subhost->weight != 0) != weighted) {
                continue;
            }
            unsigned __int128 part =
                (unsigned __int128)room * (weighted ? subhost->weight : 1) * bytes / total;
            uint64_t give = plan_min(plan_round_up((uint64_t)part + 1), left);
            give = plan_min(give, room - subhost->reserve);
            subhost->reserve += give;
            left -= give;
        }
        bytes = left;
    }
}

static int plan_refuse_subhosts(const struct plan *plan, uint64_t need, uint64_t lacking,
                                struct reason *reason)
{
    char list[160] = "";
    char have[32];
    char want[32];
    char lack[32];

    for (unsigned i = 0; i < plan->n_subhosts; i++) {
        const struct plan_subhost *subhost = &plan->subhost[i];
        bool limited = subhost->memory && subhost->memory < subhost->free;
        size_t used = strlen(list);
        if (used > sizeof(list) - 60) {
            snprintf(list + used, sizeof(list) - used, ", ...");
            break;
        }
        snprintf(list + used, sizeof(list) - used, "%s'%.24s' %s %s", used ? ", " : "",
                 subhost->name, limited ? "may give" : "has",
                 units_format_size(limited ? subhost->memory : subhost->free, have, sizeof(have)));
    }
    return reason_set(reason, -ENOSPC, "sub-host%s %s: %s needed%s, %s more than there is",
                      plan->n_subhosts > 1 ? "s lack memory:" : " lacks memory:", list,
                      units_format_size(need, want, sizeof(want)),
                      plan_copies(plan) > 1 ? " for two copies" : "",
                      units_format_size(lacking, lack, sizeof(lack)));
}

/* Reservations hold shares and growth; say how much of each is bytes that exist now. */
static void plan_shares(struct plan *plan, uint64_t existing)
{
    uint64_t left = existing;
    uint64_t reserved = 0;

    for (unsigned i = 0; i < plan->n_subhosts; i++) {
        reserved += plan->subhost[i].reserve;
    }
    for (unsigned i = 0; i < plan->n_subhosts; i++) {
        struct plan_subhost *subhost = &plan->subhost[i];
        unsigned __int128 part = (unsigned __int128)subhost->reserve * existing;
        subhost->share = reserved ? plan_min((uint64_t)(part / reserved), left) : 0;
        left -= subhost->share;
    }
    for (unsigned i = 0; i < plan->n_subhosts && left; i++) {
        struct plan_subhost *subhost = &plan->subhost[i];
        uint64_t give = plan_min(left, subhost->reserve - subhost->share);
        subhost->share += give;
        left -= give;
    }
}

/* The chunk for rounding, what the region may hold at most, and what is not guaranteed. */
static void plan_limits(struct plan *plan)
{
    uint64_t guaranteed = 0;

    for (unsigned i = 0; i < plan->n_subhosts; i++) {
        struct plan_subhost *subhost = &plan->subhost[i];
        subhost->reserve = plan_round_up(subhost->reserve) + CHUNK_BYTES;
        subhost->limit = plan->ram;
        if (subhost->memory) {
            subhost->limit = plan_min(subhost->memory, plan->ram);
        }
        subhost->reserve = plan_min(subhost->reserve, subhost->limit);
        guaranteed += subhost->reserve;
    }
    guaranteed = plan->budget + guaranteed / plan_copies(plan);
    plan->shortfall = guaranteed < plan->ram ? plan->ram - guaranteed : 0;
}

int plan_make(struct plan *plan, struct reason *reason)
{
    char a[32];
    char b[32];

    plan->main_bytes = plan_min(plan->present, plan->low_watermark);
    plan->growth = plan_min(plan->ram - plan_min(plan->ram, plan->present),
                            plan->present / PLAN_GROWTH_PART + CHUNK_BYTES);
    plan->main_need = plan_min(plan->budget, plan->present + plan->growth);
    plan->sub_bytes = plan->present - plan->main_bytes;
    if (plan->main_known && plan->main_free < plan->main_need) {
        return reason_set(reason, -ENOSPC,
                          "the main host lacks memory: %s are needed and %s are available",
                          units_format_size(plan->main_need, a, sizeof(a)),
                          units_format_size(plan->main_free, b, sizeof(b)));
    }
    for (unsigned i = 0; i < plan->n_subhosts; i++) {
        plan->subhost[i].share = plan->subhost[i].reserve = 0;
        if (plan->subhost[i].free < CHUNK_BYTES) {
            return reason_set(reason, -ENOSPC,
                              "sub-host '%s' lacks memory: at least %s is needed and %s is free",
                              plan->subhost[i].name, units_format_size(CHUNK_BYTES, a, sizeof(a)),
                              units_format_size(plan->subhost[i].free, b, sizeof(b)));
        }
    }
    uint64_t need = plan_copies(plan) * (plan->sub_bytes + plan->growth);
    uint64_t left = plan_fill(plan, need, true);
    left = plan_fill(plan, left, false);
    if (left) {
        return plan_refuse_subhosts(plan, need, left, reason);
    }
    plan_shares(plan, plan->sub_bytes);
    plan_limits(plan);
    return 0;
}

uint64_t plan_weight(const struct plan *plan, unsigned i)
{
    uint64_t total = 0;

    for (unsigned k = 0; k < plan->n_subhosts; k++) {
        total += plan->subhost[k].reserve;
    }
    return total ? (uint64_t)((unsigned __int128)plan->subhost[i].reserve * PLAN_MAX_WEIGHT / total)
                 : 1;
}
