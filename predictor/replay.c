// SPDX-License-Identifier: GPL-2.0-or-later
/* replay.c - predictor-replay: compare paging policies on a trace of accesses */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/units.h"
#include "common/version.h"
#include "predictor/predictor.h"
#include "predictor/replay.h"

#define MAX_POLICIES 32
#define DEFAULT_TICK 1000
#define DEFAULT_PAGES 65536
#define DEFAULT_CLUSTER 512
#define DEFAULT_ACCESSES 1000000

struct options {
    const char *policies[MAX_POLICIES];
    unsigned n_policies;
    const char *generate, *memory;
    struct replay_options replay;
    uint64_t tick, pages, cluster, accesses;
};

static const char usage[] =
    "usage: predictor-replay --memory SIZE [--policy NAME]... [options] TRACE\n"
    "       predictor-replay --generate zipf|scan|phase [options] >TRACE\n"
    "\n"
    "  -m, --memory SIZE     local memory; the rest is remote\n"
    "  -p, --policy NAME     sweep, smemv, fifo, random; or, seeing all accesses: random4k, fluidmem,\n"
    "                        clock, lru, lfu, arc, lirs; may be repeated (default: all)\n"
    "      --prefetch N      pages after a page-in, at most (default: 0)\n"
    "      --prefetcher KIND pager, leap, recorded or chunk (default: pager)\n"
    "      --fresh           a page's first access finds zeros and is no page-in\n"
    "      --watch N         pages of each chunk whose accesses are seen in a period (default: 0, all)\n"
    "      --tick N          accesses in a period, where the trace has no ticks (default: 1000)\n"
    "  -s, --seed N          of ties, and of generated traces (default: 1)\n"
    "  -g, --generate KIND   write a trace to standard output\n"
    "      --pages N         pages of the generated trace (default: 65536)\n"
    "      --cluster N       its pages of like popularity lie in runs of N (default: 512)\n"
    "      --accesses N      its accesses (default: 1000000)\n"
    "  -h, --help, --version\n"
    "TRACE is a file, or - for standard input.  See predictor-replay(1).\n";

static bool parse_number(const char *text, uint64_t most, uint64_t *value)
{
    char *end;

    errno = 0;
    *value = strtoull(text, &end, 0);
    if (*text < '0' || *text > '9' || *end || errno || *value > most) {
        fprintf(stderr, "predictor-replay: '%s' is not a number up to %" PRIu64 "\n", text, most);
        return false;
    }
    return true;
}

/* Return: where @name is in the list, or -1. */
static int find_name(const char *const *names, const char *name)
{
    for (int i = 0; names[i]; i++) {
        if (!strcmp(name, names[i])) {
            return i;
        }
    }
    return -1;
}

static bool parse_policy(struct options *options, const char *name)
{
    if (find_name(predictor_names(), name) < 0 && find_name(replay_oracles(), name) < 0) {
        fprintf(stderr, "predictor-replay: no policy '%s'\n", name);
        return false;
    }
    if (options->n_policies == MAX_POLICIES) {
        fprintf(stderr, "predictor-replay: at most %d policies\n", MAX_POLICIES);
        return false;
    }
    options->policies[options->n_policies++] = name;
    return true;
}

static bool parse_prefetcher(struct options *options, const char *name)
{
    static const char *const names[] = {"pager", "leap", "recorded", "chunk", NULL};
    int found = find_name(names, name); /* as in enum replay_prefetcher */

    if (found < 0) {
        fprintf(stderr, "predictor-replay: no prefetcher '%s'\n", name);
        return false;
    }
    options->replay.prefetcher = (enum replay_prefetcher)found;
    return true;
}

static bool parse_memory(struct options *options, const char *text)
{
    uint64_t bytes;

    if (units_parse_size(text, 1, &bytes) || bytes < PAGE_BYTES) {
        fprintf(stderr, "predictor-replay: '%s' is not a size of at least a page\n", text);
        return false;
    }
    options->memory = text;
    options->replay.local_pages = bytes >> PAGE_SHIFT;
    return true;
}

static bool parse_option(struct options *options, int option)
{
    uint64_t number;

    switch (option) {
    case 'm':
        return parse_memory(options, optarg);
    case 'p':
        return parse_policy(options, optarg);
    case 'f':
        if (!parse_number(optarg, 512, &number)) {
            return false;
        }
        options->replay.prefetch = (unsigned)number;
        return true;
    case 'k':
        return parse_prefetcher(options, optarg);
    case 'F':
        options->replay.fresh = true;
        return true;
    case 'w':
        if (!parse_number(optarg, 512, &number)) {
            return false;
        }
        options->replay.watch = (unsigned)number;
        return true;
    case 't':
        return parse_number(optarg, UINT64_MAX, &options->tick);
    case 's':
        return parse_number(optarg, UINT64_MAX, &options->replay.seed);
    case 'g':
        options->generate = optarg;
        return true;
    case 'n':
        return parse_number(optarg, TRACE_MAX_PAGE, &options->pages) && options->pages > 0;
    case 'c':
        return parse_number(optarg, TRACE_MAX_PAGE, &options->cluster) && options->cluster > 0;
    case 'a':
        return parse_number(optarg, UINT32_MAX / 2, &options->accesses);
    case 'h':
        fputs(usage, stdout);
        exit(0);
    case 'V':
        puts("predictor-replay " SPLIT_MIGRATE_VERSION);
        exit(0);
    default:
        return false;
    }
}

static bool parse_options(struct options *options, int argc, char **argv)
{
    static const struct option names[] = {
        {"memory", required_argument, NULL, 'm'},   {"policy", required_argument, NULL, 'p'},
        {"prefetch", required_argument, NULL, 'f'}, {"tick", required_argument, NULL, 't'},
        {"seed", required_argument, NULL, 's'},     {"generate", required_argument, NULL, 'g'},
        {"pages", required_argument, NULL, 'n'},    {"accesses", required_argument, NULL, 'a'},
        {"cluster", required_argument, NULL, 'c'},  {"watch", required_argument, NULL, 'w'},
        {"fresh", no_argument, NULL, 'F'},          {"prefetcher", required_argument, NULL, 'k'},
        {"help", no_argument, NULL, 'h'},           {"version", no_argument, NULL, 'V'},
        {NULL, 0, NULL, 0},
    };
    int option;

    while ((option = getopt_long(argc, argv, "m:p:s:g:h", names, NULL)) >= 0) {
        if (!parse_option(options, option)) {
            return false;
        }
    }
    if (options->generate ? argc != optind : argc != optind + 1 || !options->memory) {
        fputs(usage, stderr);
        return false;
    }
    if (!options->n_policies) {
        for (const char *const *name = predictor_names(); *name; name++) {
            options->policies[options->n_policies++] = *name;
        }
        for (const char *const *name = replay_oracles(); *name; name++) {
            options->policies[options->n_policies++] = *name;
        }
    }
    return true;
}

static int generate(const struct options *options)
{
    struct trace_shape shape = {.kind = options->generate,
                                .n_pages = (uint32_t)options->pages,
                                .cluster = (uint32_t)options->cluster,
                                .n_accesses = options->accesses,
                                .tick_every = options->tick,
                                .seed = options->replay.seed};
    struct trace trace;
    int err = trace_generate(&trace, &shape);

    if (err) {
        fprintf(stderr, "predictor-replay: %s\n",
                err == -ENOENT ? "a trace is one of zipf, scan, phase" : strerror(-err));
        return err == -ENOENT ? 2 : 1;
    }
    trace_write(&trace, stdout);
    trace_free(&trace);
    if (fflush(stdout) || ferror(stdout)) {
        fprintf(stderr, "predictor-replay: cannot write: %m\n");
        return 1;
    }
    return 0;
}

static double cpu_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static void print_result(const char *name, const struct trace *trace,
                         const struct replay_result *result, uint64_t optimum, double ms)
{
    printf("%-9s %10" PRIu64 " %6.2f%% %9.2f %10" PRIu64 " %10" PRIu64 " %10" PRIu64 " %10" PRIu64
           " %10" PRIu64 " %8.1f\n",
           name, result->misses, 100.0 * (double)result->misses / (double)trace->n_accesses,
           (double)result->misses / (double)(optimum ? optimum : 1), result->page_outs,
           result->sent, result->prefetched, result->wasted, result->sampled,
           ms * 1e6 / (double)trace->n_accesses);
}

static int replay_one(const struct options *options, const struct trace *trace, const char *name,
                      uint64_t optimum)
{
    struct replay_result result;
    double began = cpu_ms();
    int err = find_name(replay_oracles(), name) >= 0
                  ? replay_oracle(trace, name, &options->replay, &result)
                  : replay_policy(trace, name, &options->replay, &result);

    if (!err) {
        print_result(name, trace, &result, optimum, cpu_ms() - began);
    }
    return err;
}

static int replay(const struct options *options, const struct trace *trace)
{
    struct replay_result best;
    char size[32];
    double began = cpu_ms();
    int err = replay_optimum(trace, &options->replay, &best);
    double ms = cpu_ms() - began;

    if (!err) {
        printf("accesses %" PRIu64 ", pages touched %" PRIu64 ", periods %" PRIu64
               ", local memory %s (%.1f%% of what is touched), prefetch %u\n",
               trace->n_accesses, trace->n_touched, trace->n_ticks,
               units_format_size(options->replay.local_pages << PAGE_SHIFT, size, sizeof(size)),
               100.0 * (double)options->replay.local_pages / (double)trace->n_touched,
               options->replay.prefetch);
        printf("%-9s %10s %7s %9s %10s %10s %10s %10s %10s %8s\n", "policy", "misses", "rate",
               "x optimum", "page-outs", "sent", "prefetched", "wasted", "sampled", "ms/M");
    }
    for (unsigned i = 0; i < options->n_policies && !err; i++) {
        err = replay_one(options, trace, options->policies[i], best.misses);
    }
    if (err) {
        fprintf(stderr, "predictor-replay: %s\n", strerror(-err));
        return 1;
    }
    print_result("optimum", trace, &best, best.misses, ms);
    return 0;
}

int main(int argc, char **argv)
{
    struct options options = {.tick = DEFAULT_TICK,
                              .pages = DEFAULT_PAGES,
                              .cluster = DEFAULT_CLUSTER,
                              .accesses = DEFAULT_ACCESSES,
                              .replay = {.seed = 1}};
    struct reason reason = {.text = ""};
    struct trace trace;

    if (!parse_options(&options, argc, argv)) {
        return 2;
    }
    if (options.generate) {
        return generate(&options);
    }
    const char *name = argv[optind];
    FILE *file = strcmp(name, "-") ? fopen(name, "re") : stdin;
    if (!file) {
        fprintf(stderr, "predictor-replay: %s: %m\n", name);
        return 1;
    }
    int err = trace_read(&trace, file, options.tick, &reason);
    if (file != stdin) {
        fclose(file);
    }
    if (err) {
        fprintf(stderr, "predictor-replay: %s: %s\n", name, reason.text);
        return 1;
    }
    int status = replay(&options, &trace);
    trace_free(&trace);
    return status;
}
