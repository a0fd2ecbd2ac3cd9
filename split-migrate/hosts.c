// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/hosts.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "common/nbd_rdma.h"

#define HOSTS_CONNECT_MS 5000

uint64_t hosts_bytes(const json_t *object, const char *key)
{
    json_int_t value = json_integer_value(json_object_get(object, key));

    return value > 0 ? (uint64_t)value : 0;
}

const char *hosts_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "-";
}

void hosts_ticket(char ticket[HOSTS_TICKET_LEN])
{
    uint8_t random[(HOSTS_TICKET_LEN - 1) / 2];

    units_random(random, sizeof(random));
    for (size_t i = 0; i < sizeof(random); i++) {
        snprintf(ticket + 2 * i, 3, "%02x", random[i]);
    }
}

int hosts_reach(const char *text, const struct endpoint *control, char data[ENDPOINT_TEXT_LEN])
{
    struct endpoint endpoint;

    if (endpoint_parse(text, &endpoint, NULL) < 0) {
        return -EINVAL;
    }
    bool any = !endpoint.is_unix && (!endpoint.host[0] || strcmp(endpoint.host, "0.0.0.0") == 0 ||
                                     strcmp(endpoint.host, "::") == 0);
    if (any) {
        memcpy(endpoint.host, control->is_unix ? "127.0.0.1" : control->host,
               control->is_unix ? sizeof("127.0.0.1") : sizeof(endpoint.host));
    }
    if (endpoint_is_local(&endpoint) && !endpoint_is_local(control)) {
        return -EINVAL;
    }
    /* Who wants TLS for control has not typed that memory may go without. */
    if (control->tls && endpoint_is_exposed(&endpoint)) {
        return -EPERM;
    }
    endpoint_format(&endpoint, data);
    return 0;
}

int hosts_choose_data(const json_t *list, const struct endpoint *control,
                      char data[ENDPOINT_TEXT_LEN])
{
    /* A UNIX socket is the shorter way to a sub-host on the same host; hosts_reach() refuses
     * others'. */
    const char *const kinds[] = {control->tls ? "tls:" : "unix:", control->tls ? "unix:" : "tcp:",
                                 control->tls ? "tcp:" : "tls:"};
    int result = -EINVAL;

    for (size_t kind = 0; kind < sizeof(kinds) / sizeof(kinds[0]); kind++) {
        for (size_t i = 0; i < json_array_size(list); i++) {
            const char *text = json_string_value(json_array_get(list, i));
            if (!text || strncmp(text, kinds[kind], strlen(kinds[kind])) != 0) {
                continue;
            }
            int err = hosts_reach(text, control, data);
            if (!err) {
                return 0;
            }
            result = err == -EPERM ? err : result;
        }
    }
    return result;
}

/* ---- pagers ---- */

static void pager_event(void *opaque, const char *name, const json_t *data)
{
    struct pager *pager = opaque;
    const char *uuid = json_string_value(json_object_get(data, "uuid"));
    const char *why = json_string_value(json_object_get(data, "reason"));

    log_debug("%s: event %s", pager->role, name);
    if (uuid && pager->uuid[0] && strcmp(uuid, pager->uuid) != 0) {
        return;
    }
    if (strcmp(name, "OUTGOING_FAILED") == 0 || strcmp(name, "INCOMING_FAILED") == 0) {
        snprintf(pager->failed, sizeof(pager->failed), "%s", why ? why : "no reason was given");
    } else if (strcmp(name, "GUEST_GONE") == 0) {
        snprintf(pager->failed, sizeof(pager->failed), HOSTS_GUEST_GONE);
    } else if (strcmp(name, "OVER_BUDGET") == 0) {
        snprintf(pager->over, sizeof(pager->over), "%s", why ? why : "no reason was given");
    } else if (strcmp(name, "GUEST_SPLIT") == 0) {
        pager->split = true;
    }
}

int pager_open(struct pager *pager, const char *role, const struct endpoint *endpoint,
               struct reason *reason)
{
    struct reason why = {""};

    pager->role = role;
    pager->endpoint = *endpoint;
    int err = control_connect(&pager->client, endpoint, HOSTS_CONNECT_MS, &why);
    if (err) {
        return reason_set(reason, err, "%s: %.200s", role, why.text);
    }
    control_on_event_set(pager->client, pager_event, pager);
    return 0;
}

int pager_call(struct pager *pager, const char *verb, json_t *args, json_t **result, int timeout_ms,
               struct reason *reason)
{
    struct reason why = {""};

    log_debug("%s: %s", pager->role, verb);
    int err = control_call(pager->client, verb, args, result, timeout_ms, &why);
    return err ? reason_set(reason, err, "%s: %.200s", pager->role, why.text) : 0;
}

json_t *pager_guest(struct pager *pager, const char *uuid, int *err, struct reason *reason)
{
    json_t *guest = NULL;

    *err = pager_call(pager, "query-guest", json_pack("{s:s}", "uuid", uuid), &guest, HOSTS_CALL_MS,
                      reason);
    return guest;
}

void pager_close(struct pager *pager)
{
    control_close(pager->client);
    pager->client = NULL;
}

/* ---- sub-hosts ---- */

int subhost_call(struct subhost *subhost, const char *verb, json_t *args, json_t **result,
                 struct reason *reason)
{
    struct reason why = {""};

    log_debug("sub-host '%s': %s", subhost->policy->name, verb);
    int err = control_call(subhost->client, verb, args, result, HOSTS_CALL_MS, &why);
    return err ? reason_set(reason, err, "sub-host '%s': %.170s", subhost->policy->name, why.text)
               : 0;
}

/* An address among @list where pages can go by RDMA, as a pager reaches it; "": there is none. */
static void choose_rdma(const json_t *list, const struct endpoint *control,
                        char rdma[ENDPOINT_TEXT_LEN])
{
    rdma[0] = '\0';
    for (size_t i = 0; i < json_array_size(list) && !rdma[0]; i++) {
        const char *text = json_string_value(json_array_get(list, i));
        struct endpoint address;
        if (!text || nbd_rdma_parse(text, &address, NULL) < 0) {
            continue;
        }
        bool any = !address.host[0] || strcmp(address.host, "0.0.0.0") == 0 ||
                   strcmp(address.host, "::") == 0;
        if (any && control->is_unix) {
            continue; /* which of its cards? */
        }
        if (any) {
            memcpy(address.host, control->host, sizeof(address.host));
        }
        nbd_rdma_format(&address, rdma);
    }
}

/* Does the sub-host serve pages as the policy wants them? */
static int subhost_choose_transport(struct subhost *subhost, const json_t *list,
                                    struct reason *reason)
{
    const struct policy_subhost *policy = subhost->policy;

    int err = hosts_choose_data(list, &policy->control, subhost->data);
    if (err) {
        return reason_set(reason, err,
                          err == -EPERM
                              ? "sub-host '%s' serves memory without TLS only: start it with a "
                                "tls: address to --listen, or allow that by subhost+tcp://"
                              : "sub-host '%s' has no data address that other hosts can reach",
                          policy->name);
    }
    if (!policy->rdma) {
        return 0;
    }
    choose_rdma(list, &policy->control, subhost->rdma);
    if (!subhost->rdma[0] && !policy->tcp_will_do) {
        return reason_set(reason, -EINVAL,
                          "sub-host '%s' serves no pages by RDMA: start it with --listen "
                          "rdma:HOST:PORT, or let fallback = tcp",
                          policy->name);
    }
    if (!subhost->rdma[0]) {
        log_warn("sub-host '%s': pages go by TCP, as it serves none by RDMA", policy->name);
    }
    return 0;
}

int subhost_connect(struct subhost *subhost, const struct policy_subhost *policy,
                    struct reason *reason)
{
    struct reason why = {""};

    subhost->policy = policy;
    int err = control_connect(&subhost->client, &policy->control, HOSTS_CONNECT_MS, &why);
    return err ? reason_set(reason, err, "sub-host '%s': %.170s", policy->name, why.text) : 0;
}

int subhost_open(struct subhost *subhost, const struct policy_subhost *policy,
                 struct reason *reason)
{
    json_t *status = NULL;

    int err = subhost_connect(subhost, policy, reason);
    if (err) {
        return err;
    }
    err = subhost_call(subhost, "query-status", NULL, &status, reason);
    if (err) {
        return err;
    }
    subhost->free = hosts_bytes(status, "free");
    err = subhost_choose_transport(subhost, json_object_get(status, "data"), reason);
    json_decref(status);
    return err;
}

int subhost_reserve(struct subhost *subhost, const char *uuid, uint64_t size, uint64_t reserve,
                    uint64_t limit, const struct policy *policy, struct reason *reason)
{
    json_t *answer = NULL;

    hosts_ticket(subhost->ticket);
    json_t *args =
        json_pack("{s:s, s:I, s:I, s:I, s:I, s:s, s:I}", "name", uuid, "size", (json_int_t)size,
                  "reserve", (json_int_t)reserve, "limit", (json_int_t)limit, "slab",
                  (json_int_t)policy->slab, "ticket", subhost->ticket, "ticket_seconds",
                  (json_int_t)policy->ticket_seconds);
    int err = subhost_call(subhost, "region-create", args, &answer, reason);
    if (err) {
        return err;
    }
    subhost->reserved = true;
    const char *name = json_string_value(json_object_get(answer, "export"));
    if (!name || strlen(name) >= sizeof(subhost->export_name)) {
        err = reason_set(reason, -EPROTO, "sub-host '%s' did not say what the region is called",
                         subhost->policy->name);
    } else {
        memcpy(subhost->export_name, name, strlen(name) + 1);
    }
    json_decref(answer);
    return err;
}

void subhost_release(struct subhost *subhost, const char *uuid)
{
    struct reason reason = {""};

    if (!subhost->reserved) {
        return;
    }
    subhost->reserved = false;
    int err = subhost_call(subhost, "region-delete",
                           json_pack("{s:s, s:s}", "name", uuid, "ticket", subhost->ticket), NULL,
                           &reason);
    if (err && err != -ENOENT) {
        /* The region is transient: the end of the connection deletes it as well. */
        log_info("%s", reason.text);
    }
}

void subhost_close(struct subhost *subhost)
{
    control_close(subhost->client);
    subhost->client = NULL;
}
