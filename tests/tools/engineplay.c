// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * engineplay.c - the engine in one process and its guest in another, for tests
 *
 * Processes: the guest (playguest.h), which makes the userfaultfd and passes it by SCM_RIGHTS as QEMU
 * does; the engine, which a test may kill and start again; a monitor that samples the memfds' blocks
 * each 10 ms; and this one, which obeys commands on stdin, one a line, and answers each with a line
 * of JSON {"return": ...} on stdout.  Events of the engine come as {"event": ...} in between.
 *
 *   engine            start it (the second time and later: recover)
 *   kill | stop       kill -9 the engine | engine_stop()
 *   go | halt         let the guest's threads run | stop them between two pages
 *   mode M            random, hot or scan;  work FIRST N   pages the threads work on
 *   verify            the guest checks every page
 *   stats             counters of guest, engine and monitor; resident_max begins again
 *   pages             pages by state
 *   drain N 1|0       empty sub-host N | use it again
 *   budget B L H      bytes
 *   discard FIRST N   pages
 *   bench FIRST N S   latency of first touches of N pages, S pages apart
 *   zap FIRST N       unmap them in the guest
 *   quit
 */
#include <getopt.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "common/nbd_client.h"
#include "common/nbd_rdma.h"
#include "tests/tools/playargs.h"
#include "tests/tools/playguest.h"
#include "uffd-pager/engine.h"
#include "tests/tools/tlsenv.h"

#define MAX_RANGES 600u

enum op { OP_VERIFY, OP_DISCARD, OP_BENCH, OP_ZAP };

struct order {
    uint32_t op;
    uint64_t first, n, stride;
};

struct monitor {
    _Atomic uint64_t resident, resident_max, samples;
};

static struct play *play;
static struct monitor *monitor;
static struct layout layout;
static struct pagemap map;
static struct engine_config config;
static int guest_fd, zap_fd, engine_in, engine_out;
static pid_t guest_pid, engine_pid, monitor_pid;
static bool engine_started;
static uint64_t slab_bytes = 4 * MIB;
static unsigned local_percent = 20, remote_percent = 60, n_threads = 2;

static void say(const char *key, json_t *value)
{
    json_t *object = json_object();
    char *text;

    json_object_set_new(object, key, value);
    text = json_dumps(object, JSON_COMPACT);
    dprintf(STDOUT_FILENO, "%s\n", text);
    free(text);
    json_decref(object);
}

/* ---- guest ---- */

static void *guest_zap_main(void *arg)
{
    int fd = *(int *)arg;
    static union {
        struct handoff_ranges ranges;
        uint8_t room[sizeof(struct handoff_ranges) + MAX_RANGES * sizeof(struct handoff_range)];
    } message;

    while (recv(fd, &message, sizeof(message), 0) > 0) {
        int32_t result = play_zap(play, message.ranges.range, message.ranges.n);
        if (send(fd, &result, sizeof(result), 0) < 0) {
            break;
        }
    }
    return NULL;
}

static struct play_latency guest_obey(const struct order *order)
{
    struct play_latency latency = {0};

    switch (order->op) {
    case OP_VERIFY:
        play_verify(play);
        break;
    case OP_DISCARD:
        latency.count = (uint64_t)play_discard(play, order->first, order->n);
        break;
    case OP_BENCH:
        latency = play_bench(play, order->first, order->n, order->stride);
        break;
    case OP_ZAP:
        madvise(play_address(play, order->first), order->n * PAGE_BYTES, MADV_DONTNEED);
        break;
    }
    return latency;
}

static void guest_main(int fd, int zap)
{
    struct order order;
    pthread_t thread;

    play_signals();
    int uffd = play_map(play);
    if (send_fd(fd, uffd) < 0 || send_fd(fd, play_pagemap()) < 0) {
        _exit(2);
    }
    pthread_create(&thread, NULL, guest_zap_main, &zap);
    pthread_detach(thread);
    play_start(play, n_threads);
    while (recv(fd, &order, sizeof(order), 0) == sizeof(order)) {
        struct play_latency latency = guest_obey(&order);
        if (send(fd, &latency, sizeof(latency), 0) < 0) {
            break;
        }
    }
    _exit(0);
}

static struct play_latency guest_call(enum op op, uint64_t first, uint64_t n, uint64_t stride)
{
    struct order order = {.op = op, .first = first, .n = n, .stride = stride};
    struct play_latency latency = {0};

    if (send(guest_fd, &order, sizeof(order), 0) < 0 ||
        recv(guest_fd, &latency, sizeof(latency), 0) != sizeof(latency)) {
        int status = 0;
        waitpid(guest_pid, &status, 0);
        fprintf(stderr, "engineplay: the guest ended with wait status %d\n", status);
        exit(2);
    }
    return latency;
}

static void guest_begin(void)
{
    int pair[2];
    int zap[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) < 0 ||
        socketpair(AF_UNIX, SOCK_SEQPACKET, 0, zap) < 0) {
        die("socketpair", strerror(errno));
    }
    guest_pid = fork();
    if (guest_pid == 0) {
        close(pair[0]);
        close(zap[0]);
        guest_main(pair[1], zap[1]);
    }
    close(pair[1]);
    close(zap[1]);
    guest_fd = pair[0];
    zap_fd = zap[0];
    config.uffd = receive_fd(guest_fd);
    config.pagemap |= receive_fd(guest_fd); /* -1 if the engine may not see it, else 0 so far */
}

/* ---- what the guest holds when it arrives ---- */

/* Where a page is at the start: whole chunks tend to be alike, single pages differ. */
static uint8_t initial_state(uint64_t page)
{
    uint64_t chunk = play_mix(play->seed ^ (page / CHUNK_PAGES + 77));
    uint64_t own = play_mix(play->seed ^ (page + 7777));
    uint64_t roll = (own % 8 == 0 ? own / 8 : chunk) % 100;

    return play_block(play, page) < 0                  ? PAGE_UNTOUCHED
           : roll < local_percent                      ? PAGE_LOCAL
           : roll < local_percent + remote_percent     ? PAGE_REMOTE
                                                       : PAGE_UNTOUCHED;
}

/* Write the @n REMOTE pages before @end, which are the last of @run. */
static void arrive_remote(struct nbd_client *client, const uint8_t *run, uint64_t end, uint64_t n)
{
    int err = n ? nbd_client_write(client, run, (end - n) * PAGE_BYTES, (uint32_t)(n * PAGE_BYTES))
                : 0;

    if (err < 0) {
        die("cannot place pages", strerror(-err));
    }
}

static void arrive_chunk(struct nbd_client *clients, uint64_t chunk)
{
    static uint8_t run[CHUNK_BYTES];
    uint64_t end = (chunk + 1) * CHUNK_PAGES;
    uint64_t n_run = 0;

    if (config.n_subhosts) {
        map.subhost[chunk] = (uint8_t)(chunk % config.n_subhosts);
    }
    struct nbd_client *client = &clients[config.n_subhosts ? map.subhost[chunk] : 0];
    map.history[chunk] = (uint8_t)play_mix(chunk);
    for (uint64_t page = chunk * CHUNK_PAGES; page < end; page++) {
        uint8_t state = initial_state(page);
        int block = play_block(play, page);
        map.pages[page] = state;
        if (state != PAGE_REMOTE) {
            arrive_remote(client, run, page, n_run);
            n_run = 0;
        }
        if (state == PAGE_UNTOUCHED) {
            continue;
        }
        uint8_t *contents = run + n_run * PAGE_BYTES;
        play->generation[page] = 1;
        play_fill(play, page, 1, contents);
        if (state == PAGE_REMOTE) {
            n_run++;
            continue;
        }
        off_t at = (off_t)(page * PAGE_BYTES - play->block[block].flat + play->block[block].fd_offset);
        if (pwrite(play->block[block].fd, contents, PAGE_BYTES, at) != (ssize_t)PAGE_BYTES) {
            die("cannot place a page", strerror(errno));
        }
    }
    arrive_remote(client, run, end, n_run);
}

static void arrive(void)
{
    struct nbd_client clients[PAGEMAP_MAX_SUBHOSTS];
    uint8_t uuid[16] = {1};
    struct reason reason;

    if (pagemap_create(&map, NULL, uuid, play->n_pages, &reason) < 0) {
        die("page map", reason.text);
    }
    pagemap_set_slabs(&map, slab_bytes);
    for (unsigned i = 0; i < config.n_subhosts; i++) {
        if (nbd_client_connect(&clients[i], &config.subhost[i].data, config.subhost[i].export_name,
                               5000, &reason) < 0) {
            die("sub-host", reason.text);
        }
    }
    for (uint64_t chunk = 0; chunk < map.n_chunks; chunk++) {
        arrive_chunk(clients, chunk);
    }
    for (unsigned i = 0; i < config.n_subhosts; i++) {
        nbd_client_close(&clients[i], true);
    }
}

/* ---- engine ---- */

static int engine_zap(void *opaque, const struct handoff_range *ranges, uint32_t n)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static union {
        struct handoff_ranges ranges;
        uint8_t room[sizeof(struct handoff_ranges) + MAX_RANGES * sizeof(struct handoff_range)];
    } message;
    int32_t result = -ENOTCONN;

    (void)opaque;
    pthread_mutex_lock(&lock);
    message.ranges.n = n;
    memcpy(message.ranges.range, ranges, n * sizeof(*ranges));
    if (send(zap_fd, &message, sizeof(message.ranges) + n * sizeof(*ranges), 0) < 0 ||
        recv(zap_fd, &result, sizeof(result), 0) != sizeof(result)) {
        result = -ENOTCONN;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

static void engine_pause(void *opaque, bool pause)
{
    (void)opaque;
    kill(guest_pid, pause ? SIGSTOP : SIGCONT);
}

static void engine_tell(void *opaque, const char *name, json_t *data)
{
    (void)opaque;
    json_object_set_new(data, "name", json_string(name));
    say("event", data);
}

static json_t *engine_obey(struct engine *engine, const char *line)
{
    uint64_t a, b, c;
    struct reason reason = {""};
    int err = 0;

    if (strncmp(line, "stats", 5) == 0) {
        json_t *object = json_object();
        engine_stats(engine, object);
        return object;
    }
    if (strncmp(line, "reset", 5) == 0) {
        engine_reset_stats(engine);
    } else if (sscanf(line, "budget %" SCNu64 " %" SCNu64 " %" SCNu64, &a, &b, &c) == 3) {
        err = engine_set_budget(engine, a, b, c, &reason);
    } else if (sscanf(line, "drain %" SCNu64 " %" SCNu64, &a, &b) == 2) {
        err = engine_drain(engine, (unsigned)a, b != 0, &reason);
    } else if (sscanf(line, "discard %" SCNu64 " %" SCNu64, &a, &b) == 2) {
        err = engine_discard(engine, a * PAGE_BYTES, b * PAGE_BYTES);
    }
    return json_pack("{s:i, s:s}", "err", err, "reason", reason.text);
}

static void engine_main(int in, int out, bool recover)
{
    struct engine *engine;
    struct reason reason = {""};
    char line[256];

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    log_init("engineplay", getenv("PLAY_DEBUG") ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO);
    int err = engine_start(&engine, &config, recover, &reason);
    dprintf(out, "{\"err\": %d, \"reason\": \"%s\"}\n", err, reason.text);
    FILE *file = fdopen(in, "r");
    while (err == 0 && file && fgets(line, sizeof(line), file) && strncmp(line, "stop", 4) != 0) {
        json_t *answer = engine_obey(engine, line);
        char *text = json_dumps(answer, JSON_COMPACT);
        dprintf(out, "%s\n", text);
        free(text);
        json_decref(answer);
    }
    if (err == 0) {
        engine_stop(engine);
        dprintf(out, "{\"err\": 0}\n");
    }
    exit(err == 0 ? 0 : 1);
}

static json_t *engine_answer(void)
{
    static char text[65536];
    size_t have = 0;

    while (have < sizeof(text) - 1) {
        ssize_t n = read(engine_out, text + have, 1);
        if (n <= 0) {
            return json_pack("{s:i, s:s}", "err", -ESRCH, "reason", "the engine is not there");
        }
        if (text[have] == '\n') {
            break;
        }
        have++;
    }
    text[have] = '\0';
    json_t *answer = json_loads(text, 0, NULL);
    return answer ? answer : json_null();
}

static json_t *engine_call(const char *line)
{
    if (!engine_pid) {
        return json_pack("{s:i, s:s}", "err", -ESRCH, "reason", "the engine is not there");
    }
    dprintf(engine_in, "%s", line);
    return engine_answer();
}

static json_t *engine_begin(void)
{
    int in[2];
    int out[2];

    if (pipe(in) < 0 || pipe(out) < 0) {
        die("pipe", strerror(errno));
    }
    engine_pid = fork();
    if (engine_pid == 0) {
        close(in[1]);
        close(out[0]);
        engine_main(in[0], out[1], engine_started);
    }
    close(in[0]);
    close(out[1]);
    engine_in = in[1];
    engine_out = out[0];
    engine_started = true;
    return engine_answer();
}

static json_t *engine_end(bool politely)
{
    json_t *answer = politely ? engine_call("stop\n") : json_object();
    int status = 0;

    if (engine_pid) {
        if (!politely) {
            kill(engine_pid, SIGKILL);
        }
        waitpid(engine_pid, &status, 0);
        close(engine_in);
        close(engine_out);
        engine_pid = 0;
        json_object_set_new(answer, "status", json_integer(status));
    }
    return answer;
}

/* ---- monitor ---- */

static void monitor_begin(void)
{
    monitor_pid = fork();
    if (monitor_pid) {
        return;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (!play->quit) {
        uint64_t now = engine_resident(&layout);
        monitor->resident = now;
        if (now > monitor->resident_max) {
            monitor->resident_max = now;
        }
        monitor->samples++;
        usleep(10000);
    }
    _exit(0);
}

/* ---- commands ---- */

static json_t *play_stats(void)
{
    json_t *answer = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o}", "checks", (json_int_t)play->checks, "writes",
        (json_int_t)play->writes, "errors", (json_int_t)play->errors, "lost",
        (json_int_t)play->lost, "longest_us", (json_int_t)play->longest_us, "resident",
        (json_int_t)monitor->resident, "resident_max", (json_int_t)monitor->resident_max, "engine",
        engine_call("stats\n"));

    monitor->resident_max = monitor->resident;
    play->longest_us = 0;
    return answer;
}

static json_t *count_pages(void)
{
    struct pagemap_counts counts;
    json_t *subhosts = json_array();

    pagemap_count(&map, 0, map.n_pages, &counts);
    for (unsigned i = 0; i < config.n_subhosts; i++) {
        uint64_t remote = 0;
        uint64_t clean = 0;
        for (uint64_t page = 0; page < map.n_pages; page++) {
            uint8_t state = pagemap_get(&map, page) & PAGE_STATE_MASK;
            bool here = map.subhost[page / CHUNK_PAGES] == i;
            remote += here && state == PAGE_REMOTE;
            clean += here && state == PAGE_CLEAN;
        }
        json_array_append_new(subhosts, json_pack("{s:I, s:I}", "remote", (json_int_t)remote,
                                                  "clean", (json_int_t)clean));
    }
    uint64_t doubled = 0; /* chunks with both copies in one place */
    for (uint64_t chunk = 0; chunk < map.n_chunks; chunk++) {
        uint8_t second = pagemap_home(&map, chunk, 1);
        doubled += second != PAGEMAP_NO_SUBHOST && second == pagemap_home(&map, chunk, 0);
    }
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o}", "doubled", (json_int_t)doubled, "untouched",
                     (json_int_t)counts.untouched, "local", (json_int_t)counts.local, "remote",
                     (json_int_t)counts.remote, "clean", (json_int_t)counts.clean, "lost",
                     (json_int_t)counts.lost, "busy", (json_int_t)counts.busy, "subhosts",
                     subhosts);
}

static json_t *discard(uint64_t first, uint64_t n)
{
    char line[128];

    for (uint64_t page = first; page < first + n; page++) {
        play_lock(play, page);
    }
    guest_call(OP_DISCARD, first, n, 0);
    snprintf(line, sizeof(line), "discard %" PRIu64 " %" PRIu64 "\n", first, n);
    json_t *answer = engine_call(line);
    for (uint64_t page = first; page < first + n; page++) {
        play->generation[page] = 0;
        play_unlock(play, page);
    }
    return answer;
}

static json_t *obey_simple(const char *line)
{
    if (strncmp(line, "engine", 6) == 0) {
        return engine_begin();
    }
    if (strncmp(line, "kill", 4) == 0 || strncmp(line, "stop", 4) == 0) {
        return engine_end(line[0] == 's');
    }
    if (strncmp(line, "go", 2) == 0) {
        play->go = true;
        return json_true();
    }
    if (strncmp(line, "halt", 4) == 0) {
        play->go = false;
        while (play->working) {
            usleep(1000);
        }
        return json_true();
    }
    if (strncmp(line, "verify", 6) == 0) {
        guest_call(OP_VERIFY, 0, 0, 0);
        return json_true();
    }
    if (strncmp(line, "stats", 5) == 0) {
        return play_stats();
    }
    if (strncmp(line, "pages", 5) == 0) {
        return count_pages();
    }
    if (strncmp(line, "budget", 6) == 0 || strncmp(line, "reset", 5) == 0 ||
        strncmp(line, "drain", 5) == 0) {
        return engine_call(line);
    }
    if (strncmp(line, "mode ", 5) == 0) {
        play->mode = line[5] == 'h' ? PLAY_HOT : line[5] == 's' ? PLAY_SCAN : PLAY_RANDOM;
        return json_true();
    }
    return NULL;
}

static json_t *obey(const char *line)
{
    uint64_t a, b, c;
    json_t *answer = obey_simple(line);

    if (answer) {
        return answer;
    }
    if (sscanf(line, "work %" SCNu64 " %" SCNu64, &a, &b) == 2) {
        play->first = a;
        play->set = b;
        return json_true();
    }
    if (sscanf(line, "writes %" SCNu64, &a) == 1) {
        play->write_percent = (unsigned)a;
        return json_true();
    }
    if (sscanf(line, "discard %" SCNu64 " %" SCNu64, &a, &b) == 2) {
        return discard(a, b);
    }
    if (sscanf(line, "zap %" SCNu64 " %" SCNu64, &a, &b) == 2) {
        guest_call(OP_ZAP, a, b, 0);
        return json_true();
    }
    if (sscanf(line, "bench %" SCNu64 " %" SCNu64 " %" SCNu64, &a, &b, &c) == 3) {
        struct play_latency latency = guest_call(OP_BENCH, a, b, c);
        return json_pack("{s:I, s:I, s:I, s:I}", "count", (json_int_t)latency.count, "p50_ns",
                         (json_int_t)latency.p50_ns, "p99_ns", (json_int_t)latency.p99_ns, "max_ns",
                         (json_int_t)latency.max_ns);
    }
    return json_pack("{s:s}", "unknown", line);
}

static void add_subhost(char *text)
{
    struct engine_subhost *subhost = &config.subhost[config.n_subhosts];
    char *comma = strchr(text, ',');
    struct reason reason;

    if (!comma || config.n_subhosts == PAGEMAP_MAX_SUBHOSTS) {
        die("--subhost wants ADDRESS,EXPORT[,CONTROL][,RDMA]", text);
    }
    *comma = '\0';
    for (char *more = strchr(comma + 1, ','); more;) {
        char *word = more + 1;
        *more = '\0';
        more = strchr(word, ',');
        if (more) {
            *more = '\0';
        }
        if (strncmp(word, "rdma:", 5) == 0) {
            add_rdma(subhost, word);
        } else if (endpoint_parse(word, &subhost->control, &reason) < 0) {
            die(word, reason.text);
        }
        if (more) {
            *more = ',';
        }
    }
    if (endpoint_parse(text, &subhost->data, &reason) < 0) {
        die(text, reason.text);
    }
    snprintf(subhost->name, sizeof(subhost->name), "sub%u", config.n_subhosts);
    snprintf(subhost->export_name, sizeof(subhost->export_name), "%s", comma + 1);
    size_t length = strcspn(comma + 1, ".");
    snprintf(subhost->region, sizeof(subhost->region), "%.*s", (int)length, comma + 1);
    if (comma[1 + length]) {
        snprintf(subhost->ticket, sizeof(subhost->ticket), "%s", comma + 2 + length);
    }
    subhost->weight = 1;
    config.n_subhosts++;
}

static void parse(int argc, char **argv, uint64_t *sizes, uint32_t *n_sizes, uint64_t *seed)
{
    static const struct option options[] = {
        {"size", 1, NULL, 's'},      {"subhost", 1, NULL, 'h'},   {"budget", 1, NULL, 'b'},
        {"low", 1, NULL, 'l'},       {"high", 1, NULL, 'H'},      {"threads", 1, NULL, 't'},
        {"prefetch", 1, NULL, 'p'},  {"granule", 1, NULL, 'g'},   {"fault-threads", 1, NULL, 'f'},
        {"sample-ms", 1, NULL, 'm'}, {"lost-ms", 1, NULL, 'L'},   {"local", 1, NULL, 'o'},
        {"remote", 1, NULL, 'r'},    {"seed", 1, NULL, 'S'},      {"predictor", 1, NULL, 'P'},
        {"spin-us", 1, NULL, 'u'},   {"lost-action", 1, NULL, 'A'},
        {"slab", 1, NULL, 'B'},      {"choices", 1, NULL, 'C'},   {"redundancy", 1, NULL, 'R'},
        {"backup", 1, NULL, 'K'},    {"pagemap", 1, NULL, 'G'},   {NULL, 0, NULL, 0},
    };
    int option;

    config.granule = 256 * KIB;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        unsigned number = (unsigned)strtoul(optarg ? optarg : "0", NULL, 10);
        switch (option) {
        case 's': sizes[(*n_sizes)++ % PLAY_MAX_BLOCKS] = size_of(optarg); break;
        case 'h': add_subhost(optarg); break;
        case 'b': config.budget = size_of(optarg); break;
        case 'l': config.low_watermark = size_of(optarg); break;
        case 'H': config.high_watermark = size_of(optarg); break;
        case 't': n_threads = number; break;
        case 'p': config.prefetch = number; break;
        case 'g': config.granule = size_of(optarg); break;
        case 'f': config.fault_threads = number; break;
        case 'm': config.sample_period_ms = number; break;
        case 'L': config.lost_after_ms = number; break;
        case 'o': local_percent = number; break;
        case 'r': remote_percent = number; break;
        case 'S': *seed = number; break;
        case 'u': config.spin_us = number; break;
        case 'B': slab_bytes = size_of(optarg); break;
        case 'C': config.choices = number; break;
        case 'R': config.redundancy = redundancy_of(optarg); break;
        case 'G': config.pagemap = number ? 0 : -1; break;
        case 'K': snprintf(config.backup, sizeof(config.backup), "%s", optarg); break;
        case 'A': config.lost_action = loss_of(optarg); break;
        case 'P': snprintf(config.predictor, sizeof(config.predictor), "%s", optarg); break;
        default: exit(2);
        }
    }
}

int main(int argc, char **argv)
{
    uint64_t sizes[PLAY_MAX_BLOCKS] = {64 * MIB};
    uint64_t seed = 1;
    uint32_t n_sizes = 0;
    struct reason reason;
    char line[256];

    signal(SIGPIPE, SIG_IGN);
    parse(argc, argv, sizes, &n_sizes, &seed);
    if (tls_from_environment(&reason) < 0) {
        die("TLS", reason.text);
    }
    play = play_new(seed, sizes, n_sizes ? n_sizes : 1, NULL);
    monitor = play_shared(sizeof(*monitor));
    guest_begin();
    layout.n_blocks = play->n_blocks;
    for (uint32_t i = 0; i < play->n_blocks; i++) {
        struct layout_block *block = &layout.block[i];
        snprintf(block->idstr, sizeof(block->idstr), "%s", play->block[i].idstr);
        block->index = i;
        block->hva = (uint64_t)(uintptr_t)play->block[i].base;
        block->size = play->block[i].size;
        block->page_size = PAGE_BYTES;
        block->fd_offset = play->block[i].fd_offset;
        block->fd = play->block[i].fd;
    }
    if (layout_finish(&layout, &reason) < 0) {
        die("layout", reason.text);
    }
    arrive();
    config.layout = &layout;
    config.map = &map;
    config.zap = engine_zap;
    config.pause = engine_pause;
    config.event = engine_tell;
    monitor_begin();
    say("return", json_string("ready"));
    while (fgets(line, sizeof(line), stdin) && strncmp(line, "quit", 4) != 0) {
        say("return", obey(line));
    }
    play->quit = true;
    json_decref(engine_end(false));
    kill(guest_pid, SIGKILL);
    kill(monitor_pid, SIGKILL);
    return play->errors ? 1 : 0;
}
