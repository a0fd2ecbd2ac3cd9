/* SPDX-License-Identifier: GPL-2.0-or-later */
/* qmp.h - one QEMU's monitor */
#ifndef SPLIT_MIGRATE_QMP_H
#define SPLIT_MIGRATE_QMP_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/control.h"
#include "common/endpoint.h"
#include "common/units.h"

#define QMP_CALL_MS 20000

struct qmp {
    const char *role; /* begins the sentences about it: "source QEMU" */
    struct endpoint endpoint;
    struct control_client *client; /* NULL: broken; the next call connects again */
    uint64_t stop_us;              /* when the last STOP and RESUME events were read */
    uint64_t resume_us;
};

/** qmp_open() - connect and negotiate. Return: 0 or -errno, @reason. */
int qmp_open(struct qmp *qmp, const char *role, const struct endpoint *endpoint,
             struct reason *reason);

/**
 * qmp_call() - run a command; @args is stolen
 * Return: 0; -EREMOTEIO if QEMU refused; another -errno if it is not known whether the command was
 * run, and *@sent (which may be NULL) tells whether it was sent.
 */
int qmp_call(struct qmp *qmp, const char *command, json_t *args, json_t **result, int timeout_ms,
             bool *sent, struct reason *reason);

/** qmp_status() - query-status: QEMU's word. Return: 0 or -errno, @reason. */
int qmp_status(struct qmp *qmp, char *status, size_t size, bool *running, struct reason *reason);

/** qmp_uuid() - query-uuid. Return: 0 or -errno, @reason. */
int qmp_uuid(struct qmp *qmp, char uuid[UUID_TEXT_LEN], struct reason *reason);

/** qmp_has_object() - is there an -object of this type? Return: 0, -ENOENT or another -errno. */
int qmp_has_object(struct qmp *qmp, const char *type, struct reason *reason);

/** qmp_quit() - have QEMU end and wait until its monitor is closed. Return: 0 or -errno. */
int qmp_quit(struct qmp *qmp);

/** qmp_events() - read what events have come */
void qmp_events(struct qmp *qmp);
void qmp_close(struct qmp *qmp);

#endif
