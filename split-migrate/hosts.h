/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * hosts.h - the daemons a move talks to: two pagers and the sub-hosts
 *
 * Connections are leases: what a daemon prepared for us it undoes when the
 * connection ends, however it ends.  So they stay open for the whole move.
 */
#ifndef SPLIT_MIGRATE_HOSTS_H
#define SPLIT_MIGRATE_HOSTS_H

#include <jansson.h>
#include <stdbool.h>

#include "common/control.h"
#include "common/policy.h"
#include "common/units.h"

#define HOSTS_CALL_MS 20000
#define HOSTS_TICKET_LEN 33
#define HOSTS_GUEST_GONE "the guest's QEMU has ended"
#define HOSTS_EXPORT_LEN 512

struct pager {
    const char *role; /* begins the sentences about it: "source pager" */
    struct endpoint endpoint;
    struct control_client *client;
    char uuid[UUID_TEXT_LEN]; /* events about other guests are not ours; "": all are */
    char failed[REASON_LEN];  /* why the move failed, if an event said so */
    char over[REASON_LEN];    /* why the guest goes over its budget, likewise */
    bool split;               /* it has taken the guest over, likewise */
};

struct subhost {
    const struct policy_subhost *policy;
    struct control_client *client;
    uint64_t free;
    char data[ENDPOINT_TEXT_LEN];
    char rdma[ENDPOINT_TEXT_LEN]; /* where pages go by RDMA; "": by TCP */
    char export_name[HOSTS_EXPORT_LEN];
    char ticket[HOSTS_TICKET_LEN];
    bool reserved; /* it has a region of ours */
};

/** pager_open() - connect. Return: 0 or -errno, @reason. */
int pager_open(struct pager *pager, const char *role, const struct endpoint *endpoint,
               struct reason *reason);

/** pager_call() - run a verb; @args is stolen. Return: as control_call(), the role before the
 * sentence. */
int pager_call(struct pager *pager, const char *verb, json_t *args, json_t **result, int timeout_ms,
               struct reason *reason);

/** pager_guest() - query-guest: a new reference, or NULL with *@err and @reason */
json_t *pager_guest(struct pager *pager, const char *uuid, int *err, struct reason *reason);

void pager_close(struct pager *pager);

/** subhost_connect() - connect. Return: 0 or -errno, @reason. */
int subhost_connect(struct subhost *subhost, const struct policy_subhost *policy,
                    struct reason *reason);

/** subhost_call() - run a verb; @args is stolen. Return: as control_call(), the name before the
 * sentence. */
int subhost_call(struct subhost *subhost, const char *verb, json_t *args, json_t **result,
                 struct reason *reason);

/** subhost_open() - connect, ask for its free memory and data address. Return: 0 or -errno,
 * @reason. */
int subhost_open(struct subhost *subhost, const struct policy_subhost *policy,
                 struct reason *reason);

/** subhost_reserve() - make the guest's region as @policy says, transient until the pager keeps it */
int subhost_reserve(struct subhost *subhost, const char *uuid, uint64_t size, uint64_t reserve,
                    uint64_t limit, const struct policy *policy, struct reason *reason);

/** subhost_release() - delete the region if there is one */
void subhost_release(struct subhost *subhost, const char *uuid);
void subhost_close(struct subhost *subhost);

/**
 * hosts_reach() - a data address as other programs can use it
 * @text: what a daemon says it listens on; any-address is replaced by the host of @control, the
 *        address under which we reach that daemon
 * Return: 0, -EINVAL if it is of no use for others, -EPERM if it is not TLS and @control is.
 */
int hosts_reach(const char *text, const struct endpoint *control, char data[ENDPOINT_TEXT_LEN]);

/** hosts_choose_data() - the first address of a sub-host's list that fits how we reach it. Return:
 * 0, -EINVAL or -EPERM, as hosts_reach(). */
int hosts_choose_data(const json_t *list, const struct endpoint *control,
                      char data[ENDPOINT_TEXT_LEN]);

/** hosts_ticket() - a random word */
void hosts_ticket(char ticket[HOSTS_TICKET_LEN]);

/** hosts_text() - member @key of @object as text; "-" if there is none */
const char *hosts_text(const json_t *object, const char *key);

/** hosts_bytes() - member @key of @object as bytes; 0 if it is not there or negative */
uint64_t hosts_bytes(const json_t *object, const char *key);

#endif
