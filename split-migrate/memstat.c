// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/memstat.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "split-migrate/interrupt.h"

static void memstat_read_subhosts(struct memstat *stat, const json_t *array)
{
    const json_t *item;
    size_t i;

    json_array_foreach(array, i, item) {
        if (i == PAGEMAP_MAX_SUBHOSTS) {
            break;
        }
        struct memstat_subhost *subhost = &stat->subhost[stat->n_subhosts++];
        snprintf(subhost->name, sizeof(subhost->name), "%s", hosts_text(item, "name"));
        subhost->remote = hosts_bytes(item, "remote") * PAGE_BYTES;
        subhost->stored = hosts_bytes(item, "pages") * PAGE_BYTES;
        subhost->connected = json_is_true(json_object_get(item, "connected"));
        subhost->at_risk = hosts_bytes(item, "at_risk") * PAGE_BYTES;
        stat->remote += subhost->remote;
        stat->at_risk += subhost->at_risk;
    }
}

void memstat_read(struct memstat *stat, const json_t *guest)
{
    const json_t *fault = json_object_get(guest, "fault_us");
    const struct {
        const char *name;
        uint64_t *to;
    } numbers[] = {
        {"ram", &stat->ram},
        {"present", &stat->present},
        {"resident", &stat->resident},
        {"resident_max", &stat->resident_max},
        {"budget", &stat->budget},
        {"low_watermark", &stat->low_watermark},
        {"high_watermark", &stat->high_watermark},
        {"page_ins", &stat->page_ins},
        {"prefetched", &stat->prefetched},
        {"page_outs", &stat->page_outs},
        {"lost_pages", &stat->lost_pages},
    };

    memset(stat, 0, sizeof(*stat));
    stat->taken_us = units_now_us();
    snprintf(stat->uuid, sizeof(stat->uuid), "%s", hosts_text(guest, "uuid"));
    snprintf(stat->state, sizeof(stat->state), "%s", hosts_text(guest, "state"));
    stat->split = strcmp(stat->state, "split") == 0;
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        *numbers[i].to = hosts_bytes(guest, numbers[i].name);
    }
    stat->fault_p50_us = hosts_bytes(fault, "p50");
    stat->fault_p99_us = hosts_bytes(fault, "p99");
    stat->fault_max_us = hosts_bytes(fault, "max");
    snprintf(stat->redundancy, sizeof(stat->redundancy), "%s", hosts_text(guest, "redundancy"));
    if (stat->split) {
        memstat_read_subhosts(stat, json_object_get(guest, "subhosts"));
    }
}

static uint64_t memstat_rate(uint64_t now, uint64_t before, uint64_t us)
{
    /* a new worker, or reset-stats, begins at 0 */
    return now > before && us ? (uint64_t)((double)(now - before) * 1e6 / (double)us + 0.5) : 0;
}

void memstat_rates(struct memstat *stat, const struct memstat *before)
{
    uint64_t us = stat->taken_us - before->taken_us;

    stat->page_in_rate = memstat_rate(stat->page_ins, before->page_ins, us);
    stat->prefetch_rate = memstat_rate(stat->prefetched, before->prefetched, us);
    stat->page_out_rate = memstat_rate(stat->page_outs, before->page_outs, us);
}

static int memstat_ask(struct pager *pager, struct memstat *stat, struct reason *reason)
{
    int err;
    json_t *guest = pager_guest(pager, pager->uuid, &err, reason);

    if (!err) {
        memstat_read(stat, guest);
    }
    json_decref(guest);
    return err;
}

int memstat_measure(struct pager *pager, unsigned ms, struct memstat *stat, struct reason *reason)
{
    struct memstat *before = malloc(sizeof(*before));

    if (!before) {
        return reason_set(reason, -ENOMEM, "out of memory");
    }
    int err = memstat_ask(pager, stat, reason);
    if (!err && stat->split) {
        *before = *stat;
        poll(NULL, 0, (int)ms); /* a signal ends it */
        err = interrupt_pending() ? reason_set(reason, -EINTR, "interrupted")
                                  : memstat_ask(pager, stat, reason);
        if (!err) {
            memstat_rates(stat, before);
        }
    }
    free(before);
    return err;
}

json_t *memstat_json(const struct memstat *stat)
{
    json_t *object = json_pack(
        "{s:s, s:s, s:I, s:I, s:I}", "uuid", stat->uuid, "state", stat->state, "ram_bytes",
        (json_int_t)stat->ram, "present_bytes", (json_int_t)stat->present, "resident_bytes",
        (json_int_t)stat->resident);

    if (!stat->split) {
        return object;
    }
    const struct {
        const char *name;
        uint64_t value;
    } numbers[] = {
        {"resident_max_bytes", stat->resident_max},
        {"budget_bytes", stat->budget},
        {"low_watermark_bytes", stat->low_watermark},
        {"high_watermark_bytes", stat->high_watermark},
        {"remote_bytes", stat->remote},
        {"at_risk_bytes", stat->at_risk},
        {"page_ins", stat->page_ins},
        {"page_in_rate", stat->page_in_rate},
        {"prefetched", stat->prefetched},
        {"prefetch_rate", stat->prefetch_rate},
        {"page_outs", stat->page_outs},
        {"page_out_rate", stat->page_out_rate},
        {"fault_p50_us", stat->fault_p50_us},
        {"fault_p99_us", stat->fault_p99_us},
        {"fault_max_us", stat->fault_max_us},
        {"lost_pages", stat->lost_pages},
    };
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        json_object_set_new(object, numbers[i].name, json_integer((json_int_t)numbers[i].value));
    }
    json_t *subhosts = json_array();
    for (unsigned i = 0; i < stat->n_subhosts; i++) {
        const struct memstat_subhost *subhost = &stat->subhost[i];
        json_array_append_new(subhosts,
                              json_pack("{s:s, s:I, s:I, s:I, s:b}", "name", subhost->name,
                                        "at_risk_bytes", (json_int_t)subhost->at_risk,
                                        "remote_bytes", (json_int_t)subhost->remote, "stored_bytes",
                                        (json_int_t)subhost->stored, "connected",
                                        subhost->connected));
    }
    json_object_set_new(object, "redundancy", json_string(stat->redundancy));
    json_object_set_new(object, "subhosts", subhosts);
    return object;
}
