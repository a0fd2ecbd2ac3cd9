/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * target.h - DOMAIN and DESTURI: what a guest is called on the command line
 *
 *   qmp:/path/to/qmp.sock[?PARAMETER=VALUE[&PARAMETER=VALUE]...]
 *       pager=ADDR    the host's pager (default unix:/run/split-migrate/uffd-pager.sock)
 *     of the destination only:
 *       listen=ADDR   where its pager shall listen for hot pages (default: the pager's own)
 *       data=ADDR     where the source reaches that (default: what the pager says)
 *       migrate=ADDR  where QEMU's own stream goes (default: a UNIX socket beside the QMP socket,
 *                     if both hosts' pagers are local)
 *   UUID[?pager=ADDR]
 *       a guest as its pager knows it; enough to look at it or to abort its move
 *   DOMAIN[?pager=ADDR], and as destination a libvirt URI
 *       a domain of libvirt: its name, UUID or id.  Options say what parameters say above.  The
 *       default pager is the local one, or tcp:HOST:10811 if the URI names a host.
 *
 * ADDR is unix:PATH or tcp:HOST:PORT; %XX stands for a byte.
 */
#ifndef SPLIT_MIGRATE_TARGET_H
#define SPLIT_MIGRATE_TARGET_H

#include <stdbool.h>

#include "common/endpoint.h"
#include "common/log.h"
#include "common/units.h"

#define TARGET_DEFAULT_PAGER "unix:/run/split-migrate/uffd-pager.sock"
#define TARGET_PAGER_PORT 10811
#define TARGET_SCHEME_LEN 16

struct target {
    char text[512];
    char scheme[TARGET_SCHEME_LEN]; /* "qmp", "libvirt" or "uuid" */
    char uuid[UUID_TEXT_LEN];       /* of the uuid scheme */
    struct endpoint monitor;        /* of the qmp scheme */
    char domain[256];               /* of the libvirt scheme; not of a destination */
    char uri[512];                  /* of libvirt; "": its default */
    struct endpoint pager;
    bool pager_given;
    char listen[ENDPOINT_TEXT_LEN]; /* "": not given */
    char data[ENDPOINT_TEXT_LEN];
    char migrate[ENDPOINT_TEXT_LEN];
};

enum target_role { TARGET_SOURCE, TARGET_DESTINATION, TARGET_LOOK };

/**
 * target_parse() - parse and check
 * @role: parameters that belong to another role are refused; only TARGET_LOOK takes the UUID form
 * Return: 0, or -EINVAL with a sentence in @reason.
 */
int target_parse(struct target *target, const char *text, enum target_role role,
                 struct reason *reason);

/** target_set_uri() - where the libvirt of a libvirt target is; its pager's default follows it */
void target_set_uri(struct target *target, const char *uri);

/**
 * target_set_address() - set a parameter as if it stood in the text
 * @name: "pager", "listen", "data"
 * Return: 0, or -EINVAL with a sentence in @reason.
 */
int target_set_address(struct target *target, const char *name, const char *value,
                       struct reason *reason);

/** target_stream() - the address of QEMU's own stream between the two. Return: 0 or -EINVAL,
 * @reason. */
int target_stream(const struct target *source, const struct target *destination,
                  char address[ENDPOINT_TEXT_LEN], struct reason *reason);

#endif
