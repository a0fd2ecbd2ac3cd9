// SPDX-License-Identifier: GPL-2.0-or-later
#include "uffd-pager/options.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "common/metrics.h"
#include "common/version.h"

/* One row an option: getopt, --help and the tests read the same table. */
static const struct options_row {
    int key;
    const char *name;
    const char *arg;  /* NULL: none */
    const char *help; /* NULL: for internal use, not shown */
} options_table[] = {
    {'r', "run-dir", "DIR", "folder for sockets and page maps, on tmpfs (default /run/split-migrate)"},
    {'H', "handoff", "ADDR", "where QEMU hands guests over (default unix:RUN-DIR/handoff.sock)"},
    {'c', "control", "ADDR", "where controllers connect; may be repeated (default unix:RUN-DIR/uffd-pager.sock)"},
    {'G', "handoff-group", "GROUP", "its members may hand guests over (default only this user and root)"},
    {'C', "control-group", "GROUP", "its members may control by UNIX sockets (default as above)"},
    {'d', "data", "ADDR", "where arriving guests' memory is received (default tcp:127.0.0.1:0)"},
    {'m', "metrics", "ADDR", "answer Prometheus at http://ADDR/metrics (default: not)"},
    {'p', "plaintext", NULL, "allow addresses that other hosts can reach, without encryption"},
    {'t', "tls-certificates", "DIR", "certificates and keys for tls: addresses (those of libvirt in /etc/pki)"},
    {'k', "tls-psk", "FILE", "keys for tls: addresses, as psktool makes them"},
    {'u', "tls-username", "NAME", "whose key to use as a client (default the first of the file)"},
    {'P', "pidfile", "FILE", "write the process id there once ready"},
    {'v', "verbose", NULL, "log debug messages too"},
    {'x', "exit-with-parent", NULL, "stop when the parent process ends (for tests)"},
    {'V', "version", NULL, "print the version"},
    {'h', "help", NULL, "print this"},
    {'W', "worker", "UUID", NULL},
    {'M', "mover", "FD", NULL},
};
#define OPTIONS_N (sizeof(options_table) / sizeof(options_table[0]))

static void options_help(void)
{
    printf("Usage: uffd-pager [OPTION]...\n"
           "Serve split guests on this host: page in from sub-hosts, page out to them.\n\n");
    for (size_t i = 0; i < OPTIONS_N; i++) {
        const struct options_row *row = &options_table[i];
        if (row->help) {
            char left[40];
            snprintf(left, sizeof(left), "--%s%s%s", row->name, row->arg ? "=" : "",
                     row->arg ? row->arg : "");
            printf("  %-22s %s\n", left, row->help);
        }
    }
    printf("\nADDR is unix:PATH, tcp:HOST:PORT or tls:HOST:PORT.  See uffd-pager(8).\n");
}

static void options_exit(struct options *options, int status)
{
    options->role = OPTIONS_EXIT;
    options->status = status;
}

static void options_endpoint(struct options *options, const char *name, const char *text,
                             struct endpoint *endpoint)
{
    struct reason reason;

    if (endpoint_parse(text, endpoint, &reason) < 0) {
        fprintf(stderr, "uffd-pager: --%s: %s\n", name, reason.text);
        options_exit(options, 2);
    }
}

static void options_take(struct options *options, int key, const char *arg, bool *plaintext)
{
    struct daemon_config *daemon = &options->daemon;
    struct reason reason;
    char *end;

    switch (key) {
    case 'r':
        daemon->run_dir = arg;
        break;
    case 'H':
        options_endpoint(options, "handoff", arg, &daemon->handoff);
        break;
    case 'c':
        if (daemon->n_controls == DAEMON_MAX_CONTROLS) {
            fprintf(stderr, "uffd-pager: --control may be given at most %d times\n",
                    DAEMON_MAX_CONTROLS);
            options_exit(options, 2);
            break;
        }
        options_endpoint(options, "control", arg, &daemon->control[daemon->n_controls++]);
        break;
    case 'G':
        daemon->handoff_group = arg;
        break;
    case 'C':
        daemon->control_group = arg;
        break;
    case 'd':
        options_endpoint(options, "data", arg, &daemon->data);
        break;
    case 'm':
        daemon->has_metrics = true;
        if (metrics_parse(arg, &daemon->metrics, &reason) < 0) {
            fprintf(stderr, "uffd-pager: --metrics: %s\n", reason.text);
            options_exit(options, 2);
        }
        break;
    case 'p':
        *plaintext = true;
        break;
    case 't':
        options->tls.certificates = arg;
        break;
    case 'k':
        options->tls.psk = arg;
        break;
    case 'u':
        options->tls.username = arg;
        break;
    case 'P':
        daemon->pidfile = arg;
        break;
    case 'v':
        daemon->debug = true;
        break;
    case 'x':
        options->exit_with_parent = true;
        break;
    case 'W':
        options->role = OPTIONS_WORKER;
        options->uuid = arg;
        break;
    case 'M':
        options->role = OPTIONS_MOVER;
        options->mover_fd = (int)strtol(arg, &end, 10);
        break;
    case 'V':
        printf("uffd-pager %s\n", SPLIT_MIGRATE_VERSION);
        options_exit(options, 0);
        break;
    case 'h':
        options_help();
        options_exit(options, 0);
        break;
    default: /* getopt has said what is wrong */
        options_exit(options, 2);
    }
}

static void options_defaults(struct options *options)
{
    struct daemon_config *daemon = &options->daemon;

    if (!daemon->handoff.host[0]) {
        daemon->handoff.is_unix = true;
        snprintf(daemon->handoff.host, sizeof(daemon->handoff.host), "%.200s/handoff.sock",
                 daemon->run_dir);
    }
    if (!daemon->n_controls) {
        daemon->n_controls = 1;
        daemon->control[0].is_unix = true;
        snprintf(daemon->control[0].host, sizeof(daemon->control[0].host), "%.200s/uffd-pager.sock",
                 daemon->run_dir);
    }
}

static void options_check(struct options *options, bool plaintext)
{
    const struct daemon_config *daemon = &options->daemon;
    const struct endpoint *off_host = endpoint_is_exposed(&daemon->data) ? &daemon->data : NULL;
    char text[ENDPOINT_TEXT_LEN];

    for (unsigned i = 0; i < daemon->n_controls; i++) {
        if (endpoint_is_exposed(&daemon->control[i])) {
            off_host = &daemon->control[i];
        }
    }
    if (daemon->has_metrics && !endpoint_is_local(&daemon->metrics)) {
        off_host = &daemon->metrics;
    }
    if (!daemon->handoff.is_unix) {
        fprintf(stderr, "uffd-pager: --handoff must be a unix:PATH address: memory is handed over "
                        "as file descriptors\n");
        options_exit(options, 2);
    } else if (strlen(daemon->run_dir) > 48) {
        fprintf(stderr, "uffd-pager: --run-dir %s is too long: socket paths in it must fit 107 "
                        "characters, so at most 48\n", daemon->run_dir);
        options_exit(options, 2);
    } else if (off_host && !plaintext) {
        fprintf(stderr, "uffd-pager: %s can be reached from other hosts without encryption; "
                        "make it a tls: address, or allow that with --plaintext\n",
                endpoint_format(off_host, text));
        options_exit(options, 2);
    }
}

/* The identity is the whole program's: workers and movers have it too. */
static struct {
    struct tls_config tls;
    bool plaintext;
} shared;

unsigned options_pass(char **argv)
{
    static char certificates[] = "--tls-certificates";
    static char psk[] = "--tls-psk";
    static char username[] = "--tls-username";
    static char plaintext[] = "--plaintext";
    const struct {
        char *name;
        const char *value;
    } rows[] = {{certificates, shared.tls.certificates},
                {psk, shared.tls.psk},
                {username, shared.tls.username}};
    unsigned n = 0;

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        if (rows[i].value) {
            argv[n++] = rows[i].name;
            argv[n++] = (char *)(uintptr_t)rows[i].value;
        }
    }
    if (shared.plaintext) {
        argv[n++] = plaintext;
    }
    argv[n] = NULL;
    return n;
}

static void options_check_tls(struct options *options, bool plaintext)
{
    bool serves = options->daemon.data.tls;
    struct reason reason;

    for (unsigned i = 0; i < options->daemon.n_controls; i++) {
        serves = serves || options->daemon.control[i].tls;
    }
    if (tls_configure(&options->tls, &reason) < 0 ||
        (serves && options->role == OPTIONS_DAEMON && tls_check(TLS_SERVER, &reason) < 0)) {
        fprintf(stderr, "uffd-pager: %s\n", reason.text);
        options_exit(options, 2);
    }
    shared.tls = options->tls;
    shared.plaintext = plaintext;
    if (!plaintext) {
        endpoint_refuse_exposed();
    }
}

void options_parse(struct options *options, int argc, char **argv)
{
    struct option longs[OPTIONS_N + 1] = {{0}};
    bool plaintext = false;
    int key;

    memset(options, 0, sizeof(*options));
    options->daemon.run_dir = "/run/split-migrate";
    options->daemon.data = (struct endpoint){.host = "127.0.0.1"};
    for (size_t i = 0; i < OPTIONS_N; i++) {
        longs[i].name = options_table[i].name;
        longs[i].has_arg = options_table[i].arg ? required_argument : no_argument;
        longs[i].val = options_table[i].key;
    }
    while (options->role != OPTIONS_EXIT && (key = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        options_take(options, key, optarg, &plaintext);
    }
    if (options->role == OPTIONS_EXIT) {
        return;
    }
    if (optind < argc) {
        fprintf(stderr, "uffd-pager: '%s' is not an option; see --help\n", argv[optind]);
        options_exit(options, 2);
        return;
    }
    options_defaults(options);
    options_check(options, plaintext);
    if (options->role != OPTIONS_EXIT) {
        options_check_tls(options, plaintext);
    }
}
