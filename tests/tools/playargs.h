/* SPDX-License-Identifier: GPL-2.0-or-later */
/* playargs.h - words of engineplay's command line */
#ifndef TESTS_TOOLS_PLAYARGS_H
#define TESTS_TOOLS_PLAYARGS_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/units.h"
#include "uffd-pager/engine.h"

static inline void die(const char *what, const char *why)
{
    fprintf(stderr, "engineplay: %s: %s\n", what, why);
    exit(2);
}

static inline uint64_t size_of(const char *text)
{
    uint64_t bytes;

    if (units_parse_size(text, MIB, &bytes) < 0) {
        die("not a size", text);
    }
    return bytes;
}

/* @text: rdma:HOST:PORT, and +tcp if that will do as well. */
static void add_rdma(struct engine_subhost *subhost, char *text)
{
    struct reason reason;
    char *plus = strstr(text, "+tcp");

    if (plus) {
        *plus = '\0';
    }
    subhost->has_rdma = true;
    subhost->tcp_will_do = plus != NULL;
    if (nbd_rdma_parse(text, &subhost->rdma, &reason) < 0) {
        die(text, reason.text);
    }
}

/* @text: ADDRESS,EXPORT[,CONTROL][,RDMA] */
static inline enum engine_loss loss_of(const char *text)
{
    return strcmp(text, "wait") == 0    ? ENGINE_LOSS_WAIT
           : strcmp(text, "pause") == 0 ? ENGINE_LOSS_PAUSE
                                        : ENGINE_LOSS_POISON;
}

static inline enum engine_redundancy redundancy_of(const char *text)
{
    return strcmp(text, "replica") == 0  ? ENGINE_REDUNDANCY_REPLICA
           : strcmp(text, "backup") == 0 ? ENGINE_REDUNDANCY_BACKUP
                                         : ENGINE_REDUNDANCY_NONE;
}

#endif
