// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * movertool.c - run the mover, or the receiver, alone
 *
 *   movertool mover FD
 *       be the mover on socket FD; the test plays the worker
 *   movertool receive MAPFILE LISTEN UUID TICKET BUDGET SUBHOSTS IDSTR:FD:SIZE...
 *       receive a guest into memfds inherited from the test.  Prints "data ADDRESS", then obeys
 *       lines of standard input:  layout (QEMU has come)  refuse ERRNO (what on_map answers)
 *       quit.  Prints "map" when MAPFILE, a page map, was committed.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "uffd-pager/mover.h"
#include "uffd-pager/receive.h"

static _Atomic int refuse;

static int on_map(void *opaque, struct pagemap *map, struct reason *reason)
{
    (void)opaque;
    (void)map;
    if (refuse) {
        return reason_set(reason, -refuse, "the test refuses the map");
    }
    puts("map");
    fflush(stdout);
    return 0;
}

static int parse_block(struct layout *layout, const char *text)
{
    struct layout_block *block = &layout->block[layout->n_blocks];
    unsigned long long size;

    if (layout->n_blocks == HANDOFF_MAX_BLOCKS ||
        sscanf(text, "%255[^:]:%d:%llu", block->idstr, &block->fd, &size) != 3) {
        return -EINVAL;
    }
    block->index = layout->n_blocks++;
    block->size = size;
    block->page_size = PAGE_BYTES;
    return 0;
}

static int serve(struct receive *receive, const struct layout *layout, struct pagemap *map,
                 struct reason *reason)
{
    char line[128];

    while (fgets(line, sizeof(line), stdin)) {
        if (strncmp(line, "quit", 4) == 0) {
            break;
        } else if (strncmp(line, "refuse ", 7) == 0) {
            refuse = atoi(line + 7);
        } else if (strncmp(line, "layout", 6) == 0) {
            int err = receive_layout(receive, layout, map, reason);
            if (err) {
                return err;
            }
        }
        printf("ok %llu\n", (unsigned long long)receive_bytes(receive));
        fflush(stdout);
    }
    return 0;
}

static int run_receive(char **args, int n, struct reason *reason)
{
    static struct layout layout;
    struct receive_config config = {.on_map = on_map};
    struct receive *receive;
    struct pagemap map = {0};
    char address[ENDPOINT_TEXT_LEN];
    uint8_t uuid[16];

    if (n < 7 || endpoint_parse(args[1], &config.listen, reason) ||
        units_parse_uuid(args[2], uuid)) {
        return reason_set(reason, -EINVAL, "the arguments are wrong");
    }
    snprintf(config.uuid, sizeof(config.uuid), "%s", args[2]);
    snprintf(config.ticket, sizeof(config.ticket), "%s", args[3]);
    config.budget = strtoull(args[4], NULL, 0);
    config.n_subhosts = (unsigned)atoi(args[5]);
    for (int i = 6; i < n; i++) {
        if (parse_block(&layout, args[i])) {
            return reason_set(reason, -EINVAL, "a block is written IDSTR:FD:SIZE");
        }
    }
    int err = layout_finish(&layout, reason);
    if (!err) {
        err = pagemap_create(&map, args[0], uuid, layout.flat_size / PAGE_BYTES, reason);
    }
    if (!err) {
        err = receive_start(&receive, &config, reason);
    }
    if (!err) {
        printf("data %s\n", endpoint_format(&config.listen, address));
        fflush(stdout);
        err = serve(receive, &layout, &map, reason);
        receive_stop(receive);
    }
    pagemap_close(&map);
    layout_close(&layout);
    return err;
}

int main(int argc, char **argv)
{
    struct reason reason = {""};

    log_init("movertool", getenv("MOVERTOOL_DEBUG") ? LOG_LEVEL_DEBUG : LOG_LEVEL_WARN);
    if (argc == 3 && strcmp(argv[1], "mover") == 0) {
        return mover_main(atoi(argv[2]));
    }
    if (argc > 2 && strcmp(argv[1], "receive") == 0) {
        int err = run_receive(argv + 2, argc - 2, &reason);
        if (err) {
            fprintf(stderr, "movertool: %s\n", reason.text);
        }
        return err ? 1 : 0;
    }
    fprintf(stderr, "usage: movertool mover FD | movertool receive MAPFILE LISTEN UUID "
                    "TICKET BUDGET SUBHOSTS IDSTR:FD:SIZE...\n");
    return 2;
}
