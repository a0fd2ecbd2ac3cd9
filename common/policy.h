/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * policy.h - the policy file: how a guest is divided, and how it is moved
 *
 * An INI file, described in split-migrate-policy(5).  Sections, keys, types,
 * defaults and ranges are one table (policy.c); a long option of a command
 * that has a key's name takes the same values, through the same parser.
 */
#ifndef COMMON_POLICY_H
#define COMMON_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/endpoint.h"
#include "common/log.h"
#include "common/pagemap.h"

#define POLICY_SUBHOST_PORT 10810
#define POLICY_MIN_BUDGET (16 * MIB)
#define POLICY_NAME_LEN 64
#define POLICY_WORD_LEN 16
#define POLICY_MAX_CHOICES 8
#define POLICY_TEXT_LEN 256
#define POLICY_MAX_KEYS 28

/* A watermark: bytes, or percent of the budget. */
struct policy_mark {
    uint64_t value;
    bool percent;
};

struct policy_subhost {
    char name[POLICY_NAME_LEN];
    struct endpoint control;
    bool rdma;        /* pages go by RDMA ... */
    bool tcp_will_do; /* ... or by TCP if it does not come up */
    uint64_t memory; /* most it may store for one guest; 0: what it has free */
    uint64_t weight;
    unsigned line;                      /* of the section's header */
    unsigned key_line[POLICY_MAX_KEYS]; /* where each key was set; 0: it was not */
};

struct policy {
    char file[256]; /* "" if there was none */
    const char *const *predictors;

    uint64_t budget; /* resident bytes on the main host */
    struct policy_mark low_watermark;
    struct policy_mark high_watermark;

    uint64_t granule;
    uint64_t prefetch;
    uint64_t slab;    /* bytes a guest takes on a sub-host at a time */
    uint64_t choices; /* sub-hosts that are asked for room for one */
    uint64_t subhost_timeout_s; /* how long the guest waits for a sub-host that does not answer */
    char subhost_lost[POLICY_WORD_LEN]; /* and then: wait, pause, poison */

    char redundancy[POLICY_WORD_LEN]; /* none, replica, backup */
    char backup[POLICY_TEXT_LEN];     /* the folder on the main host; "": not set */

    char predictor[32];
    uint64_t profile_seconds;
    uint64_t period_ms;

    uint64_t bandwidth; /* bytes/s; 0: no limit */
    uint64_t downtime_ms;
    uint64_t connections;
    char compress[POLICY_WORD_LEN]; /* memory on its way: none, lz4, zstd, adaptive */
    uint64_t timeout_s; /* 0: none */
    uint64_t ticket_seconds; /* how long connections may be opened with a migration's ticket */

    char tls_certificates[POLICY_TEXT_LEN]; /* as in struct tls_config; "": not set */
    char tls_psk[POLICY_TEXT_LEN];
    char tls_username[POLICY_TEXT_LEN];

    unsigned n_subhosts;
    struct policy_subhost subhost[PAGEMAP_MAX_SUBHOSTS];
    unsigned key_line[POLICY_MAX_KEYS];
};

/**
 * policy_init() - defaults
 * @predictors: names the `policy` key may have, NULL-terminated, the first is the default;
 *              kept by reference
 */
void policy_init(struct policy *policy, const char *const *predictors);

/**
 * policy_load() - read a file over what @policy holds
 * Return: 0, or -errno with "FILE:LINE: sentence" (or "FILE: sentence") in @reason.
 */
int policy_load(struct policy *policy, const char *file, struct reason *reason);

/** policy_key() - key @i of the table: its section and its name. Return: false behind the last. */
bool policy_key(size_t i, const char **section, const char **name);

/** policy_has_option() - true if a key outside [subhost] has this name */
bool policy_has_option(const char *name);

/**
 * policy_set_option() - set a key from the command line's option of the same name
 * Return: 0, or -EINVAL with "--NAME: sentence" in @reason.
 */
int policy_set_option(struct policy *policy, const char *name, const char *value,
                      struct reason *reason);

/**
 * policy_check() - required keys, and keys that must agree with each other
 * Call it once, after the file and the options.  Return: 0, or -EINVAL with a sentence in @reason.
 */
int policy_check(const struct policy *policy, struct reason *reason);

/** policy_mark_bytes() - a watermark in bytes */
uint64_t policy_mark_bytes(const struct policy *policy, const struct policy_mark *mark);

/** policy_uri_is_rdma() - does it ask for pages by RDMA? */
bool policy_uri_is_rdma(const char *uri);

/**
 * policy_parse_uri() - subhost[+TRANSPORT]://HOST[:PORT] or subhost:///PATH, or rdma for subhost
 * As with libvirt, another host means TLS; +tcp means plaintext, +tls TLS also on this host.
 * Return: 0 or -EINVAL, @reason.
 */
int policy_parse_uri(const char *uri, struct endpoint *endpoint, struct reason *reason);

#endif
