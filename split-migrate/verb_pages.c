// SPDX-License-Identifier: GPL-2.0-or-later
/* verb_pages.c - where each part of a guest's memory is */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/pagemap.h"
#include "split-migrate/heatmap.h"
#include "split-migrate/output.h"
#include "split-migrate/verbs.h"

const struct option_def verb_pages_options[] = {
    OPTION_PAGER,
    {"heatmap", 0, NULL, "draw where each part of it is, and how hot"},
    {"svg", 0, "FILE", "write that picture to FILE"},
    {"uris", 0, NULL, "show the NBD URI of each sub-host's part; it opens the guest's memory"},
    OPTION_JSON("print one JSON object"),
    OPTIONS_END,
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
        snprintf(uri, PAGES_URI_LEN, "%s://%s%s%s:%u/%.500s", endpoint.tls ? "nbds" : "nbd", v6 ? "[" : "", endpoint.host,
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

static void pages_show_json(const struct pages_sum *sum, const json_t *guest, bool uris,
                            const struct heatmap *map)
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
    json_t *object =
        json_pack("{s:O, s:O, s:I, s:I, s:I, s:I, s:I, s:o}", "uuid",
                  json_object_get(guest, "uuid"), "state", json_object_get(guest, "state"),
                  "ram_bytes", (json_int_t)hosts_bytes(guest, "ram"), "resident_bytes",
                  pages_bytes(sum->local + sum->clean), "clean_bytes", pages_bytes(sum->clean),
                  "untouched_bytes", pages_bytes(sum->untouched), "lost_bytes",
                  pages_bytes(sum->lost), "subhosts", hosts);
    if (map->n_chunks) {
        json_object_set_new(object, "heatmap", heatmap_json(map));
    }
    output_json(object);
}

static void pages_show(const struct pages_sum *sum, bool quiet)
{
    static const char *const titles[] = {"Host", "MiB", "Pages", NULL};
    struct output_table table;
    const struct {
        const char *name;
        uint64_t pages;
    } rows[] = {{"main (resident)", sum->local + sum->clean},
                {"nowhere (untouched)", sum->untouched},
                {"nowhere (lost)", sum->lost}};

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
}

static void pages_show_uris(const struct pages_sum *sum, bool quiet)
{
    for (unsigned i = 0; i < sum->n_hosts; i++) {
        printf("%s%s %s\n", i == 0 && !quiet ? "\n" : "", sum->host[i].name,
               sum->host[i].uri[0] ? sum->host[i].uri : "-");
    }
}

static int pages_write_svg(const struct heatmap *map, const char *domain, const json_t *guest,
                           const char *path, struct reason *reason)
{
    FILE *file = fopen(path, "we");
    char title[320];
    char clock[32];
    struct tm tm;
    time_t now = time(NULL);

    if (!file) {
        return reason_set(reason, -errno, "file '%.150s' cannot be written: %m", path);
    }
    localtime_r(&now, &tm);
    strftime(clock, sizeof(clock), "%Y-%m-%d %H:%M:%S", &tm);
    /* What a guest is called, not how its pager is reached. */
    snprintf(title, sizeof(title), "%.*s, %s, %s", (int)strcspn(domain, "?"),
             strncmp(domain, "qmp:", 4) == 0 ? hosts_text(guest, "uuid") : domain,
             hosts_text(guest, "state"), clock);
    heatmap_svg(map, title, file);
    bool bad = ferror(file) != 0;
    if (fclose(file) != 0 || bad) {
        return reason_set(reason, -EIO, "file '%.150s' cannot be written to its end", path);
    }
    return 0;
}

static int pages_guest(struct pager *pager, const struct arguments *arguments,
                       struct heatmap *map, struct reason *reason)
{
    static struct pages_sum sum; /* 140 KiB */
    bool uris = options_get(arguments, "uris");
    const char *svg = options_get(arguments, "svg");
    bool draw = options_get(arguments, "heatmap");
    json_t *pages = NULL;
    json_t *heat = NULL;
    int err;
    json_t *guest = pager_guest(pager, pager->uuid, &err, reason);

    if (!err) {
        err = pager_call(pager, "query-pages", json_pack("{s:s}", "uuid", pager->uuid), &pages,
                         HOSTS_CALL_MS, reason);
    }
    if (!err && (draw || svg)) {
        err = pager_call(pager, "query-heatmap", json_pack("{s:s}", "uuid", pager->uuid), &heat,
                         HOSTS_CALL_MS, reason);
        err = err ? err : heatmap_parse(map, heat, reason);
    }
    if (!err && svg) {
        err = pages_write_svg(map, arguments->word[0], guest, svg, reason);
    }
    if (!err) {
        memset(&sum, 0, sizeof(sum));
        pages_hosts(&sum, guest, pages);
        pages_add(&sum, json_object_get(pages, "runs"));
    }
    if (!err && options_get(arguments, "json")) {
        pages_show_json(&sum, guest, uris, map);
    } else if (!err && draw) {
        heatmap_draw(map);
    } else if (!err) {
        pages_show(&sum, arguments->quiet);
    }
    if (!err && uris && !options_get(arguments, "json")) {
        pages_show_uris(&sum, arguments->quiet);
    }
    json_decref(heat);
    json_decref(pages);
    json_decref(guest);
    return err;
}

int verb_pages(const struct arguments *arguments)
{
    static struct heatmap map; /* 8 KiB */
    struct reason reason = {""};
    struct pager pager;

    int status = verbs_look(&pager, arguments);
    if (status == EXIT_OK && pages_guest(&pager, arguments, &map, &reason) < 0) {
        output_error("%s", reason.text);
        status = EXIT_UNCHANGED;
    }
    heatmap_free(&map);
    pager_close(&pager);
    return status;
}
