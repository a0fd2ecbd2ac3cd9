// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/report.h"

#include <stdio.h>

#include "split-migrate/output.h"

static json_t *report_estimate_json(const struct estimate *estimate)
{
    if (!estimate->bandwidth) {
        return json_null();
    }
    json_t *object = json_pack("{s:I, s:I, s:b}", "bandwidth", (json_int_t)estimate->bandwidth,
                               "dirty_rate", (json_int_t)estimate->dirty_rate, "ends",
                               estimate->ends);
    if (estimate->ends) {
        json_object_set_new(object, "total_time_ms", json_integer((json_int_t)estimate->total_ms));
        json_object_set_new(object, "downtime_ms", json_integer((json_int_t)estimate->downtime_ms));
    }
    return object;
}

static json_t *report_plan_json(const struct move *move)
{
    const struct plan *plan = &move->plan;
    json_t *subhosts = json_array();

    for (unsigned i = 0; i < plan->n_subhosts; i++) {
        const struct plan_subhost *subhost = &plan->subhost[i];
        json_array_append_new(
            subhosts,
            json_pack("{s:s, s:I, s:I, s:I, s:I}", "name", subhost->name, "bytes",
                      (json_int_t)subhost->share, "reserve", (json_int_t)subhost->reserve, "limit",
                      (json_int_t)subhost->limit, "free", (json_int_t)subhost->free));
    }
    json_t *main_host =
        json_pack("{s:I, s:I, s:I}", "bytes", (json_int_t)plan->main_bytes, "budget",
                  (json_int_t)plan->budget, "low_watermark", (json_int_t)plan->low_watermark);
    if (plan->main_known) {
        json_object_set_new(main_host, "free", json_integer((json_int_t)plan->main_free));
    }
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:o, s:o, s:o}", "uuid", move->guest.uuid,
                     "status", move->guest.status, "ram_bytes", (json_int_t)plan->ram,
                     "present_bytes", (json_int_t)plan->present, "growth_bytes",
                     (json_int_t)plan->growth, "shortfall_bytes", (json_int_t)plan->shortfall,
                     "main", main_host, "subhosts", subhosts, "estimate",
                     report_estimate_json(&move->estimate));
}

static void report_estimate(const struct estimate *estimate)
{
    char text[32];

    if (!estimate->bandwidth) {
        return;
    }
    output_line("Guest writes", "%s/s",
                units_format_size(estimate->dirty_rate, text, sizeof(text)));
    if (estimate->ends) {
        output_line("Estimated time", "%.1f s", (double)estimate->total_ms / 1000);
        output_line("Estimated downtime", "%llu ms", (unsigned long long)estimate->downtime_ms);
    } else {
        output_line("Estimated time", "no end: the guest writes too fast for %s/s",
                    units_format_size(estimate->bandwidth, text, sizeof(text)));
    }
}

void report_plan(const struct move *move, bool json, bool quiet)
{
    static const char *const titles[] = {"Host", "Memory", "Reserved", "Free", NULL};
    const struct plan *plan = &move->plan;
    struct output_table table;
    char text[32];

    if (json) {
        output_json(report_plan_json(move));
        return;
    }
    output_line("Guest", "%s", move->guest.uuid);
    output_size("Memory", plan->ram);
    output_size("Present", plan->present);
    output_size("Growth planned", plan->growth);
    report_estimate(&move->estimate);
    putchar('\n');
    output_table_begin(&table, titles);
    unsigned row = output_table_row(&table);
    output_cell(&table, row, 0, "main");
    output_cell_size(&table, row, 1, plan->main_bytes);
    output_cell_size(&table, row, 2, plan->budget);
    if (plan->main_known) {
        output_cell_size(&table, row, 3, plan->main_free);
    } else {
        output_cell(&table, row, 3, "-");
    }
    for (unsigned i = 0; i < plan->n_subhosts; i++) {
        row = output_table_row(&table);
        output_cell(&table, row, 0, "%s", plan->subhost[i].name);
        output_cell_size(&table, row, 1, plan->subhost[i].share);
        output_cell_size(&table, row, 2, plan->subhost[i].reserve);
        output_cell_size(&table, row, 3, plan->subhost[i].free);
    }
    output_table_end(&table, quiet);
    if (plan->shortfall && !quiet) {
        printf("\nNot guaranteed: %s, if the guest touches all its memory.\n",
               units_format_size(plan->shortfall, text, sizeof(text)));
    }
}

static json_t *report_result_json(const struct move *move, const char *failure)
{
    const struct move_stats *stats = &move->stats;
    json_t *bytes = json_array();
    json_t *names = json_array();

    for (unsigned i = 0; i < move->n_subhosts; i++) {
        json_array_append_new(bytes, json_integer((json_int_t)stats->subhost_bytes[i]));
        json_array_append_new(names, json_string(move->subhost[i].policy->name));
    }
    const struct driver *driver = move->driver;
    bool timed = driver && driver->stopped_us && driver->resumed_us > driver->stopped_us;
    uint64_t ended = move->ended_us ? move->ended_us : move->began_us;
    json_t *object = json_pack(
        "{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:o, s:o, s:I, s:I, s:I, s:I, s:I}", "result",
        failure ? "failed" : "completed", "reason", failure ? failure : "", "uuid",
        move->guest.uuid, "total_time_ms", (json_int_t)move->last.total_ms, "downtime_ms",
        (json_int_t)move->last.downtime_ms, "rounds", (json_int_t)stats->rounds, "main_bytes",
        (json_int_t)stats->main_bytes, "subhost_bytes", bytes, "subhosts", names, "skipped_pages",
        (json_int_t)stats->zero_pages, "pages", (json_int_t)stats->pages_done, "wire_bytes",
        (json_int_t)stats->wire_bytes, "ram_bytes", (json_int_t)move->plan.ram, "elapsed_ms",
        (json_int_t)((ended - move->began_us) / 1000));
    if (timed) {
        /* From QEMU's STOP at the source to its RESUME at the destination, as seen from here. */
        json_object_set_new(
            object, "stopped_ms",
            json_integer((json_int_t)((driver->resumed_us - driver->stopped_us) / 1000)));
    }
    return object;
}

void report_result(const struct move *move, bool json, const char *failure)
{
    const struct move_stats *stats = &move->stats;
    char name[96];

    if (json) {
        output_json(report_result_json(move, failure));
        return;
    }
    if (failure) {
        return; /* the error says it */
    }
    output_line("Total time", "%llu ms", (unsigned long long)move->last.total_ms);
    output_line("Downtime", "%llu ms", (unsigned long long)move->last.downtime_ms);
    output_line("Rounds", "%llu", (unsigned long long)stats->rounds);
    output_size("Memory", move->plan.ram);
    output_size("Sent to main", stats->main_bytes);
    for (unsigned i = 0; i < move->n_subhosts; i++) {
        snprintf(name, sizeof(name), "Sent to %s", move->subhost[i].policy->name);
        output_size(name, stats->subhost_bytes[i]);
    }
    output_line("Pages skipped", "%llu", (unsigned long long)stats->zero_pages);
}
