// SPDX-License-Identifier: GPL-2.0-or-later
/* prepare.c - everything of a move that comes before the first page: check, plan, reserve, announce
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "split-migrate/interrupt.h"
#include "split-migrate/move.h"

#define PREPARE_ATTACH_US 5000000u /* QEMU may still be handing its memory over */
#define PREPARE_CALL_MS 60000

/* ---- connect ---- */

/* Wait until the pager has the guest from QEMU, and see that it is not doing anything with it. */
static int prepare_check_guest(struct pager *pager, const struct move *move, const char *qemu,
                               struct reason *reason)
{
    uint64_t deadline = units_now_us() + PREPARE_ATTACH_US;
    char state[32] = "not known";

    for (;;) {
        int err;
        json_t *guest = pager_guest(pager, move->guest.uuid, &err, reason);
        if (err && err != -ENOENT) {
            return err;
        }
        const char *word = json_string_value(json_object_get(guest, "state"));
        bool connected = json_is_true(json_object_get(guest, "connected"));
        snprintf(state, sizeof(state), "%s", word ? word : "not known");
        json_decref(guest);
        /* Sent, and running here all the same: its destination failed before it ran there. */
        bool back = pager == &move->source_pager && move->guest.running && strcmp(state, "sent") == 0;
        if ((strcmp(state, "attached") == 0 || back) && connected) {
            return 0;
        }
        if (strcmp(state, "attached") != 0 && strcmp(state, "not known") != 0 &&
            strcmp(state, "waiting") != 0) {
            break;
        }
        if (units_now_us() > deadline && strcmp(state, "waiting") == 0) {
            return reason_set(reason, -ETIMEDOUT,
                              "%s: guest %s is announced, but %s has not handed its memory over: "
                              "it must be running",
                              pager->role, move->guest.uuid, qemu);
        }
        if (units_now_us() > deadline) {
            return reason_set(reason, -ENOENT,
                              "%s: guest %s is not there: the ram-pager object of %s must have "
                              "this pager's socket as its path",
                              pager->role, move->guest.uuid, qemu);
        }
        usleep(50000);
    }
    if (strcmp(state, "split") == 0 && pager == &move->source_pager) {
        return reason_set(reason, -EOPNOTSUPP,
                          "guest %s is split already: moving a split guest is not supported yet",
                          move->guest.uuid);
    }
    return reason_set(reason, -EBUSY, "%s: guest %s cannot be moved now: it is %s", pager->role,
                      move->guest.uuid, state);
}

/* The destination's QEMU comes later; there must be nothing under the guest's name. */
static int prepare_check_absent(struct pager *pager, const struct move *move,
                                struct reason *reason)
{
    int err;
    json_t *guest = pager_guest(pager, move->guest.uuid, &err, reason);

    if (err == -ENOENT) {
        return 0;
    }
    if (!err) {
        const char *word = json_string_value(json_object_get(guest, "state"));
        err = reason_set(reason, -EBUSY, "%s: guest %s is on that host already: it is %.32s",
                         pager->role, move->guest.uuid, word ? word : "not known");
    }
    json_decref(guest);
    return err;
}

static int prepare_source_pager(struct move *move, struct reason *reason)
{
    struct pager *pager = &move->source_pager;

    int err = pager_open(pager, "source pager", &move->source.pager, reason);
    if (!err) {
        memcpy(pager->uuid, move->guest.uuid, sizeof(pager->uuid));
        err = prepare_check_guest(pager, move, "source QEMU", reason);
    }
    return err;
}

static int prepare_main_pager(struct move *move, struct reason *reason)
{
    struct pager *pager = &move->main_pager;
    char ours[ENDPOINT_TEXT_LEN];
    char theirs[ENDPOINT_TEXT_LEN];
    json_t *status = NULL;

    if (strcmp(endpoint_format(&move->source.pager, ours),
               endpoint_format(&move->destination.pager, theirs)) == 0) {
        return reason_set(reason, -EINVAL,
                          "source and destination must have two pagers, and both have %.150s",
                          ours);
    }
    int err = pager_open(pager, "main host's pager", &move->destination.pager, reason);
    if (!err) {
        memcpy(pager->uuid, move->guest.uuid, sizeof(pager->uuid));
        err = pager_call(pager, "query-status", NULL, &status, HOSTS_CALL_MS, reason);
    }
    if (!err) {
        move->plan.main_known = true;
        move->plan.main_free = hosts_bytes(status, "memory_available");
        err = move->driver->ops->manages
                  ? prepare_check_absent(pager, move, reason)
                  : prepare_check_guest(pager, move, "destination QEMU", reason);
    }
    json_decref(status);
    return err;
}

/* A data address on this host is of no use to a pager on another one. */
static int prepare_check_reach(const struct move *move, const char *owner, const char *data,
                               struct reason *reason)
{
    struct endpoint endpoint;
    bool far = !endpoint_is_local(&move->source.pager) ||
               (move->destination.scheme[0] && !endpoint_is_local(&move->destination.pager));

    int err = endpoint_parse(data, &endpoint, reason);
    if (!err && far && endpoint_is_local(&endpoint)) {
        err =
            reason_set(reason, -EINVAL,
                       "%.80s serves data at %.100s, which other hosts cannot reach", owner, data);
    }
    return err;
}

static int prepare_subhosts(struct move *move, struct reason *reason)
{
    for (unsigned i = 0; i < move->policy.n_subhosts; i++) {
        struct subhost *subhost = &move->subhost[i];
        char owner[80];
        move->n_subhosts = i + 1;
        int err = subhost_open(subhost, &move->policy.subhost[i], reason);
        if (!err) {
            snprintf(owner, sizeof(owner), "sub-host '%.60s'", subhost->policy->name);
            err = prepare_check_reach(move, owner, subhost->data, reason);
        }
        if (err) {
            return err;
        }
    }
    return 0;
}

int move_connect(struct move *move, struct reason *reason)
{
    bool has_destination = move->destination.scheme[0] != '\0';
    const struct driver_ops *ops = driver_find(&move->source);

    move->began_us = units_now_us();
    if (!ops || (has_destination && driver_find(&move->destination) != ops)) {
        return reason_set(reason, -EINVAL,
                          "'%.80s' is for libvirt, and this split-migrate was built without it",
                          move->source.text);
    }
    int err = ops->open(&move->driver, &move->source, has_destination ? &move->destination : NULL,
                        &move->guest, reason);
    if (!err) {
        err = prepare_source_pager(move, reason);
    }
    if (!err && has_destination) {
        err = prepare_main_pager(move, reason);
    }
    return err ? err : prepare_subhosts(move, reason);
}

/* ---- plan ---- */

static int prepare_profile(struct move *move, uint64_t seconds, struct reason *reason)
{
    struct pager *pager = &move->source_pager;
    json_t *answer = NULL;
    char note[96];

    snprintf(note, sizeof(note), "Profiling the guest's accesses for %llu s",
             (unsigned long long)seconds);
    progress_note(&move->progress, note);
    interrupt_shut(control_fd(pager->client));
    int err =
        pager_call(pager, "outgoing-profile",
                   json_pack("{s:s, s:I, s:I}", "uuid", move->guest.uuid, "seconds",
                             (json_int_t)seconds, "period_ms", (json_int_t)move->policy.period_ms),
                   &answer, (int)seconds * 1000 + PREPARE_CALL_MS, reason);
    interrupt_shut(-1);
    if (interrupt_pending()) {
        json_decref(answer);
        return reason_set(reason, -EINTR, "interrupted while the guest was profiled");
    }
    if (!err) {
        move->plan.ram = hosts_bytes(answer, "ram");
        move->plan.present = hosts_bytes(answer, "present");
        move->profiled_chunks = hosts_bytes(answer, "chunks_accessed");
    }
    json_decref(answer);
    return err;
}

static int prepare_look(struct move *move, struct reason *reason)
{
    int err;
    json_t *guest = pager_guest(&move->source_pager, move->guest.uuid, &err, reason);

    if (!err) {
        move->plan.ram = hosts_bytes(guest, "ram");
        move->plan.present = hosts_bytes(guest, "present");
    }
    json_decref(guest);
    return err;
}

int move_plan(struct move *move, struct reason *reason)
{
    const struct policy *policy = &move->policy;
    struct plan *plan = &move->plan;
    bool sample = policy->profile_seconds && move->guest.running && !move->options.offline_plan;

    int err = sample ? prepare_profile(move, policy->profile_seconds, reason)
                     : prepare_look(move, reason);
    if (err) {
        return err;
    }
    if (plan->ram == 0 || plan->present > plan->ram) {
        return reason_set(reason, -EPROTO,
                          "source pager does not know how much memory guest %s has",
                          move->guest.uuid);
    }
    plan->budget = policy->budget;
    plan->low_watermark = policy_mark_bytes(policy, &policy->low_watermark);
    plan->copies = strcmp(policy->redundancy, "replica") == 0 ? 2 : 1;
    plan->n_subhosts = move->n_subhosts;
    for (unsigned i = 0; i < move->n_subhosts; i++) {
        const struct subhost *subhost = &move->subhost[i];
        plan->subhost[i] = (struct plan_subhost){
            .name = subhost->policy->name,
            .free = subhost->free,
            .memory = subhost->policy->memory,
            .weight = subhost->policy->weight,
        };
    }
    return plan_make(plan, reason);
}

int move_estimate(struct move *move, struct reason *reason)
{
    struct estimate *estimate = &move->estimate;
    int err = 0;

    estimate->bandwidth = move->policy.bandwidth;
    if (estimate->bandwidth && move->guest.running) {
        err = move->driver->ops->dirty_rate(move->driver, move->plan.ram, &estimate->dirty_rate, reason);
    }
    if (!err) {
        estimate_make(estimate, move->plan.present, move->policy.downtime_ms);
    }
    return err;
}

/* ---- reserve, announce ---- */

int move_reserve(struct move *move, struct reason *reason)
{
    for (unsigned i = 0; i < move->n_subhosts; i++) {
        const struct plan_subhost *plan = &move->plan.subhost[i];
        int err = subhost_reserve(&move->subhost[i], move->guest.uuid, move->plan.ram,
                                  plan->reserve, plan->limit, &move->policy, reason);
        if (err) {
            return err;
        }
    }
    return 0;
}

static json_t *prepare_subhost_list(const struct move *move)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < move->n_subhosts; i++) {
        const struct subhost *subhost = &move->subhost[i];
        char control[ENDPOINT_TEXT_LEN];
        json_array_append_new(list,
                              json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I}", "name",
                                        subhost->policy->name, "data", subhost->data, "control",
                                        endpoint_format(&subhost->policy->control, control),
                                        "export", subhost->export_name, "ticket", subhost->ticket,
                                        "limit", (json_int_t)move->plan.subhost[i].limit, "weight",
                                        (json_int_t)plan_weight(&move->plan, i)));
        if (subhost->rdma[0]) {
            json_t *added = json_array_get(list, i);
            json_object_set_new(added, "rdma", json_string(subhost->rdma));
            json_object_set_new(added, "fallback", json_boolean(subhost->policy->tcp_will_do));
        }
    }
    return list;
}

static int prepare_incoming(struct move *move, struct reason *reason)
{
    const struct policy *policy = &move->policy;
    char ticket[HOSTS_TICKET_LEN];
    json_t *answer = NULL;

    hosts_ticket(ticket);
    json_t *args = json_pack(
        "{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:s, s:I, s:I, s:s, s:I, s:I, s:o}", "uuid", move->guest.uuid, "migration",
        move->migration, "ticket", ticket, "budget", (json_int_t)policy->budget, "low_watermark",
        (json_int_t)policy_mark_bytes(policy, &policy->low_watermark), "high_watermark",
        (json_int_t)policy_mark_bytes(policy, &policy->high_watermark), "granule",
        (json_int_t)policy->granule, "predictor", policy->predictor, "prefetch",
        (json_int_t)policy->prefetch, "lost_after_ms",
        (json_int_t)policy->subhost_timeout_s * 1000, "lost_action", policy->subhost_lost,
        "slab", (json_int_t)policy->slab, "choices", (json_int_t)policy->choices, "subhosts", prepare_subhost_list(move));
    json_object_set_new(args, "redundancy", json_string(policy->redundancy));
    if (policy->backup[0]) {
        json_object_set_new(args, "backup", json_string(policy->backup));
    }
    json_object_set_new(args, "ticket_seconds", json_integer((json_int_t)policy->ticket_seconds));
    if (move->destination.listen[0]) {
        json_object_set_new(args, "listen", json_string(move->destination.listen));
    }
    int err =
        pager_call(&move->main_pager, "incoming-prepare", args, &answer, PREPARE_CALL_MS, reason);
    if (err) {
        return err;
    }
    move->incoming = true;
    const char *data = json_string_value(json_object_get(answer, "data"));
    const char *name = json_string_value(json_object_get(answer, "export"));
    if (!data || !name || strlen(name) >= sizeof(move->main_export)) {
        err = reason_set(reason, -EPROTO,
                         "main host's pager did not say where the guest's memory goes");
    } else {
        memcpy(move->main_export, name, strlen(name) + 1);
        if (move->destination.data[0]) {
            memcpy(move->main_data, move->destination.data, sizeof(move->main_data));
        } else if ((err = hosts_reach(data, &move->destination.pager, move->main_data)) == -EPERM) {
            reason_set(reason, err,
                       "main host's pager receives memory without TLS: add listen=tls::PORT to "
                       "the destination, or start it with such a --data");
        } else if (err) {
            err = reason_set(reason, -EINVAL,
                             "main host's pager listens for data at '%.80s', which other hosts "
                             "cannot reach: add listen=tcp::PORT to the destination",
                             data);
        } else {
            err = prepare_check_reach(move, "main host's pager", move->main_data, reason);
        }
    }
    json_decref(answer);
    return err;
}

static int prepare_outgoing(struct move *move, struct reason *reason)
{
    const struct policy *policy = &move->policy;
    /* No bandwidth: QEMU, which hands the pages over, keeps to its own limit. */
    json_t *args =
        json_pack("{s:s, s:s, s:{s:s, s:s, s:I}, s:o, s:I, s:I, s:s, s:s}", "uuid", move->guest.uuid,
                  "migration", move->migration, "main", "data", move->main_data, "export",
                  move->main_export, "budget", (json_int_t)move->plan.low_watermark, "subhosts",
                  prepare_subhost_list(move), "connections", (json_int_t)policy->connections,
                  "slab", (json_int_t)policy->slab, "predictor", policy->predictor, "compress", policy->compress);
    int err =
        pager_call(&move->source_pager, "outgoing-prepare", args, NULL, PREPARE_CALL_MS, reason);
    move->outgoing = err == 0;
    return err;
}

int move_announce(struct move *move, struct reason *reason)
{
    uint8_t uuid[16];

    units_random(uuid, sizeof(uuid));
    uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x40);
    uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
    units_format_uuid(uuid, move->migration);
    int err = prepare_incoming(move, reason);
    return err ? err : prepare_outgoing(move, reason);
}
