// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * fault_floor.c - what a fault and page-out cost without a pager around them
 *
 *   fault_floor tcp N [spin|gap]   N exchanges of a 28-byte request and a 16+4096-byte reply on loopback;
 *                                  gap: each a millisecond after the one before, as faults come apart
 *   fault_floor copy N [spin] [vcpu|vcpu-async]
 *                                  N faults on a memfd, answered by a bare loop of read and
 *                                  UFFDIO_COPY: of this process, or of a KVM guest's vCPU in either
 *                                  of the ways that it can wait (vcpu.h)
 *   fault_floor zero N [spin] [vcpu|vcpu-async]
 *                                  the same with UFFDIO_ZEROPAGE
 *   fault_floor pageout MIB        memfd -> pread -> TCP -> fresh memfd, then the hole is punched
 *   fault_floor drop MIB           holes are punched, nothing is sent
 *   fault_floor swap N CGROUP      N first touches of pages that were swapped out because a memory cgroup,
 *                                  whose folder that is and which it joins, had no room for them
 *
 * The other side is another process, as it is in life.  It waits in poll or recv, or (spin) looks for
 * work without sleeping.  Prints a line of JSON: p50_ns and p99_ns of one exchange or fault as the one who waits sees
 * it; for page-out and drop seconds, and CPU seconds of both processes.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench/latency.h"
#include "tests/tools/vcpu.h"

#define PAGE ((size_t)4096)
#define REQUEST 28u
#define REPLY (16u + PAGE)
#define BATCH (64u * PAGE) /* as page-out sends them */
#define AHEAD 8u           /* batches that are sent before the first is answered */
#define SCATTER 7919u      /* a prime: the order of touches */

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void connect_pair(int pair[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof(address);
    int one = 1;
    int listener = socket(AF_INET, SOCK_STREAM, 0);

    if (bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(listener, 1) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) < 0) {
        die("listen");
    }
    pair[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(pair[0], (struct sockaddr *)&address, sizeof(address)) < 0) {
        die("connect");
    }
    pair[1] = accept(listener, NULL, NULL);
    setsockopt(pair[0], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(pair[1], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    close(listener);
}

/* Return: false at the end of the stream. */
static bool receive_all(int sock, uint8_t *to, size_t n, bool spin)
{
    while (n) {
        ssize_t got = recv(sock, to, n, spin ? MSG_DONTWAIT : 0);
        if (got > 0) {
            to += got;
            n -= (size_t)got;
        } else if (got == 0 || errno != EAGAIN) {
            return false;
        }
    }
    return true;
}

static void send_all(int sock, const uint8_t *bytes, size_t n)
{
    while (n) {
        ssize_t sent = send(sock, bytes, n, MSG_NOSIGNAL);
        if (sent <= 0) {
            die("send");
        }
        bytes += sent;
        n -= (size_t)sent;
    }
}

static pid_t child_begin(void)
{
    pid_t child = fork();

    if (child < 0) {
        die("fork");
    }
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    }
    return child;
}

static void run_tcp(size_t n, bool spin, bool gap)
{
    static uint8_t request[REQUEST], reply[REPLY];
    uint64_t *took = calloc(n, sizeof(*took));
    int pair[2];

    connect_pair(pair);
    if (child_begin() == 0) {
        close(pair[0]);
        while (receive_all(pair[1], request, sizeof(request), spin)) {
            send_all(pair[1], reply, sizeof(reply));
        }
        _exit(0);
    }
    close(pair[1]);
    for (size_t i = 0; took && i < n; i++) {
        if (gap) {
            usleep(1000);
        }
        uint64_t began = now_ns();
        send_all(pair[0], request, sizeof(request));
        if (!receive_all(pair[0], reply, sizeof(reply), spin)) {
            die("recv");
        }
        took[i] = now_ns() - began;
    }
    close(pair[0]);
    wait(NULL);
    print_latency(took, n);
}

/* Answer faults until killed. */
static void handler_main(int uffd, bool copy, bool spin)
{
    static uint8_t contents[PAGE] __attribute__((aligned(4096))) = {1};
    struct pollfd pollfd = {.fd = uffd, .events = POLLIN};

    for (;;) {
        struct uffd_msg message;
        if (!spin) {
            poll(&pollfd, 1, -1);
        }
        if (read(uffd, &message, sizeof(message)) != sizeof(message)) {
            continue;
        }
        uint64_t page = message.arg.pagefault.address & ~(PAGE - 1);
        if (copy) {
            struct uffdio_copy arg = {.dst = page, .src = (uintptr_t)contents, .len = PAGE};
            ioctl(uffd, UFFDIO_COPY, &arg);
        } else {
            struct uffdio_zeropage arg = {.range = {page, PAGE}};
            ioctl(uffd, UFFDIO_ZEROPAGE, &arg);
        }
    }
}

enum toucher { PROCESS, VCPU, VCPU_ASYNC };

static void touch_by_vcpu(void *memory, size_t n, bool asynchronous)
{
    uint64_t *took = calloc(n, sizeof(*took)), *offset = calloc(n, sizeof(*offset));

    if (!took || !offset) {
        die("memory");
    }
    for (size_t i = 0; i < n; i++) {
        offset[i] = i * SCATTER % n * PAGE;
    }
    vcpu_touch(memory, n * PAGE, offset, n, asynchronous, took);
    print_latency(took, n);
    free(took);
    free(offset);
}

static void touch_all(volatile uint8_t *memory, size_t n)
{
    uint64_t *took = calloc(n, sizeof(*took));

    for (size_t i = 0; took && i < n; i++) {
        size_t page = i * SCATTER % n;
        uint64_t began = now_ns();
        (void)memory[page * PAGE + 8];
        took[i] = now_ns() - began;
    }
    print_latency(took, n);
}

static void run_fault(size_t n, bool copy, bool spin, enum toucher toucher)
{
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM};
    int fd = memfd_create("floor", 0);

    if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) < 0 || fd < 0 ||
        ftruncate(fd, (off_t)(n * PAGE)) < 0) {
        die("userfaultfd");
    }
    uint8_t *memory = mmap(NULL, n * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    struct uffdio_register region = {.range = {(uintptr_t)memory, n * PAGE},
                                     .mode = UFFDIO_REGISTER_MODE_MISSING};
    if (memory == MAP_FAILED || ioctl(uffd, UFFDIO_REGISTER, &region) < 0) {
        die("UFFDIO_REGISTER");
    }
    pid_t child = child_begin();
    if (child == 0) {
        handler_main(uffd, copy, spin);
    }
    if (toucher == PROCESS) {
        touch_all(memory, n);
    } else {
        touch_by_vcpu(memory, n, toucher == VCPU_ASYNC);
    }
    kill(child, SIGKILL);
    wait(NULL);
}

static double cpu(int who)
{
    struct rusage usage;

    getrusage(who, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void fill(uint8_t *memory, size_t size)
{
    uint64_t random = 88172645463325252u;

    for (size_t i = 0; i < size / sizeof(random); i++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        ((uint64_t *)(void *)memory)[i] = random;
    }
}

/*
 * The sub-host's side: by a bounce buffer, the fastest way into a memfd (bench/mover_floor.c), which has older
 * copies of the pages, as a sub-host does.  Says when it is ready, and how much CPU it took.
 */
static void store_main(int sock, size_t size)
{
    static uint8_t request[REQUEST], reply[16], contents[BATCH];
    int fd = memfd_create("store", 0);

    for (size_t at = 0; at < size; at += BATCH) {
        if (fd < 0 || pwrite(fd, contents, BATCH, (off_t)at) != (ssize_t)BATCH) {
            die("memfd");
        }
    }
    send_all(sock, reply, 1);
    double before = cpu(RUSAGE_SELF);
    for (size_t at = 0; at < size; at += BATCH) {
        if (!receive_all(sock, request, sizeof(request), false) ||
            !receive_all(sock, contents, BATCH, false) ||
            pwrite(fd, contents, BATCH, (off_t)at) != (ssize_t)BATCH) {
            die("store");
        }
        send_all(sock, reply, sizeof(reply));
    }
    double used = cpu(RUSAGE_SELF) - before;
    send_all(sock, (const uint8_t *)&used, sizeof(used));
    _exit(0);
}

/* A batch's hole is punched when it is answered, which is when AHEAD more have been sent. */
static void pageout_send(int sock, int fd, size_t size)
{
    static uint8_t contents[BATCH], request[REQUEST], reply[16];

    for (size_t at = 0; at < size + AHEAD * BATCH; at += BATCH) {
        if (at < size) {
            if (pread(fd, contents, BATCH, (off_t)at) != (ssize_t)BATCH) {
                die("pread");
            }
            send_all(sock, request, sizeof(request));
            send_all(sock, contents, BATCH);
        }
        if (at >= AHEAD * BATCH &&
            (!receive_all(sock, reply, sizeof(reply), false) ||
             fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                       (off_t)(at - AHEAD * BATCH), (off_t)BATCH) < 0)) {
            die("page-out");
        }
    }
}

static void run_pageout(size_t size, bool send)
{
    int fd = memfd_create("from", 0);
    int pair[2] = {-1, -1};

    if (size == 0 || size % BATCH || fd < 0 || ftruncate(fd, (off_t)size) < 0) {
        die("memfd");
    }
    uint8_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    fill(memory, size);
    double used = 0;
    uint8_t ready;
    if (send) {
        connect_pair(pair);
        if (child_begin() == 0) {
            close(pair[0]);
            store_main(pair[1], size);
        }
        close(pair[1]);
        receive_all(pair[0], &ready, 1, false);
    }
    double before = cpu(RUSAGE_SELF);
    uint64_t began = now_ns();
    if (send) {
        pageout_send(pair[0], fd, size);
    } else {
        for (size_t at = 0; at < size; at += BATCH) {
            fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)BATCH);
        }
    }
    double took = (double)(now_ns() - began) / 1e9;
    double cpu_here = cpu(RUSAGE_SELF) - before;
    if (send && !receive_all(pair[0], (uint8_t *)&used, sizeof(used), false)) {
        die("the store's CPU");
    }
    printf("{\"bytes\": %zu, \"seconds\": %.6f, \"cpu\": %.6f}\n", size, took, cpu_here + used);
}

/* Return: whether there is such a file, and it took the number. */
static bool cgroup_write(const char *folder, const char *name, long long number)
{
    char path[4096], text[32];
    int length = snprintf(text, sizeof(text), "%lld", number);

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    int fd = open(path, O_WRONLY);
    bool good = fd >= 0 && write(fd, text, (size_t)length) == length;
    if (fd >= 0) {
        close(fd);
    }
    return good;
}

static void cgroup_limit(const char *folder, size_t bytes)
{
    if (!cgroup_write(folder, "memory.max", (long long)bytes) &&
        !cgroup_write(folder, "memory.limit_in_bytes", (long long)bytes)) {
        die(folder);
    }
}

/* Twice as much memory is filled as is touched then: the older half is out for sure. */
static void run_swap(size_t n, const char *cgroup)
{
    size_t size = 2 * n * PAGE;
    uint8_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED || !cgroup_write(cgroup, "cgroup.procs", getpid())) {
        die(cgroup);
    }
    madvise(memory, size, MADV_NOHUGEPAGE);
    cgroup_limit(cgroup, n * PAGE / 2);
    fill(memory, size);
    cgroup_limit(cgroup, 4 * size);
    touch_all(memory, n);
}

static int usage(void)
{
    fprintf(stderr, "usage: fault_floor tcp N [spin|gap] | copy|zero N [spin] [vcpu|vcpu-async] |"
                    " pageout|drop MIB | swap N CGROUP\n");
    return 2;
}

int main(int argc, char **argv)
{
    const char *what = argc > 2 ? argv[1] : "";
    size_t n = argc > 2 ? strtoull(argv[2], NULL, 0) : 0;
    bool spin = argc > 3 && strcmp(argv[3], "spin") == 0;
    const char *who = argc > 3 + spin ? argv[3 + spin] : "";
    enum toucher toucher = strcmp(who, "vcpu") == 0         ? VCPU
                           : strcmp(who, "vcpu-async") == 0 ? VCPU_ASYNC
                                                            : PROCESS;

    if (n == 0 || n > 1u << 24) {
        return usage();
    }
    if (strcmp(what, "tcp") == 0) {
        run_tcp(n, spin, strcmp(who, "gap") == 0);
    } else if (strcmp(what, "copy") == 0 || strcmp(what, "zero") == 0) {
        run_fault(n, what[0] == 'c', spin, toucher);
    } else if (strcmp(what, "pageout") == 0 || strcmp(what, "drop") == 0) {
        run_pageout(n << 20, what[0] == 'p');
    } else if (strcmp(what, "swap") == 0 && argc > 3) {
        run_swap(n, argv[3]);
    } else {
        return usage();
    }
    return 0;
}
