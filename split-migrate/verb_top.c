// SPDX-License-Identifier: GPL-2.0-or-later
/* verb_top.c - all guests of a host's pager on one screen */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "split-migrate/interrupt.h"
#include "split-migrate/memstat.h"
#include "split-migrate/names.h"
#include "split-migrate/output.h"
#include "split-migrate/screen.h"
#include "split-migrate/verbs.h"

const struct option_def verb_top_options[] = {
    OPTION_PAGER,
    {"interval", 0, "SECONDS", "show it anew, and measure rates, every so often (default 1)"},
    {"once", 0, NULL, "print it once; so it is, too, if stdout is no terminal"},
    OPTION_JSON("print it once, as one JSON object"),
    OPTIONS_END,
};

struct top {
    struct pager pager;
    json_t *names;
    char host[ENDPOINT_TEXT_LEN];
    uint64_t memory_total, memory_available;
    size_t n;
    struct memstat *guest; /* [n] */
};

static int top_by_load(const void *a, const void *b)
{
    const struct memstat *first = a;
    const struct memstat *second = b;
    uint64_t x = first->page_in_rate + first->page_out_rate;
    uint64_t y = second->page_in_rate + second->page_out_rate;

    return x != y ? (x < y ? 1 : -1) : strcmp(first->uuid, second->uuid);
}

/* Ask, and find rates for the guests that were there before. */
static int top_look(struct top *top, struct reason *reason)
{
    json_t *status = NULL;
    json_t *guests = NULL;

    int err = pager_call(&top->pager, "query-status", NULL, &status, HOSTS_CALL_MS, reason);
    if (!err) {
        err = pager_call(&top->pager, "query-guests", NULL, &guests, HOSTS_CALL_MS, reason);
    }
    size_t n = json_array_size(guests);
    struct memstat *now = err ? NULL : calloc(n + 1, sizeof(*now));
    for (size_t i = 0; now && i < n; i++) {
        memstat_read(&now[i], json_array_get(guests, i));
        for (size_t k = 0; k < top->n; k++) {
            if (strcmp(top->guest[k].uuid, now[i].uuid) == 0) {
                memstat_rates(&now[i], &top->guest[k]);
            }
        }
    }
    if (now) {
        qsort(now, n, sizeof(*now), top_by_load);
        free(top->guest);
        top->guest = now;
        top->n = n;
        top->memory_total = hosts_bytes(status, "memory_total");
        top->memory_available = hosts_bytes(status, "memory_available");
    }
    json_decref(status);
    json_decref(guests);
    return err || now ? err : reason_set(reason, -ENOMEM, "out of memory");
}

static void top_row(struct output_table *table, const struct memstat *guest, const char *name)
{
    unsigned row = output_table_row(table);
    char text[OUTPUT_CELL_LEN] = "";

    output_cell(table, row, 0, "%s", name);
    output_cell(table, row, 1, "%s", guest->state);
    output_cell_size(table, row, 2, guest->ram);
    output_cell_size(table, row, 3, guest->resident);
    if (!guest->split) {
        return;
    }
    output_cell_size(table, row, 4, guest->budget);
    output_cell_size(table, row, 5, guest->remote);
    output_cell(table, row, 6, "%llu", (unsigned long long)guest->page_in_rate);
    output_cell(table, row, 7, "%llu", (unsigned long long)guest->page_out_rate);
    output_cell(table, row, 8, "%llu", (unsigned long long)guest->fault_p50_us);
    output_cell(table, row, 9, "%llu", (unsigned long long)guest->fault_p99_us);
    for (unsigned i = 0; i < guest->n_subhosts; i++) {
        const struct memstat_subhost *subhost = &guest->subhost[i];
        size_t used = strlen(text);
        char size[32];
        snprintf(text + used, sizeof(text) - used, "%s%s %s%s", i ? ", " : "", subhost->name,
                 units_format_size(subhost->remote, size, sizeof(size)),
                 subhost->connected ? "" : " (lost)");
    }
    output_cell(table, row, 10, "%s", text);
}

static void top_write(const struct top *top, FILE *to, bool quiet)
{
    static const char *const titles[] = {"Domain", "State",  "Memory", "Resident",
                                         "Budget", "Remote", "In/s",   "Out/s",
                                         "p50 us", "p99 us", "Remote per sub-host", NULL};
    struct output_table table;
    struct tm tm;
    char clock[16];
    char have[32], total[32];
    time_t now = time(NULL);
    size_t split = 0;

    for (size_t i = 0; i < top->n; i++) {
        split += top->guest[i].split;
    }
    localtime_r(&now, &tm);
    strftime(clock, sizeof(clock), "%H:%M:%S", &tm);
    if (!quiet) {
        fprintf(to, "%s  %s  %zu guest%s, %zu split  host memory %s, %s available\n\n", clock,
                top->host, top->n, top->n == 1 ? "" : "s", split,
                units_format_size(top->memory_total, total, sizeof(total)),
                units_format_size(top->memory_available, have, sizeof(have)));
    }
    output_table_begin(&table, titles);
    for (size_t i = 0; i < top->n; i++) {
        top_row(&table, &top->guest[i], names_find(top->names, top->guest[i].uuid));
    }
    output_table_write(&table, quiet, to);
}

static json_t *top_json(const struct top *top)
{
    json_t *guests = json_array();

    for (size_t i = 0; i < top->n; i++) {
        json_t *guest = memstat_json(&top->guest[i]);
        const char *name = json_string_value(json_object_get(top->names, top->guest[i].uuid));
        if (name) {
            json_object_set_new(guest, "name", json_string(name));
        }
        json_array_append_new(guests, guest);
    }
    return json_pack("{s:s, s:I, s:I, s:o}", "pager", top->host, "memory_total_bytes",
                     (json_int_t)top->memory_total, "memory_available_bytes",
                     (json_int_t)top->memory_available, "guests", guests);
}

static int top_once(struct top *top, unsigned ms, const struct arguments *arguments,
                    struct reason *reason)
{
    int err = top_look(top, reason);

    if (!err && top->n) {
        poll(NULL, 0, (int)ms); /* a signal ends it */
        err = interrupt_pending() ? reason_set(reason, -EINTR, "interrupted")
                                  : top_look(top, reason);
    }
    if (!err && options_get(arguments, "json")) {
        output_json(top_json(top));
    } else if (!err) {
        top_write(top, stdout, arguments->quiet);
    }
    return err;
}

static int top_frame(const struct top *top, bool quiet, struct reason *reason)
{
    char *text = NULL;
    size_t size = 0;
    FILE *to = open_memstream(&text, &size);

    if (!to) {
        return reason_set(reason, -ENOMEM, "out of memory");
    }
    top_write(top, to, quiet);
    fclose(to);
    screen_draw(text);
    free(text);
    return 0;
}

static int top_follow(struct top *top, unsigned ms, bool quiet, struct reason *reason)
{
    int err = 0;
    int key = 0;

    screen_begin();
    while (!err && key != 'q' && key != 'Q' && !interrupt_pending()) {
        err = top_look(top, reason);
        if (!err) {
            err = top_frame(top, quiet, reason);
        }
        key = err ? 0 : screen_wait(ms);
    }
    screen_end();
    return err;
}

int verb_top(const struct arguments *arguments)
{
    struct top top = {.n = 0};
    struct reason reason = {""};
    unsigned ms;

    int status = verbs_interval(arguments, &ms);
    if (status == EXIT_OK) {
        status = verbs_pager(&top.pager, arguments);
    }
    if (status != EXIT_OK) {
        return status;
    }
    endpoint_format(&top.pager.endpoint, top.host);
    top.names = names_load(verbs_uri(arguments));
    bool once = options_get(arguments, "once") || options_get(arguments, "json") ||
                !isatty(STDOUT_FILENO);
    int err = once ? top_once(&top, ms, arguments, &reason)
                   : top_follow(&top, ms, arguments->quiet, &reason);
    if (err) {
        output_error("%s", reason.text);
    }
    free(top.guest);
    json_decref(top.names);
    pager_close(&top.pager);
    return err ? EXIT_UNCHANGED : EXIT_OK;
}
