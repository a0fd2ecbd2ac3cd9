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
    if (role == TARGET_LOOK && units_parse_uuid(base, uuid) == 0) {
        snprintf(target->scheme, sizeof(target->scheme), "uuid");
        units_format_uuid(uuid, target->uuid);
        return 0;
    }
    bool is_uri = strstr(base, ":/") != NULL;
    if (!base[0] || strlen(base) >= (is_uri ? sizeof(target->uri) : sizeof(target->domain)) ||
        is_uri != (role == TARGET_DESTINATION)) {
        return reason_set(
            reason, -EINVAL, "'%.100s' names no %s: it must be qmp:/path/to/qmp.sock or %s",
            target->text, role == TARGET_DESTINATION ? "host" : "guest",
            role == TARGET_DESTINATION ? "a URI of libvirt" : "a domain of libvirt");
    }
    snprintf(target->scheme, sizeof(target->scheme), "libvirt");
    memcpy(is_uri ? target->uri : target->domain, base, strlen(base) + 1);
    return 0;
}

/* The host a libvirt URI names; "" if it is this one. */
static void target_uri_host(const char *uri, char *host, size_t size)
{
    const char *from = strstr(uri, "://");

    host[0] = '\0';
    if (!from) {
        return;
    }
    from += 3;
    size_t length = strcspn(from, "/?#");
    const char *at = memchr(from, '@', length);
    if (at) {
        length -= (size_t)(at + 1 - from);
        from = at + 1;
    }
    if (from[0] == '[') {
        from++;
        length = strcspn(from, "]");
    } else {
        size_t colon = strcspn(from, ":");
        length = colon < length ? colon : length;
    }
    if (length < size && !(length == 9 && strncmp(from, "localhost", 9) == 0)) {
        memcpy(host, from, length);
        host[length] = '\0';
    }
}

void target_set_uri(struct target *target, const char *uri)
{
    struct endpoint pager = {.port = TARGET_PAGER_PORT};

    snprintf(target->uri, sizeof(target->uri), "%s", uri);
    target_uri_host(uri, pager.host, sizeof(pager.host));
    /* As in the URI: another host means TLS, unless the transport is written, and is tcp. */
    size_t scheme = strcspn(uri, ":");
    bool tcp = scheme > 4 && strncmp(uri + scheme - 4, "+tcp", 4) == 0;
    pager.tls = !tcp && !endpoint_is_local(&pager);
    if (!target->pager_given && pager.host[0]) {
        target->pager = pager;
    }
}

int target_set_address(struct target *target, const char *name, const char *value,
                       struct reason *reason)
{
    char pager[ENDPOINT_TEXT_LEN] = "";
    const struct {
        const char *name;
        char *to;
    } known[] = {{"pager", pager}, {"listen", target->listen}, {"data", target->data}};

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(known[i].name, name) == 0) {
            int err = target_address(target, name, value, known[i].to, reason);
            if (!err && pager[0]) {
                target->pager_given = true;
                err = endpoint_parse(pager, &target->pager, reason);
            }
            return err;
        }
    }
    return reason_set(reason, -EINVAL, "parameter '%.40s' is not known", name);
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
    /* The parameters in libvirt's URI are libvirt's. */
    bool whole = role == TARGET_DESTINATION && strncmp(text, "qmp:", 4) != 0;
    char *query = whole ? NULL : strchr(copy, '?');
    if (query) {
        *query++ = '\0';
    }
    int err = target_base(target, copy, role, reason);
    char *parameter = query ? strtok_r(query, "&", &saved) : NULL;
    while (parameter && !err) {
        err = target_parameter(target, parameter, role, pager, reason);
        parameter = strtok_r(NULL, "&", &saved);
    }
    if (!err) {
        target->pager_given = pager[0] != '\0';
        err = endpoint_parse(pager[0] ? pager : TARGET_DEFAULT_PAGER, &target->pager, reason);
    }
    if (!err && whole) {
        target_set_uri(target, text);
    }
    return err;
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
