// SPDX-License-Identifier: GPL-2.0-or-later
/* verb_pages.c - where each part of a guest's memory is */
#include <stdio.h>
#include <string.h>

#include "common/pagemap.h"
#include "split-migrate/output.h"
#include "split-migrate/verbs.h"

const struct option_def verb_pages_options[] = {
    {"uris", 0, NULL, "show the NBD URI of each sub-host's part; it opens the guest's memory"},
    {"json", 0, NULL, "print one JSON object"},
    {NULL, 0, NULL, NULL},
};

#define PAGES_URI_LEN 1024

struct pages_host {
    char name[64];
    uint64_t remote;
    char uri[PAGES_URI_LEN]; /* "": not known */
};

struct pages_sum {
    uint64_t local;
    uint64_t clean;
    uint64_t untouched;
    uint64_t lost;
    unsigned n_hosts;
    struct pages_host host[PAGEMAP_MAX_SUBHOSTS];
};

static void pages_uri(const json_t *subhost, char uri[PAGES_URI_LEN])
{
    const char *data = json_string_value(json_object_get(subhost, "data"));
    const char *name = json_string_value(json_object_get(subhost, "export"));
    struct endpoint endpoint;

    if (!data || !name || endpoint_parse(data, &endpoint, NULL) < 0) {
        return;
    }
    if (endpoint.is_unix) {
        snprintf(uri, PAGES_URI_LEN, "nbd+unix:///%.500s?socket=%s", name, endpoint.host);
    } else {
        bool v6 = strchr(endpoint.host, ':') != NULL;
        snprintf(uri, PAGES_URI_LEN, "nbd://%s%s%s:%u/%.500s", v6 ? "[" : "", endpoint.host,
                 v6 ? "]" : "", endpoint.port, name);
    }
}

/* Names and addresses: from query-guest, which also tells how to reach them. */
static void pages_hosts(struct pages_sum *sum, const json_t *guest, const json_t *pages)
{
    const json_t *known = json_object_get(guest, "subhosts");
    const json_t *named = json_object_get(pages, "subhosts");
    size_t n = json_array_size(known) ? json_array_size(known) : json_array_size(named);

    for (size_t i = 0; i < n && i < PAGEMAP_MAX_SUBHOSTS; i++) {
        const json_t *subhost = json_array_get(known, i);
        const char *name = json_string_value(json_object_get(subhost, "name"));
        struct pages_host *host = &sum->host[sum->n_hosts++];
        if (!name) {
            name = json_string_value(json_array_get(named, i));
        }
        snprintf(host->name, sizeof(host->name), "%s", name ? name : "?");
        pages_uri(subhost, host->uri);
    }
}

static uint64_t pages_number(const json_t *run, size_t i)
{
    json_int_t value = json_integer_value(json_array_get(run, i));

    return value > 0 ? (uint64_t)value : 0;
}

/* A run: first_chunk, n_chunks, then per chunk local, clean, remote, untouched, lost, sub-host,
 * heat. */
static void pages_add(struct pages_sum *sum, const json_t *runs)
{
    for (size_t i = 0; i < json_array_size(runs); i++) {
        const json_t *run = json_array_get(runs, i);
        uint64_t n = pages_number(run, 1);
        json_int_t subhost = json_integer_value(json_array_get(run, 7));
        sum->local += n * pages_number(run, 2);
        sum->clean += n * pages_number(run, 3);
        sum->untouched += n * pages_number(run, 5);
        sum->lost += n * pages_number(run, 6);
        if (subhost >= 0 && subhost < (json_int_t)sum->n_hosts) {
            sum->host[subhost].remote += n * pages_number(run, 4);
        }
    }
}

static json_int_t pages_bytes(uint64_t pages)
{
    uint64_t bytes = pages * PAGE_BYTES;

    return (json_int_t)bytes;
}

static void pages_show_json(const struct pages_sum *sum, const json_t *guest, bool uris)
{
    json_t *hosts = json_array();

    for (unsigned i = 0; i < sum->n_hosts; i++) {
        const struct pages_host *host = &sum->host[i];
        json_t *entry =
            json_pack("{s:s, s:I}", "name", host->name, "remote_bytes", pages_bytes(host->remote));
        if (uris && host->uri[0]) {
            json_object_set_new(entry, "uri", json_string(host->uri));
        }
        json_array_append_new(hosts, entry);
    }
    output_json(json_pack("{s:O, s:O, s:I, s:I, s:I, s:I, s:I, s:o}", "uuid",
                          json_object_get(guest, "uuid"), "state", json_object_get(guest, "state"),
                          "ram_bytes", (json_int_t)hosts_bytes(guest, "ram"), "resident_bytes",
                          pages_bytes(sum->local + sum->clean), "clean_bytes",
                          pages_bytes(sum->clean), "untouched_bytes", pages_bytes(sum->untouched),
                          "lost_bytes", pages_bytes(sum->lost), "subhosts", hosts));
}

static void pages_show(const struct pages_sum *sum, const json_t *guest, bool uris, bool quiet)
{
    static const char *const titles[] = {"Host", "MiB", "Pages", NULL};
    struct output_table table;
    const struct {
        const char *name;
        uint64_t pages;
    } rows[] = {{"main (resident)", sum->local + sum->clean},
                {"nowhere (untouched)", sum->untouched},
                {"nowhere (lost)", sum->lost}};

    (void)guest;
    output_table_begin(&table, titles);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]) + sum->n_hosts; i++) {
        /* main, the sub-hosts, then what is nowhere */
        bool is_host = i >= 1 && i <= sum->n_hosts;
        const struct pages_host *host = is_host ? &sum->host[i - 1] : NULL;
        size_t k = is_host || i == 0 ? 0 : i - sum->n_hosts;
        uint64_t pages = is_host ? host->remote : rows[k].pages;
        if (k == 2 && pages == 0) {
            continue;
        }
        unsigned row = output_table_row(&table);
        output_cell(&table, row, 0, "%s%s", is_host ? host->name : rows[k].name,
                    is_host ? " (remote)" : "");
        output_cell(&table, row, 1, "%.1f", (double)(pages * PAGE_BYTES) / (double)MIB);
        output_cell(&table, row, 2, "%llu", (unsigned long long)pages);
    }
    output_table_end(&table, quiet);
    for (unsigned i = 0; uris && i < sum->n_hosts; i++) {
        printf("%s%s %s\n", i == 0 && !quiet ? "\n" : "", sum->host[i].name,
               sum->host[i].uri[0] ? sum->host[i].uri : "-");
    }
}

static int pages_guest(struct pager *pager, const struct arguments *arguments)
{
    static struct pages_sum sum; /* 140 KiB */
    struct reason reason = {""};
    bool uris = options_get(arguments, "uris");
    json_t *pages = NULL;
    int err;
    json_t *guest = pager_guest(pager, pager->uuid, &err, &reason);

    if (!err) {
        err = pager_call(pager, "query-pages", json_pack("{s:s}", "uuid", pager->uuid), &pages,
                         HOSTS_CALL_MS, &reason);
    }
    if (err) {
        output_error("%s", reason.text);
    } else {
        memset(&sum, 0, sizeof(sum));
        pages_hosts(&sum, guest, pages);
        pages_add(&sum, json_object_get(pages, "runs"));
        if (options_get(arguments, "json")) {
            pages_show_json(&sum, guest, uris);
        } else {
            pages_show(&sum, guest, uris, arguments->quiet);
        }
    }
    json_decref(pages);
    json_decref(guest);
    return err ? EXIT_UNCHANGED : EXIT_OK;
}

int verb_pages(const struct arguments *arguments)
{
    struct pager pager;

    int status = verbs_look(&pager, arguments);
    if (status == EXIT_OK) {
        status = pages_guest(&pager, arguments);
    }
    pager_close(&pager);
    return status;
}
