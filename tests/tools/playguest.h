/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * playguest.h - the guest's half of engineplay and guestplay
 *
 * Memory is memfds mapped shared, as QEMU has it.  What a page must hold
 * follows from the seed, its number and its generation, which is kept outside
 * of that memory; generation 0 is a page that was never written, and every
 * 16th generation is a page of zeros.  Worker threads take a page's lock,
 * check all of it, and perhaps write its next generation.
 *
 * Everything the controlling process may want to see or change lies in one
 * shared anonymous mapping, made before the guest is forked.
 */
#ifndef TESTS_TOOLS_PLAYGUEST_H
#define TESTS_TOOLS_PLAYGUEST_H

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/layout.h"
#include "common/units.h"
#include "uffd-pager/uffd_abi.h"

#define PLAY_MAX_BLOCKS 4u
#define PLAY_MAX_THREADS 16u
#define PLAY_ZERO_EVERY 16u

enum play_mode { PLAY_RANDOM, PLAY_HOT, PLAY_SCAN };

struct play {
    uint64_t seed;
    uint64_t n_pages; /* of the flat RAM */
    uint32_t n_blocks;
    struct {
        char idstr[32];
        uint64_t flat, size, fd_offset;
        uint8_t *base; /* in the guest */
        int fd;
    } block[PLAY_MAX_BLOCKS];
    unsigned n_threads;
    _Atomic bool go, quit;
    _Atomic unsigned working; /* threads in the middle of a page */
    _Atomic int mode;
    _Atomic unsigned write_percent;
    _Atomic uint64_t first, set; /* pages the threads work on */
    _Atomic uint64_t checks, writes, errors, lost;
    _Atomic uint64_t longest_us; /* the longest single access */
    _Atomic uint64_t bad_page;
    _Atomic uint8_t *page_lock;
    _Atomic uint8_t *page_lost;
    _Atomic uint32_t *generation;
};

static inline uint64_t play_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static inline bool play_is_zero(uint32_t generation)
{
    return generation % PLAY_ZERO_EVERY == 0;
}

static inline uint64_t play_key(const struct play *play, uint64_t page, uint32_t generation)
{
    return play_mix(play->seed ^ play_mix(page << 32 | generation));
}

/** play_fill() - write what @page holds in @generation */
static inline void play_fill(const struct play *play, uint64_t page, uint32_t generation,
                             void *memory)
{
    uint64_t key = play_key(play, page, generation);
    uint64_t *word = memory;

    for (uint64_t i = 0; i < PAGE_BYTES / sizeof(*word); i++) {
        word[i] = play_is_zero(generation) ? 0 : (key + i * 0x9e3779b97f4a7c15ull) ^ (key >> 13);
    }
}

/** play_check() - Return: true if @memory is what @page holds in @generation */
static inline bool play_check(const struct play *play, uint64_t page, uint32_t generation,
                              const void *memory)
{
    uint64_t key = play_key(play, page, generation);
    const volatile uint64_t *word = memory;

    for (uint64_t i = 0; i < PAGE_BYTES / sizeof(*word); i++) {
        uint64_t want =
            play_is_zero(generation) ? 0 : (key + i * 0x9e3779b97f4a7c15ull) ^ (key >> 13);
        if (word[i] != want) {
            return false;
        }
    }
    return true;
}

static inline void *play_shared(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED) {
        perror("mmap");
        exit(2);
    }
    return memory;
}

/* What a guest knows of its pages can be a file, to go on with after it has moved. */
static inline void *play_shared_file(const char *path, size_t size)
{
    if (!path) {
        return play_shared(size);
    }
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)size) < 0) {
        perror(path);
        exit(2);
    }
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (memory == MAP_FAILED) {
        perror("mmap");
        exit(2);
    }
    return memory;
}

/**
 * play_new() - the shared part
 * @sizes: bytes of each block; they are named ram0, ram1, ... and lie as layout.h says
 * @state: a file for the generations of the pages, or NULL
 */
static inline struct play *play_new(uint64_t seed, const uint64_t *sizes, uint32_t n_blocks,
                                    const char *state)
{
    struct play *play = play_shared(sizeof(*play));
    uint64_t flat = 0;

    play->seed = seed;
    play->n_blocks = n_blocks;
    for (uint32_t i = 0; i < n_blocks; i++) {
        snprintf(play->block[i].idstr, sizeof(play->block[i].idstr), "ram%u", i);
        play->block[i].flat = flat;
        play->block[i].size = sizes[i];
        /* Not at the beginning of its file, to catch who mixes offsets up. */
        play->block[i].fd_offset = i * 3 * PAGE_BYTES;
        play->block[i].fd = memfd_create(play->block[i].idstr, MFD_CLOEXEC);
        if (play->block[i].fd < 0 ||
            ftruncate(play->block[i].fd, (off_t)(sizes[i] + play->block[i].fd_offset)) < 0) {
            perror("memfd");
            exit(2);
        }
        flat += (sizes[i] + CHUNK_BYTES - 1) & ~(CHUNK_BYTES - 1);
    }
    play->n_pages = flat / PAGE_BYTES;
    play->page_lock = play_shared(play->n_pages);
    play->page_lost = play_shared(play->n_pages);
    play->generation = play_shared_file(state, play->n_pages * sizeof(uint32_t));
    play->set = play->n_pages;
    play->write_percent = 50;
    return play;
}

/** play_block() - the block of @page, or -1 in a gap */
static inline int play_block(const struct play *play, uint64_t page)
{
    for (uint32_t i = 0; i < play->n_blocks; i++) {
        uint64_t flat = page * PAGE_BYTES;
        if (flat >= play->block[i].flat && flat - play->block[i].flat < play->block[i].size) {
            return (int)i;
        }
    }
    return -1;
}

/** play_map() - in the guest: map the memory, make a userfaultfd. Return: the userfaultfd. */
static inline int play_map(struct play *play)
{
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

    if (uffd < 0) {
        perror("userfaultfd");
        exit(77);
    }
    for (uint32_t i = 0; i < play->n_blocks; i++) {
        play->block[i].base = mmap(NULL, play->block[i].size, PROT_READ | PROT_WRITE, MAP_SHARED,
                                   play->block[i].fd, (off_t)play->block[i].fd_offset);
        if (play->block[i].base == MAP_FAILED) {
            perror("mmap");
            exit(2);
        }
        madvise(play->block[i].base, play->block[i].size, MADV_DONTDUMP);
    }
    return uffd;
}

/** play_pagemap() - in the guest: what tells others which of its pages are mapped */
static inline int play_pagemap(void)
{
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        perror("/proc/self/pagemap");
        exit(2);
    }
    return fd;
}

static inline uint8_t *play_address(const struct play *play, uint64_t page)
{
    int block = play_block(play, page);

    return block < 0 ? NULL
                     : play->block[block].base + (page * PAGE_BYTES - play->block[block].flat);
}

/* Whoever has the lock may wait for the page: who yields for long only takes the pager's processor. */
static inline void play_lock(struct play *play, uint64_t page)
{
    const struct timespec nap = {.tv_nsec = 50000};

    for (unsigned tries = 0;
         atomic_exchange_explicit(&play->page_lock[page], 1, memory_order_acquire); tries++) {
        if (tries < 16) {
            sched_yield();
        } else {
            nanosleep(&nap, NULL);
        }
    }
}

static inline void play_unlock(struct play *play, uint64_t page)
{
    atomic_store_explicit(&play->page_lock[page], 0, memory_order_release);
}

/* ---- access, and the signal a lost page gives ---- */

static __thread sigjmp_buf play_jump;
static __thread volatile sig_atomic_t play_armed;

static void play_sigbus(int signal)
{
    (void)signal;
    if (!play_armed) {
        _exit(99);
    }
    play_armed = 0;
    siglongjmp(play_jump, 1);
}

static inline void play_signals(void)
{
    struct sigaction action = {.sa_handler = play_sigbus, .sa_flags = SA_NODEFER};

    sigaction(SIGBUS, &action, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static inline void play_wrong(struct play *play, uint64_t page, const uint8_t *memory)
{
    if (atomic_fetch_add(&play->errors, 1) < 4) {
        const uint64_t *word = (const uint64_t *)memory;
        play->bad_page = page;
        fprintf(stderr, "page %" PRIu64 ": generation %u expected, words %" PRIx64 " %" PRIx64 "\n",
                page, play->generation[page], word[0], word[511]);
        for (uint32_t g = 0; g <= play->generation[page] + 1; g++) {
            if (play_check(play, page, g, memory)) {
                fprintf(stderr, "  it holds generation %u\n", g);
                break;
            }
        }
    }
}

/* Check @page, and write its next generation if @write.  The caller holds its lock. */
static inline void play_access(struct play *play, uint64_t page, bool write)
{
    uint8_t *volatile memory = play_address(play, page);
    uint32_t generation = play->generation[page];
    uint64_t began = units_now_us();

    if (!memory || play->page_lost[page]) {
        return;
    }
    play_armed = 1;
    if (sigsetjmp(play_jump, 1)) { /* a sanitizer blocks signals in handlers */
        play->page_lost[page] = 1;
        atomic_fetch_add(&play->lost, 1);
        return;
    }
    if (write && page % 3 == 0) {
        /* A write is the first access: another path through the pager. */
        *(volatile uint64_t *)memory = *(volatile uint64_t *)memory;
        atomic_fetch_add((_Atomic uint64_t *)(memory + 8), 0);
    }
    if (!play_check(play, page, generation, memory)) {
        play_wrong(play, page, memory);
    }
    if (write) {
        play_fill(play, page, generation + 1, memory);
        play->generation[page] = generation + 1;
        atomic_fetch_add_explicit(&play->writes, 1, memory_order_relaxed);
    }
    play_armed = 0;
    atomic_fetch_add_explicit(&play->checks, 1, memory_order_relaxed);
    uint64_t took = units_now_us() - began;
    if (took > play->longest_us) {
        play->longest_us = took;
    }
}

static inline uint64_t play_choose(struct play *play, uint64_t random, uint64_t *scan)
{
    uint64_t set = play->set;

    switch (play->mode) {
    case PLAY_SCAN:
        *scan = (*scan + 1) % set;
        return play->first + *scan;
    case PLAY_HOT: /* nine of ten accesses go to a tenth of the pages */
        if (random >> 32 & 7) {
            set = set / 10 + 1;
        }
        return play->first + (random & 0xffffffff) % set;
    default:
        return play->first + (random & 0xffffffff) % set;
    }
}

struct play_worker {
    struct play *play;
    unsigned index;
};

static void *play_work(void *arg)
{
    struct play_worker *worker = arg;
    struct play *play = worker->play;
    uint64_t state = play_mix(play->seed + worker->index + 1);
    uint64_t scan = play->n_pages / (worker->index + 1);

    while (!play->quit) {
        if (!play->go) {
            usleep(1000);
            continue;
        }
        atomic_fetch_add(&play->working, 1);
        if (play->go) {
            uint64_t random = play_mix(state += 0x9e3779b97f4a7c15ull);
            uint64_t page = play_choose(play, random, &scan);
            play_lock(play, page);
            play_access(play, page, (random >> 40) % 100 < play->write_percent);
            play_unlock(play, page);
        }
        atomic_fetch_sub(&play->working, 1);
    }
    return NULL;
}

/** play_start() - start the worker threads, which wait for play->go */
static inline void play_start(struct play *play, unsigned n_threads)
{
    static struct play_worker workers[PLAY_MAX_THREADS];
    pthread_t thread;

    play->n_threads = n_threads;
    for (unsigned i = 0; i < n_threads && i < PLAY_MAX_THREADS; i++) {
        workers[i] = (struct play_worker){.play = play, .index = i};
        pthread_create(&thread, NULL, play_work, &workers[i]);
        pthread_setname_np(thread, "vcpu");
        pthread_detach(thread);
    }
}

/** play_verify() - check every page through the mapping */
static inline void play_verify(struct play *play)
{
    for (uint64_t page = 0; page < play->n_pages; page++) {
        play_lock(play, page);
        play_access(play, page, false);
        play_unlock(play, page);
    }
}

/** play_discard() - give pages up as a balloon does */
static inline int play_discard(struct play *play, uint64_t first, uint64_t n)
{
    for (uint64_t page = first; page < first + n; page++) {
        int block = play_block(play, page);
        if (block < 0) {
            continue;
        }
        off_t at = (off_t)(page * PAGE_BYTES - play->block[block].flat +
                           play->block[block].fd_offset);
        if (fallocate(play->block[block].fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at,
                      (off_t)PAGE_BYTES) < 0 ||
            madvise(play_address(play, page), PAGE_BYTES, MADV_DONTNEED) < 0) {
            return -errno;
        }
    }
    return 0;
}

/** play_zap() - what QEMU's zap service does */
static inline int play_zap(struct play *play, const struct handoff_range *ranges, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (ranges[i].block >= play->n_blocks ||
            ranges[i].offset + ranges[i].length > play->block[ranges[i].block].size ||
            madvise(play->block[ranges[i].block].base + ranges[i].offset, ranges[i].length,
                    MADV_DONTNEED) < 0) {
            return -EINVAL;
        }
    }
    return 0;
}

/* Take the latency of single accesses to pages of [first, first + n), each by a first touch. */
struct play_latency {
    uint64_t count, p50_ns, p99_ns, max_ns;
};

static inline int play_compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static inline uint64_t play_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/** play_latency() - sorts @took, which is not empty */
static inline struct play_latency play_latency(uint64_t *took, uint64_t count)
{
    qsort(took, count, sizeof(*took), play_compare_u64);
    return (struct play_latency){.count = count,
                                 .p50_ns = took[count / 2],
                                 .p99_ns = took[count - 1 - count / 100],
                                 .max_ns = took[count - 1]};
}

static inline struct play_latency play_bench(struct play *play, uint64_t first, uint64_t n,
                                             uint64_t stride)
{
    uint64_t *took = calloc(n, sizeof(*took));
    uint64_t count = 0;
    struct play_latency latency = {0};

    for (uint64_t i = 0; took && i < n; i++) {
        uint64_t page = first + i * stride;
        const volatile uint8_t *memory = page < play->n_pages ? play_address(play, page) : NULL;
        if (memory) {
            uint64_t began = play_now_ns();
            (void)memory[8];
            took[count++] = play_now_ns() - began;
        }
    }
    if (count) {
        latency = play_latency(took, count);
    }
    free(took);
    return latency;
}

/* First touches by many threads at once: each takes every n_threads-th page of a scattered order. */
struct play_storm {
    struct play *play;
    uint64_t first, n, step;
    unsigned n_threads, index;
    bool write;
    uint64_t *took; /* [n] */
};

/* A prime that divides no number of pages anybody asks for: neighbours are touched far apart in time. */
#define PLAY_SCATTER 1000003u

static void *play_storm_main(void *arg)
{
    const struct play_storm *storm = arg;

    for (uint64_t i = storm->index; i < storm->n; i += storm->n_threads) {
        uint64_t page = storm->first + i * PLAY_SCATTER % storm->n * storm->step;
        volatile uint8_t *memory =
            page < storm->play->n_pages ? play_address(storm->play, page) : NULL;
        uint64_t began = play_now_ns();
        if (memory && storm->write) {
            memory[8] = memory[8];
        } else if (memory) {
            (void)memory[8];
        }
        storm->took[i] = play_now_ns() - began;
    }
    return NULL;
}

/** play_storm() - touch pages first, first + step, ... @n of them. @elapsed_ns: all of it */
static inline struct play_latency play_storm(struct play *play, const struct play_storm *what,
                                             uint64_t *elapsed_ns)
{
    struct play_storm storm[PLAY_MAX_THREADS];
    pthread_t thread[PLAY_MAX_THREADS];
    struct play_latency latency = {0};
    uint64_t *took = calloc(what->n + 1, sizeof(*took));
    unsigned n_threads =
        what->n_threads < PLAY_MAX_THREADS ? what->n_threads : PLAY_MAX_THREADS;
    uint64_t began = play_now_ns();

    for (unsigned i = 0; took && i < n_threads; i++) {
        storm[i] = *what;
        storm[i].play = play;
        storm[i].n_threads = n_threads;
        storm[i].index = i;
        storm[i].took = took;
        pthread_create(&thread[i], NULL, play_storm_main, &storm[i]);
    }
    for (unsigned i = 0; took && i < n_threads; i++) {
        pthread_join(thread[i], NULL);
    }
    *elapsed_ns = play_now_ns() - began;
    if (took && what->n) {
        latency = play_latency(took, what->n);
    }
    free(took);
    return latency;
}

static inline int send_fd(int socket, int fd)
{
    char byte = 'f';
    char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec iov = {&byte, 1};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof(control)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);

    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof(fd));
    return sendmsg(socket, &message, 0) == 1 ? 0 : -1;
}

static inline int receive_fd(int socket)
{
    char byte;
    int fd;
    char control[CMSG_SPACE(sizeof(int))];
    struct iovec iov = {&byte, 1};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof(control)};

    if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1 || !CMSG_FIRSTHDR(&message)) {
        fprintf(stderr, "play: no descriptor was received\n");
        exit(2);
    }
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
    return fd;
}

#endif
