// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/target.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Decode %XX in place. */
static int target_decode(char *text)
{
    char *to = text;

    for (const char *from = text; *from; from++) {
        if (*from != '%') {
            *to++ = *from;
            continue;
        }
        char digits[3] = {from[1], from[1] ? from[2] : '\0', '\0'};
        char *end;
        long byte = strtol(digits, &end, 16);
        if (!isxdigit((unsigned char)digits[0]) || end != digits + 2 || byte == 0) {
            return -EINVAL;
        }
        *to++ = (char)byte;
        from += 2;
    }
    *to = '\0';
    return 0;
}

static int target_address(const struct target *target, const char *name, const char *value,
                          char text[ENDPOINT_TEXT_LEN], struct reason *reason)
{
    struct endpoint endpoint;
    struct reason why;
    bool listens = strcmp(name, "listen") == 0;

    if (text[0]) {
        return reason_set(reason, -EINVAL, "'%.100s' has the parameter %s twice", target->text,
                          name);
    }
    int err = endpoint_parse(value, &endpoint, &why);
    if (!err && !endpoint.is_unix && !listens && (endpoint.port == 0 || !endpoint.host[0])) {
        err = reason_set(&why, -EINVAL, "address '%.80s' must have a host and a port", value);
    }
    if (err) {
        return reason_set(reason, err, "parameter %s: %.200s", name, why.text);
    }
    endpoint_format(&endpoint, text);
    return 0;
}

static int target_parameter(struct target *target, char *text, enum target_role role,
                            char pager[ENDPOINT_TEXT_LEN], struct reason *reason)
{
    char *value = strchr(text, '=');

    if (!value) {
        return reason_set(reason, -EINVAL, "'%.64s' in '%.100s' must be PARAMETER=VALUE", text,
                          target->text);
    }
    *value++ = '\0';
    if (target_decode(value) < 0) {
        return reason_set(reason, -EINVAL,
                          "parameter %.40s: '%%' must be followed by two "
                          "hexadecimal digits, not 00",
                          text);
    }
    struct {
        const char *name;
        char *to;
        bool destination;
    } const known[] = {{"pager", pager, false},
                       {"listen", target->listen, true},
                       {"data", target->data, true},
                       {"migrate", target->migrate, true}};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(known[i].name, text) != 0) {
            continue;
        }
        if (known[i].destination && role != TARGET_DESTINATION) {
            return reason_set(reason, -EINVAL,
                              "parameter %s belongs to the destination and must not stand in "
                              "'%.100s'",
                              text, target->text);
        }
        return target_address(target, text, value, known[i].to, reason);
    }
    return reason_set(reason, -EINVAL,
                      "parameter '%.40s' of '%.100s' is not known: there are pager%s", text,
                      target->text, role == TARGET_DESTINATION ? ", listen, data and migrate" : "");
}

static int target_base(struct target *target, const char *base, enum target_role role,
                       struct reason *reason)
{
    uint8_t uuid[16];
    char text[ENDPOINT_TEXT_LEN];

    if (strncmp(base, "qmp:", 4) == 0) {
        snprintf(target->scheme, sizeof(target->scheme), "qmp");
        snprintf(text, sizeof(text), "unix:%.290s", base + 4);
        if (base[4] != '/' || target_decode(text) < 0) {
            return reason_set(reason, -EINVAL,
                              "'%.100s' must be qmp:/PATH with the absolute path of a QMP socket",
                              target->text);
        }
        return endpoint_parse(text, &target->monitor, reason);
    }
    if (units_parse_uuid(base, uuid) == 0) {
        if (role != TARGET_LOOK) {
            return reason_set(reason, -EINVAL,
                              "a guest can be moved only through its monitor: give "
                              "qmp:/path/to/qmp.sock, not a UUID");
        }
        snprintf(target->scheme, sizeof(target->scheme), "uuid");
        units_format_uuid(uuid, target->uuid);
        return 0;
    }
    return reason_set(reason, -EINVAL,
                      "'%.100s' names no guest: it must be qmp:/path/to/qmp.sock%s", target->text,
                      role == TARGET_LOOK ? " or a UUID" : "");
}

int target_parse(struct target *target, const char *text, enum target_role role,
                 struct reason *reason)
{
    char copy[sizeof(target->text)];
    char pager[ENDPOINT_TEXT_LEN] = "";
    char *saved = NULL;

    memset(target, 0, sizeof(*target));
    if (strlen(text) >= sizeof(copy)) {
        return reason_set(reason, -EINVAL, "'%.60s...' is too long to name a guest", text);
    }
    memcpy(target->text, text, strlen(text) + 1);
    memcpy(copy, text, strlen(text) + 1);
    char *query = strchr(copy, '?');
    if (query) {
        *query++ = '\0';
    }
    int err = target_base(target, copy, role, reason);
    char *parameter = query ? strtok_r(query, "&", &saved) : NULL;
    while (parameter && !err) {
        err = target_parameter(target, parameter, role, pager, reason);
        parameter = strtok_r(NULL, "&", &saved);
    }
    return err ? err
               : endpoint_parse(pager[0] ? pager : TARGET_DEFAULT_PAGER, &target->pager, reason);
}

int target_stream(const struct target *source, const struct target *destination,
                  char address[ENDPOINT_TEXT_LEN], struct reason *reason)
{
    if (destination->migrate[0]) {
        memcpy(address, destination->migrate, ENDPOINT_TEXT_LEN);
        return 0;
    }
    if (!source->pager.is_unix || !destination->pager.is_unix) {
        return reason_set(reason, -EINVAL,
                          "'%.100s' must say where QEMU's own stream goes: add "
                          "migrate=tcp:HOST:PORT",
                          destination->text);
    }
    struct endpoint beside = {.is_unix = true};
    int n = snprintf(beside.host, sizeof(beside.host), "%.240s.migrate", destination->monitor.host);
    if (n > 107) {
        return reason_set(reason, -EINVAL,
                          "the name of the QMP socket is too long for a socket beside it: add "
                          "migrate=unix:PATH to '%.100s'",
                          destination->text);
    }
    endpoint_format(&beside, address);
    return 0;
}
