// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * fuzz_control.c - any bytes to the control server, with the sub-host's real verbs behind it
 *
 * The server runs in this process; each input is one connection.  When it is
 * over, nothing of what the input made may be left: its regions were transient,
 * or kept, and then they are deleted here.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/control.h"
#include "subhost-server/verbs.h"

#define MEMORY ((uint64_t)64 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static struct server server;
static struct options options;
static struct control_server *control;
static struct endpoint endpoint = {.host = "127.0.0.1"};

static void stop(void)
{
    control_server_stop(control);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    struct control_config config;
    struct reason reason = {""};

    (void)argc;
    (void)argv;
    log_init("fuzz", LOG_LEVEL_ERROR);
    server.options = &options;
    store_init(&server.store, MEMORY);
    verbs_config(&config, &server);
    int fd = endpoint_listen(&endpoint, &reason);
    if (fd < 0 || control_server_start(&control, fd, &config)) {
        fprintf(stderr, "%s\n", reason.text);
        abort();
    }
    atexit(stop);
    return 0;
}

struct names {
    char name[STORE_WORD_MAX + 1];
    char ticket[STORE_WORD_MAX + 1];
    bool found, transient;
};

static void note(void *to, const struct store_entry *entry)
{
    struct names *names = to;

    names->found = true;
    names->transient = entry->owner != NULL;
    memcpy(names->name, entry->name, sizeof(names->name));
    memcpy(names->ticket, entry->ticket, sizeof(names->ticket));
}

/* Delete what was kept; what was not is gone when the peer's thread has ended. */
static void clean(void)
{
    struct quota_status status;
    struct names names;

    do {
        names = (struct names){.found = false};
        store_each(&server.store, note, &names);
        if (names.found && !names.transient) {
            store_delete(&server.store, names.name, names.ticket, NULL, NULL);
        } else if (names.found) {
            usleep(100);
        }
    } while (names.found);
    quota_status(&server.store.quota, &status);
    if (status.free != MEMORY || status.stored || status.reserved) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char answer[65536];
    int fd = endpoint_connect(&endpoint, 5000, NULL);

    if (fd < 0) {
        abort();
    }
    while (size) {
        ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
        if (n <= 0) {
            break;
        }
        data += n;
        size -= (size_t)n;
    }
    shutdown(fd, SHUT_WR);
    while (recv(fd, answer, sizeof(answer), 0) > 0) {
    }
    close(fd);
    clean();
    return 0;
}
