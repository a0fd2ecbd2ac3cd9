// SPDX-License-Identifier: GPL-2.0-or-later
/* A server whose export takes large payloads through a pipe into a file, and peers of all manners. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/nbd.h"
#include "common/nbd_client.h"
#include "common/nbd_server.h"
#include "common/units.h"

#define SIZE (4u << 20)
#define REFUSED (3u << 20) /* beyond it write_pipe says ENOSPC */

struct served {
    struct nbd_server *server;
    struct nbd_client client;
    int fd;
    uint8_t *memory; /* of the file */
    uint8_t *random;
    uint8_t small[64 << 10];
    _Atomic unsigned pipes;    /* calls of write_pipe */
    _Atomic unsigned complete; /* ends of writes */
    _Atomic unsigned broken;
};

static int write_begin(struct nbd_export *export, uint64_t offset, uint32_t length, void **memory)
{
    struct served *served = export->opaque;

    (void)offset;
    *memory = export->pipes ? NULL : served->small;
    return export->pipes || length <= sizeof(served->small) ? 0 : -ENOMEM;
}

static int write_pipe(struct nbd_export *export, uint64_t offset, uint32_t length, int pipe)
{
    struct served *served = export->opaque;

    atomic_fetch_add(&served->pipes, 1);
    return offset + length > REFUSED ? -ENOSPC : nbd_pipe_splice(pipe, served->fd, offset, length);
}

static int write_end(struct nbd_export *export, uint64_t offset, uint32_t length, void *memory, bool complete)
{
    struct served *served = export->opaque;

    if (complete && memory && pwrite(served->fd, memory, length, (off_t)offset) != (ssize_t)length) {
        return -EIO;
    }
    atomic_fetch_add(complete ? &served->complete : &served->broken, 1);
    return 0;
}

static int read_begin(struct nbd_export *export, uint64_t offset, uint32_t length, const void **memory)
{
    struct served *served = export->opaque;

    (void)length;
    *memory = served->memory + offset;
    return 0;
}

static int open_export(void *opaque, const char *name, size_t length, struct nbd_export *export)
{
    static const struct nbd_export_ops ops = {
        .read_begin = read_begin,
        .write_begin = write_begin,
        .write_pipe = write_pipe,
        .write_end = write_end,
    };

    (void)name;
    (void)length;
    *export = (struct nbd_export){.ops = &ops, .size = SIZE, .opaque = opaque};
    return 0;
}

static int setup(void **state)
{
    struct served *served = calloc(1, sizeof(*served));
    struct endpoint endpoint = {.host = "127.0.0.1"};
    struct nbd_server_config config = {.opaque = served, .open = open_export};
    struct reason reason;
    int one = 1;

    assert_non_null(served);
    served->fd = memfd_create("export", MFD_CLOEXEC);
    assert_int_equal(ftruncate(served->fd, SIZE), 0);
    served->memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, served->fd, 0);
    assert_ptr_not_equal(served->memory, MAP_FAILED);
    served->random = malloc(SIZE);
    assert_non_null(served->random);
    for (size_t i = 0; i < SIZE; i++) {
        served->random[i] = (uint8_t)random();
    }
    int listener = endpoint_listen(&endpoint, &reason);
    assert_true(listener >= 0);
    assert_int_equal(nbd_server_start(&served->server, listener, &config), 0);
    assert_int_equal(nbd_client_connect(&served->client, &endpoint, "it", 10000, &reason), 0);
    setsockopt(served->client.channel.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    *state = served;
    return 0;
}

static int teardown(void **state)
{
    struct served *served = *state;

    nbd_client_close(&served->client, true);
    nbd_server_stop(served->server);
    munmap(served->memory, SIZE);
    close(served->fd);
    free(served->random);
    free(served);
    return 0;
}

static void send_all(const struct served *served, const void *bytes, size_t n, size_t piece)
{
    const uint8_t *at = bytes;

    while (n) {
        size_t part = n < piece ? n : piece;
        assert_int_equal(send(served->client.channel.fd, at, part, MSG_NOSIGNAL), part);
        at += part;
        n -= part;
    }
}

static void send_header(const struct served *served, uint64_t cookie, uint64_t offset, uint32_t length)
{
    struct nbd_request request;

    nbd_encode_request(&request, NBD_CMD_WRITE, 0, cookie, offset, length);
    send_all(served, &request, sizeof(request), sizeof(request));
}

/* The next reply is to @cookie. Return: its error. */
static int reply_to(const struct served *served, uint64_t cookie)
{
    struct nbd_simple_reply reply;
    uint64_t got;
    int error;

    assert_int_equal(recv(served->client.channel.fd, &reply, sizeof(reply), MSG_WAITALL), sizeof(reply));
    assert_int_equal(nbd_decode_simple_reply(&reply, &got, &error), 0);
    assert_int_equal(got, cookie);
    return error;
}

static void test_in_one_go(void **state)
{
    struct served *served = *state;

    assert_int_equal(nbd_client_write(&served->client, served->random, 0, REFUSED), 0);
    assert_memory_equal(served->memory, served->random, REFUSED);
    assert_true(served->pipes > 0);
    assert_int_equal(served->complete, 1);
}

/* More pieces than the pipe has slots, and none of them a page. */
static void test_byte_by_byte(void **state)
{
    struct served *served = *state;
    uint32_t length = (32 << 10) + 4096;

    send_header(served, 7, 8192, length);
    send_all(served, served->random, 9000, 1);
    send_all(served, served->random + 9000, length - 9000, 33);
    assert_int_equal(reply_to(served, 7), 0);
    assert_memory_equal(served->memory + 8192, served->random, length);
    assert_true(served->pipes > 0);
}

/* Neither offset nor length are of whole pages, and what follows comes in the same segment. */
static void test_odd_and_followed(void **state)
{
    struct served *served = *state;
    uint32_t length = 100001;
    uint8_t *stream = malloc(2 * (28 + (size_t)length) + 28 + 5);
    struct nbd_request request;
    size_t at = 0;

    assert_non_null(stream);
    for (uint64_t i = 0; i < 3; i++) {
        uint32_t part = i < 2 ? length : 5;
        nbd_encode_request(&request, NBD_CMD_WRITE, 0, i, 77 + i * length, part);
        memcpy(stream + at, &request, sizeof(request));
        memcpy(stream + at + sizeof(request), served->random + i * length, part);
        at += sizeof(request) + part;
    }
    send_all(served, stream, at, at);
    for (uint64_t i = 0; i < 3; i++) {
        assert_int_equal(reply_to(served, i), 0);
    }
    assert_memory_equal(served->memory + 77, served->random, 2 * length + 5);
    assert_int_equal(served->memory[76], 0);
    assert_int_equal(served->memory[77 + 2 * length + 5], 0);
    assert_int_equal(served->complete, 3);
    free(stream);
}

static void test_refused_half_way(void **state)
{
    struct served *served = *state;
    uint32_t length = 1u << 20;

    send_header(served, 1, REFUSED - 8192, length);
    send_all(served, served->random, 8192, 8192);
    send_all(served, served->random + 8192, length - 8192, 70000);
    assert_int_equal(reply_to(served, 1), -ENOSPC);
    assert_int_equal(served->broken, 1);
    /* The connection goes on, with the next request where it belongs. */
    assert_int_equal(nbd_client_write(&served->client, served->random, 0, length), 0);
    assert_memory_equal(served->memory, served->random, length);
}

static void test_refused_before(void **state)
{
    struct served *served = *state;

    send_header(served, 1, SIZE - 4096, 1u << 20); /* beyond the end */
    send_all(served, served->random, 1u << 20, 1u << 20);
    assert_int_equal(reply_to(served, 1), -ENOSPC);
    assert_int_equal(served->pipes, 0);
    assert_int_equal(nbd_client_write(&served->client, served->random, 4096, 1u << 20), 0);
    assert_memory_equal(served->memory + 4096, served->random, 1u << 20);
}

static void test_cut(void **state)
{
    struct served *served = *state;

    send_header(served, 1, 0, 1u << 20);
    send_all(served, served->random, 300001, 300001);
    shutdown(served->client.channel.fd, SHUT_WR);
    uint8_t byte;
    assert_int_equal(recv(served->client.channel.fd, &byte, 1, 0), 0);
    assert_int_equal(served->complete, 0);
    assert_int_equal(served->broken, 1);
}

/* Stopping does not wait for a peer that has stopped in the middle of a payload. */
static void test_stopped(void **state)
{
    struct served *served = *state;

    served->random[65535] = 1;
    send_header(served, 1, 0, 1u << 20);
    send_all(served, served->random, 70001, 70001);
    for (unsigned ms = 0; ms < 10000 && served->memory[65535] != 1; ms++) {
        usleep(1000);
    }
    assert_int_equal(served->memory[65535], 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_in_one_go, setup, teardown),
        cmocka_unit_test_setup_teardown(test_byte_by_byte, setup, teardown),
        cmocka_unit_test_setup_teardown(test_odd_and_followed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused_half_way, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused_before, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cut, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stopped, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
