// SPDX-License-Identifier: GPL-2.0-or-later
#include "subhost-server/options.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/metrics.h"
#include "common/nbd_rdma.h"
#include "common/units.h"
#include "common/version.h"

#define DEFAULT_LISTEN "tcp:127.0.0.1:10809"
#define DEFAULT_CONTROL "unix:/run/subhost/subhost.sock"
#define MAX_CONNECTIONS 65536
#define MAX_SPIN_US 1000000

enum {
    OPT_MEMORY = 1000,
    OPT_HEADROOM,
    OPT_LISTEN,
    OPT_CONTROL,
    OPT_CONTROL_GROUP,
    OPT_METRICS,
    OPT_PLAINTEXT,
    OPT_TLS_CERTIFICATES,
    OPT_TLS_PSK,
    OPT_STATE_DIR,
    OPT_FORGET,
    OPT_PIDFILE,
    OPT_MAX_CONNECTIONS,
    OPT_SPIN_US,
    OPT_EXIT_WITH_PARENT,
    OPT_VERBOSE,
    OPT_VERSION,
    OPT_HELP,
};

/* The one list of options: getopt's table and --help are made from it. */
static const struct row {
    int id;
    const char *name;
    const char *argument; /* NULL: takes none */
    const char *help;
} rows[] = {
    {OPT_MEMORY, "memory", "SIZE", "memory to lend, in bytes or with a unit (64G); required"},
    {OPT_HEADROOM, "headroom", "SIZE", "lend less while less than this is free on this host (0: lend all)"},
    {OPT_LISTEN, "listen", "ADDR", "serve pages here; repeatable (" DEFAULT_LISTEN ")"},
    {OPT_CONTROL, "control", "ADDR", "be controlled here; repeatable (" DEFAULT_CONTROL ")"},
    {OPT_CONTROL_GROUP, "control-group", "GROUP", "its members may control by UNIX sockets, too"},
    {OPT_METRICS, "metrics", "ADDR", "answer Prometheus at http://ADDR/metrics (not)"},
    {OPT_PLAINTEXT, "plaintext", NULL, "allow addresses that other hosts can reach, without TLS"},
    {OPT_TLS_CERTIFICATES, "tls-certificates", "DIR",
     "certificates and keys for tls: addresses (those of libvirt in /etc/pki)"},
    {OPT_TLS_PSK, "tls-psk", "FILE", "keys for tls: addresses, as psktool makes them"},
    {OPT_STATE_DIR, "state-dir", "DIR", "keep regions in this directory on tmpfs when the server ends"},
    {OPT_FORGET, "forget", NULL, "free the regions in --state-dir that a server left there, and exit"},
    {OPT_PIDFILE, "pidfile", "FILE", "write the process id when ready to serve"},
    {OPT_MAX_CONNECTIONS, "max-connections", "N", "connections per listening address (256)"},
    {OPT_SPIN_US, "spin-us", "N", "look for the next request so long before sleeping (0)"},
    {OPT_EXIT_WITH_PARENT, "exit-with-parent", NULL, "stop when the parent process ends"},
    {OPT_VERBOSE, "verbose", NULL, "log more"},
    {OPT_VERSION, "version", NULL, "print the version and exit"},
    {OPT_HELP, "help", NULL, "print this help and exit"},
};
#define N_ROWS (sizeof(rows) / sizeof(rows[0]))

static void print_help(void)
{
    printf("Usage: subhost-server --memory SIZE [OPTION]...\n"
           "Lend memory of this host to guests that run on other hosts.\n\n");
    for (size_t i = 0; i < N_ROWS; i++) {
        char left[64];
        snprintf(left, sizeof(left), "--%s%s%s", rows[i].name, rows[i].argument ? " " : "",
                 rows[i].argument ? rows[i].argument : "");
        printf("  %-22s  %s\n", left, rows[i].help);
    }
    printf("\nADDR is tls:HOST:PORT, tcp:HOST:PORT (an IPv6 address in brackets) or unix:PATH; to serve\n"
           "pages also rdma:HOST:PORT, once.\n");
}

static int add_endpoint(struct endpoint *endpoints, unsigned *n, const char *option,
                        const char *text, struct reason *reason)
{
    if (*n == OPTIONS_MAX_LISTEN) {
        return reason_set(reason, -EINVAL, "--%s may be given %d times at most", option,
                          OPTIONS_MAX_LISTEN);
    }
    int err = endpoint_parse(text, &endpoints[*n], reason);
    if (!err) {
        (*n)++;
    }
    return err;
}

static int add_listen(struct options *options, const char *text, struct reason *reason)
{
    if (strncmp(text, "rdma:", 5) != 0) {
        return add_endpoint(options->listen, &options->n_listen, "listen", text, reason);
    }
    if (options->has_rdma) {
        return reason_set(reason, -EINVAL, "--listen rdma: may be given once");
    }
    options->has_rdma = true;
    return nbd_rdma_parse(text, &options->rdma, reason);
}

static int parse_number(const char *option, const char *text, unsigned long min, unsigned long max,
                        unsigned *value, struct reason *reason)
{
    char *end;

    errno = 0;
    unsigned long number = strtoul(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno || number < min || number > max) {
        return reason_set(reason, -EINVAL, "--%s: '%s' is not a number from %lu to %lu", option,
                          text, min, max);
    }
    *value = (unsigned)number;
    return 0;
}

static int parse_memory(const char *text, uint64_t *memory, struct reason *reason)
{
    if (units_parse_size(text, 1, memory) < 0 || *memory > INT64_MAX) {
        return reason_set(reason, -EINVAL, "--memory: '%s' is not a size such as 64G", text);
    }
    if (*memory < PAGE_BYTES) {
        return reason_set(reason, -EINVAL, "--memory: '%s' is less than one page of 4 KiB", text);
    }
    return 0;
}

static int parse_headroom(const char *text, uint64_t *headroom, struct reason *reason)
{
    if (units_parse_size(text, 1, headroom) < 0 || *headroom > INT64_MAX) {
        return reason_set(reason, -EINVAL, "--headroom: '%s' is not a size such as 4G", text);
    }
    return 0;
}

static int apply(struct options *options, int id, const char *value, struct reason *reason)
{
    switch (id) {
    case OPT_MEMORY:
        return parse_memory(value, &options->memory, reason);
    case OPT_HEADROOM:
        return parse_headroom(value, &options->headroom, reason);
    case OPT_LISTEN:
        return add_listen(options, value, reason);
    case OPT_CONTROL:
        return add_endpoint(options->control, &options->n_control, "control", value, reason);
    case OPT_CONTROL_GROUP:
        options->control_group = value;
        return *value ? 0 : reason_set(reason, -EINVAL, "--control-group needs a group's name");
    case OPT_METRICS:
        options->has_metrics = true;
        return metrics_parse(value, &options->metrics, reason);
    case OPT_PLAINTEXT:
        options->plaintext = true;
        return 0;
    case OPT_TLS_CERTIFICATES:
        options->tls.certificates = value;
        return 0;
    case OPT_TLS_PSK:
        options->tls.psk = value;
        return 0;
    case OPT_STATE_DIR:
        options->state_dir = value;
        return *value ? 0 : reason_set(reason, -EINVAL, "--state-dir needs the name of a directory");
    case OPT_FORGET:
        options->forget = true;
        return 0;
    case OPT_PIDFILE:
        options->pidfile = value;
        return *value ? 0 : reason_set(reason, -EINVAL, "--pidfile needs the name of a file");
    case OPT_MAX_CONNECTIONS:
        return parse_number("max-connections", value, 1, MAX_CONNECTIONS,
                            &options->max_connections, reason);
    case OPT_SPIN_US:
        return parse_number("spin-us", value, 0, MAX_SPIN_US, &options->spin_us, reason);
    case OPT_EXIT_WITH_PARENT:
        options->exit_with_parent = true;
        return 0;
    default:
        options->verbose = true;
        return 0;
    }
}

/* Only addresses of this host may be served without TLS, unless the operator says so. */
static int check_reach(const struct options *options, const struct endpoint *endpoints, unsigned n,
                       struct reason *reason)
{
    char text[ENDPOINT_TEXT_LEN];

    for (unsigned i = 0; i < n && !options->plaintext; i++) {
        if (endpoint_is_exposed(&endpoints[i])) {
            return reason_set(reason, -EINVAL,
                              "%.150s can be reached from other hosts and is not encrypted: "
                              "make it a tls: address, or give --plaintext if that is meant",
                              endpoint_format(&endpoints[i], text));
        }
    }
    return 0;
}

static bool wants_tls(const struct options *options)
{
    bool tls = false;

    for (unsigned i = 0; i < options->n_listen; i++) {
        tls = tls || options->listen[i].tls;
    }
    for (unsigned i = 0; i < options->n_control; i++) {
        tls = tls || options->control[i].tls;
    }
    return tls;
}

static int check_tls(const struct options *options, struct reason *reason)
{
    int err = tls_configure(&options->tls, reason);

    if (err) {
        return err;
    }
    if (wants_tls(options)) {
        return tls_check(TLS_SERVER, reason);
    }
    return tls_configured() ? reason_set(reason, -EINVAL,
                                         "there are TLS files, and no address that begins with "
                                         "tls: would use them")
                            : 0;
}

static int finish(struct options *options, struct reason *reason)
{
    char text[ENDPOINT_TEXT_LEN];
    int err = 0;

    if (options->forget) {
        return options->state_dir ? 0
                                  : reason_set(reason, -EINVAL,
                                               "--forget needs --state-dir: where the regions are");
    }
    if (!options->memory) {
        return reason_set(reason, -EINVAL, "--memory is required: how much memory to lend");
    }
    if (!options->n_listen) {
        err = add_endpoint(options->listen, &options->n_listen, "listen", DEFAULT_LISTEN, reason);
    }
    if (!err && !options->n_control) {
        err = add_endpoint(options->control, &options->n_control, "control", DEFAULT_CONTROL,
                           reason);
    }
    if (!err) {
        err = check_reach(options, options->listen, options->n_listen, reason);
    }
    if (!err) {
        err = check_reach(options, options->control, options->n_control, reason);
    }
    if (!err) {
        err = check_reach(options, &options->metrics, options->has_metrics, reason);
    }
    if (!err && options->has_rdma && !options->plaintext && !endpoint_is_local(&options->rdma)) {
        err = reason_set(reason, -EINVAL,
                         "%.150s can be reached from other hosts, and RDMA is not encrypted: give "
                         "--plaintext if that is meant",
                         nbd_rdma_format(&options->rdma, text));
    }
    if (!options->plaintext) {
        endpoint_refuse_exposed(); /* copies from other sub-hosts, too */
    }
    return err ? err : check_tls(options, reason);
}

static void make_table(struct option table[N_ROWS + 1])
{
    memset(table, 0, sizeof(struct option) * (N_ROWS + 1));
    for (size_t i = 0; i < N_ROWS; i++) {
        table[i].name = rows[i].name;
        table[i].has_arg = rows[i].argument ? required_argument : no_argument;
        table[i].val = rows[i].id;
    }
}

enum options_result options_parse(struct options *options, int argc, char **argv,
                                  struct reason *reason)
{
    struct option table[N_ROWS + 1];
    int id;

    memset(options, 0, sizeof(*options));
    make_table(table);
    opterr = 0;
    while ((id = getopt_long(argc, argv, ":", table, NULL)) != -1) {
        const char *word = argv[optind - 1];
        if (id == '?' || id == ':') {
            reason_set(reason, -EINVAL, id == '?' ? "%.100s is not an option; try --help"
                                                  : "%.100s needs an argument; try --help", word);
            return OPTIONS_BAD;
        }
        if (id == OPT_HELP) {
            print_help();
            return OPTIONS_DONE;
        }
        if (id == OPT_VERSION) {
            printf("subhost-server %s\n", SPLIT_MIGRATE_VERSION);
            return OPTIONS_DONE;
        }
        if (apply(options, id, optarg, reason)) {
            return OPTIONS_BAD;
        }
    }
    if (optind < argc) {
        reason_set(reason, -EINVAL, "'%.100s' is not expected: all settings are options", argv[optind]);
        return OPTIONS_BAD;
    }
    return finish(options, reason) ? OPTIONS_BAD : OPTIONS_RUN;
}
