/* SPDX-License-Identifier: GPL-2.0-or-later */
/* link_dial.h - make one connection to a sub-host */
#ifndef UFFD_PAGER_LINK_DIAL_H
#define UFFD_PAGER_LINK_DIAL_H

#include "uffd-pager/engine_impl.h"

static inline const struct engine_subhost *link_subhost(const struct link_host *host)
{
    return &host->engine->config.subhost[host->index];
}

/**
 * link_dial() - connect to the sub-host, by RDMA or NBD; waits, at most host->timeout_ms for each step
 * @strict: for READs, where a page that is missing is an error; else for WRITEs and TRIMs
 * @try: it is no good unless such a request is answered, too (not by RDMA, where the card answers)
 * @channel: the connection, the caller's; CHANNEL_NONE if there is none
 * The thread of @host only, without its lock.  Return: 0 or -errno with a sentence in @reason.
 */
int link_dial(struct link_host *host, bool strict, bool try, struct channel *channel,
              struct reason *reason);

#endif
