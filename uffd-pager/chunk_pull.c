// SPDX-License-Identifier: GPL-2.0-or-later
#include "uffd-pager/chunk_pull.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/ticket.h"

#define PULL_CALL_MS 1000
#define PULL_SETTLE_MS 5000 /* a copy that is ending there waits for the other sub-host, too */
#define PULL_MS 9000        /* more than both of the server's waits for the other one */
#define PULL_FENCE_US 10000000u
#define PULL_RELAY_US 30000000u

static const struct engine_subhost *pull_subhost(const struct puller *puller, unsigned index)
{
    return &puller->engine->config.subhost[index];
}

/* ---- fences ---- */

static void pull_raise_fence(struct link_host *host, uint64_t until_us)
{
    uint64_t now = atomic_load(&host->fence_us);

    while (now < until_us && !atomic_compare_exchange_weak(&host->fence_us, &now, until_us)) {
    }
}

void pull_fence(struct link_host *host)
{
    uint64_t until = units_now_us() + PULL_FENCE_US;

    atomic_store(&host->write_fence_us, until);
    pull_raise_fence(host, until);
}

static void pull_unsettle(struct link_host *host)
{
    atomic_store(&host->pull_serial, 0);
    atomic_store(&host->unsettled, true);
    atomic_store(&host->leftovers, true);
    pull_raise_fence(host, UINT64_MAX);
    drain_kick(host->engine); /* its thread settles it */
}

static void pull_settled(struct link_host *host)
{
    if (atomic_exchange(&host->unsettled, false)) {
        atomic_store(&host->fence_us, atomic_load(&host->write_fence_us));
        pull_raise_fence(host, atomic_load(&host->write_fence_us)); /* one of just now */
    }
}

void pull_recover(struct engine *engine)
{
    for (unsigned i = 0; i < engine->config.n_subhosts; i++) {
        if (engine->config.subhost[i].control.host[0] &&
            pagemap_bit(engine->map->header->pulling, i)) {
            pull_unsettle(&engine->hosts[i]);
        }
    }
}

/* ---- control connections ---- */

/* Is a connection of no use after this?  An error that has a sentence is an answer. */
static bool pull_is_silence(int err)
{
    return err == -ETIMEDOUT || err == -ECONNRESET || err == -EPROTO || err == -EPIPE;
}

static int pull_call(struct puller *puller, unsigned index, const char *verb, json_t *args,
                     json_t **result, int timeout_ms, struct reason *reason)
{
    const struct engine_subhost *subhost = pull_subhost(puller, index);
    int err = 0;

    if (!subhost->control.host[0]) {
        err = reason_set(reason, -ENOTCONN, "its control address is not known");
    } else if (!puller->peers[index].control) {
        err = control_connect(&puller->peers[index].control, &subhost->control, PULL_CALL_MS, reason);
        err = err ? -ENOTCONN : 0; /* nothing was asked of it */
    }
    if (err) {
        json_decref(args);
        return err;
    }
    json_object_set_new(args, "name", json_string(subhost->region));
    if (subhost->ticket[0]) {
        json_object_set_new(args, "ticket", json_string(subhost->ticket));
    }
    err = control_call(puller->peers[index].control, verb, args, result, timeout_ms, reason);
    if (pull_is_silence(err)) {
        control_close(puller->peers[index].control);
        puller->peers[index].control = NULL;
    }
    return err;
}

int pull_tell(struct puller *puller, unsigned index, const char *verb, json_t *args,
              struct reason *reason)
{
    return pull_call(puller, index, verb, args, NULL, PULL_CALL_MS, reason);
}

/* Have a serial, and by that the certainty that no earlier copy is under way there. */
static int pull_ask_serial(struct puller *puller, unsigned index, uint64_t *serial,
                           struct reason *reason)
{
    struct link_host *host = &puller->engine->hosts[index];
    json_t *answer = NULL;

    *serial = atomic_load(&host->pull_serial);
    if (*serial) {
        return 0;
    }
    int err = pull_call(puller, index, "region-settle", json_object(), &answer, PULL_SETTLE_MS, reason);
    json_int_t told = json_integer_value(json_object_get(answer, "serial"));
    json_decref(answer);
    if (err || told <= 0) {
        return err ? err : -EPROTO;
    }
    *serial = (uint64_t)told;
    atomic_store(&host->pull_serial, *serial);
    pull_settled(host);
    return 0;
}

bool pull_settle(struct puller *puller)
{
    bool more = false;

    for (unsigned i = 0; i < puller->engine->config.n_subhosts; i++) {
        struct link_host *host = &puller->engine->hosts[i];
        struct reason reason = {""};
        uint64_t serial;
        /* One that does not answer others is not worth the wait. */
        if (atomic_load(&host->unsettled) && !atomic_load(&host->trouble_us)) {
            int err = pull_ask_serial(puller, i, &serial, &reason);
            if (err && err != -ENOTCONN && !pull_is_silence(err)) {
                /* It has no such region, or does not know the verb: it copies nothing into it. */
                pull_settled(host);
            }
        }
        more = more || atomic_load(&host->unsettled);
    }
    return more;
}

/* ---- copying ---- */

static json_t *pull_runs(uint64_t first, unsigned n, const uint64_t *mask)
{
    json_t *runs = json_array();

    for (unsigned i = 0; i < n;) {
        unsigned run = 0;
        while (i + run < n && mask[(i + run) / 64] >> ((i + run) % 64) & 1) {
            run++;
        }
        if (run) {
            json_array_append_new(runs, json_pack("[I, I]", (json_int_t)((first + i) * PAGE_BYTES),
                                                  (json_int_t)(run * PAGE_BYTES)));
        }
        i += run ? run : 1;
    }
    return runs;
}

static int pull_ask(struct puller *puller, unsigned from, unsigned to, json_t *runs,
                    struct reason *reason)
{
    const struct engine_subhost *source = pull_subhost(puller, from);
    struct link_host *host = &puller->engine->hosts[to];
    char name[sizeof(source->export_name) + TICKET_READING_LEN];
    char data[ENDPOINT_TEXT_LEN];
    uint64_t serial = 0;

    int err = ticket_export_reading(source->export_name, name, sizeof(name));
    err = err ? reason_set(reason, err, "no ticket for reading can be made")
              : pull_ask_serial(puller, to, &serial, reason);
    if (err) {
        json_decref(runs);
        return err;
    }
    json_t *args = json_pack("{s:I, s:s, s:s, s:o}", "serial", (json_int_t)serial, "data",
                             endpoint_format(&source->data, data), "export", name,
                             "runs", runs);
    err = pull_call(puller, to, "region-pull", args, NULL, PULL_MS, reason);
    if (pull_is_silence(err)) {
        pull_unsettle(host);
    } else if (err == -ESTALE) {
        atomic_store(&host->pull_serial, 0);
    }
    return err;
}

int pull_pages(struct puller *puller, unsigned from, unsigned to, uint64_t first, unsigned n,
               const uint64_t *mask)
{
    struct link_host *host = &puller->engine->hosts[to];
    struct reason reason = {""};

    if (units_now_us() < puller->peers[to].relay_us || !pull_subhost(puller, to)->control.host[0]) {
        return -EOPNOTSUPP;
    }
    atomic_fetch_add(&host->pulls, 1);
    pagemap_set_bit(puller->engine->map->header->pulling, to, true);
    int err = pull_ask(puller, from, to, pull_runs(first, n, mask), &reason);
    atomic_fetch_sub(&host->pulls, 1);
    if (!err || err == -ENOSPC) {
        return err;
    }
    if (err == -ESTALE || pull_is_silence(err)) {
        return -EAGAIN;
    }
    log_info("pages go from sub-host '%s' to '%s' through this host: %s",
             pull_subhost(puller, from)->name, pull_subhost(puller, to)->name, reason.text);
    puller->peers[to].relay_us = units_now_us() + PULL_RELAY_US;
    return -EOPNOTSUPP;
}

void pull_rest(struct puller *puller)
{
    struct pagemap_header *header = puller->engine->map->header;

    for (unsigned i = 0; i < puller->engine->config.n_subhosts; i++) {
        struct link_host *host = &puller->engine->hosts[i];
        control_close(puller->peers[i].control);
        puller->peers[i].control = NULL;
        if (pagemap_bit(header->pulling, i)) {
            pagemap_set_bit(header->pulling, i, false);
            if (atomic_load(&host->unsettled) || atomic_load(&host->pulls)) {
                pagemap_set_bit(header->pulling, i, true);
            }
        }
    }
}

int pull_init(struct puller *puller, struct engine *engine)
{
    puller->engine = engine;
    puller->peers = calloc(engine->config.n_subhosts + 1, sizeof(*puller->peers));
    return puller->peers ? 0 : -ENOMEM;
}

/* What was not settled stays in the page map. */
void pull_free(struct puller *puller)
{
    for (unsigned i = 0; puller->peers && i < puller->engine->config.n_subhosts; i++) {
        control_close(puller->peers[i].control);
    }
    free(puller->peers);
}
