// SPDX-License-Identifier: GPL-2.0-or-later
/* worker_verbs.c - the control verbs that name a guest (docs/protocols.md) */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "uffd-pager/worker.h"

static json_t *verb_query_guest(void *opaque, struct control_peer *peer, const json_t *args,
                                int *err, struct reason *reason)
{
    struct worker *worker = opaque;

    (void)peer, (void)args, (void)err, (void)reason;
    pthread_mutex_lock(&worker->lock);
    json_t *answer = guest_query(worker);
    pthread_mutex_unlock(&worker->lock);
    return answer;
}

static json_t *verb_query_pages(void *opaque, struct control_peer *peer, const json_t *args,
                                int *err, struct reason *reason)
{
    struct worker *worker = opaque;

    (void)peer, (void)args;
    pthread_mutex_lock(&worker->lock);
    json_t *answer = guest_query_pages(worker, err, reason);
    pthread_mutex_unlock(&worker->lock);
    return answer;
}

static json_t *verb_query_heatmap(void *opaque, struct control_peer *peer, const json_t *args,
                                  int *err, struct reason *reason)
{
    struct worker *worker = opaque;

    (void)peer, (void)args;
    pthread_mutex_lock(&worker->lock);
    json_t *answer = guest_query_heatmap(worker, err, reason);
    pthread_mutex_unlock(&worker->lock);
    return answer;
}

static json_t *verb_incoming_prepare(void *opaque, struct control_peer *peer, const json_t *args,
                                     int *err, struct reason *reason)
{
    return incoming_prepare(opaque, peer, args, err, reason);
}

static json_t *verb_incoming_cancel(void *opaque, struct control_peer *peer, const json_t *args,
                                    int *err, struct reason *reason)
{
    (void)peer, (void)args;
    return incoming_cancel(opaque, err, reason);
}

static json_t *verb_outgoing_profile(void *opaque, struct control_peer *peer, const json_t *args,
                                     int *err, struct reason *reason)
{
    (void)peer;
    return outgoing_profile(opaque, args, err, reason);
}

static json_t *verb_outgoing_prepare(void *opaque, struct control_peer *peer, const json_t *args,
                                     int *err, struct reason *reason)
{
    return outgoing_prepare(opaque, peer, args, err, reason);
}

static json_t *verb_outgoing_status(void *opaque, struct control_peer *peer, const json_t *args,
                                    int *err, struct reason *reason)
{
    (void)peer, (void)args;
    return outgoing_status(opaque, err, reason);
}

static json_t *verb_outgoing_cancel(void *opaque, struct control_peer *peer, const json_t *args,
                                    int *err, struct reason *reason)
{
    (void)peer, (void)args;
    return outgoing_cancel(opaque, err, reason);
}

static json_t *verb_set_budget(void *opaque, struct control_peer *peer, const json_t *args,
                               int *err, struct reason *reason)
{
    (void)peer;
    return budget_set(opaque, args, err, reason);
}

/* The number of the sub-host whose control address is @control; -1 if there is none. */
static int verb_find_subhost(const struct session *session, const char *control)
{
    char text[ENDPOINT_TEXT_LEN];

    for (unsigned i = 0; i < session->n_subhosts; i++) {
        if (strcmp(endpoint_format(&session->subhost[i].control, text), control) == 0) {
            return (int)i;
        }
    }
    return -1;
}

static json_t *verb_subhost_drain(void *opaque, struct control_peer *peer, const json_t *args,
                                  int *err, struct reason *reason)
{
    struct worker *worker = opaque;
    const char *control = json_string_value(json_object_get(args, "control"));
    bool undo = json_is_true(json_object_get(args, "undo"));
    int index = -1;

    (void)peer;
    pthread_mutex_lock(&worker->lock);
    if (!control) {
        *err = reason_set(reason, -EINVAL, "'control' must be a sub-host's control address");
    } else if (worker->state != WORKER_SPLIT) {
        *err = reason_set(reason, -EBUSY, "guest %s is not split", worker->uuid_text);
    } else if ((index = verb_find_subhost(&worker->session, control)) < 0) {
        *err = reason_set(reason, -ENOENT, "guest %s has no sub-host at %.150s", worker->uuid_text,
                          control);
    } else {
        *err = engine_drain(worker->engine, (unsigned)index, !undo, reason);
    }
    pthread_mutex_unlock(&worker->lock);
    return *err ? NULL : json_pack("{s:i}", "subhost", index);
}

static json_t *verb_reset_stats(void *opaque, struct control_peer *peer, const json_t *args,
                                int *err, struct reason *reason)
{
    struct worker *worker = opaque;

    (void)peer, (void)args;
    pthread_mutex_lock(&worker->lock);
    if (worker->engine) {
        engine_reset_stats(worker->engine);
        worker->resident_max = 0;
    } else {
        *err = reason_set(reason, -EBUSY, "guest %s is not split", worker->uuid_text);
    }
    pthread_mutex_unlock(&worker->lock);
    return NULL;
}

static const struct control_verb worker_verbs[] = {
    {"query-guest", verb_query_guest},
    {"query-pages", verb_query_pages},
    {"query-heatmap", verb_query_heatmap},
    {"incoming-prepare", verb_incoming_prepare},
    {"incoming-cancel", verb_incoming_cancel},
    {"outgoing-profile", verb_outgoing_profile},
    {"outgoing-prepare", verb_outgoing_prepare},
    {"outgoing-status", verb_outgoing_status},
    {"outgoing-cancel", verb_outgoing_cancel},
    {"set-budget", verb_set_budget},
    {"subhost-drain", verb_subhost_drain},
    {"reset-stats", verb_reset_stats},
    {NULL, NULL},
};

static void worker_on_close(void *opaque, struct control_peer *peer)
{
    incoming_lease_lost(opaque, peer);
    outgoing_lease_lost(opaque, peer);
}

int worker_verbs_start(struct worker *worker, struct reason *reason)
{
    struct endpoint endpoint = {.is_unix = true};
    struct control_config config = {
        .program = "uffd-pager",
        .verbs = worker_verbs,
        .opaque = worker,
        .on_close = worker_on_close,
    };

    if (snprintf(endpoint.host, sizeof(endpoint.host), "%s/worker.sock", worker->dir) > 107) {
        return reason_set(reason, -ENAMETOOLONG, "the run directory's name is too long: %s",
                          worker->dir);
    }
    int listener = endpoint_listen(&endpoint, reason);
    if (listener < 0) {
        return listener;
    }
    int err = control_server_start(&worker->control, listener, &config);
    return err ? reason_set(reason, err, "the control server cannot start: %s", strerror(-err)) : 0;
}
