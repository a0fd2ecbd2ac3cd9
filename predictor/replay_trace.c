// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "predictor/policy.h"
#include "predictor/replay.h"

#define GENERATE_PHASES 8
#define GENERATE_WRITES 20 /* percent */

int trace_add(struct trace *trace, uint32_t event)
{
    if (trace->n == UINT32_MAX) {
        return -EFBIG; /* places of events are kept in 32 bits */
    }
    if (trace->n == trace->allocated) {
        size_t more = trace->allocated ? trace->allocated * 2 : 4096;
        uint32_t *grown = reallocarray(trace->event, more, sizeof(*grown));
        if (!grown) {
            return -ENOMEM;
        }
        trace->event = grown;
        trace->allocated = more;
    }
    trace->event[trace->n++] = event;
    if (event == TRACE_TICK) {
        trace->n_ticks++;
    } else {
        trace->n_accesses++;
        trace->n_pages = (event >> 1) >= trace->n_pages ? (event >> 1) + 1 : trace->n_pages;
    }
    return 0;
}

void trace_free(struct trace *trace)
{
    free(trace->event);
    memset(trace, 0, sizeof(*trace));
}

void trace_write(const struct trace *trace, FILE *file)
{
    for (size_t i = 0; i < trace->n; i++) {
        if (trace->event[i] == TRACE_TICK) {
            fputs("tick\n", file);
        } else {
            fprintf(file, "%u%s\n", trace->event[i] >> 1, trace->event[i] & 1 ? " w" : "");
        }
    }
}

/* A line is "tick", "PAGE", "PAGE w", or empty; # begins a comment. Return: whether it is. */
static bool parse_line(char *line, bool *empty, uint32_t *event)
{
    char *rest, *word, *flag;

    line[strcspn(line, "#\r\n")] = '\0';
    word = strtok_r(line, " \t", &rest);
    *empty = !word;
    if (!word) {
        return true;
    }
    flag = strtok_r(NULL, " \t", &rest);
    if (strtok_r(NULL, " \t", &rest)) {
        return false;
    }
    if (!strcmp(word, "tick")) {
        *event = TRACE_TICK;
        return !flag;
    }
    char *end;
    errno = 0;
    unsigned long long page = strtoull(word, &end, 0);
    *event = (uint32_t)page << 1 | (flag ? 1 : 0);
    return *word >= '0' && *word <= '9' && !*end && !errno && page <= TRACE_MAX_PAGE &&
           (!flag || !strcmp(flag, "w"));
}

static int count_touched(struct trace *trace)
{
    uint8_t *seen = calloc(trace->n_pages + 1, 1);

    if (!seen) {
        return -ENOMEM;
    }
    trace->n_touched = 0;
    for (size_t i = 0; i < trace->n; i++) {
        if (trace->event[i] != TRACE_TICK) {
            uint32_t page = trace->event[i] >> 1;
            trace->n_touched += !seen[page];
            seen[page] = 1;
        }
    }
    free(seen);
    return 0;
}

/* The same events with a tick after each @every accesses. */
static int add_ticks(struct trace *trace, uint64_t every)
{
    struct trace ticking = {0};
    int err = 0;

    for (size_t i = 0; i < trace->n && !err; i++) {
        err = trace_add(&ticking, trace->event[i]);
        if (!err && ticking.n_accesses % every == 0) {
            err = trace_add(&ticking, TRACE_TICK);
        }
    }
    trace_free(trace);
    *trace = ticking;
    return err;
}

static int read_text(struct trace *trace, FILE *file, struct reason *reason)
{
    char *line = NULL;
    size_t size = 0;
    unsigned long number = 0;
    int err = 0;

    while (!err && getline(&line, &size, file) >= 0) {
        uint32_t event;
        bool empty;
        number++;
        if (!parse_line(line, &empty, &event)) {
            err = reason_set(reason, -EINVAL, "line %lu: neither 'tick' nor 'PAGE [w]'", number);
        } else if (!empty) {
            err = trace_add(trace, event);
        }
    }
    free(line);
    return err;
}

/* One number of base 128, the low digits first. Return: 1, 0 at the end, -EINVAL: cut or too long. */
static int read_number(FILE *file, uint64_t *number)
{
    int c = getc(file);

    *number = 0;
    if (c == EOF) {
        return 0;
    }
    for (unsigned shift = 0; c != EOF && shift < 49; shift += 7, c = getc(file)) {
        *number |= (uint64_t)(c & 0x7f) << shift;
        if (!(c & 0x80)) {
            return 1;
        }
    }
    return -EINVAL;
}

/* After the magic: for each access the distance from the page before it, its sign, and written. */
static int read_binary(struct trace *trace, FILE *file, struct reason *reason)
{
    int64_t page = 0;
    uint64_t number;
    int err = 0, rc = 0;

    while (!err && (rc = read_number(file, &number)) > 0) {
        int64_t distance = (int64_t)(number >> 2);
        page += number & 2 ? -distance : distance;
        err = page >= 0 && page <= (int64_t)TRACE_MAX_PAGE
                  ? trace_add(trace, (uint32_t)page << 1 | (number & 1))
                  : reason_set(reason, -EINVAL, "access %" PRIu64 ": not a page number",
                               trace->n_accesses + 1);
    }
    if (rc < 0) {
        return reason_set(reason, rc, "access %" PRIu64 ": a number is cut short or too long",
                          trace->n_accesses + 1);
    }
    return err;
}

/* The first byte tells, for no line begins with it. */
static int read_either(struct trace *trace, FILE *file, struct reason *reason)
{
    char magic[sizeof(TRACE_MAGIC) - 1];
    int c = getc(file);

    if (c == EOF) {
        return 0;
    }
    ungetc(c, file);
    if (c != TRACE_MAGIC[0]) {
        return read_text(trace, file, reason);
    }
    if (fread(magic, sizeof(magic), 1, file) != 1 || memcmp(magic, TRACE_MAGIC, sizeof(magic)) != 0) {
        return reason_set(reason, -EINVAL, "it is neither text nor a binary trace (" TRACE_MAGIC ")");
    }
    return read_binary(trace, file, reason);
}

int trace_read(struct trace *trace, FILE *file, uint64_t tick_every, struct reason *reason)
{
    memset(trace, 0, sizeof(*trace));
    int err = read_either(trace, file, reason);
    if (!err && ferror(file)) {
        err = reason_set(reason, -EIO, "cannot read the trace");
    }
    if (!err && !trace->n_accesses) {
        err = reason_set(reason, -EINVAL, "the trace has no accesses");
    }
    if (!err && !trace->n_ticks && tick_every) {
        err = add_ticks(trace, tick_every);
    }
    err = err ? err : count_touched(trace);
    if (err == -ENOMEM || err == -EFBIG) {
        reason_set(reason, err, "%s", strerror(-err));
    }
    if (err) {
        trace_free(trace);
    }
    return err;
}

/* ---- generators ------------------------------------------------------------------------------ */

struct generator {
    const struct trace_shape *shape;
    uint64_t state;
    uint32_t n_clusters;
    uint32_t *place; /* [n_clusters] where the clusters of falling popularity lie */
    uint64_t scan;   /* where the scan is */
};

static uint32_t generator_page(const struct generator *g, uint32_t rank)
{
    uint32_t cluster = g->shape->cluster;
    uint64_t page = (uint64_t)g->place[rank / cluster] * cluster + rank % cluster;

    return (uint32_t)(page % g->shape->n_pages);
}

/* Zipf with exponent 0.95: near to a tenth of the pages getting nine tenths of the accesses. */
static uint32_t generate_zipf(struct generator *g)
{
    const double exponent = 0.95;
    uint32_t n = g->shape->n_pages;
    double u = (double)policy_below(&g->state, 1ull << 53) / (double)(1ull << 53);
    double rank = pow(1 + u * (pow(1.0 + n, 1 - exponent) - 1), 1 / (1 - exponent)) - 1;

    return generator_page(g, rank < n ? (uint32_t)rank : n - 1);
}

/* Every other access is of a scan round and round through all memory. */
static uint32_t generate_scan(struct generator *g, uint64_t i)
{
    return i & 1 ? (uint32_t)(g->scan++ % g->shape->n_pages) : generate_zipf(g);
}

/* A working set of an eighth of the memory, another one in each phase; one access in 20 strays. */
static uint32_t generate_phase(struct generator *g, uint64_t i)
{
    uint32_t n = g->shape->n_pages, set = n / GENERATE_PHASES ? n / GENERATE_PHASES : 1;
    uint64_t phase = i * GENERATE_PHASES / g->shape->n_accesses;

    if (policy_below(&g->state, 20) == 0) {
        return (uint32_t)policy_below(&g->state, n);
    }
    return generator_page(g, (uint32_t)((phase * set + policy_below(&g->state, set)) % n));
}

static int generate_all(struct generator *g, struct trace *trace)
{
    const struct trace_shape *shape = g->shape;
    int err = 0;

    for (uint64_t i = 0; i < shape->n_accesses && !err; i++) {
        uint32_t page = shape->kind[0] == 'z'   ? generate_zipf(g)
                        : shape->kind[0] == 's' ? generate_scan(g, i)
                                                : generate_phase(g, i);
        bool written = policy_below(&g->state, 100) < GENERATE_WRITES;
        err = trace_add(trace, page << 1 | written);
        if (!err && shape->tick_every && (i + 1) % shape->tick_every == 0) {
            err = trace_add(trace, TRACE_TICK);
        }
    }
    return err ? err : count_touched(trace);
}

int trace_generate(struct trace *trace, const struct trace_shape *shape)
{
    struct generator g = {.shape = shape, .state = shape->seed};
    const char *kind = shape->kind;

    memset(trace, 0, sizeof(*trace));
    if (strcmp(kind, "zipf") != 0 && strcmp(kind, "scan") != 0 && strcmp(kind, "phase") != 0) {
        return -ENOENT;
    }
    g.n_clusters = (shape->n_pages - 1) / shape->cluster + 1;
    g.place = calloc(g.n_clusters, sizeof(*g.place));
    if (!g.place) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < g.n_clusters; i++) {
        uint32_t j = (uint32_t)policy_below(&g.state, i + 1);
        g.place[i] = g.place[j];
        g.place[j] = i;
    }
    int err = generate_all(&g, trace);
    free(g.place);
    if (err) {
        trace_free(trace);
    }
    return err;
}
