/* SPDX-License-Identifier: GPL-2.0-or-later */
/* rdma_choice.h - "rdma" and "fallback" of a sub-host in JSON: may its pages go by RDMA, by TCP? */
#ifndef UFFD_PAGER_RDMA_CHOICE_H
#define UFFD_PAGER_RDMA_CHOICE_H

#include <jansson.h>
#include <stdbool.h>

#include "common/endpoint.h"
#include "common/log.h"

/**
 * rdma_choice_parse() - of a sub-host's object
 * @has_rdma: pages are to go by RDMA, to @address
 * @tcp_will_do: if RDMA does not come up, they may go by TCP
 * Return: 0, or -EINVAL with a sentence in @reason.
 */
int rdma_choice_parse(const json_t *subhost, struct endpoint *address, bool *has_rdma,
                      bool *tcp_will_do, struct reason *reason);

/** rdma_choice_add() - put the choice back into an object */
void rdma_choice_add(json_t *subhost, const struct endpoint *address, bool has_rdma,
                     bool tcp_will_do);

#endif
