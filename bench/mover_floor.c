// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * mover_floor.c - what moving memory costs without a protocol: memfd to TCP to fresh memfd
 *
 *   mover_floor [MIB]
 *
 * One sender and one receiver process over loopback, one stream; each variant's receiver begins
 * with an empty memfd.  Prints MiB/s and CPU seconds per GiB of both processes.
 *
 *   send:     from the mapping (populated before each piece), or sendfile(2)
 *   receive:  discard; bounce + pwrite; into the mapping; into the mapping after MADV_POPULATE_WRITE
 *             or fallocate(2) of the piece; splice(2) through a pipe
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

#define MOST_PIECE ((size_t)4 << 20)

enum how_send { SEND_MAPPING, SEND_FILE };
enum how_receive {
    RECEIVE_DISCARD,
    RECEIVE_PWRITE,
    RECEIVE_MAPPING,
    RECEIVE_POPULATE,
    RECEIVE_FALLOCATE,
    RECEIVE_SPLICE,
};

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static double cpu(int who)
{
    struct rusage usage;

    getrusage(who, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void connect_pair(int pair[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof(address);
    int one = 1;
    int listener = socket(AF_INET, SOCK_STREAM, 0);

    if (bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        listen(listener, 1) < 0 || getsockname(listener, (struct sockaddr *)&address, &length) < 0) {
        die("listen");
    }
    pair[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(pair[0], (struct sockaddr *)&address, sizeof(address)) < 0) {
        die("connect");
    }
    pair[1] = accept(listener, NULL, NULL);
    setsockopt(pair[0], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    close(listener);
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

static void run_sender(int sock, int fd, uint8_t *memory, size_t size, size_t piece,
                       enum how_send how)
{
    for (size_t at = 0; at < size; at += piece) {
        if (how == SEND_MAPPING) {
            madvise(memory + at, piece, MADV_POPULATE_READ);
            send_all(sock, memory + at, piece);
            continue;
        }
        off_t from = (off_t)at;
        while ((size_t)from < at + piece) {
            if (sendfile(sock, fd, &from, at + piece - (size_t)from) <= 0) {
                die("sendfile");
            }
        }
    }
}

static void receive_all(int sock, uint8_t *to, size_t n)
{
    while (n) {
        ssize_t got = recv(sock, to, n, 0);
        if (got <= 0) {
            die("recv");
        }
        to += got;
        n -= (size_t)got;
    }
}

static void receive_splice(int sock, int fd, const int tube[2], size_t at, size_t n)
{
    off_t to = (off_t)at;

    while (n) {
        ssize_t got = splice(sock, NULL, tube[1], NULL, n, SPLICE_F_MOVE);
        if (got <= 0) {
            die("splice");
        }
        n -= (size_t)got;
        while (got) {
            ssize_t put = splice(tube[0], NULL, fd, &to, (size_t)got, SPLICE_F_MOVE);
            if (put <= 0) {
                die("splice");
            }
            got -= put;
        }
    }
}

static void receive_piece(int sock, int fd, uint8_t *memory, uint8_t *bounce, const int tube[2],
                          size_t at, size_t piece, enum how_receive how)
{
    bool direct = how != RECEIVE_DISCARD && how != RECEIVE_PWRITE;

    if (how == RECEIVE_SPLICE) {
        receive_splice(sock, fd, tube, at, piece);
        return;
    }
    if (how == RECEIVE_POPULATE) {
        madvise(memory + at, piece, MADV_POPULATE_WRITE);
    } else if (how == RECEIVE_FALLOCATE) {
        if (fallocate(fd, 0, (off_t)at, (off_t)piece) < 0) {
            die("fallocate");
        }
    }
    receive_all(sock, direct ? memory + at : bounce, piece);
    if (how == RECEIVE_PWRITE && pwrite(fd, bounce, piece, (off_t)at) != (ssize_t)piece) {
        die("pwrite");
    }
}

static void run_receiver(int sock, size_t size, size_t piece, enum how_receive how)
{
    int fd = memfd_create("to", 0);
    int tube[2];
    uint8_t *bounce = aligned_alloc(4096, MOST_PIECE);

    if (ftruncate(fd, (off_t)size) < 0 || pipe(tube) < 0 || !bounce) {
        die("memfd");
    }
    fcntl(tube[0], F_SETPIPE_SZ, 1 << 20);
    uint8_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    for (size_t at = 0; at < size; at += piece) {
        receive_piece(sock, fd, memory, bounce, tube, at, piece, how);
    }
    send_all(sock, bounce, 1);
}

static void run_variant(const char *name, int fd, uint8_t *memory, size_t size, size_t piece,
                        enum how_send how_send, enum how_receive how_receive)
{
    int pair[2];
    uint8_t byte;

    connect_pair(pair);
    double before = cpu(RUSAGE_SELF) + cpu(RUSAGE_CHILDREN);
    double start = now();
    pid_t child = fork();
    if (child == 0) {
        close(pair[0]);
        run_receiver(pair[1], size, piece, how_receive);
        _exit(0);
    }
    close(pair[1]);
    run_sender(pair[0], fd, memory, size, piece, how_send);
    receive_all(pair[0], &byte, 1);
    double took = now() - start;
    waitpid(child, NULL, 0);
    close(pair[0]);
    double used = cpu(RUSAGE_SELF) + cpu(RUSAGE_CHILDREN) - before;
    double gib = (double)size / (1 << 30);
    printf("%-44s %5zu KiB pieces  %7.0f MiB/s  %5.2f CPU s/GiB\n", name, piece >> 10,
           gib * 1024 / took, used / gib);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    size_t size = (argc > 1 ? strtoull(argv[1], NULL, 0) : 1024) << 20;
    int fd = memfd_create("from", 0);
    uint64_t random = 88172645463325252u;

    if (size == 0 || size % MOST_PIECE || ftruncate(fd, (off_t)size) < 0) {
        fprintf(stderr, "usage: mover_floor [MIB, a multiple of 4]\n");
        return 2;
    }
    uint8_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    for (size_t i = 0; i < size / sizeof(random); i++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        ((uint64_t *)(void *)memory)[i] = random;
    }
    static const struct {
        const char *name;
        size_t piece;
        enum how_send how_send;
        enum how_receive how_receive;
    } variants[] = {
        {"mapping -> discard", 1 << 20, SEND_MAPPING, RECEIVE_DISCARD},
        {"sendfile -> discard", 1 << 20, SEND_FILE, RECEIVE_DISCARD},
        {"mapping -> bounce, pwrite", 64 << 10, SEND_MAPPING, RECEIVE_PWRITE},
        {"mapping -> bounce, pwrite", 256 << 10, SEND_MAPPING, RECEIVE_PWRITE},
        {"mapping -> bounce, pwrite", 1 << 20, SEND_MAPPING, RECEIVE_PWRITE},
        {"mapping -> mapping", 1 << 20, SEND_MAPPING, RECEIVE_MAPPING},
        {"mapping -> mapping, MADV_POPULATE_WRITE", 1 << 20, SEND_MAPPING, RECEIVE_POPULATE},
        {"mapping -> mapping, fallocate", 1 << 20, SEND_MAPPING, RECEIVE_FALLOCATE},
        {"mapping -> splice", 1 << 20, SEND_MAPPING, RECEIVE_SPLICE},
        {"sendfile -> bounce, pwrite", 256 << 10, SEND_FILE, RECEIVE_PWRITE},
        {"sendfile -> splice", 1 << 20, SEND_FILE, RECEIVE_SPLICE},
    };
    for (size_t i = 0; i < sizeof(variants) / sizeof(variants[0]); i++) {
        run_variant(variants[i].name, fd, memory, size, variants[i].piece, variants[i].how_send,
                    variants[i].how_receive);
    }
    return 0;
}
