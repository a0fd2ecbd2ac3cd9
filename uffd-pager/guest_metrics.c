// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * guest_metrics.c - each worker's `query-guest` as metrics
 *
 * The daemon counts nothing itself: a metric is a field of the answer.  All values of one metric
 * stand together, so the answers are collected first.  A worker that gives none within the time
 * limit is there with uffd_pager_guest_up 0 only.
 */
#include "uffd-pager/guest_metrics.h"

#include <stdlib.h>
#include <string.h>

#include "common/layout.h"
#include "common/metrics.h"
#include "common/version.h"
#include "uffd-pager/guests.h"

#define GUEST_METRICS_TIMEOUT_MS 2000
#define GUEST_METRICS_FAULT "uffd_pager_fault_duration_seconds"

static const struct {
    const char *key; /* of query-guest */
    const char *name;
    const char *type;
    const char *help;
} guest_metrics_table[] = {
    {"ram", "uffd_pager_guest_ram_bytes", "gauge", "Size of the guest's memory."},
    {"present", "uffd_pager_guest_present_bytes", "gauge", "Memory the guest has touched, wherever it is."},
    {"resident", "uffd_pager_guest_resident_bytes", "gauge", "Memory of the guest on this host."},
    {"budget", "uffd_pager_guest_budget_bytes", "gauge", "What the guest may have on this host."},
    {"page_ins", "uffd_pager_page_ins_total", "counter", "Pages fetched for a fault."},
    {"prefetched", "uffd_pager_prefetched_pages_total", "counter", "Pages fetched before they were asked for."},
    {"page_outs", "uffd_pager_page_outs_total", "counter", "Pages sent to a sub-host."},
    {"clean_drops", "uffd_pager_clean_drops_total", "counter", "Pages dropped because their copy was still good."},
    {"zero_drops", "uffd_pager_zero_drops_total", "counter", "Pages of zeros dropped."},
    {"zero_fills", "uffd_pager_zero_fills_total", "counter", "Faults answered with a page of zeros."},
    {"in_use", "uffd_pager_pages_found_in_use_total", "counter", "Pages that might have left, but had been accessed."},
    {"wp_faults", "uffd_pager_wp_faults_total", "counter", "Faults by writing to a protected page."},
    {"discards", "uffd_pager_discarded_pages_total", "counter", "Pages the guest gave back."},
    {"lost_pages", "uffd_pager_lost_pages_total", "counter", "Pages that exist in no place any more."},
    {"chunks_copied", "uffd_pager_copied_chunks_total", "counter", "Second copies made in the background, of 2 MiB each."},
    {"fell_over", "uffd_pager_second_place_reads_total", "counter", "Pages read from their second place."},
    {"write_refusals", "uffd_pager_write_refusals_total", "counter", "Pages a sub-host would not take."},
    {"install_errors", "uffd_pager_install_errors_total", "counter", "Pages that could not be put in place."},
};
#define GUEST_METRICS_N (sizeof(guest_metrics_table) / sizeof(guest_metrics_table[0]))

static json_t *guest_metrics_ask(struct guests *guests, const char *uuid)
{
    struct control_client *client;
    json_t *answer = NULL;

    if (guests_connect(guests, uuid, false, &client, NULL) == 0) {
        control_call(client, "query-guest", json_pack("{s:s}", "uuid", uuid), &answer,
                     GUEST_METRICS_TIMEOUT_MS, NULL);
        control_close(client);
    }
    return answer;
}

static json_t *guest_metrics_ask_all(struct guests *guests)
{
    json_t *list = guests_list(guests);
    json_t *answers = json_object();
    json_t *uuid;
    size_t i;

    json_array_foreach(list, i, uuid) {
        json_t *answer = guest_metrics_ask(guests, json_string_value(uuid));
        json_object_set_new(answers, json_string_value(uuid), answer ? answer : json_null());
    }
    json_decref(list);
    return answers;
}

static void guest_metrics_host(FILE *out, json_t *answers)
{
    const struct metrics_label version[] = {{"version", SPLIT_MIGRATE_VERSION}, {NULL, NULL}};
    const char *uuid;
    json_t *answer;

    metrics_family(out, "uffd_pager_build_info", "gauge", "Always 1; its label is the version.");
    metrics_value(out, "uffd_pager_build_info", "", version, 1);
    metrics_family(out, "uffd_pager_guests", "gauge", "Guests that were handed over or announced.");
    metrics_value(out, "uffd_pager_guests", "", NULL, (double)json_object_size(answers));
    metrics_family(out, "uffd_pager_guest_up", "gauge", "Whether the guest's worker answers.");
    json_object_foreach(answers, uuid, answer) {
        const struct metrics_label labels[] = {{"guest", uuid}, {NULL, NULL}};
        metrics_value(out, "uffd_pager_guest_up", "", labels, !json_is_null(answer));
    }
    metrics_family(out, "uffd_pager_guest_split", "gauge", "Whether the guest has memory elsewhere.");
    json_object_foreach(answers, uuid, answer) {
        const struct metrics_label labels[] = {{"guest", uuid}, {NULL, NULL}};
        const char *state = json_string_value(json_object_get(answer, "state"));
        if (state) {
            metrics_value(out, "uffd_pager_guest_split", "", labels, strcmp(state, "split") == 0);
        }
    }
}

static void guest_metrics_row(FILE *out, json_t *answers, size_t row)
{
    const char *uuid;
    json_t *answer;

    metrics_family(out, guest_metrics_table[row].name, guest_metrics_table[row].type,
                   guest_metrics_table[row].help);
    json_object_foreach(answers, uuid, answer) {
        const struct metrics_label labels[] = {{"guest", uuid}, {NULL, NULL}};
        const json_t *value = json_object_get(answer, guest_metrics_table[row].key);
        if (json_is_integer(value)) {
            metrics_value(out, guest_metrics_table[row].name, "", labels,
                          (double)json_integer_value(value));
        }
    }
}

static void guest_metrics_subhosts(FILE *out, json_t *answers, const char *name, const char *help,
                                   const char *key, double unit)
{
    const char *uuid;
    json_t *answer;

    metrics_family(out, name, "gauge", help);
    json_object_foreach(answers, uuid, answer) {
        const json_t *subhosts = json_object_get(answer, "subhosts");
        for (size_t i = 0; i < json_array_size(subhosts); i++) {
            const json_t *subhost = json_array_get(subhosts, i);
            const char *subhost_name = json_string_value(json_object_get(subhost, "name"));
            const json_t *value = json_object_get(subhost, key);
            const struct metrics_label labels[] = {
                {"guest", uuid}, {"subhost", subhost_name ? subhost_name : ""}, {NULL, NULL}};
            if (value) {
                metrics_value(out, name, "", labels,
                              json_is_boolean(value) ? json_boolean_value(value)
                                                     : (double)json_integer_value(value) * unit);
            }
        }
    }
}

static void guest_metrics_fault(FILE *out, const char *uuid, const json_t *fault)
{
    const json_t *buckets = json_object_get(fault, "buckets");
    double count = (double)json_integer_value(json_object_get(fault, "count"));

    for (size_t i = 0; i <= json_array_size(buckets); i++) {
        const json_t *bucket = json_array_get(buckets, i); /* the last: none, all of them */
        char le[32] = "+Inf";
        const struct metrics_label labels[] = {{"guest", uuid}, {"le", le}, {NULL, NULL}};
        if (bucket) {
            snprintf(le, sizeof(le), "%.6f",
                     (double)json_integer_value(json_array_get(bucket, 0)) / 1e6);
        }
        metrics_value(out, GUEST_METRICS_FAULT, "_bucket", labels,
                      bucket ? (double)json_integer_value(json_array_get(bucket, 1)) : count);
    }
    const struct metrics_label labels[] = {{"guest", uuid}, {NULL, NULL}};
    metrics_value(out, GUEST_METRICS_FAULT, "_sum", labels,
                  (double)json_integer_value(json_object_get(fault, "sum")) / 1e6);
    metrics_value(out, GUEST_METRICS_FAULT, "_count", labels, count);
}

void guest_metrics(void *guests, FILE *out)
{
    json_t *answers = guest_metrics_ask_all(guests);
    const char *uuid;
    json_t *answer;

    guest_metrics_host(out, answers);
    for (size_t i = 0; i < GUEST_METRICS_N; i++) {
        guest_metrics_row(out, answers, i);
    }
    guest_metrics_subhosts(out, answers, "uffd_pager_subhost_remote_bytes",
                           "Memory of the guest on a sub-host.", "pages", PAGE_BYTES);
    guest_metrics_subhosts(out, answers, "uffd_pager_subhost_at_risk_bytes",
                           "Memory of the guest on this sub-host and nowhere else.", "at_risk",
                           PAGE_BYTES);
    guest_metrics_subhosts(out, answers, "uffd_pager_subhost_connected",
                           "Whether the sub-host can be reached.", "connected", 1);
    metrics_family(out, GUEST_METRICS_FAULT, "histogram", "Page-in faults, from event to wake.");
    json_object_foreach(answers, uuid, answer) {
        const json_t *fault = json_object_get(answer, "fault_us");
        if (fault) {
            guest_metrics_fault(out, uuid, fault);
        }
    }
    json_decref(answers);
}
