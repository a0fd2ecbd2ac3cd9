// SPDX-License-Identifier: GPL-2.0-or-later
/* verb_subhost.c - subhost-list and subhost-info: what sub-hosts lend, and to whom */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "predictor/predictor.h"
#include "split-migrate/output.h"
#include "split-migrate/verbs.h"

const struct option_def verb_subhost_list_options[] = {
    {"policy", 0, "FILE",
     "without URI: the sub-hosts of this policy (default /etc/split-migrate/policy.ini)"},
    OPTION_JSON("print an array of one JSON object each"),
    OPTIONS_END,
};

const struct option_def verb_subhost_info_options[] = {
    OPTION_JSON("print one JSON object"),
    OPTIONS_END,
};

/* What a sub-host answers; @reason has a sentence if it does not. */
struct subhost_answer {
    int err;
    struct reason reason;
    json_t *stats; /* query-status and counters */
    json_t *regions;
};

static void subhost_ask(const struct policy_subhost *policy, struct subhost_answer *answer)
{
    struct subhost subhost = {.policy = policy};

    memset(answer, 0, sizeof(*answer));
    answer->err = subhost_connect(&subhost, policy, &answer->reason);
    if (!answer->err) {
        answer->err = subhost_call(&subhost, "stats", NULL, &answer->stats, &answer->reason);
    }
    if (!answer->err) {
        answer->err =
            subhost_call(&subhost, "region-list", NULL, &answer->regions, &answer->reason);
    }
    subhost_close(&subhost);
}

static void subhost_answer_free(struct subhost_answer *answer)
{
    json_decref(answer->stats);
    json_decref(answer->regions);
}

static json_t *subhost_json(const struct policy_subhost *policy,
                            const struct subhost_answer *answer)
{
    char uri[ENDPOINT_TEXT_LEN];
    json_t *object = json_pack("{s:s, s:s, s:b}", "name", policy->name, "control",
                               endpoint_format(&policy->control, uri), "reachable", !answer->err);

    if (answer->err) {
        json_object_set_new(object, "error", json_string(answer->reason.text));
    } else {
        json_object_update(object, answer->stats);
        json_object_set(object, "regions", answer->regions);
    }
    return object;
}

/* Sub-hosts of a command line have no names: their URI stands for it. */
int verbs_subhost_uri(const char *uri, struct policy_subhost *subhost)
{
    struct reason reason = {""};

    memset(subhost, 0, sizeof(*subhost));
    if (policy_parse_uri(uri, &subhost->control, &reason) < 0) {
        output_error("%s", reason.text);
        return EXIT_USAGE;
    }
    const char *begin = strncmp(uri, "subhost://", 10) == 0 ? uri + 10 : uri;
    snprintf(subhost->name, sizeof(subhost->name), "%.*s", (int)sizeof(subhost->name) - 1, begin);
    return EXIT_OK;
}

static int subhost_list_parse(struct policy *policy, const struct arguments *arguments)
{
    int status = EXIT_OK;

    policy_init(policy, predictor_names());
    if (!arguments->n_words) {
        return verbs_policy(policy, arguments);
    }
    if (options_get(arguments, "policy")) {
        output_error("--policy and URIs cannot be given together");
        return EXIT_USAGE;
    }
    for (unsigned i = 0; i < arguments->n_words && status == EXIT_OK; i++) {
        status = verbs_subhost_uri(arguments->word[i], &policy->subhost[policy->n_subhosts++]);
    }
    return status;
}

/* What the guests' pagers have told: bytes that are on this sub-host and nowhere else. */
static uint64_t subhost_at_risk(const json_t *regions)
{
    const json_t *region;
    uint64_t bytes = 0;
    size_t i;

    json_array_foreach(regions, i, region) {
        bytes += hosts_bytes(region, "at_risk");
    }
    return bytes;
}

static void subhost_list_row(struct output_table *table, const struct policy_subhost *policy,
                             const struct subhost_answer *answer)
{
    static const char *const columns[] = {"memory", "stored", "reserved", "free"};
    char uri[ENDPOINT_TEXT_LEN];
    unsigned row = output_table_row(table);

    output_cell(table, row, 0, "%s", policy->name);
    output_cell(table, row, 1, "%s", endpoint_format(&policy->control, uri));
    output_cell(table, row, 2, "%s", answer->err ? "unreachable" : "running");
    for (unsigned i = 0; i < 4 && !answer->err; i++) {
        output_cell_size(table, row, 3 + i, hosts_bytes(answer->stats, columns[i]));
    }
    for (unsigned i = 0; i < 4 && answer->err; i++) {
        output_cell(table, row, 3 + i, "-");
    }
    if (answer->err) {
        output_cell(table, row, 7, "-");
        output_cell(table, row, 8, "-");
    } else {
        output_cell_size(table, row, 7, subhost_at_risk(answer->regions));
        output_cell(table, row, 8, "%zu", json_array_size(answer->regions));
    }
}

int verb_subhost_list(const struct arguments *arguments)
{
    static const char *const titles[] = {"Name",     "Control", "State",   "Lent",   "Stored",
                                         "Reserved", "Free",    "At risk", "Guests", NULL};
    static struct policy policy;
    bool json = options_get(arguments, "json");
    struct output_table table;
    json_t *array = json_array();

    int status = subhost_list_parse(&policy, arguments);
    if (status != EXIT_OK) {
        json_decref(array);
        return status;
    }
    output_table_begin(&table, titles);
    for (unsigned i = 0; i < policy.n_subhosts; i++) {
        struct subhost_answer answer;
        subhost_ask(&policy.subhost[i], &answer);
        json_array_append_new(array, subhost_json(&policy.subhost[i], &answer));
        subhost_list_row(&table, &policy.subhost[i], &answer);
        if (answer.err && status == EXIT_OK) {
            output_error("%s", answer.reason.text);
            status = EXIT_UNCHANGED;
        }
        subhost_answer_free(&answer);
    }
    if (json) {
        output_table_free(&table);
        output_json(array);
    } else {
        output_table_end(&table, arguments->quiet);
        json_decref(array);
    }
    return status;
}

/* ---- subhost-info ---- */

static void subhost_show_regions(const json_t *regions, bool quiet)
{
    static const char *const titles[] = {"Guest",      "Size",    "Reserved", "Limit",       "Stored",
                                         "Redundancy", "At risk", "State",    "Connections", NULL};
    static const char *const columns[] = {"size", "reserve", "limit", "stored"};
    struct output_table table;
    const json_t *region;
    size_t i;

    output_table_begin(&table, titles);
    json_array_foreach(regions, i, region) {
        unsigned row = output_table_row(&table);
        output_cell(&table, row, 0, "%s", hosts_text(region, "name"));
        for (unsigned k = 0; k < 4; k++) {
            output_cell_size(&table, row, 1 + k, hosts_bytes(region, columns[k]));
        }
        output_cell(&table, row, 5, "%s", hosts_text(region, "redundancy"));
        if (json_object_get(region, "at_risk")) {
            output_cell_size(&table, row, 6, hosts_bytes(region, "at_risk"));
        } else {
            output_cell(&table, row, 6, "-"); /* no pager has said so yet */
        }
        /* what was reserved for a move goes with it, until the guest has arrived */
        bool arriving = json_is_true(json_object_get(region, "transient"));
        output_cell(&table, row, 7, "%s", arriving ? "arriving" : "kept");
        output_cell(&table, row, 8, "%llu",
                    (unsigned long long)hosts_bytes(region, "connections"));
    }
    output_table_end(&table, quiet);
}

static void subhost_show(const struct policy_subhost *policy, const struct subhost_answer *answer,
                         bool quiet)
{
    const json_t *stats = answer->stats;
    const json_t *data = json_object_get(stats, "data");
    char uri[ENDPOINT_TEXT_LEN];

    output_line("Control", "%s", endpoint_format(&policy->control, uri));
    for (size_t i = 0; i < json_array_size(data); i++) {
        const char *text = json_string_value(json_array_get(data, i));
        output_line("Data", "%s", text ? text : "-");
    }
    output_line("Version", "%s", hosts_text(stats, "version"));
    output_size("Lent", hosts_bytes(stats, "memory"));
    output_size("Stored", hosts_bytes(stats, "stored"));
    output_size("Reserved", hosts_bytes(stats, "reserved"));
    output_size("Free", hosts_bytes(stats, "free"));
    if (json_object_get(stats, "headroom")) {
        output_size("Headroom", hosts_bytes(stats, "headroom"));
        output_size("Available", hosts_bytes(stats, "available"));
        output_size("Lent at most now", hosts_bytes(stats, "lendable"));
        output_size("Asked back", hosts_bytes(stats, "asked_back"));
        output_size("Given back", hosts_bytes(stats, "given_back"));
    }
    output_line("Connections", "%llu", (unsigned long long)hosts_bytes(stats, "connections"));
    output_size("Read", hosts_bytes(stats, "read_bytes"));
    output_size("Written", hosts_bytes(stats, "write_bytes"));
    output_line("Errors", "%llu", (unsigned long long)hosts_bytes(stats, "errors"));
    output_line("Refused as full", "%llu", (unsigned long long)hosts_bytes(stats, "enospc"));
    if (json_array_size(answer->regions) || !quiet) {
        putchar('\n');
        subhost_show_regions(answer->regions, quiet);
    }
}

int verb_subhost_info(const struct arguments *arguments)
{
    struct policy_subhost policy;
    struct subhost_answer answer;

    int status = verbs_subhost_uri(arguments->word[0], &policy);
    if (status != EXIT_OK) {
        return status;
    }
    subhost_ask(&policy, &answer);
    if (answer.err) {
        output_error("%s", answer.reason.text);
        status = EXIT_UNCHANGED;
    } else if (options_get(arguments, "json")) {
        output_json(subhost_json(&policy, &answer));
    } else {
        subhost_show(&policy, &answer, arguments->quiet);
    }
    subhost_answer_free(&answer);
    return status;
}
