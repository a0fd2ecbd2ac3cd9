// SPDX-License-Identifier: GPL-2.0-or-later
/* outgoing_profile.c - sample which memory a guest uses before it is sent away */
#include <errno.h>
#include <time.h>

#include "uffd-pager/outgoing.h"
#include "uffd-pager/sample.h"

static int outgoing_sample(struct worker *worker, uint64_t seconds, uint64_t period_ms,
                           json_t *answer, struct reason *reason)
{
    struct sample_config config = {
        .layout = &worker->layout,
        .uffd = worker->uffd,
        .pagemap = worker->pagemap,
        .predictor = worker->predictor,
        .page_heat = worker->page_heat,
        .period_ms = (unsigned)period_ms,
        .zap = worker_zap,
        .opaque = worker,
    };
    struct sample *sample;
    struct timespec deadline;

    int err = sample_start(&sample, &config, reason);
    if (err) {
        return err;
    }
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += (time_t)seconds;
    pthread_mutex_lock(&worker->lock);
    while (!worker->quit && worker->qemu_fd >= 0 &&
           pthread_cond_timedwait(&worker->changed, &worker->lock, &deadline) == 0) {
    }
    pthread_mutex_unlock(&worker->lock);
    json_object_set_new(answer, "chunks_accessed",
                        json_integer((json_int_t)sample_accessed(sample)));
    json_object_set_new(answer, "periods", json_integer(sample_periods(sample)));
    sample_stop(sample);
    return 0;
}

json_t *outgoing_profile(struct worker *worker, const json_t *args, int *err,
                         struct reason *reason)
{
    uint64_t seconds = 0;
    uint64_t period_ms = 0;

    *err = outgoing_integer(args, "seconds", 5, 3600, &seconds, reason);
    if (!*err) {
        *err = outgoing_integer(args, "period_ms", 1000, 3600000, &period_ms, reason);
    }
    if (*err) {
        return NULL;
    }
    pthread_mutex_lock(&worker->lock);
    if (!outgoing_may_begin(worker)) {
        *err = reason_set(reason, -EBUSY, "guest %s cannot be profiled: it is %s",
                          worker->uuid_text, worker_state_name(worker->state));
        pthread_mutex_unlock(&worker->lock);
        return NULL;
    }
    worker->state = WORKER_PROFILING;
    if (!worker->predictor) {
        worker->predictor = predictor_new(NULL, outgoing_chunks(worker), 1);
    }
    free(worker->page_heat); /* what single pages were used for ages faster than what chunks were */
    worker->page_heat = calloc(outgoing_chunks(worker), CHUNK_PAGES);
    pthread_mutex_unlock(&worker->lock);

    uint64_t present = guest_present(&worker->layout, NULL);
    json_t *answer = json_pack("{s:I, s:I, s:i, s:i}", "ram", (json_int_t)worker->layout.flat_size,
                               "present", (json_int_t)(present * PAGE_BYTES), "chunks_accessed", 0,
                               "periods", 0);
    if (seconds && worker->predictor && worker->page_heat && worker->pagemap >= 0) {
        *err = outgoing_sample(worker, seconds, period_ms ? period_ms : 1000, answer, reason);
    }
    pthread_mutex_lock(&worker->lock);
    worker->state = WORKER_ATTACHED;
    pthread_cond_broadcast(&worker->changed);
    pthread_mutex_unlock(&worker->lock);
    if (*err) {
        json_decref(answer);
        return NULL;
    }
    return answer;
}
