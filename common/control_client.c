// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/control.h"
#include "common/control_line.h"
#include "common/units.h"

struct control_client {
    struct channel channel;
    struct control_line line;
    control_on_event on_event;
    void *opaque;
    uint64_t next_id;
    bool broken;
};

#define CONTROL_STALE_LINES 16

static uint64_t control_deadline(int timeout_ms)
{
    return timeout_ms < 0 ? UINT64_MAX : units_now_us() + (uint64_t)timeout_ms * 1000;
}

/*
 * The first line that is a greeting.  QEMU may still owe the client before us an answer or an
 * event, and gives it to us.
 */
static int control_greeting(struct control_client *client, uint64_t deadline, json_t **greeting)
{
    for (int i = 0; i < CONTROL_STALE_LINES; i++) {
        int err = control_line_read(&client->line, deadline, greeting, NULL);
        if (err < 0) {
            return err;
        }
        if (json_object_get(*greeting, "QMP") || json_object_get(*greeting, "split-migrate")) {
            return 0;
        }
        json_decref(*greeting);
        *greeting = NULL;
    }
    return -EPROTO;
}

int control_connect(struct control_client **out, const struct endpoint *endpoint, int timeout_ms,
                    struct reason *reason)
{
    uint64_t deadline = control_deadline(timeout_ms);
    struct control_client *client = calloc(1, sizeof(*client));
    char text[ENDPOINT_TEXT_LEN];
    json_t *greeting = NULL;

    if (!client) {
        return -ENOMEM;
    }
    int err = channel_connect(&client->channel, endpoint, timeout_ms, reason);
    if (err < 0) {
        free(client);
        return err;
    }
    control_line_init(&client->line, &client->channel);
    err = control_greeting(client, deadline, &greeting);
    bool qmp = greeting && json_object_get(greeting, "QMP");
    if (err < 0) {
        const char *why = client->channel.tls ? channel_error(&client->channel, err) : NULL;
        err = reason_set(reason, err, "%.120s does not answer as a control socket%s%.100s",
                         endpoint_format(endpoint, text), why ? ": " : "", why ? why : "");
    } else if (qmp) {
        err = control_call(client, "qmp_capabilities", NULL, NULL, timeout_ms, reason);
    }
    json_decref(greeting);
    if (err < 0) {
        control_close(client);
        return err;
    }
    *out = client;
    return 0;
}

void control_on_event_set(struct control_client *client, control_on_event on_event, void *opaque)
{
    client->on_event = on_event;
    client->opaque = opaque;
}

static bool control_deliver(struct control_client *client, const json_t *object)
{
    const char *name = json_string_value(json_object_get(object, "event"));

    if (name && client->on_event) {
        client->on_event(client->opaque, name, json_object_get(object, "data"));
    }
    return name != NULL;
}

static int control_class_errno(const char *name)
{
    for (int err = 1; name && err < 134; err++) {
        const char *known = strerrorname_np(err);
        if (known && strcmp(known, name) == 0) {
            return -err;
        }
    }
    return -EREMOTEIO;
}

static int control_result(const json_t *answer, json_t **result, struct reason *reason)
{
    const json_t *error = json_object_get(answer, "error");

    if (error) {
        const char *desc = json_string_value(json_object_get(error, "desc"));
        return reason_set(reason,
                          control_class_errno(json_string_value(json_object_get(error, "class"))),
                          "%s", desc ? desc : "the peer refused without saying why");
    }
    if (result) {
        *result = json_incref(json_object_get(answer, "return"));
    }
    return 0;
}

/* One request.  Return: 0 and a reference in *answer, or -errno; then the connection is broken. */
static int control_ask(struct control_client *client, const char *verb, json_t *args,
                       json_t **answer, uint64_t deadline, struct reason *reason)
{
    json_int_t id = (json_int_t)++client->next_id;
    json_t *request = json_pack("{s:s, s:I}", "execute", verb, "id", id);

    if (args) {
        json_object_set(request, "arguments", args);
    }
    int err = client->broken ? -ECONNRESET : control_line_write(&client->channel, request);
    json_decref(request);
    if (err < 0) {
        client->broken = true;
        return reason_set(reason, err == -EPIPE ? -ECONNRESET : err,
                          "the control connection is broken");
    }
    for (;;) {
        json_t *object = NULL;
        err = control_line_read(&client->line, deadline, &object, reason);
        if (err < 0) {
            client->broken = true;
            return err;
        }
        if (!control_deliver(client, object) &&
            json_integer_value(json_object_get(object, "id")) == id) {
            *answer = object;
            return 0;
        }
        json_decref(object);
    }
}

/*
 * QEMU greets a client twice that comes in the moment its monitor is set up, and with the second
 * greeting forgets that the client has negotiated.  What it refuses for that has not been run.
 */
static bool control_must_negotiate(const json_t *answer)
{
    const char *desc = json_string_value(json_object_get(json_object_get(answer, "error"), "desc"));

    return desc && strncmp(desc, "Expecting capabilities negotiation", 34) == 0;
}

int control_call(struct control_client *client, const char *verb, json_t *args, json_t **result,
                 int timeout_ms, struct reason *reason)
{
    uint64_t deadline = control_deadline(timeout_ms);
    json_t *answer = NULL;
    int err = control_ask(client, verb, args, &answer, deadline, reason);

    if (err == 0 && control_must_negotiate(answer)) {
        json_decref(answer);
        err = control_ask(client, "qmp_capabilities", NULL, &answer, deadline, reason);
        if (err == 0) {
            json_decref(answer);
            err = control_ask(client, verb, args, &answer, deadline, reason);
        }
    }
    if (err == 0) {
        err = control_result(answer, result, reason);
        json_decref(answer);
    }
    json_decref(args);
    return err;
}

int control_poll(struct control_client *client)
{
    for (;;) {
        json_t *object = NULL;
        int err = control_line_read(&client->line, 0, &object, NULL);
        if (err == -EAGAIN) {
            return 0;
        }
        if (err < 0) {
            client->broken = true;
            return -ECONNRESET;
        }
        control_deliver(client, object);
        json_decref(object);
    }
}

int control_fd(const struct control_client *client)
{
    return client->channel.fd;
}

void control_close(struct control_client *client)
{
    if (client) {
        channel_close(&client->channel);
        control_line_free(&client->line);
        free(client);
    }
}
