// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * nbdtool.c - use our NBD client by hand and from tests
 *
 *   nbdtool ADDR EXPORT size                 print size and transmission flags
 *   nbdtool ADDR EXPORT read OFFSET LENGTH   to standard output
 *   nbdtool ADDR EXPORT write OFFSET LENGTH  from standard input
 *   nbdtool ADDR EXPORT trim|zero OFFSET LENGTH
 *   nbdtool ADDR EXPORT flush
 *   nbdtool ADDR EXPORT latency COUNT        4 KiB reads: percentiles, beside a bare send and recv
 *
 * Exits 0, or 1 after "ERRNO: sentence" on standard error, e.g. "ENOSPC: ...".
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/nbd_client.h"
#include "common/units.h"
#include "tests/tools/tlsenv.h"

#define REPLY_BYTES (sizeof(struct nbd_simple_reply) + PAGE_BYTES)

static int fail(int err, const char *what)
{
    fprintf(stderr, "%s: %s\n", strerrorname_np(-err), what);
    return EXIT_FAILURE;
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static void print_percentiles(const char *name, uint64_t *ns, size_t n)
{
    qsort(ns, n, sizeof(*ns), compare_u64);
    printf("%s_p50_us %.1f\n%s_p99_us %.1f\n", name, (double)ns[n / 2] / 1000, name,
           (double)ns[n * 99 / 100] / 1000);
}

/* Send a request, receive a header and a page; the same for the server and for the floor. */
static int round_trip(int fd, const struct nbd_request *request, void *reply)
{
    if (send(fd, request, sizeof(*request), MSG_NOSIGNAL) != sizeof(*request)) {
        return -errno;
    }
    ssize_t n = recv(fd, reply, REPLY_BYTES, MSG_WAITALL);
    return n == (ssize_t)REPLY_BYTES ? 0 : n < 0 ? -errno : -ECONNRESET;
}

/* The least a peer can do: receive 28 bytes, send 16 + 4096. */
static void floor_peer(int fd)
{
    struct nbd_request request;
    static uint8_t reply[REPLY_BYTES];

    while (recv(fd, &request, sizeof(request), 0) == sizeof(request)) {
        if (send(fd, reply, sizeof(reply), MSG_NOSIGNAL) < 0) {
            break;
        }
    }
    _exit(EXIT_SUCCESS);
}

/* Fork the floor's peer; Return: a socket to it. */
static int floor_connect(pid_t *peer)
{
    struct endpoint endpoint = {.host = "127.0.0.1"};
    struct reason reason;
    int listener = endpoint_listen(&endpoint, &reason);

    if (listener < 0) {
        return listener;
    }
    *peer = fork();
    if (*peer == 0) {
        int fd = endpoint_accept(listener);
        close(listener);
        floor_peer(fd);
    }
    close(listener);
    return endpoint_connect(&endpoint, 5000, &reason);
}

static int run_latency(struct nbd_client *client, size_t count)
{
    static uint8_t reply[REPLY_BYTES];
    uint64_t *ours = calloc(count + 1, sizeof(*ours));
    uint64_t *bare = calloc(count + 1, sizeof(*bare));
    struct nbd_request request;
    uint64_t n_pages = client->size / PAGE_BYTES;
    pid_t peer = 0;
    int fd = floor_connect(&peer);
    int err = fd < 0 ? fd : 0;

    /* In turns, so that both see the same machine. */
    for (size_t i = 0; i < count && !err; i++) {
        nbd_encode_request(&request, NBD_CMD_READ, 0, i, i * 7919 % n_pages * PAGE_BYTES, PAGE_BYTES);
        uint64_t t0 = now_ns();
        err = round_trip(client->channel.fd, &request, reply);
        uint64_t t1 = now_ns();
        ours[i] = t1 - t0;
        uint64_t cookie;
        int error = 0;
        if (!err) {
            err = nbd_decode_simple_reply((struct nbd_simple_reply *)reply, &cookie, &error);
            err = err ? err : error;
        }
        if (!err) {
            t0 = now_ns();
            err = round_trip(fd, &request, reply);
            bare[i] = now_ns() - t0;
        }
    }
    if (fd >= 0) {
        close(fd);
        waitpid(peer, NULL, 0);
    }
    if (err) {
        return fail(err, "latency");
    }
    print_percentiles("read_4k", ours, count);
    print_percentiles("floor", bare, count);
    free(ours);
    free(bare);
    return EXIT_SUCCESS;
}

/* Move [offset, offset + length) between the export and a standard stream, in large pieces. */
static int run_copy(struct nbd_client *client, bool writing, uint64_t offset, uint64_t length)
{
    const uint32_t piece = 8u << 20;
    uint8_t *buffer = malloc(piece);
    int err = 0;

    while (length && !err) {
        uint32_t part = length < piece ? (uint32_t)length : piece;
        if (writing) {
            err = fread(buffer, 1, part, stdin) == part
                      ? nbd_client_write(client, buffer, offset, part)
                      : -ENODATA;
        } else {
            err = nbd_client_read(client, buffer, offset, part);
            if (!err && fwrite(buffer, 1, part, stdout) != part) {
                err = -EIO;
            }
        }
        offset += part;
        length -= part;
    }
    free(buffer);
    return err ? fail(err, writing ? "write" : "read") : EXIT_SUCCESS;
}

static int run(struct nbd_client *client, int argc, char **argv)
{
    const char *verb = argv[0];
    uint64_t offset = argc > 1 ? strtoull(argv[1], NULL, 0) : 0;
    uint64_t length = argc > 2 ? strtoull(argv[2], NULL, 0) : 0;
    int err = -EINVAL;

    if (strcmp(verb, "size") == 0) {
        printf("%llu 0x%x\n", (unsigned long long)client->size, client->flags);
        return EXIT_SUCCESS;
    }
    if (strcmp(verb, "latency") == 0 && offset) {
        return run_latency(client, offset);
    }
    if (strcmp(verb, "read") == 0 || strcmp(verb, "write") == 0) {
        return run_copy(client, verb[0] == 'w', offset, length);
    }
    if (strcmp(verb, "trim") == 0) {
        err = nbd_client_trim(client, offset, (uint32_t)length);
    } else if (strcmp(verb, "zero") == 0) {
        err = nbd_client_write_zeroes(client, offset, (uint32_t)length);
    } else if (strcmp(verb, "flush") == 0) {
        err = nbd_client_flush(client);
    }
    return err ? fail(err, verb) : EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
    struct endpoint endpoint;
    struct nbd_client client;
    struct reason reason = {""};

    if (argc < 4) {
        fprintf(stderr, "usage: nbdtool ADDR EXPORT VERB [OFFSET LENGTH]\n");
        return 2;
    }
    int err = tls_from_environment(&reason);
    if (!err) {
        err = endpoint_parse(argv[1], &endpoint, &reason);
    }
    if (!err) {
        err = nbd_client_connect(&client, &endpoint, argv[2], 5000, &reason);
    }
    if (err) {
        return fail(err, reason.text);
    }
    nbd_client_set_timeout(&client, 30000);
    int status = run(&client, argc - 3, argv + 3);
    nbd_client_close(&client, true);
    return status;
}
