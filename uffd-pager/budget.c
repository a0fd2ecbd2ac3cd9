// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * budget.c - another budget for a guest that runs
 *
 * The engine takes new limits at once (engine_room.c) and works down to them
 * while the guest runs.  Limits that cannot be reached would leave it over its
 * budget for good, so two questions come first: if pages must leave, whether
 * the sub-hosts have room for those they do not hold a copy of already; and if
 * more may come, whether this host has the memory.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/meminfo.h"
#include "uffd-pager/worker.h"

#define BUDGET_LEAST (16 * MIB)
#define BUDGET_HOSTS_LEN 160

struct budget {
    uint64_t budget, low, high;
    uint64_t resident;
    uint64_t old;  /* the budget until now */
    uint64_t most; /* what the guest can ever have resident */
    uint64_t clean;                        /* resident, and its sub-host has it */
    unsigned redundancy;                   /* copies of each page on sub-hosts */
    uint64_t copies[PAGEMAP_MAX_SUBHOSTS]; /* bytes each sub-host must keep: remote and clean */
    struct session session;                /* as it was when we began */
};

static int budget_bytes(const json_t *args, const char *key, uint64_t otherwise, uint64_t *value,
                        struct reason *reason)
{
    const json_t *item = json_object_get(args, key);

    *value = otherwise;
    if (!item) {
        return 0;
    }
    if (!json_is_integer(item) || json_integer_value(item) <= 0) {
        return reason_set(reason, -EINVAL, "'%s' must be a number of bytes", key);
    }
    *value = (uint64_t)json_integer_value(item);
    return 0;
}

static uint64_t budget_share(uint64_t budget, uint64_t part, uint64_t whole)
{
    return whole ? (uint64_t)((unsigned __int128)budget * part / whole) : budget;
}

/* What is asked for; watermarks that are not given stay where they were, as parts of the budget. */
static int budget_parse(struct budget *budget, const json_t *args, struct reason *reason)
{
    const struct session *session = &budget->session;

    int err = budget_bytes(args, "budget", 0, &budget->budget, reason);
    if (!err) {
        uint64_t high = budget_share(budget->budget, session->high_watermark, session->budget);
        err = budget_bytes(args, "high_watermark", high, &budget->high, reason);
    }
    if (!err) {
        uint64_t low = budget_share(budget->budget, session->low_watermark, session->budget);
        err = budget_bytes(args, "low_watermark", low < budget->high ? low : budget->high,
                           &budget->low, reason);
    }
    if (!err && (budget->budget < BUDGET_LEAST || budget->low > budget->high ||
                 budget->high > budget->budget)) {
        err = reason_set(reason, -EINVAL, "'budget' must be at least 16 MiB and its watermarks "
                                          "below it, the low one below the high one");
    }
    return err;
}

/* worker.lock held */
static void budget_count(struct budget *budget, const struct worker *worker)
{
    const struct pagemap *map = &worker->map;

    budget->resident = engine_resident(&worker->layout);
    budget->most = worker->layout.flat_size;
    budget->redundancy = budget->session.redundancy == ENGINE_REDUNDANCY_REPLICA ? 2 : 1;
    for (uint64_t chunk = 0; chunk < map->n_chunks; chunk++) {
        for (unsigned copy = 0; copy < PAGEMAP_COPIES; copy++) {
            uint8_t host = pagemap_home(map, chunk, copy);
            struct pagemap_counts counts;
            if (host < budget->session.n_subhosts) {
                pagemap_count(map, chunk * CHUNK_PAGES, CHUNK_PAGES, &counts);
                budget->copies[host] += (counts.remote + counts.clean) * PAGE_BYTES;
                budget->clean += counts.clean * PAGE_BYTES;
            }
        }
    }
}

/*
 * May what must leave go to the sub-hosts?  A clean page needs no room there, nor does one of which
 * the sub-host has an old copy: that is what it stores beyond its copies.
 */
static int budget_check_room(const struct budget *budget, const char *uuid, struct reason *reason)
{
    char text[4][32];
    char hosts[BUDGET_HOSTS_LEN] = "";
    uint64_t leave = budget->redundancy * (budget->resident - budget->budget);
    uint64_t room = budget->clean;

    for (unsigned i = 0; i < budget->session.n_subhosts && room < leave; i++) {
        const char *name = budget->session.subhost[i].name;
        size_t used = strlen(hosts);
        uint64_t stored, free_bytes;
        int err = session_room(&budget->session, i, uuid, &stored, &free_bytes, NULL);
        room += free_bytes + (stored > budget->copies[i] ? stored - budget->copies[i] : 0);
        snprintf(hosts + used, sizeof(hosts) - used, "%s'%s' %s", used ? ", " : "", name,
                 err ? "cannot be asked" : units_format_size(free_bytes, text[0], sizeof(text[0])));
    }
    if (room >= leave) {
        return 0;
    }
    return reason_set(reason, -ENOSPC,
                      "for a budget of %s, %s must leave this host, and the sub-hosts have room "
                      "for %s (%s)",
                      units_format_size(budget->budget, text[1], sizeof(text[1])),
                      units_format_size(leave, text[2], sizeof(text[2])),
                      units_format_size(room, text[3], sizeof(text[3])), hosts);
}

static int budget_check_memory(const struct budget *budget, struct reason *reason)
{
    uint64_t most = budget->budget < budget->most ? budget->budget : budget->most;
    uint64_t more = most > budget->resident ? most - budget->resident : 0;
    uint64_t have = meminfo_bytes("MemAvailable:");
    char text[3][32];

    if (more <= have) {
        return 0;
    }
    return reason_set(reason, -ENOSPC,
                      "with a budget of %s the guest could take %s more, and this host has %s "
                      "available",
                      units_format_size(budget->budget, text[0], sizeof(text[0])),
                      units_format_size(more, text[1], sizeof(text[1])),
                      units_format_size(have, text[2], sizeof(text[2])));
}

static int budget_begin(struct budget *budget, struct worker *worker, const json_t *args,
                        struct reason *reason)
{
    int err = 0;

    pthread_mutex_lock(&worker->lock);
    if (worker->state != WORKER_SPLIT) {
        err = reason_set(reason, -EBUSY, "guest %s has no budget: it is not split",
                         worker->uuid_text);
    } else {
        budget->session = worker->session;
        budget->old = worker->session.budget;
        err = budget_parse(budget, args, reason);
    }
    if (!err) {
        budget_count(budget, worker);
    }
    pthread_mutex_unlock(&worker->lock);
    return err;
}

static int budget_apply(const struct budget *budget, struct worker *worker, struct reason *reason)
{
    int err = 0;

    pthread_mutex_lock(&worker->lock);
    if (worker->state != WORKER_SPLIT) {
        err = reason_set(reason, -EBUSY, "guest %s is not split any more", worker->uuid_text);
    } else {
        err = engine_set_budget(worker->engine, budget->budget, budget->low, budget->high, reason);
    }
    if (!err) {
        worker->session.budget = budget->budget;
        worker->session.high_watermark = budget->high;
        worker->session.low_watermark = budget->low;
        session_save(&worker->session, worker->dir);
        worker->resident_max = 0;
        log_info("guest %s: the budget is now %" PRIu64 " MiB, it was %" PRIu64 " MiB",
                 worker->uuid_text, budget->budget / MIB, budget->old / MIB);
    }
    pthread_mutex_unlock(&worker->lock);
    return err;
}

json_t *budget_set(struct worker *worker, const json_t *args, int *err, struct reason *reason)
{
    struct budget *budget = calloc(1, sizeof(*budget));

    if (!budget) {
        *err = reason_set(reason, -ENOMEM, "out of memory");
        return NULL;
    }
    *err = budget_begin(budget, worker, args, reason);
    if (!*err && budget->resident > budget->budget) {
        *err = budget_check_room(budget, worker->uuid_text, reason);
    } else if (!*err && budget->budget > budget->old) {
        *err = budget_check_memory(budget, reason);
    }
    if (!*err) {
        *err = budget_apply(budget, worker, reason);
    }
    json_t *answer =
        *err ? NULL
             : json_pack("{s:I, s:I, s:I, s:I}", "budget", (json_int_t)budget->budget,
                         "low_watermark", (json_int_t)budget->low, "high_watermark",
                         (json_int_t)budget->high, "resident", (json_int_t)budget->resident);
    free(budget);
    return answer;
}
