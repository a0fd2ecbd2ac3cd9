/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * copy.h - pages straight from another sub-host: our side of `region-pull`
 *
 * A guest's pager that moves memory from one sub-host to another has the second one fetch it: it names the
 * first one's NBD export, ticket included, and the pages.  What the pager guarantees is that nobody changes
 * these pages there, or looks at them here, until it has our answer; what we guarantee is in region.h
 * (region_settle()): that we write nothing any more once it has given the copy up.
 */
#ifndef SUBHOST_SERVER_COPY_H
#define SUBHOST_SERVER_COPY_H

#include <jansson.h>

#include "common/endpoint.h"
#include "subhost-server/store.h"

struct copier;

struct copy_request {
    uint64_t serial;
    const char *data;   /* the other's address for pages */
    const char *export; /* its export, without "/strict" */
    const json_t *runs; /* [[offset, length], ...] in bytes, whole pages */
};

/**
 * copier_pull() - make pages of @region what they are at the other sub-host
 * @copier: kept from one call to the next, with its connection; *@copier is NULL at first
 * @copied: bytes that were written here
 *
 * Pages that do not exist there do not exist here afterwards.  Waits.  Return: 0; -EINVAL; -ENOSPC;
 * -ESTALE: the copy was given up; -EREMOTEIO: the other sub-host; with a sentence in @reason.
 * What was copied before an error stays.
 */
int copier_pull(struct copier **copier, struct region *region, const struct copy_request *request,
                uint64_t *copied, struct reason *reason);

/** copier_free() - close its connection; NULL is fine */
void copier_free(struct copier *copier);

#endif
