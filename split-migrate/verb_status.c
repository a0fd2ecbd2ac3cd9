// SPDX-License-Identifier: GPL-2.0-or-later
#include <stdio.h>
#include <string.h>

#include "split-migrate/output.h"
#include "split-migrate/verbs.h"

const struct option_def verb_status_options[] = {
    OPTION_PAGER,
    OPTION_JSON("print one JSON object, or an array of them without DOMAIN"),
    OPTIONS_END,
};

static unsigned long long status_number(const json_t *object, const char *key)
{
    return (unsigned long long)hosts_bytes(object, key);
}

/* The guest is being sent: as domjobinfo shows a job. */
static void status_show_job(const json_t *job)
{
    const json_t *bytes = json_object_get(job, "subhost_bytes");
    char name[48];

    output_line("Job state", "%s", hosts_text(job, "state"));
    if (hosts_text(job, "reason")[0] && strcmp(hosts_text(job, "reason"), "-") != 0) {
        output_line("Reason", "%s", hosts_text(job, "reason"));
    }
    output_line("Rounds", "%llu", status_number(job, "rounds"));
    output_line("Pages done", "%llu", status_number(job, "pages_done"));
    output_line("Pages skipped", "%llu", status_number(job, "zero_pages"));
    output_size("Sent in all", hosts_bytes(job, "wire_bytes"));
    output_size("Sent to main", hosts_bytes(job, "main_bytes"));
    for (size_t i = 0; i < json_array_size(bytes); i++) {
        json_int_t value = json_integer_value(json_array_get(bytes, i));
        snprintf(name, sizeof(name), "Sent to sub-host %zu", i + 1);
        output_size(name, value > 0 ? (uint64_t)value : 0);
    }
}

static void status_show_split(const json_t *guest)
{
    const json_t *fault = json_object_get(guest, "fault_us");
    const json_t *subhosts = json_object_get(guest, "subhosts");

    output_size("Budget", hosts_bytes(guest, "budget"));
    output_size("Most resident", hosts_bytes(guest, "resident_max"));
    output_line("Page-ins", "%llu", status_number(guest, "page_ins"));
    output_line("Prefetched", "%llu", status_number(guest, "prefetched"));
    output_line("Page-outs", "%llu", status_number(guest, "page_outs"));
    output_line("Dropped unsent", "%llu", status_number(guest, "clean_drops"));
    output_line("Lost pages", "%llu", status_number(guest, "lost_pages"));
    output_line("Page-in latency", "%llu us median, %llu us p99, %llu us max",
                status_number(fault, "p50"), status_number(fault, "p99"),
                status_number(fault, "max"));
    for (size_t i = 0; i < json_array_size(subhosts); i++) {
        const json_t *subhost = json_array_get(subhosts, i);
        char name[96];
        char size[32];
        const json_t *connected = json_object_get(subhost, "connected");
        snprintf(name, sizeof(name), "Sub-host %.64s", hosts_text(subhost, "name"));
        output_line(
            name, "%s%s",
            units_format_size(hosts_bytes(subhost, "pages") * PAGE_BYTES, size, sizeof(size)),
            connected && !json_is_true(connected) ? ", not connected" : "");
    }
}

static void status_show(const json_t *guest, const json_t *job)
{
    const char *state = hosts_text(guest, "state");

    output_line("Guest", "%s", hosts_text(guest, "uuid"));
    output_line("State", "%s%s", state,
                json_is_false(json_object_get(guest, "connected")) ? ", QEMU is not connected"
                                                                   : "");
    output_size("Memory", hosts_bytes(guest, "ram"));
    output_size("Present", hosts_bytes(guest, "present"));
    output_size("Resident", hosts_bytes(guest, "resident"));
    if (job) {
        status_show_job(job);
    } else if (strcmp(state, "split") == 0) {
        status_show_split(guest);
    }
}

static int status_guest(struct pager *pager, bool json)
{
    struct reason reason = {""};
    json_t *job = NULL;
    int err;
    json_t *guest = pager_guest(pager, pager->uuid, &err, &reason);

    if (err) {
        output_error("%s", reason.text);
        return EXIT_UNCHANGED;
    }
    const char *state = hosts_text(guest, "state");
    if (strcmp(state, "sending") == 0 || strcmp(state, "sent") == 0) {
        /* It may end between the two questions: then there is no job to show. */
        pager_call(pager, "outgoing-status", json_pack("{s:s}", "uuid", pager->uuid), &job,
                   HOSTS_CALL_MS, NULL);
    }
    if (json) {
        if (job) {
            json_object_set(guest, "job", job);
        }
        output_json(json_incref(guest));
    } else {
        status_show(guest, job);
    }
    json_decref(job);
    json_decref(guest);
    return EXIT_OK;
}

static int status_all(struct pager *pager, const struct arguments *arguments)
{
    static const char *const titles[] = {"Guest", "State", "Memory", "Resident", NULL};
    struct reason reason = {""};
    struct output_table table;
    json_t *guests = NULL;

    if (pager_call(pager, "query-guests", NULL, &guests, HOSTS_CALL_MS, &reason) < 0) {
        output_error("%s", reason.text);
        return EXIT_UNCHANGED;
    }
    if (options_get(arguments, "json")) {
        output_json(guests);
        return EXIT_OK;
    }
    output_table_begin(&table, titles);
    for (size_t i = 0; i < json_array_size(guests); i++) {
        const json_t *guest = json_array_get(guests, i);
        unsigned row = output_table_row(&table);
        output_cell(&table, row, 0, "%s", hosts_text(guest, "uuid"));
        output_cell(&table, row, 1, "%s", hosts_text(guest, "state"));
        output_cell_size(&table, row, 2, hosts_bytes(guest, "ram"));
        output_cell_size(&table, row, 3, hosts_bytes(guest, "resident"));
    }
    output_table_end(&table, arguments->quiet);
    json_decref(guests);
    return EXIT_OK;
}

int verb_status(const struct arguments *arguments)
{
    struct pager pager;
    int status;

    if (arguments->n_words) {
        status = verbs_look(&pager, arguments);
        if (status == EXIT_OK) {
            status = status_guest(&pager, options_get(arguments, "json"));
        }
    } else {
        status = verbs_pager(&pager, arguments);
        if (status == EXIT_OK) {
            status = status_all(&pager, arguments);
        }
    }
    pager_close(&pager);
    return status;
}
