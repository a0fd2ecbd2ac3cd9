// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * fuzz_nbd_server.c - any bytes to the NBD server's real connection code
 *
 * The first byte of the input chooses: even, and the rest is what a client
 * sends from its first byte on; odd, and the rest is a list of short records
 * which become well-formed requests with fuzzed fields after a good handshake,
 * because few mutations keep two magic numbers intact.  A thread reads and
 * forgets what the server answers.  Afterwards the region's accounts must be exact.
 */
#include <endian.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/nbd_client.h"
#include "common/nbd_connection.h"
#include "common/pack.h"
#include "common/units.h"
#include "subhost-server/export.h"

#define REGION_SIZE (5 * MIB)
#define REGION_LIMIT (3 * MIB)
#define MAX_STREAM (2 * MIB)
#define RECORD_TYPES 10
#define RECORD_PACK 9 /* the others are NBD's */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

struct client {
    int fd;
    const uint8_t *data;
    size_t size;
};

/* A request as the input has it: 8 bytes. */
struct record {
    uint8_t type;
    uint8_t flags;
    uint8_t offset_page[2]; /* little-endian, in pages */
    uint8_t offset_byte[2];
    uint8_t length[2]; /* in units of 16 bytes if the top bit of flags is set */
};

static void *read_all(void *arg)
{
    int fd = *(int *)arg;
    char buffer[65536];

    while (read(fd, buffer, sizeof(buffer)) > 0) {
    }
    return NULL;
}

static void *write_all(void *arg)
{
    struct client *client = arg;

    while (client->size) {
        ssize_t n = send(client->fd, client->data, client->size, MSG_NOSIGNAL);
        if (n <= 0) {
            break;
        }
        client->data += n;
        client->size -= (size_t)n;
    }
    shutdown(client->fd, SHUT_WR);
    return NULL;
}

static size_t append(uint8_t *stream, size_t used, const void *bytes, size_t n)
{
    if (used + n > MAX_STREAM) {
        return used;
    }
    memcpy(stream + used, bytes, n);
    return used + n;
}

static size_t append_handshake(uint8_t *stream, bool structured)
{
    static const uint8_t flags[] = {0, 0, 0, 3};
    static const uint8_t replies[] = "IHAVEOPT\0\0\0\x08\0\0\0\0";
    static const uint8_t context[] =
        "IHAVEOPT\0\0\0\x0a\0\0\0\x1c\0\0\0\x01r\0\0\0\x01\0\0\0\x0f" "base:allocation";
    static const uint8_t packs[] = "IHAVEOPT\x53\x4d\0\x01\0\0\0\0";
    static const uint8_t go[] = "IHAVEOPT\0\0\0\x07\0\0\0\x07\0\0\0\x01r\0\0";
    size_t used = append(stream, 0, flags, sizeof(flags));

    used = append(stream, used, packs, sizeof(packs) - 1);
    if (structured) {
        used = append(stream, used, replies, sizeof(replies) - 1);
        used = append(stream, used, context, sizeof(context) - 1);
    }
    return append(stream, used, go, sizeof(go) - 1);
}

/* A pack with a good head: its body is what follows the record in the input. */
static size_t append_pack(uint8_t *stream, size_t used, const struct record *record,
                          const uint8_t *data, size_t size, uint64_t offset)
{
    uint32_t pages = record->length[1] % (PACK_MOST / PAGE_BYTES) + 1;
    struct pack_head head = {htobe32(PACK_LZ4 + (record->flags & 1)),
                             htobe32(pages * (uint32_t)PAGE_BYTES)};
    size_t body = record->length[0] * 4u < size ? record->length[0] * 4u : size;
    struct nbd_request request;

    nbd_encode_request(&request, NBD_CMD_PACK, 0, used, offset, (uint32_t)(sizeof(head) + body));
    used = append(stream, used, &request, sizeof(request));
    used = append(stream, used, &head, sizeof(head));
    return append(stream, used, data, body);
}

/* Turn records into a stream of requests. */
static size_t make_stream(uint8_t *stream, const uint8_t *data, size_t size, bool structured)
{
    static const uint8_t payload[1 << 20];
    size_t used = append_handshake(stream, structured);

    for (; size >= sizeof(struct record); data += sizeof(struct record), size -= sizeof(struct record)) {
        struct record record;
        struct nbd_request request;
        memcpy(&record, data, sizeof(record));
        uint64_t offset = (uint64_t)(record.offset_page[0] | record.offset_page[1] << 8) * PAGE_BYTES;
        offset += (uint64_t)(int64_t)(int16_t)(record.offset_byte[0] | record.offset_byte[1] << 8);
        uint32_t length = (uint32_t)(record.length[0] | record.length[1] << 8);
        length *= record.flags & 0x80 ? 16 : 1;
        if (record.type % RECORD_TYPES == RECORD_PACK) {
            used = append_pack(stream, used, &record, data + sizeof(record), size - sizeof(record),
                               offset);
            continue;
        }
        nbd_encode_request(&request, record.type % RECORD_TYPES, record.flags & 0x1f, used, offset, length);
        used = append(stream, used, &request, sizeof(request));
        if (record.type % RECORD_TYPES == NBD_CMD_WRITE && !(record.flags & 0x40)) {
            used = append(stream, used, payload, length);
        }
    }
    return used;
}

static void serve(struct store *store, const uint8_t *bytes, size_t size)
{
    struct nbd_server_config config = {.handshake_timeout_ms = 10000};
    pthread_t reader, writer;
    int fds[2];

    export_config(&config, store);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0) {
        abort();
    }
    struct client client = {.fd = fds[1], .data = bytes, .size = size};
    struct nbd_connection *conn = nbd_connection_new(&config, fds[0]);
    conn->deadline_us = units_now_us() + 10000000;
    if (pthread_create(&reader, NULL, read_all, &fds[1]) ||
        pthread_create(&writer, NULL, write_all, &client)) {
        abort();
    }
    nbd_connection_run(conn);
    shutdown(fds[0], SHUT_RDWR);
    nbd_connection_free(conn);
    pthread_join(writer, NULL);
    pthread_join(reader, NULL);
    close(fds[1]);
}

static void check_exact(struct store *store)
{
    struct store_opened opened;

    if (store_open(store, "r", 1, &opened)) {
        abort();
    }
    struct region *region = opened.region;
    uint64_t stored = atomic_load(&region_claim(region)->stored);
    if (stored != region_allocated(region) || stored > REGION_LIMIT || region_clients(region)) {
        abort();
    }
    region_unref(region);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    log_init("fuzz", LOG_LEVEL_ERROR);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct store_request request = {.name = "r", .size = REGION_SIZE, .limit = REGION_LIMIT};
    static uint8_t stream[MAX_STREAM];
    struct store store;

    if (size < 1) {
        return 0;
    }
    store_init(&store, 8 * MIB);
    if (store_create(&store, &request, NULL)) {
        abort();
    }
    if (data[0] & 1) {
        size_t used = make_stream(stream, data + 1, size - 1, data[0] & 2);
        serve(&store, stream, used);
    } else {
        serve(&store, data + 1, size - 1);
    }
    check_exact(&store);
    store_destroy(&store);
    return 0;
}
