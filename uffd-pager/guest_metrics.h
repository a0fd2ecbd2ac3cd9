/* SPDX-License-Identifier: GPL-2.0-or-later */
/* guest_metrics.h - what the daemon tells Prometheus of its guests */
#ifndef UFFD_PAGER_GUEST_METRICS_H
#define UFFD_PAGER_GUEST_METRICS_H

#include <stdio.h>

/** guest_metrics() - a metrics_collect; @guests: struct guests, whose workers are asked */
void guest_metrics(void *guests, FILE *out);

#endif
