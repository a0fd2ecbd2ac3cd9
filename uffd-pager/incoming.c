// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * incoming.c - a guest arrives on this (main) host
 *
 * incoming-prepare announces it: the receiver listens.  When QEMU has handed
 * its (empty) memory over, the exports are served.  The mover's FLUSH of the
 * map is the commit: regions are taken over, the session is saved, the engine
 * starts, and only then the FLUSH is answered.  Before that any failure ends
 * with the guest running at the source; after it the guest is ours.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/tls.h"
#include "uffd-pager/backup.h"
#include "uffd-pager/blocks.h"

/* The mover reads the answer to its FLUSH and leaves; a receiver nobody leaves is closed after this. */
#define INCOMING_MAX_TICKET_SECONDS 31536000
#define INCOMING_TIDY_US 5000000u

static void incoming_engine_config(struct worker *worker, struct engine_config *config)
{
    const struct session *session = &worker->session;

    memset(config, 0, sizeof(*config));
    config->layout = &worker->layout;
    config->map = &worker->map;
    config->uffd = worker->uffd;
    config->pagemap = worker->pagemap;
    config->n_subhosts = session->n_subhosts;
    for (unsigned i = 0; i < session->n_subhosts; i++) {
        const struct session_subhost *from = &session->subhost[i];
        struct engine_subhost *to = &config->subhost[i];
        memcpy(to->name, from->name, sizeof(to->name));
        memcpy(to->export_name, from->export_name, sizeof(to->export_name));
        memcpy(to->region, worker->uuid_text, sizeof(to->region));
        memcpy(to->ticket, from->ticket, sizeof(to->ticket));
        to->data = from->data;
        to->control = from->control;
        to->weight = from->weight;
        to->rdma = from->rdma;
        to->has_rdma = from->has_rdma;
        to->tcp_will_do = from->tcp_will_do;
    }
    config->budget = session->budget;
    config->low_watermark = session->low_watermark;
    config->high_watermark = session->high_watermark;
    config->prefetch = session->prefetch;
    config->granule = session->granule;
    config->choices = session->choices;
    memcpy(config->predictor, session->predictor, sizeof(config->predictor));
    config->sample_period_ms = session->sample_period_ms;
    config->lost_after_ms = session->lost_after_ms;
    config->lost_action = session->lost_action;
    config->redundancy = session->redundancy;
    backup_path(session->backup, worker->uuid_text, config->backup, sizeof(config->backup));
    config->zap = worker_zap;
    config->pause = worker_pause;
    config->event = worker_event;
    config->opaque = worker;
}

static int incoming_start_engine(struct worker *worker, bool recover, struct engine **engine,
                                 struct reason *reason)
{
    struct engine_config *config = malloc(sizeof(*config));

    if (!config) {
        return -ENOMEM;
    }
    incoming_engine_config(worker, config);
    int err = engine_start(engine, config, recover, reason);
    free(config);
    return err;
}

static void incoming_answer_wait(struct worker *worker, int err, const struct reason *reason)
{
    if (worker->in_wait) {
        worker->in_wait = false;
        worker_send_result(worker, HANDOFF_IN_READY, worker->in_wait_cookie, err, reason);
    }
}

static void incoming_fail(struct worker *worker, const char *why)
{
    worker->incoming_failed = true;
    reason_set(&worker->incoming_reason, 0, "%s", why);
    incoming_answer_wait(worker, -ECANCELED, &worker->incoming_reason);
    log_warn("the guest's arrival failed: %s", why);
    worker_event(worker, "INCOMING_FAILED", json_pack("{s:s}", "reason", why));
}

/* The commit; a thread of the receiver. worker.lock is not held while others are waited for. */
static int incoming_commit(void *opaque, struct pagemap *map, struct reason *reason)
{
    struct worker *worker = opaque;
    struct engine *engine = NULL;

    (void)map;
    pthread_mutex_lock(&worker->lock);
    if (worker->state != WORKER_INCOMING || worker->incoming_failed || !worker->have_layout) {
        pthread_mutex_unlock(&worker->lock);
        return reason_set(reason, -ECANCELED, "the guest's arrival was given up");
    }
    worker->state = WORKER_COMMITTING;
    worker->session.qemu_pid = worker->qemu_pid;
    worker->session.qemu_start = session_process_start(worker->qemu_pid);
    blocks_remember(worker);
    pthread_mutex_unlock(&worker->lock);

    int err = session_keep_regions(&worker->session, worker->uuid_text, reason);
    if (!err) {
        err = incoming_start_engine(worker, false, &engine, reason);
    }
    if (!err && session_save(&worker->session, worker->dir) < 0) {
        engine_stop(engine);
        err = reason_set(reason, -EIO, "the session file in %s cannot be written", worker->dir);
    }
    if (err) {
        session_delete_regions(&worker->session, worker->uuid_text);
    }

    pthread_mutex_lock(&worker->lock);
    if (err) {
        worker->state = WORKER_INCOMING;
        incoming_fail(worker, reason->text);
    } else {
        worker->engine = engine;
        worker->state = WORKER_SPLIT;
        worker->incoming_lease = NULL;
        worker->receive_stop_us = units_now_us() + INCOMING_TIDY_US;
        incoming_answer_wait(worker, 0, NULL);
        worker_event(worker, "GUEST_SPLIT", NULL);
        log_info("the guest has arrived");
    }
    pthread_cond_broadcast(&worker->changed);
    pthread_mutex_unlock(&worker->lock);
    worker_wake(worker);
    return err;
}

/* Better now than when the guest has been sent: is there a place for what may go to the backup? */
static int incoming_check_backup(const struct worker *worker, struct reason *reason)
{
    const struct session *session = &worker->session;
    uint64_t ram = worker->have_layout ? worker->layout.flat_size : 0;

    return session->redundancy == ENGINE_REDUNDANCY_BACKUP
               ? backup_check(session->backup, ram > session->budget ? ram - session->budget : 0,
                              reason)
               : 0;
}

int incoming_attached(struct worker *worker, struct reason *reason)
{
    char path[300];

    int err = incoming_check_backup(worker, reason);
    if (err) {
        return err;
    }
    snprintf(path, sizeof(path), "%s/map", worker->dir);
    unlink(path);
    err = pagemap_create(&worker->map, path, worker->uuid, worker->layout.flat_size / PAGE_BYTES,
                         reason);
    if (err) {
        return err;
    }
    pagemap_set_slabs(&worker->map, worker->session.slab);
    err = receive_layout(worker->receive, &worker->layout, &worker->map, reason);
    if (err) {
        pagemap_close(&worker->map);
        return err;
    }
    worker->have_map = true;
    worker->state = WORKER_INCOMING;
    return 0;
}

int incoming_resume(struct worker *worker, struct reason *reason)
{
    char path[300];

    snprintf(path, sizeof(path), "%s/map", worker->dir);
    int err = blocks_resume(worker, reason);
    if (!err) {
        err = pagemap_open(&worker->map, path, reason);
    }
    if (err) {
        return err;
    }
    if (memcmp(worker->map.header->uuid, worker->uuid, 16) != 0 ||
        worker->map.n_pages != worker->layout.flat_size / PAGE_BYTES) {
        pagemap_close(&worker->map);
        return reason_set(reason, -EINVAL, "the page map of guest %s is of other memory",
                          worker->uuid_text);
    }
    err = incoming_start_engine(worker, true, &worker->engine, reason);
    if (err) {
        pagemap_close(&worker->map);
        return err;
    }
    worker->have_map = true;
    worker->state = WORKER_SPLIT;
    log_warn("the guest's page map was taken up again after a crash of its worker");
    worker_event(worker, "WORKER_RESTARTED", NULL);
    return 0;
}

static int incoming_text(const json_t *args, const char *key, char *to, size_t size,
                         struct reason *reason)
{
    const char *text = json_string_value(json_object_get(args, key));

    if (!text || !*text || strlen(text) >= size) {
        return reason_set(reason, -EINVAL, "'%s' must be a string of 1 to %zu characters", key,
                          size - 1);
    }
    memcpy(to, text, strlen(text) + 1);
    return 0;
}

static int incoming_listen(struct worker *worker, const json_t *args,
                           struct receive_config *config, struct reason *reason)
{
    const char *listen = json_string_value(json_object_get(args, "listen"));

    config->listen = worker->data;
    if (listen) {
        int err = endpoint_parse(listen, &config->listen, reason);
        if (err) {
            return err;
        }
    }
    if (endpoint_is_exposed(&config->listen) && !endpoint_is_exposed(&worker->data)) {
        return reason_set(reason, -EPERM,
                          "an off-host data address must be a tls: address, or uffd-pager run with "
                          "--plaintext and such a --data address");
    }
    if (config->listen.tls && tls_check(TLS_SERVER, reason) < 0) {
        return -EINVAL;
    }
    json_int_t seconds = json_integer_value(json_object_get(args, "ticket_seconds"));
    if (seconds < 0 || seconds > INCOMING_MAX_TICKET_SECONDS) {
        return reason_set(reason, -EINVAL, "'ticket_seconds' must be a number from 0 to %d",
                          INCOMING_MAX_TICKET_SECONDS);
    }
    config->ticket_end_us = seconds ? units_now_us() + (uint64_t)seconds * 1000000 : 0;
    config->budget = worker->session.budget;
    config->n_subhosts = worker->session.n_subhosts;
    config->on_map = incoming_commit;
    config->opaque = worker;
    memcpy(config->uuid, worker->uuid_text, sizeof(config->uuid));
    return receive_start(&worker->receive, config, reason);
}

json_t *incoming_prepare(struct worker *worker, struct control_peer *peer, const json_t *args,
                         int *err, struct reason *reason)
{
    struct receive_config config = {0};
    char data[ENDPOINT_TEXT_LEN];
    json_t *answer = NULL;

    pthread_mutex_lock(&worker->lock);
    if (worker->state != WORKER_WAITING && worker->state != WORKER_ATTACHED) {
        *err = reason_set(reason, -EBUSY, "guest %s cannot arrive: it is %s on this host",
                          worker->uuid_text, worker_state_name(worker->state));
    } else if (worker->have_layout && !worker->qemu_incoming) {
        *err = reason_set(reason, -EBUSY,
                          "guest %s cannot arrive: its QEMU on this host was not started with "
                          "-incoming",
                          worker->uuid_text);
    } else {
        *err = session_parse(&worker->session, args, reason);
    }
    if (!*err) {
        *err = incoming_check_backup(worker, reason);
    }
    if (!*err) {
        *err = incoming_text(args, "ticket", config.ticket, sizeof(config.ticket), reason);
    }
    if (!*err) {
        *err = incoming_listen(worker, args, &config, reason);
    }
    if (!*err) {
        enum worker_state before = worker->state;
        worker->incoming_failed = false;
        worker->state = WORKER_INCOMING;
        if (worker->have_layout) {
            *err = incoming_attached(worker, reason);
        }
        if (*err) {
            worker->state = before;
            receive_stop(worker->receive);
            worker->receive = NULL;
        }
    }
    if (!*err) {
        worker->incoming_lease = peer;
        answer = json_pack("{s:s, s:o}", "data", endpoint_format(&config.listen, data), "export",
                           json_sprintf("%s.%s", worker->uuid_text, config.ticket));
        pthread_cond_broadcast(&worker->changed);
    }
    pthread_mutex_unlock(&worker->lock);
    return answer;
}

/* Undo an arrival that was not committed. worker.lock held; it is dropped while threads end. */
static int incoming_abort(struct worker *worker, const char *why, struct reason *reason)
{
    while (worker->state == WORKER_COMMITTING) {
        pthread_cond_wait(&worker->changed, &worker->lock);
    }
    if (worker->state != WORKER_INCOMING) {
        return reason_set(reason, -EBUSY, "guest %s has arrived already", worker->uuid_text);
    }
    if (!worker->incoming_failed) {
        incoming_fail(worker, why);
    }
    struct receive *receive = worker->receive;
    worker->receive = NULL;
    worker->incoming_lease = NULL;
    pthread_mutex_unlock(&worker->lock);
    if (receive) {
        receive_stop(receive);
    }
    pthread_mutex_lock(&worker->lock);
    if (worker->have_map) {
        char path[300];
        pagemap_close(&worker->map);
        worker->have_map = false;
        snprintf(path, sizeof(path), "%s/map", worker->dir);
        unlink(path);
    }
    worker->state = worker->have_layout ? WORKER_ATTACHED : WORKER_WAITING;
    if (!worker->have_layout) {
        worker->quit = true;
        worker_wake(worker);
    }
    pthread_cond_broadcast(&worker->changed);
    return 0;
}

json_t *incoming_cancel(struct worker *worker, int *err, struct reason *reason)
{
    pthread_mutex_lock(&worker->lock);
    *err = incoming_abort(worker, "it was cancelled", reason);
    pthread_mutex_unlock(&worker->lock);
    return NULL;
}

void incoming_lease_lost(struct worker *worker, struct control_peer *peer)
{
    pthread_mutex_lock(&worker->lock);
    if (worker->incoming_lease == peer) {
        incoming_abort(worker, "the controller's connection closed", NULL);
    }
    pthread_mutex_unlock(&worker->lock);
}

int incoming_begin(struct worker *worker, const uint8_t id[16], struct reason *reason)
{
    bool expected = worker->state == WORKER_INCOMING || worker->state == WORKER_COMMITTING ||
                    worker->state == WORKER_SPLIT;

    if (!expected || memcmp(id, worker->session.migration, 16) != 0) {
        return reason_set(reason, -ENOENT,
                          "the pager on this host does not expect this migration of guest %s",
                          worker->uuid_text);
    }
    return worker->incoming_failed ? reason_set(reason, -ECANCELED, "%s",
                                                worker->incoming_reason.text)
                                   : 0;
}

void incoming_wait(struct worker *worker, uint32_t cookie)
{
    worker->in_wait = true;
    worker->in_wait_cookie = cookie;
    if (worker->state == WORKER_SPLIT) {
        incoming_answer_wait(worker, 0, NULL);
    } else if (worker->incoming_failed || worker->state == WORKER_ATTACHED) {
        incoming_answer_wait(worker, -ECANCELED, &worker->incoming_reason);
    }
}

void incoming_tidy(struct worker *worker)
{
    struct receive *receive = NULL;

    pthread_mutex_lock(&worker->lock);
    if (worker->state == WORKER_SPLIT && worker->receive &&
        (receive_connections(worker->receive) == 0 || units_now_us() > worker->receive_stop_us)) {
        receive = worker->receive;
        worker->receive = NULL;
    }
    pthread_mutex_unlock(&worker->lock);
    if (receive) {
        receive_stop(receive);
    }
}
