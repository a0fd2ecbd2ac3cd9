// SPDX-License-Identifier: GPL-2.0-or-later
#include "subhost-server/store_metrics.h"

#include "common/metrics.h"
#include "common/version.h"
#include "subhost-server/server.h"

static void store_metrics_one(FILE *out, const char *name, const char *type, const char *help,
                              double value)
{
    metrics_family(out, name, type, help);
    metrics_value(out, name, "", NULL, value);
}

static void store_metrics_host(struct server *server, FILE *out)
{
    const struct metrics_label version[] = {{"version", SPLIT_MIGRATE_VERSION}, {NULL, NULL}};
    struct quota_status quota;

    quota_status(&server->store.quota, &quota);
    metrics_family(out, "subhost_server_build_info", "gauge", "Always 1; its label is the version.");
    metrics_value(out, "subhost_server_build_info", "", version, 1);
    store_metrics_one(out, "subhost_server_memory_bytes", "gauge", "Memory that is lent.",
                      (double)quota.memory);
    store_metrics_one(out, "subhost_server_stored_bytes", "gauge", "Memory in use by pages.",
                      (double)quota.stored);
    store_metrics_one(out, "subhost_server_reserved_bytes", "gauge", "Memory guaranteed to regions.",
                      (double)quota.reserved);
    store_metrics_one(out, "subhost_server_free_bytes", "gauge", "What a new reservation may have.",
                      (double)quota.free);
    if (server->headroom) {
        struct headroom_status status;
        headroom_status(server->headroom, &status);
        store_metrics_one(out, "subhost_server_headroom_bytes", "gauge",
                          "Memory of this host that is to stay free.", (double)status.headroom);
        store_metrics_one(out, "subhost_server_available_bytes", "gauge",
                          "Memory of this host, or its cgroup, that is free.", (double)status.available);
        store_metrics_one(out, "subhost_server_lendable_bytes", "gauge",
                          "What is lent at most for now, as the headroom allows.",
                          (double)(status.ceiling < quota.memory ? status.ceiling : quota.memory));
        store_metrics_one(out, "subhost_server_asked_back_bytes", "gauge",
                          "Memory of slabs that pagers are to move away.", (double)status.asked);
        store_metrics_one(out, "subhost_server_given_back_bytes_total", "counter",
                          "Memory of slabs that pagers have moved away for the headroom.",
                          (double)status.given_back);
        store_metrics_one(out, "subhost_server_refused_slabs_total", "counter",
                          "Slabs that pagers could not move away.", (double)status.refused);
    }
    store_metrics_one(out, "subhost_server_regions", "gauge", "Regions, one for each guest.",
                      store_count(&server->store));
    store_metrics_one(out, "subhost_server_connections", "gauge", "Connections for pages.",
                      server_connections(server));
}

static void store_metrics_counters(struct store_stats *stats, FILE *out)
{
    const struct {
        const char *name;
        const char *help;
        uint64_t value;
    } rows[] = {
        {"subhost_server_reads_total", "Read requests.", atomic_load(&stats->reads)},
        {"subhost_server_writes_total", "Write requests.", atomic_load(&stats->writes)},
        {"subhost_server_trims_total", "Trim requests.", atomic_load(&stats->trims)},
        {"subhost_server_read_bytes_total", "Bytes read.", atomic_load(&stats->read_bytes)},
        {"subhost_server_written_bytes_total", "Bytes written.", atomic_load(&stats->write_bytes)},
        {"subhost_server_pulled_bytes_total", "Bytes fetched from other sub-hosts.",
         atomic_load(&stats->pulled_bytes)},
        {"subhost_server_errors_total", "Requests that failed.", atomic_load(&stats->errors)},
        {"subhost_server_out_of_space_total", "Writes refused for lack of room.",
         atomic_load(&stats->enospc)},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        store_metrics_one(out, rows[i].name, "counter", rows[i].help, (double)rows[i].value);
    }
}

/* All values of one metric stand together, so the regions are gone through once for each. */
#define STORE_METRICS_REGION(function, family, figure)                                             \
    static void function(void *out, const struct store_entry *entry)                               \
    {                                                                                              \
        const struct metrics_label labels[] = {{"region", entry->name}, {NULL, NULL}};             \
        metrics_value(out, family, "", labels, (double)(figure));                                  \
    }

STORE_METRICS_REGION(store_metrics_size, "subhost_server_region_size_bytes",
                     region_size(entry->region))
STORE_METRICS_REGION(store_metrics_stored, "subhost_server_region_stored_bytes",
                     atomic_load(&region_claim(entry->region)->stored))
STORE_METRICS_REGION(store_metrics_clients, "subhost_server_region_connections",
                     region_clients(entry->region))

void store_metrics(void *opaque, FILE *out)
{
    struct server *server = opaque;

    store_metrics_host(server, out);
    store_metrics_counters(&server->store.stats, out);
    metrics_family(out, "subhost_server_region_size_bytes", "gauge",
                   "Size of the guest's memory, of which the region has a part.");
    store_each(&server->store, store_metrics_size, out);
    metrics_family(out, "subhost_server_region_stored_bytes", "gauge", "Memory the region takes.");
    store_each(&server->store, store_metrics_stored, out);
    metrics_family(out, "subhost_server_region_connections", "gauge", "Connections to the region.");
    store_each(&server->store, store_metrics_clients, out);
}
