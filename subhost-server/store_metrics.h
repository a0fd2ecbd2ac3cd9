/* SPDX-License-Identifier: GPL-2.0-or-later */
/* store_metrics.h - what the sub-host tells Prometheus */
#ifndef SUBHOST_SERVER_STORE_METRICS_H
#define SUBHOST_SERVER_STORE_METRICS_H

#include <stdio.h>

/** store_metrics() - a metrics_collect; @server: struct server */
void store_metrics(void *server, FILE *out);

#endif
