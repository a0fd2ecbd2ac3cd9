// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * guestplay.c - a native process that plays QEMU towards uffd-pager
 *
 * It maps memfds as QEMU does, makes a userfaultfd and hands both over by common/handoff.h; it
 * answers ZAP, ARM and DISARM, plays both sides of a migration, reports discards, and connects again
 * when the socket drops.  Its threads check and change its memory (playguest.h).
 *
 *   guestplay --socket PATH --uuid UUID [--size SIZE]... [--threads N] [--state FILE] [--incoming]
 *
 * Commands on stdin, one a line, each answered by a line of JSON {"return": ...}:
 *
 *   go | halt | verify | stats | mode M | work FIRST N | writes PERCENT | quit
 *   fill PERCENT [FIRST N]  give that share of all pages, or of those, new contents
 *   armed             wait until the pager has armed us; returns the migration's UUID
 *   migrate ROUNDS    rounds of what has changed, then halt, the rest, MIG_FINISH; returns the result
 *   end ERRNO         MIG_END
 *   incoming UUID     IN_BEGIN, IN_WAIT; returns the result: now the guest may run
 *   discard FIRST N   pages
 *   bench FIRST N S   latency of first touches of N pages, S pages apart
 *   storm T W FIRST N S  the same by T threads in a scattered order, W: 1 to write; and the time it took
 *   vcpu A FIRST N S  the same by a KVM guest's vCPU, read only; A: 1 to wait as QEMU's do (vcpu.h)
 *   load FILE         a trace of a program (predictor/replay.h); returns its events and pages
 *   pace              ns that a thousand rounds of the trace's arithmetic take
 *   trace FIRST N W S play N of its events, each followed by W rounds of arithmetic, for S ms at most (playtrace.h)
 *   drop              close the socket, connect and hand over again
 */
#include <getopt.h>
#include <jansson.h>
#include <sys/socket.h>

#include "common/endpoint.h"
#include "common/handoff_io.h"
#include "tests/tools/playguest.h"
#include "tests/tools/playtrace.h"
#include "tests/tools/vcpu.h"

#define SECONDS 1000000u
#define MAX_RUNS 1024u

static struct play *play;
static int uffd;
static uint8_t uuid[16];
static bool is_incoming;
static struct endpoint pager;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static pthread_mutex_t send_lock = PTHREAD_MUTEX_INITIALIZER;
static int sock = -1;            /* lock; -1: not connected */
static unsigned connections;     /* lock */
static bool is_armed;            /* lock */
static uint8_t migration[16];    /* lock */
static uint16_t answer_type;     /* lock; the last answer, 0: none since it was asked for */
static struct handoff_result answer;
static struct handoff_progress progress;
static bool failed; /* MIG_FAILED came */

static uint32_t *sent; /* the generation each page had when it was handed over last */
static bool *ever;

static void say(json_t *value)
{
    json_t *object = json_pack("{s:o}", "return", value);
    char *text = json_dumps(object, JSON_COMPACT);

    dprintf(STDOUT_FILENO, "%s\n", text);
    free(text);
    json_decref(object);
}

static int send_frame(uint16_t type, uint32_t cookie, const void *body, uint32_t length)
{
    pthread_mutex_lock(&send_lock);
    int err = sock < 0 ? -ENOTCONN
                       : handoff_send(sock, type, cookie, body, length, NULL, 0,
                                      units_now_us() + 30 * SECONDS);
    pthread_mutex_unlock(&send_lock);
    return err;
}

/* ---- the hand-off ---- */

static int hand_over(int fd)
{
    struct handoff_hello hello = {.n_blocks = play->n_blocks,
                                  .flags = is_incoming ? HANDOFF_HELLO_INCOMING : 0,
                                  .pid = (uint64_t)getpid()};
    uint64_t deadline = units_now_us() + 30 * SECONDS;

    memcpy(hello.uuid, uuid, sizeof(hello.uuid));
    int err = handoff_send(fd, HANDOFF_HELLO, 0, &hello, sizeof(hello), &uffd, 1, deadline);
    for (uint32_t i = 0; i < play->n_blocks && err == 0; i++) {
        struct handoff_block block = {.index = i,
                                      .hva = (uint64_t)(uintptr_t)play->block[i].base,
                                      .size = play->block[i].size,
                                      .page_size = PAGE_BYTES,
                                      .fd_offset = play->block[i].fd_offset};
        memcpy(block.idstr, play->block[i].idstr, sizeof(play->block[i].idstr));
        err = handoff_send(fd, HANDOFF_BLOCK, 0, &block, sizeof(block), &play->block[i].fd, 1,
                           deadline);
    }
    int pagemap = play_pagemap();
    err = err < 0 ? err : handoff_send(fd, HANDOFF_LAYOUT_END, 1, NULL, 0, &pagemap, 1, deadline);
    close(pagemap);
    return err;
}

static void take_answer(const struct handoff_frame *frame)
{
    pthread_mutex_lock(&lock);
    answer_type = frame->header.type;
    memcpy(&answer, frame->body.bytes, sizeof(answer));
    failed |= answer_type == HANDOFF_MIG_FAILED;
    connections += answer_type == HANDOFF_WELCOME && answer.status == 0;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void take_request(const struct handoff_frame *frame)
{
    struct handoff_result result = {0};
    const struct handoff_ranges *ranges = (const void *)frame->body.bytes;

    switch (frame->header.type) {
    case HANDOFF_ZAP:
        result.status = (uint32_t)-play_zap(play, ranges->range, ranges->n);
        send_frame(HANDOFF_ZAPPED, frame->header.cookie, &result, sizeof(result));
        break;
    case HANDOFF_ARM:
    case HANDOFF_DISARM:
        pthread_mutex_lock(&lock);
        is_armed = frame->header.type == HANDOFF_ARM;
        memcpy(migration, frame->body.bytes, sizeof(migration));
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&lock);
        send_frame(HANDOFF_ARMED, frame->header.cookie, &result, sizeof(result));
        break;
    case HANDOFF_MIG_PROGRESS:
        pthread_mutex_lock(&lock);
        memcpy(&progress, frame->body.bytes, sizeof(progress));
        pthread_mutex_unlock(&lock);
        break;
    default:
        take_answer(frame);
    }
}

static void *socket_main(void *arg)
{
    static struct handoff_frame frame;
    struct reason reason;

    (void)arg;
    while (!play->quit) {
        int fd = endpoint_connect(&pager, 1000, &reason);
        if (fd < 0 || hand_over(fd) < 0) {
            if (fd >= 0) {
                close(fd);
            }
            usleep(100000);
            continue;
        }
        pthread_mutex_lock(&send_lock);
        sock = fd;
        pthread_mutex_unlock(&send_lock);
        while (handoff_recv(fd, &frame, UINT64_MAX, &reason) == 0) {
            take_request(&frame);
            handoff_frame_close(&frame);
        }
        pthread_mutex_lock(&send_lock);
        sock = -1;
        pthread_mutex_unlock(&send_lock);
        close(fd);
    }
    return NULL;
}

/* ---- questions and answers ---- */

static void expect_none(void)
{
    pthread_mutex_lock(&lock);
    answer_type = 0;
    pthread_mutex_unlock(&lock);
}

static struct timespec after(unsigned seconds)
{
    struct timespec at;

    clock_gettime(CLOCK_REALTIME, &at);
    at.tv_sec += seconds;
    return at;
}

/* Wait for the answer of @type. Return: as JSON for the user. */
static json_t *expect(uint16_t type)
{
    struct timespec until = after(60);
    int rc = 0;

    pthread_mutex_lock(&lock);
    while (answer_type != type && !failed && rc == 0) {
        rc = pthread_cond_timedwait(&changed, &lock, &until);
    }
    struct handoff_result result = answer;
    if (rc) {
        result = (struct handoff_result){.status = ETIMEDOUT, .reason = "no answer"};
    }
    pthread_mutex_unlock(&lock);
    result.reason[sizeof(result.reason) - 1] = '\0';
    return json_pack("{s:i, s:s}", "err", -(int)result.status, "reason", result.reason);
}

static json_t *ask(uint16_t type, const void *body, uint32_t length, uint16_t answer_wanted)
{
    expect_none();
    int err = send_frame(type, 7, body, length);
    return err < 0 ? json_pack("{s:i, s:s}", "err", err, "reason", "not sent")
                   : expect(answer_wanted);
}

static bool good(json_t *result)
{
    return json_integer_value(json_object_get(result, "err")) == 0;
}

/* ---- a migration, source side ---- */

struct runs {
    uint32_t round;
    uint32_t n;
    struct handoff_run run[MAX_RUNS];
};

static int runs_flush(struct runs *runs)
{
    int err = 0;

    if (runs->n) {
        err = send_frame(HANDOFF_MIG_RUNS, 0, runs,
                         (uint32_t)(8 + runs->n * sizeof(struct handoff_run)));
        runs->n = 0;
    }
    return err;
}

static int runs_add(struct runs *runs, int block, uint64_t page)
{
    uint64_t within = page - play->block[block].flat / PAGE_BYTES;
    struct handoff_run *last = runs->n ? &runs->run[runs->n - 1] : NULL;

    if (last && last->block == (uint32_t)block && last->page + last->count == within) {
        last->count++;
        return 0;
    }
    if (runs->n == MAX_RUNS) {
        int err = runs_flush(runs);
        if (err < 0) {
            return err;
        }
    }
    runs->run[runs->n++] =
        (struct handoff_run){.block = (uint32_t)block, .page = within, .count = 1};
    return 0;
}

/* A round: what changed since it was handed over.  First the mark, then the message, as QEMU does. */
static int hand_round(uint32_t round)
{
    static struct runs runs;
    int err = 0;

    runs.round = round;
    runs.n = 0;
    for (uint64_t page = 0; page < play->n_pages && err == 0; page++) {
        int block = play_block(play, page);
        uint32_t generation = play->generation[page];
        /* A page that is being written now has its old generation: it comes again. */
        if (block >= 0 && (!ever[page] || sent[page] != generation || play->page_lock[page])) {
            ever[page] = true;
            sent[page] = play->page_lock[page] ? generation - 1 : generation;
            err = runs_add(&runs, block, page);
        }
    }
    return err < 0 ? err : runs_flush(&runs);
}

static void halt(void)
{
    play->go = false;
    while (play->working) {
        usleep(1000);
    }
}

static json_t *migrate(unsigned rounds)
{
    struct handoff_migration id;
    int err = 0;

    memset(ever, 0, play->n_pages * sizeof(*ever));
    pthread_mutex_lock(&lock);
    failed = false;
    memcpy(id.id, migration, sizeof(id.id));
    pthread_mutex_unlock(&lock);
    json_t *result = ask(HANDOFF_MIG_BEGIN, &id, sizeof(id), HANDOFF_MIG_BEGUN);
    if (!good(result)) {
        return result;
    }
    json_decref(result);
    for (uint32_t round = 1; round <= rounds && err == 0; round++) {
        err = hand_round(round);
        usleep(100000);
    }
    halt();
    err = err < 0 ? err : hand_round(rounds + 1);
    if (err < 0) {
        return json_pack("{s:i, s:s}", "err", err, "reason", "not sent");
    }
    return ask(HANDOFF_MIG_FINISH, NULL, 0, HANDOFF_MIG_FINISHED);
}

static json_t *wait_armed(void)
{
    struct timespec until = after(60);
    char text[UUID_TEXT_LEN];
    int rc = 0;

    pthread_mutex_lock(&lock);
    while (!is_armed && rc == 0) {
        rc = pthread_cond_timedwait(&changed, &lock, &until);
    }
    json_t *result = is_armed ? json_string(units_format_uuid(migration, text)) : json_null();
    pthread_mutex_unlock(&lock);
    return result;
}

static json_t *arrive(const char *text)
{
    struct handoff_migration id;

    if (units_parse_uuid(text, id.id) < 0) {
        return json_pack("{s:i, s:s}", "err", -EINVAL, "reason", "not a UUID");
    }
    json_t *result = ask(HANDOFF_IN_BEGIN, &id, sizeof(id), HANDOFF_IN_BEGUN);
    if (!good(result)) {
        return result;
    }
    json_decref(result);
    return ask(HANDOFF_IN_WAIT, NULL, 0, HANDOFF_IN_READY);
}

static json_t *discard(uint64_t first, uint64_t n)
{
    struct {
        struct handoff_ranges ranges;
        struct handoff_range range;
    } message = {.ranges = {.n = 1}};
    int block = play_block(play, first);

    if (block < 0 || play_block(play, first + n - 1) != block) {
        return json_pack("{s:i}", "err", -EINVAL);
    }
    for (uint64_t page = first; page < first + n; page++) {
        play_lock(play, page);
    }
    play_discard(play, first, n);
    message.range = (struct handoff_range){.block = (uint32_t)block,
                                           .offset = first * PAGE_BYTES - play->block[block].flat,
                                           .length = n * PAGE_BYTES};
    json_t *result = ask(HANDOFF_DISCARD, &message, sizeof(message), HANDOFF_DISCARDED);
    for (uint64_t page = first; page < first + n; page++) {
        play->generation[page] = 0;
        play_unlock(play, page);
    }
    return result;
}

static void fill(unsigned percent, uint64_t first, uint64_t n)
{
    for (uint64_t page = first; page < first + n && page < play->n_pages; page++) {
        if (play_block(play, page) >= 0 && play_mix(play->seed ^ page) % 100 < percent) {
            play_lock(play, page);
            play_access(play, page, true);
            play_unlock(play, page);
        }
    }
}

/* ---- commands ---- */

static json_t *drop(void)
{
    struct timespec until = after(30);
    int rc = 0;

    pthread_mutex_lock(&lock);
    unsigned before = connections;
    pthread_mutex_lock(&send_lock);
    if (sock >= 0) {
        shutdown(sock, SHUT_RDWR);
    }
    pthread_mutex_unlock(&send_lock);
    while (connections == before && rc == 0) {
        rc = pthread_cond_timedwait(&changed, &lock, &until);
    }
    pthread_mutex_unlock(&lock);
    return json_boolean(rc == 0);
}

static json_t *stats(void)
{
    pthread_mutex_lock(&lock);
    json_t *result = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:i, s:I}", "checks", (json_int_t)play->checks, "writes",
        (json_int_t)play->writes, "errors", (json_int_t)play->errors, "lost",
        (json_int_t)play->lost, "longest_us", (json_int_t)play->longest_us, "connections",
        (int)connections, "pages_done", (json_int_t)progress.pages_done);
    pthread_mutex_unlock(&lock);
    play->longest_us = 0;
    return result;
}

static json_t *say_latency(const struct play_latency *latency)
{
    return json_pack("{s:I, s:I, s:I, s:I}", "count", (json_int_t)latency->count, "p50_ns",
                     (json_int_t)latency->p50_ns, "p99_ns", (json_int_t)latency->p99_ns, "max_ns",
                     (json_int_t)latency->max_ns);
}

static json_t *storm(const struct play_storm *what)
{
    uint64_t elapsed_ns;

    if (!what->n || !what->n_threads) {
        return json_pack("{s:i}", "err", -EINVAL);
    }
    struct play_latency latency = play_storm(play, what, &elapsed_ns);
    json_t *result = say_latency(&latency);
    json_object_set_new(result, "elapsed_ns", json_integer((json_int_t)elapsed_ns));
    return result;
}

/* What a storm by one thread does, by a vCPU that has the first block as its memory. */
static json_t *storm_by_vcpu(bool asynchronous, uint64_t first, uint64_t n, uint64_t step)
{
    uint64_t *took = calloc(n + 1, sizeof(*took)), *offset = calloc(n + 1, sizeof(*offset));
    json_t *result = json_pack("{s:i}", "err", -EINVAL);

    if (took && offset && n && first + (n - 1) * step < play->block[0].size / PAGE_BYTES) {
        for (uint64_t i = 0; i < n; i++) {
            offset[i] = (first + i * PLAY_SCATTER % n * step) * PAGE_BYTES;
        }
        vcpu_touch(play->block[0].base, play->block[0].size, offset, n, asynchronous, took);
        struct play_latency latency = play_latency(took, n);
        json_decref(result);
        result = say_latency(&latency);
    }
    free(took);
    free(offset);
    return result;
}

static struct trace trace;

static json_t *load(const char *path)
{
    struct reason reason;
    FILE *file = fopen(path, "re");

    trace_free(&trace);
    if (!file) {
        return json_pack("{s:i}", "err", -errno);
    }
    int err = trace_read(&trace, file, 0, &reason);
    fclose(file);
    return err < 0 ? json_pack("{s:i, s:s}", "err", err, "reason", reason.text)
                   : json_pack("{s:I, s:I, s:I}", "events", (json_int_t)trace.n, "pages",
                               (json_int_t)trace.n_pages, "touched", (json_int_t)trace.n_touched);
}

static json_t *play_events(const struct play_trace *what)
{
    uint64_t elapsed_ns;
    uint64_t played = play_trace(play, &trace, what, &elapsed_ns);

    return json_pack("{s:I, s:I, s:I}", "events", (json_int_t)played, "elapsed_ns",
                     (json_int_t)elapsed_ns, "errors", (json_int_t)play->errors);
}

static json_t *obey_numbers(const char *line)
{
    uint64_t a, b, c, d, e;

    if (sscanf(line, "storm %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64, &a, &b, &c,
               &d, &e) == 5) {
        return storm(&(struct play_storm){
            .n_threads = (unsigned)a, .write = b != 0, .first = c, .n = d, .step = e});
    }
    if (sscanf(line, "trace %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64, &a, &b, &c, &d) == 4) {
        return play_events(
            &(struct play_trace){.first = a, .n = b, .work = c, .most_ns = d * 1000000});
    }
    if (sscanf(line, "bench %" SCNu64 " %" SCNu64 " %" SCNu64, &a, &b, &c) == 3) {
        struct play_latency latency = play_bench(play, a, b, c);
        return say_latency(&latency);
    }
    if (sscanf(line, "vcpu %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64, &a, &b, &c, &d) == 4) {
        return storm_by_vcpu(a != 0, b, c, d);
    }
    if (sscanf(line, "discard %" SCNu64 " %" SCNu64, &a, &b) == 2) {
        return discard(a, b);
    }
    if (sscanf(line, "work %" SCNu64 " %" SCNu64, &a, &b) == 2) {
        play->first = a;
        play->set = b;
    } else if (sscanf(line, "writes %" SCNu64, &a) == 1) {
        play->write_percent = (unsigned)a;
    } else if (sscanf(line, "fill %" SCNu64 " %" SCNu64 " %" SCNu64, &a, &b, &c) == 3) {
        fill((unsigned)a, b, c);
    } else if (sscanf(line, "fill %" SCNu64, &a) == 1) {
        fill((unsigned)a, 0, play->n_pages);
    } else if (sscanf(line, "migrate %" SCNu64, &a) == 1) {
        return migrate((unsigned)a);
    } else if (sscanf(line, "end %" SCNu64, &a) == 1) {
        struct handoff_result result = {.status = (uint32_t)a};
        return json_integer(send_frame(HANDOFF_MIG_END, 0, &result, sizeof(result)));
    } else {
        return json_pack("{s:s}", "unknown", line);
    }
    return json_true();
}

static json_t *obey(char *line)
{
    line[strcspn(line, "\n")] = '\0';
    if (strcmp(line, "go") == 0) {
        play->go = true;
    } else if (strcmp(line, "halt") == 0) {
        halt();
    } else if (strcmp(line, "verify") == 0) {
        play_verify(play);
    } else if (strcmp(line, "stats") == 0) {
        return stats();
    } else if (strcmp(line, "armed") == 0) {
        return wait_armed();
    } else if (strcmp(line, "drop") == 0) {
        return drop();
    } else if (strcmp(line, "pace") == 0) {
        return json_real(play_pace());
    } else if (strncmp(line, "load ", 5) == 0) {
        return load(line + 5);
    } else if (strncmp(line, "incoming ", 9) == 0) {
        return arrive(line + 9);
    } else if (strncmp(line, "mode ", 5) == 0) {
        play->mode = line[5] == 'h' ? PLAY_HOT : line[5] == 's' ? PLAY_SCAN : PLAY_RANDOM;
    } else {
        return obey_numbers(line);
    }
    return json_true();
}

static void die(const char *what)
{
    fprintf(stderr, "guestplay: %s\n", what);
    exit(2);
}

static void parse(int argc, char **argv, unsigned *threads)
{
    static const struct option options[] = {
        {"socket", 1, NULL, 's'},  {"uuid", 1, NULL, 'u'},     {"size", 1, NULL, 'z'},
        {"threads", 1, NULL, 't'}, {"state", 1, NULL, 'S'},    {"seed", 1, NULL, 'e'},
        {"incoming", 0, NULL, 'i'}, {NULL, 0, NULL, 0},
    };
    uint64_t sizes[PLAY_MAX_BLOCKS] = {64 * MIB};
    uint64_t seed = 1;
    uint32_t n = 0;
    const char *state = NULL;
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 's':
            pager.is_unix = true;
            snprintf(pager.host, sizeof(pager.host), "%s", optarg);
            break;
        case 'u':
            if (units_parse_uuid(optarg, uuid) < 0) {
                die("--uuid is not a UUID");
            }
            break;
        case 'z':
            if (n == PLAY_MAX_BLOCKS || units_parse_size(optarg, MIB, &sizes[n++]) < 0) {
                die("--size is not a size, or there are too many");
            }
            break;
        case 't': *threads = (unsigned)strtoul(optarg, NULL, 10); break;
        case 'e': seed = strtoull(optarg, NULL, 10); break;
        case 'S': state = optarg; break;
        case 'i': is_incoming = true; break;
        default: exit(2);
        }
    }
    if (!pager.host[0]) {
        die("--socket is missing");
    }
    play = play_new(seed, sizes, n ? n : 1, state);
}

int main(int argc, char **argv)
{
    unsigned threads = 2;
    pthread_t thread;
    char line[256];

    signal(SIGPIPE, SIG_IGN);
    parse(argc, argv, &threads);
    play_signals();
    uffd = play_map(play);
    sent = calloc(play->n_pages, sizeof(*sent));
    ever = calloc(play->n_pages, sizeof(*ever));
    if (!sent || !ever || pthread_create(&thread, NULL, socket_main, NULL)) {
        die("cannot start");
    }
    struct timespec until = after(30);
    int rc = 0;
    pthread_mutex_lock(&lock);
    while (!connections && rc == 0) {
        rc = pthread_cond_timedwait(&changed, &lock, &until);
    }
    pthread_mutex_unlock(&lock);
    play_start(play, threads);
    say(rc ? json_string("not connected") : json_string("ready"));
    while (fgets(line, sizeof(line), stdin) && strncmp(line, "quit", 4) != 0) {
        say(obey(line));
    }
    _exit(play->errors ? 1 : 0);
}
