// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/qmp.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "split-migrate/fault.h"

#define QMP_CONNECT_MS 5000
#define QMP_QUIT_MS 10000

static void qmp_event(void *opaque, const char *name, const json_t *data)
{
    struct qmp *qmp = opaque;
    const char *status = json_string_value(json_object_get(data, "status"));

    log_debug("%s: event %s %s", qmp->role, name, status ? status : "");
    if (strcmp(name, "MIGRATION") == 0 && status && strcmp(status, "device") == 0) {
        /* Here, for QEMU answers no commands while it sends the last pages. */
        fault_point(FAULT_SWITCHOVER);
    } else if (strcmp(name, "STOP") == 0) {
        qmp->stop_us = units_now_us();
    } else if (strcmp(name, "RESUME") == 0) {
        qmp->resume_us = units_now_us();
    }
}

static int qmp_connect(struct qmp *qmp, struct reason *reason)
{
    struct reason why = {""};

    int err = control_connect(&qmp->client, &qmp->endpoint, QMP_CONNECT_MS, &why);
    if (err == -ETIMEDOUT) {
        /* A QMP socket serves one client at a time; others wait in its backlog. */
        return reason_set(reason, err,
                          "%s: %.120s does not answer: another program may be using this monitor",
                          qmp->role, qmp->endpoint.host);
    }
    if (err) {
        return reason_set(reason, err, "%s: %.200s", qmp->role, why.text);
    }
    control_on_event_set(qmp->client, qmp_event, qmp);
    return 0;
}

int qmp_open(struct qmp *qmp, const char *role, const struct endpoint *endpoint,
             struct reason *reason)
{
    memset(qmp, 0, sizeof(*qmp));
    qmp->role = role;
    qmp->endpoint = *endpoint;
    return qmp_connect(qmp, reason);
}

int qmp_call(struct qmp *qmp, const char *command, json_t *args, json_t **result, int timeout_ms,
             bool *sent, struct reason *reason)
{
    struct reason why = {""};

    if (!qmp->client) {
        int err = qmp_connect(qmp, reason);
        if (err) {
            json_decref(args);
            return err;
        }
    }
    log_debug("%s: %s", qmp->role, command);
    if (sent) {
        *sent = true;
    }
    int err = control_call(qmp->client, command, args, result, timeout_ms, &why);
    if (err && err != -EREMOTEIO) {
        qmp_close(qmp);
    }
    return err ? reason_set(reason, err, "%s: %s: %.180s", qmp->role, command, why.text) : 0;
}

int qmp_status(struct qmp *qmp, char *status, size_t size, bool *running, struct reason *reason)
{
    json_t *answer = NULL;

    int err = qmp_call(qmp, "query-status", NULL, &answer, QMP_CALL_MS, NULL, reason);
    if (err) {
        return err;
    }
    const char *word = json_string_value(json_object_get(answer, "status"));
    snprintf(status, size, "%s", word ? word : "unknown");
    *running = json_is_true(json_object_get(answer, "running"));
    json_decref(answer);
    return 0;
}

int qmp_uuid(struct qmp *qmp, char uuid[UUID_TEXT_LEN], struct reason *reason)
{
    static const uint8_t nil[16];
    json_t *answer = NULL;
    uint8_t bytes[16] = {0};

    int err = qmp_call(qmp, "query-uuid", NULL, &answer, QMP_CALL_MS, NULL, reason);
    if (err) {
        return err;
    }
    const char *text = json_string_value(json_object_get(answer, "UUID"));
    if (!text || units_parse_uuid(text, bytes) < 0 || memcmp(bytes, nil, sizeof(nil)) == 0) {
        err =
            reason_set(reason, -EINVAL, "%s has no UUID: it must be started with -uuid", qmp->role);
    }
    units_format_uuid(bytes, uuid);
    json_decref(answer);
    return err;
}

int qmp_has_object(struct qmp *qmp, const char *type, struct reason *reason)
{
    json_t *answer = NULL;
    char child[64];
    bool found = false;

    int err = qmp_call(qmp, "qom-list", json_pack("{s:s}", "path", "/objects"), &answer,
                       QMP_CALL_MS, NULL, reason);
    if (err) {
        return err;
    }
    snprintf(child, sizeof(child), "child<%s>", type);
    for (size_t i = 0; i < json_array_size(answer) && !found; i++) {
        const char *text = json_string_value(json_object_get(json_array_get(answer, i), "type"));
        found = text && strcmp(text, child) == 0;
    }
    json_decref(answer);
    return found ? 0
                 : reason_set(reason, -ENOENT,
                              "%s has no %s object: it must be started with "
                              "-object %s,id=ID,path=PATH",
                              qmp->role, type, type);
}

int qmp_quit(struct qmp *qmp)
{
    uint64_t deadline = units_now_us() + QMP_QUIT_MS * 1000ull;
    struct reason reason = {""};

    int err = qmp_call(qmp, "quit", NULL, NULL, QMP_QUIT_MS, NULL, &reason);
    if (err == -ECONNRESET || err == -ECONNREFUSED || err == -ENOENT) {
        return 0; /* it is gone already */
    }
    if (err) {
        log_warn("%s", reason.text);
        return err;
    }
    while (control_poll(qmp->client) == 0) {
        struct pollfd pfd = {.fd = control_fd(qmp->client), .events = POLLIN};
        uint64_t now = units_now_us();
        if (now >= deadline) {
            log_warn("%s does not end", qmp->role);
            return -ETIMEDOUT;
        }
        poll(&pfd, 1, (int)((deadline - now) / 1000 + 1));
    }
    qmp_close(qmp);
    return 0;
}

void qmp_events(struct qmp *qmp)
{
    if (qmp->client && control_poll(qmp->client) < 0) {
        qmp_close(qmp);
    }
}

void qmp_close(struct qmp *qmp)
{
    control_close(qmp->client);
    qmp->client = NULL;
}
