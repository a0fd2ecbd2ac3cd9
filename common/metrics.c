// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/metrics.h"

#include <errno.h>
#include <microhttpd.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define METRICS_MAX_CONNECTIONS 8u
#define METRICS_TIMEOUT_S 5u
/* For a request's head; a longer one is refused. */
#define METRICS_MEMORY (16u << 10)

struct metrics {
    struct MHD_Daemon *daemon;
    metrics_collect collect;
    void *opaque;
};

static enum MHD_Result metrics_answer(struct MHD_Connection *connection, unsigned status,
                                      char *text, size_t length)
{
    struct MHD_Response *response =
        MHD_create_response_from_buffer(length, text, MHD_RESPMEM_MUST_FREE);

    if (!response) {
        free(text);
        return MHD_NO;
    }
    MHD_add_response_header(response, "Content-Type",
                            status == MHD_HTTP_OK ? "text/plain; version=0.0.4; charset=utf-8"
                                                  : "text/plain; charset=utf-8");
    if (status == MHD_HTTP_METHOD_NOT_ALLOWED) {
        MHD_add_response_header(response, "Allow", "GET, HEAD");
    }
    enum MHD_Result result = MHD_queue_response(connection, status, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result metrics_refuse(struct MHD_Connection *connection, unsigned status,
                                      const char *sentence)
{
    char *text = strdup(sentence);

    return text ? metrics_answer(connection, status, text, strlen(text)) : MHD_NO;
}

static enum MHD_Result metrics_request(void *opaque, struct MHD_Connection *connection,
                                       const char *url, const char *method, const char *version,
                                       const char *body, size_t *body_length, void **state)
{
    struct metrics *metrics = opaque;
    char *text = NULL;
    size_t length = 0;

    (void)version, (void)body, (void)state;
    if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0) {
        *body_length = 0; /* a body is read and thrown away */
        return metrics_refuse(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET\n");
    }
    if (strcmp(url, "/metrics") != 0) {
        return metrics_refuse(connection, MHD_HTTP_NOT_FOUND, "there is only /metrics\n");
    }
    FILE *out = open_memstream(&text, &length);
    if (!out) {
        return MHD_NO;
    }
    metrics->collect(metrics->opaque, out);
    if (fclose(out) != 0) {
        free(text);
        return MHD_NO;
    }
    return metrics_answer(connection, MHD_HTTP_OK, text, length);
}

int metrics_parse(const char *text, struct endpoint *endpoint, struct reason *reason)
{
    int err = endpoint_parse(text, endpoint, reason);

    if (!err && endpoint->tls) {
        err = reason_set(reason, -EINVAL,
                         "metrics are not encrypted: make %.150s a tcp: or unix: address", text);
    }
    return err;
}

int metrics_start(struct metrics **out, struct endpoint *endpoint, metrics_collect collect,
                  void *opaque, struct reason *reason)
{
    char text[ENDPOINT_TEXT_LEN];
    int listener = endpoint_listen(endpoint, reason);

    if (listener < 0) {
        return listener;
    }
    struct metrics *metrics = calloc(1, sizeof(*metrics));
    if (metrics) {
        metrics->collect = collect;
        metrics->opaque = opaque;
        metrics->daemon = MHD_start_daemon(
            MHD_USE_AUTO_INTERNAL_THREAD, 0, NULL, NULL, metrics_request, metrics,
            MHD_OPTION_LISTEN_SOCKET, listener, MHD_OPTION_CONNECTION_LIMIT,
            METRICS_MAX_CONNECTIONS, MHD_OPTION_CONNECTION_TIMEOUT, METRICS_TIMEOUT_S,
            MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)METRICS_MEMORY, MHD_OPTION_END);
    }
    if (!metrics || !metrics->daemon) {
        close(listener);
        free(metrics);
        return reason_set(reason, -ENOMEM, "metrics cannot be served at %s",
                          endpoint_format(endpoint, text));
    }
    log_info("metrics at %s", endpoint_format(endpoint, text));
    *out = metrics;
    return 0;
}

void metrics_stop(struct metrics *metrics)
{
    if (metrics) {
        MHD_stop_daemon(metrics->daemon); /* closes the listener, too */
        free(metrics);
    }
}

void metrics_family(FILE *out, const char *name, const char *type, const char *help)
{
    fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void metrics_escaped(FILE *out, const char *value)
{
    for (; *value; value++) {
        if (*value == '\n') {
            fputs("\\n", out);
        } else {
            if (*value == '"' || *value == '\\') {
                fputc('\\', out);
            }
            fputc(*value, out);
        }
    }
}

void metrics_value(FILE *out, const char *name, const char *suffix,
                   const struct metrics_label *labels, double value)
{
    fprintf(out, "%s%s", name, suffix);
    for (const struct metrics_label *label = labels; label && label->name; label++) {
        fprintf(out, "%c%s=\"", label == labels ? '{' : ',', label->name);
        metrics_escaped(out, label->value);
        fputc('"', out);
    }
    fprintf(out, "%s %.17g\n", labels && labels->name ? "}" : "", value);
}
