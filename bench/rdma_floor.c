// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * rdma_floor.c - what a READ of a page from a sub-host costs without a pager around it
 *
 *   rdma_floor rdma:HOST:PORT EXPORT N back   N READs, one right behind the other, as ib_read_lat does
 *   rdma_floor rdma:HOST:PORT EXPORT N gap    each after a pause asleep of 300 us, as between two faults
 *   rdma_floor rdma:HOST:PORT EXPORT N fault  faults of another process, answered by a bare loop: read the
 *                                             event, READ the page, UFFDIO_COPY; nothing is slept on
 *
 * All look for the completion without sleeping.  Prints a line of JSON: p50_ns and p99_ns of one READ, or of
 * one fault as the one who waits sees it.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench/latency.h"
#include "common/nbd_client.h"
#include "common/nbd_rdma.h"

#define PAGE ((size_t)4096)
#define STAGING (64u * PAGE)
#define GAP_NS 300000
#define WARM 500u /* pages that are read first: keys are known then, and caches warm */

static struct nbd_rdma *connection;

static void die(const char *what, const char *why)
{
    fprintf(stderr, "rdma-floor: %s: %s\n", what, why);
    exit(1);
}

/* Return: the page's contents. */
static const uint8_t *read_page(uint64_t page)
{
    static uint8_t reply[sizeof(struct nbd_simple_reply) + PAGE];
    struct nbd_request request;
    struct iovec iov = {.iov_base = &request, .iov_len = sizeof(request)};
    ssize_t got;

    nbd_encode_request(&request, NBD_CMD_READ, 0, page, page * PAGE, PAGE);
    if (nbd_rdma_send(connection, &iov, 1) != (ssize_t)sizeof(request)) {
        die("READ", "not posted");
    }
    while ((got = nbd_rdma_receive(connection, reply, sizeof(reply))) == 0) {
    }
    if (got != (ssize_t)sizeof(reply)) {
        die("READ", "not answered with a page");
    }
    return reply + sizeof(struct nbd_simple_reply);
}

static void run_read(size_t n, long gap_ns)
{
    struct timespec gap = {.tv_nsec = gap_ns};
    uint64_t *took = calloc(n, sizeof(*took));

    for (size_t i = 0; took && i < n; i++) {
        if (gap_ns) {
            nanosleep(&gap, NULL);
        }
        uint64_t began = now_ns();
        read_page(i);
        took[i] = now_ns() - began;
    }
    print_latency(took, n);
    free(took);
}

static _Noreturn void answer_faults(int uffd, uint64_t base)
{
    struct uffd_msg message;

    for (;;) {
        if (read(uffd, &message, sizeof(message)) != sizeof(message)) {
            continue;
        }
        uint64_t address = message.arg.pagefault.address & ~(PAGE - 1);
        const uint8_t *contents = read_page((address - base) / PAGE);
        struct uffdio_copy copy = {.dst = address, .src = (uintptr_t)contents, .len = PAGE};
        if (ioctl(uffd, UFFDIO_COPY, &copy) < 0) {
            die("UFFDIO_COPY", strerror(errno));
        }
    }
}

static void connect_to(const char *text, const char *export_name)
{
    struct endpoint address;
    struct reason reason = {""};

    if (nbd_rdma_parse(text, &address, &reason) < 0 ||
        nbd_rdma_connect(&connection, &address, export_name, STAGING, 10000, &reason) < 0) {
        die(text, reason.text);
    }
    for (uint64_t page = 0; page < WARM; page++) {
        read_page(page);
    }
}

/* The guest is this process; the other one has the connection, and says when it is up. */
static void run_fault(const char *text, const char *export_name, size_t n)
{
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM};
    int fd = memfd_create("floor", 0);
    int ready[2];
    char byte = 1;

    if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) < 0 || fd < 0 || pipe(ready) < 0 ||
        ftruncate(fd, (off_t)(n * PAGE)) < 0) {
        die("userfaultfd", strerror(errno));
    }
    volatile uint8_t *memory = mmap(NULL, n * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    struct uffdio_register region = {.range = {(uintptr_t)memory, n * PAGE},
                                     .mode = UFFDIO_REGISTER_MODE_MISSING};
    uint64_t *took = calloc(n, sizeof(*took));
    if (memory == MAP_FAILED || !took || ioctl(uffd, UFFDIO_REGISTER, &region) < 0) {
        die("UFFDIO_REGISTER", strerror(errno));
    }
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        connect_to(text, export_name);
        if (write(ready[1], &byte, 1) != 1) {
            _exit(1);
        }
        answer_faults(uffd, (uintptr_t)memory);
    }
    close(ready[1]);
    if (child < 0 || read(ready[0], &byte, 1) != 1) {
        die("the handler", "it has not come up");
    }
    for (size_t i = 0; i < n; i++) {
        uint64_t began = now_ns();
        (void)memory[i * PAGE + 8];
        took[i] = now_ns() - began;
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    print_latency(took, n);
    free(took);
}

int main(int argc, char **argv)
{
    size_t n = argc == 5 ? strtoull(argv[3], NULL, 0) : 0;

    if (n == 0 || n > 3072) { /* the region has so many pages */
        fprintf(stderr, "usage: rdma-floor rdma:HOST:PORT EXPORT N back|gap|fault (N up to 3072)\n");
        return 2;
    }
    if (strcmp(argv[4], "fault") == 0) {
        run_fault(argv[1], argv[2], n);
        return 0;
    }
    connect_to(argv[1], argv[2]);
    run_read(n, strcmp(argv[4], "gap") == 0 ? GAP_NS : 0);
    nbd_rdma_close(connection);
    return 0;
}
