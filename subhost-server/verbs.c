// SPDX-License-Identifier: GPL-2.0-or-later
#include "subhost-server/verbs.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/nbd_rdma.h"
#include "common/version.h"
#include "subhost-server/copy.h"

/* ---- arguments ---- */

/* An argument no verb knows is a mistake worth telling. */
static int check_known(const json_t *args, const char *const *known, struct reason *reason)
{
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)(uintptr_t)args, key, value)
    {
        const char *const *name = known;
        while (*name && strcmp(*name, key) != 0) {
            name++;
        }
        if (!*name) {
            return reason_set(reason, -EINVAL, "argument '%.64s' is not known", key);
        }
    }
    return 0;
}

static int get_string(const json_t *args, const char *key, bool required, const char **value,
                      struct reason *reason)
{
    const json_t *item = json_object_get(args, key);

    *value = NULL;
    if (!item && !required) {
        return 0;
    }
    if (!json_is_string(item) || strlen(json_string_value(item)) != json_string_length(item)) {
        return reason_set(reason, -EINVAL, "argument '%s' must be a string", key);
    }
    *value = json_string_value(item);
    return 0;
}

static int get_bytes(const json_t *args, const char *key, const uint64_t *fallback,
                     uint64_t *value, struct reason *reason)
{
    const json_t *item = json_object_get(args, key);

    if (!item && fallback) {
        *value = *fallback;
        return 0;
    }
    if (!json_is_integer(item) || json_integer_value(item) < 0) {
        return reason_set(reason, -EINVAL, "argument '%s' must be a number of bytes", key);
    }
    *value = (uint64_t)json_integer_value(item);
    return 0;
}

/* ---- regions ---- */

#define MAX_TICKET_SECONDS 31536000u

static json_t *region_create(void *opaque, struct control_peer *peer, const json_t *args, int *err,
                             struct reason *reason)
{
    static const char *const known[] = {"name", "size", "reserve", "limit",
                                        "ticket", "slab", "ticket_seconds", NULL};
    struct server *server = opaque;
    struct store_request request = {.owner = peer};
    const uint64_t none = 0;

    *err = check_known(args, known, reason);
    if (!*err) {
        *err = get_string(args, "name", true, &request.name, reason);
    }
    if (!*err) {
        *err = get_string(args, "ticket", false, &request.ticket, reason);
    }
    if (!*err) {
        *err = get_bytes(args, "size", NULL, &request.size, reason);
    }
    if (!*err) {
        *err = get_bytes(args, "reserve", &none, &request.reserve, reason);
    }
    if (!*err) {
        *err = get_bytes(args, "limit", &request.size, &request.limit, reason);
    }
    if (!*err) {
        *err = get_bytes(args, "slab", &none, &request.slab, reason);
    }
    if (!*err) {
        *err = get_bytes(args, "ticket_seconds", &none, &request.ticket_seconds, reason);
    }
    if (!*err && request.ticket_seconds > MAX_TICKET_SECONDS) {
        *err = reason_set(reason, -EINVAL, "argument 'ticket_seconds' must be at most %u",
                          MAX_TICKET_SECONDS);
    }
    if (!*err && request.slab && (request.slab < CHUNK_BYTES || request.slab & (request.slab - 1))) {
        *err = reason_set(reason, -EINVAL, "argument 'slab' must be a power of two from 2 MiB");
    }
    if (!*err) {
        *err = store_create(&server->store, &request, reason);
    }
    if (*err) {
        return NULL;
    }
    log_info("region %s is created: size %llu, reserve %llu, limit %llu bytes", request.name,
             (unsigned long long)request.size, (unsigned long long)request.reserve,
             (unsigned long long)request.limit);
    const char *ticket = request.ticket ? request.ticket : "";
    return json_pack("{s:o}", "export",
                     json_sprintf("%s%s%s", request.name, *ticket ? "." : "", ticket));
}

static int get_name(const json_t *args, const char *const *known, const char **name,
                    const char **ticket, struct reason *reason)
{
    int err = check_known(args, known, reason);

    if (!err) {
        err = get_string(args, "name", true, name, reason);
    }
    return err ? err : get_string(args, "ticket", false, ticket, reason);
}

static json_t *region_keep(void *opaque, struct control_peer *peer, const json_t *args, int *err,
                           struct reason *reason)
{
    static const char *const known[] = {"name", "ticket", "new_ticket", NULL};
    struct server *server = opaque;
    const char *name, *ticket, *new_ticket = NULL;

    (void)peer;
    *err = get_name(args, known, &name, &ticket, reason);
    if (!*err) {
        *err = get_string(args, "new_ticket", false, &new_ticket, reason);
    }
    if (!*err) {
        *err = store_keep(&server->store, name, ticket, new_ticket, reason);
    }
    return *err || !new_ticket ? NULL
                               : json_pack("{s:o}", "export", json_sprintf("%s.%s", name, new_ticket));
}

static json_t *region_delete(void *opaque, struct control_peer *peer, const json_t *args, int *err,
                             struct reason *reason)
{
    static const char *const known[] = {"name", "ticket", NULL};
    struct server *server = opaque;
    const char *name, *ticket;

    *err = get_name(args, known, &name, &ticket, reason);
    if (!*err) {
        *err = store_delete(&server->store, name, ticket, peer, reason);
    }
    return NULL;
}

static json_t *describe(const struct store_entry *entry)
{
    const struct quota_claim *claim = region_claim(entry->region);
    json_t *object = json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:b, s:i}", "name", entry->name, "size",
        (json_int_t)region_size(entry->region), "reserve", (json_int_t)claim->reserve, "limit",
        (json_int_t)claim->limit, "stored", (json_int_t)atomic_load(&claim->stored), "transient",
        entry->owner != NULL, "connections", (int)region_clients(entry->region));

    json_object_set_new(object, "room", json_integer((json_int_t)region_room(entry->region)));
    json_object_set_new(object, "slab", json_integer((json_int_t)entry->slab));
    if (entry->redundancy[0]) {
        json_object_set_new(object, "redundancy", json_string(entry->redundancy));
        json_object_set_new(object, "at_risk", json_integer((json_int_t)store_at_risk(entry)));
    }
    return object;
}

static void list_entry(void *to, const struct store_entry *entry)
{
    json_t *object = describe(entry);

    json_object_set_new(object, "slabs",
                        json_integer((json_int_t)region_slabs(entry->region, entry->slab)));
    json_array_append_new(to, object);
}

/* What region_query() asks of one region. */
struct query {
    struct headroom *headroom;
    json_t *result;
};

static void set_entry(void *to, const struct store_entry *entry)
{
    struct query *query = to;
    struct headroom_status status;

    headroom_status(query->headroom, &status);
    query->result = describe(entry);
    json_object_set_new(query->result, "headroom", json_integer((json_int_t)status.headroom));
    json_object_set_new(query->result, "wanted", headroom_wanted(query->headroom, entry->region));
}

/* What the pager tells of its own accord, if it does. */
static int note(struct server *server, const json_t *args, const char *name, const char *ticket,
                struct reason *reason)
{
    const char *redundancy;
    const uint64_t none = 0;
    uint64_t at_risk = 0;

    int err = get_string(args, "redundancy", false, &redundancy, reason);
    err = err ? err : get_bytes(args, "at_risk", &none, &at_risk, reason);
    if (!err && redundancy && !store_is_redundancy(redundancy)) {
        err = reason_set(reason, -EINVAL, "argument 'redundancy' must be none, replica or backup");
    }
    return err || !redundancy ? err
                              : store_note(&server->store, name, ticket, redundancy, at_risk, reason);
}

static json_t *region_query(void *opaque, struct control_peer *peer, const json_t *args, int *err,
                            struct reason *reason)
{
    static const char *const known[] = {"name", "ticket", "redundancy", "at_risk", NULL};
    struct server *server = opaque;
    const char *name, *ticket;
    struct query query = {.headroom = server->headroom};

    (void)peer;
    *err = get_name(args, known, &name, &ticket, reason);
    if (!*err) {
        *err = note(server, args, name, ticket, reason);
    }
    if (!*err) {
        *err = store_visit(&server->store, name, ticket, set_entry, &query, reason);
    }
    return query.result;
}

static json_t *region_list(void *opaque, struct control_peer *peer, const json_t *args, int *err,
                           struct reason *reason)
{
    static const char *const known[] = {NULL};
    struct server *server = opaque;
    json_t *list = NULL;

    (void)peer;
    *err = check_known(args, known, reason);
    if (!*err) {
        list = json_array();
        store_each(&server->store, list_entry, list);
    }
    return list;
}

/* ---- memory on its way from another sub-host (copy.h) ---- */

static json_t *region_settle_verb(void *opaque, struct control_peer *peer, const json_t *args, int *err,
                                  struct reason *reason)
{
    static const char *const known[] = {"name", "ticket", NULL};
    struct server *server = opaque;
    struct region *region = NULL;
    const char *name, *ticket;

    (void)peer;
    *err = get_name(args, known, &name, &ticket, reason);
    if (!*err) {
        *err = store_find(&server->store, name, ticket, &region, reason);
    }
    if (*err) {
        return NULL;
    }
    json_t *result = json_pack("{s:I}", "serial", (json_int_t)region_settle(region));
    region_unref(region);
    return result;
}

static json_t *region_pull(void *opaque, struct control_peer *peer, const json_t *args, int *err,
                           struct reason *reason)
{
    static const char *const known[] = {"name", "ticket", "serial", "data", "export", "runs", NULL};
    struct server *server = opaque;
    struct copy_request request = {.runs = json_object_get(args, "runs")};
    struct copier *copier = control_peer_get(peer);
    struct region *region = NULL;
    const char *name, *ticket;
    uint64_t copied = 0;

    *err = get_name(args, known, &name, &ticket, reason);
    if (!*err) {
        *err = get_bytes(args, "serial", NULL, &request.serial, reason);
    }
    if (!*err) {
        *err = get_string(args, "data", true, &request.data, reason);
    }
    if (!*err) {
        *err = get_string(args, "export", true, &request.export, reason);
    }
    if (!*err) {
        *err = store_find(&server->store, name, ticket, &region, reason);
    }
    if (*err) {
        return NULL;
    }
    *err = copier_pull(&copier, region, &request, &copied, reason);
    control_peer_set(peer, copier);
    atomic_fetch_add_explicit(&server->store.stats.pulled_bytes, copied, memory_order_relaxed);
    region_unref(region);
    return *err ? NULL : json_pack("{s:I}", "bytes", (json_int_t)copied);
}

static json_t *region_refuse(void *opaque, struct control_peer *peer, const json_t *args, int *err,
                             struct reason *reason)
{
    static const char *const known[] = {"name", "ticket", "offset", "reason", NULL};
    struct server *server = opaque;
    struct region *region = NULL;
    const char *name, *ticket, *why = NULL;
    uint64_t offset = 0;

    (void)peer;
    *err = get_name(args, known, &name, &ticket, reason);
    if (!*err) {
        *err = get_bytes(args, "offset", NULL, &offset, reason);
    }
    if (!*err) {
        *err = get_string(args, "reason", true, &why, reason);
    }
    if (!*err) {
        *err = store_find(&server->store, name, ticket, &region, reason);
    }
    if (*err) {
        return NULL;
    }
    if (!headroom_refuse(server->headroom, region, offset, why)) {
        *err = reason_set(reason, -ENOENT, "that slab was not asked back");
    }
    region_unref(region);
    return NULL;
}

/* ---- the host ---- */

static void status_headroom(struct server *server, json_t *object, const struct quota_status *quota)
{
    struct headroom_status status;

    headroom_status(server->headroom, &status);
    uint64_t lendable = status.ceiling < quota->memory ? status.ceiling : quota->memory;
    json_object_set_new(object, "headroom", json_integer((json_int_t)status.headroom));
    json_object_set_new(object, "available", json_integer((json_int_t)status.available));
    json_object_set_new(object, "lendable", json_integer((json_int_t)lendable));
    json_object_set_new(object, "asked_back", json_integer((json_int_t)status.asked));
    json_object_set_new(object, "given_back", json_integer((json_int_t)status.given_back));
}

static json_t *status_object(struct server *server)
{
    struct quota_status quota;
    char text[ENDPOINT_TEXT_LEN];
    json_t *data = json_array();

    quota_status(&server->store.quota, &quota);
    for (unsigned i = 0; i < server->n_data; i++) {
        json_array_append_new(data, json_string(endpoint_format(&server->data[i], text)));
    }
    if (server->rdma) {
        json_array_append_new(data, json_string(nbd_rdma_format(&server->rdma_address, text)));
    }
    json_t *object =
        json_pack("{s:s, s:o, s:I, s:I, s:I, s:I, s:i}", "version", SPLIT_MIGRATE_VERSION, "data",
                  data, "memory", (json_int_t)quota.memory, "stored", (json_int_t)quota.stored,
                  "reserved", (json_int_t)quota.reserved, "free", (json_int_t)quota.free, "regions",
                  (int)store_count(&server->store));
    if (server->headroom) {
        status_headroom(server, object, &quota);
    }
    return object;
}

static json_t *query_status(void *opaque, struct control_peer *peer, const json_t *args, int *err,
                            struct reason *reason)
{
    static const char *const known[] = {NULL};

    (void)peer;
    *err = check_known(args, known, reason);
    return *err ? NULL : status_object(opaque);
}

static json_t *stats(void *opaque, struct control_peer *peer, const json_t *args, int *err,
                     struct reason *reason)
{
    static const char *const known[] = {NULL};
    struct server *server = opaque;
    struct store_stats *counters = &server->store.stats;

    (void)peer;
    *err = check_known(args, known, reason);
    if (*err) {
        return NULL;
    }
    const struct {
        const char *name;
        uint64_t value;
    } rows[] = {
        {"reads", atomic_load(&counters->reads)},
        {"writes", atomic_load(&counters->writes)},
        {"trims", atomic_load(&counters->trims)},
        {"read_bytes", atomic_load(&counters->read_bytes)},
        {"write_bytes", atomic_load(&counters->write_bytes)},
        {"errors", atomic_load(&counters->errors)},
        {"enospc", atomic_load(&counters->enospc)},
        {"pulled_bytes", atomic_load(&counters->pulled_bytes)},
        {"connections", server_connections(server)},
    };
    json_t *result = status_object(server);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        json_object_set_new(result, rows[i].name, json_integer((json_int_t)rows[i].value));
    }
    return result;
}

/* A controller is gone: what it did not keep goes with it. */
static void peer_gone(void *opaque, struct control_peer *peer)
{
    struct server *server = opaque;

    copier_free(control_peer_get(peer));
    store_delete_owned(&server->store, peer);
}

static const struct control_verb verbs[] = {
    {"query-status", query_status},   {"region-create", region_create},
    {"region-keep", region_keep},     {"region-delete", region_delete},
    {"region-list", region_list},     {"region-query", region_query},
    {"region-settle", region_settle_verb}, {"region-pull", region_pull}, {"region-refuse", region_refuse},
    {"stats", stats},
    {NULL, NULL},
};

void verbs_config(struct control_config *config, struct server *server)
{
    *config = (struct control_config){
        .program = "subhost-server",
        .verbs = verbs,
        .opaque = server,
        .on_close = peer_gone,
    };
}
