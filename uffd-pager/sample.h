/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sample.h - which memory an unsplit guest touches: zap, wait, look at its page tables
 *
 * Nothing is registered before sample_start() and after sample_stop(), so a
 * guest that is not being looked at pays nothing.
 */
#ifndef UFFD_PAGER_SAMPLE_H
#define UFFD_PAGER_SAMPLE_H

#include <stdint.h>

#include "common/handoff.h"
#include "common/layout.h"
#include "common/log.h"
#include "predictor/predictor.h"

struct sample;

struct sample_config {
    const struct layout *layout;
    int uffd;
    int pagemap;                 /* the guest's, see mapped.h */
    struct predictor *predictor; /* sample notes accesses and ticks it */
    uint8_t *page_heat;          /* [pages of the flat RAM] (page_heat.h), added to; the caller's */
    unsigned period_ms;
    int (*zap)(void *opaque, const struct handoff_range *ranges, uint32_t n);
    void *opaque;
};

/** sample_start() - start looking. Return: 0 or -errno, @reason. */
int sample_start(struct sample **sample, const struct sample_config *config, struct reason *reason);

/** sample_periods() - complete periods so far; any thread */
unsigned sample_periods(const struct sample *sample);

/** sample_accessed() - chunks seen accessed since the start; any thread */
uint64_t sample_accessed(const struct sample *sample);

/** sample_stop() - stop, unregister, free */
void sample_stop(struct sample *sample);

/**
 * sample_clear() - unregister what an earlier worker may have left registered on an unsplit guest
 * Return: 0 or -errno.
 */
int sample_clear(const struct layout *layout, int uffd);

#endif
