/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * metrics.h - answer Prometheus: GET /metrics in text exposition format 0.0.4
 *
 * One thread serves, a few connections at a time and each for a short time, by
 * libmicrohttpd.  Nothing of a request is looked at but its method and path.
 */
#ifndef COMMON_METRICS_H
#define COMMON_METRICS_H

#include <stdint.h>
#include <stdio.h>

#include "common/endpoint.h"
#include "common/log.h"

struct metrics;

/**
 * typedef metrics_collect - write all metrics, with metrics_family() and metrics_value()
 * Runs in the server's thread, once a request.
 */
typedef void (*metrics_collect)(void *opaque, FILE *out);

/**
 * metrics_parse() - the address for metrics_start(), which is not one with TLS
 * Return: 0, or -EINVAL with a sentence in @reason.
 */
int metrics_parse(const char *text, struct endpoint *endpoint, struct reason *reason);

/**
 * metrics_start() - listen at @endpoint (a port 0 is replaced by the one chosen) and serve
 * Return: 0, or -errno with a sentence in @reason.
 */
int metrics_start(struct metrics **metrics, struct endpoint *endpoint, metrics_collect collect,
                  void *opaque, struct reason *reason);

/** metrics_stop() - end the thread and free; NULL is fine */
void metrics_stop(struct metrics *metrics);

/** metrics_family() - the lines that come before the values of one metric; @type: "gauge", ... */
void metrics_family(FILE *out, const char *name, const char *type, const char *help);

/* A label; its value is escaped.  A list of them ends with name NULL. */
struct metrics_label {
    const char *name;
    const char *value;
};

/** metrics_value() - one line; @suffix is added to the name ("_bucket"); @labels may be NULL */
void metrics_value(FILE *out, const char *name, const char *suffix,
                   const struct metrics_label *labels, double value);

#endif
