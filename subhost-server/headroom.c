// SPDX-License-Identifier: GPL-2.0-or-later
#include "subhost-server/headroom.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "subhost-server/freemem.h"

#define HEADROOM_TICK_MS 250
#define HEADROOM_ASK_MAX 1024u
#define HEADROOM_LIST_MAX (1u << 20)
#define HEADROOM_SAMPLE 4u    /* times what is needed */
#define HEADROOM_SAMPLE_MIN 16u /* slabs */
#define HEADROOM_PATIENCE_US 30000000u /* for a pager that says nothing */
#define HEADROOM_REFUSED_US 10000000u  /* a slab that was refused is left alone */
#define HEADROOM_CALM_US 5000000u
#define HEADROOM_GROW_US 1000000u
#define HEADROOM_STEPS 64u /* from nothing to all that is lent */

/* A slab that was asked back. */
struct ask {
    struct region *region; /* a reference */
    uint64_t offset, bytes;
    uint64_t first_stored, stored; /* when it was asked for; now */
    uint64_t until_us;
    bool refused;
};

struct headroom {
    struct store *store;
    uint64_t bytes;
    pthread_t thread;
    pthread_mutex_t lock; /* the rest; taken inside the store's */
    pthread_cond_t changed;
    bool stop;
    struct ask ask[HEADROOM_ASK_MAX];
    unsigned n_asks;
    struct headroom_status status;
    uint64_t calm_us;  /* since when there is room again; 0: there is not */
    uint64_t grown_us;
    uint64_t told_us;  /* of a refusal */
    unsigned seed;
};

/* ---- what was asked ---- */

static void ask_drop(struct headroom *headroom, unsigned i)
{
    region_unref(headroom->ask[i].region);
    headroom->ask[i] = headroom->ask[--headroom->n_asks];
}

static struct ask *ask_find(struct headroom *headroom, const struct region *region, uint64_t offset)
{
    for (unsigned i = 0; i < headroom->n_asks; i++) {
        const struct ask *ask = &headroom->ask[i];
        if (ask->region == region && offset - ask->offset < ask->bytes) {
            return &headroom->ask[i];
        }
    }
    return NULL;
}

static void tell_refusal(struct headroom *headroom, const char *why, uint64_t now_us)
{
    headroom->status.refused++;
    if (!headroom->told_us || now_us > headroom->told_us + HEADROOM_REFUSED_US) {
        headroom->told_us = now_us;
        log_warn("memory is not given back: %.300s", why);
    }
}

static void ask_refuse(struct headroom *headroom, struct ask *ask, const char *why)
{
    uint64_t now = units_now_us();

    ask->refused = true;
    ask->until_us = now + HEADROOM_REFUSED_US;
    tell_refusal(headroom, why, now);
}

/* See what has become of the slabs. */
static void ask_settle(struct headroom *headroom, uint64_t now_us)
{
    headroom->status.asked = 0;
    for (unsigned i = 0; i < headroom->n_asks;) {
        struct ask *ask = &headroom->ask[i];
        struct region_slab slab;
        region_slab(ask->region, ask->offset, ask->bytes, &slab);
        ask->stored = slab.stored;
        if (!slab.stored && !ask->refused) {
            headroom->status.given_back += ask->first_stored;
        }
        if (!slab.stored || (ask->refused && now_us > ask->until_us)) {
            ask_drop(headroom, i);
            continue;
        }
        if (!ask->refused && now_us > ask->until_us) {
            ask_refuse(headroom, ask, "the guest's pager has not moved a slab that was asked back");
        }
        headroom->status.asked += ask->refused ? 0 : ask->stored;
        i++;
    }
}

/* ---- which ones ---- */

struct candidate {
    struct region *region;
    struct region_slab slab;
    uint64_t bytes;
};

struct list {
    struct headroom *headroom;
    struct candidate *candidate;
    size_t n, size;
};

/* The store's lock is held, so the region stays. */
static void list_region(void *to, const struct store_entry *entry)
{
    struct list *list = to;

    for (uint64_t at = 0; !entry->owner && at < region_size(entry->region); at += entry->slab) {
        struct region_slab slab;
        region_slab(entry->region, at, entry->slab, &slab);
        if (!slab.stored || ask_find(list->headroom, entry->region, at)) {
            continue;
        }
        if (list->n == list->size && list->size < HEADROOM_LIST_MAX) {
            size_t size = list->size ? 2 * list->size : 64;
            struct candidate *more = realloc(list->candidate, size * sizeof(*more));
            list->candidate = more ? more : list->candidate;
            list->size = more ? size : list->size;
        }
        if (list->n == list->size) {
            return;
        }
        list->candidate[list->n++] =
            (struct candidate){.region = entry->region, .slab = slab, .bytes = entry->slab};
    }
}

static int by_heat(const void *a, const void *b)
{
    const struct candidate *one = a, *other = b;

    return one->slab.heat < other->slab.heat ? -1 : one->slab.heat > other->slab.heat;
}

/* Bring a random sample to the front. Return: how many. */
static size_t draw(struct headroom *headroom, struct list *list, uint64_t need)
{
    uint64_t bytes = 0;
    size_t n = 0;

    while (n < list->n && (bytes < HEADROOM_SAMPLE * need || n < HEADROOM_SAMPLE_MIN)) {
        size_t at = n + (size_t)rand_r(&headroom->seed) % (list->n - n);
        struct candidate drawn = list->candidate[at];
        list->candidate[at] = list->candidate[n];
        list->candidate[n++] = drawn;
        bytes += drawn.slab.stored;
    }
    return n;
}

/* What is lent by RDMA is as hot as the others are on the average, for all that is known. */
static void guess_heat(struct candidate *candidate, size_t n)
{
    uint64_t heat = 0, known = 0;

    for (size_t i = 0; i < n; i++) {
        heat += candidate[i].slab.lent ? 0 : candidate[i].slab.heat;
        known += !candidate[i].slab.lent;
    }
    for (size_t i = 0; i < n; i++) {
        if (candidate[i].slab.lent) {
            candidate[i].slab.heat = known ? heat / known : 0;
        }
    }
}

static void choose_from(struct headroom *headroom, struct list *list, uint64_t need, uint64_t now_us)
{
    uint64_t bytes = 0;
    size_t n = draw(headroom, list, need);

    guess_heat(list->candidate, n);
    qsort(list->candidate, n, sizeof(*list->candidate), by_heat);
    for (size_t i = 0; i < n && bytes < need && headroom->n_asks < HEADROOM_ASK_MAX; i++) {
        const struct candidate *taken = &list->candidate[i];
        headroom->ask[headroom->n_asks++] = (struct ask){
            .region = region_ref(taken->region),
            .offset = taken->slab.offset,
            .bytes = taken->bytes,
            .first_stored = taken->slab.stored,
            .stored = taken->slab.stored,
            .until_us = now_us + HEADROOM_PATIENCE_US,
        };
        bytes += taken->slab.stored;
    }
    headroom->status.asked += bytes;
}

static void choose(struct headroom *headroom, uint64_t need, uint64_t now_us)
{
    struct list list = {.headroom = headroom};
    struct store *store = headroom->store;

    pthread_mutex_unlock(&headroom->lock);
    pthread_mutex_lock(&store->lock); /* keeps the regions there until references are taken */
    pthread_mutex_lock(&headroom->lock);
    for (const struct store_entry *entry = store->entries; entry; entry = entry->next) {
        list_region(&list, entry);
    }
    choose_from(headroom, &list, need, now_us);
    pthread_mutex_unlock(&store->lock);
    free(list.candidate);
}

/* ---- the thread ---- */

static void tell_short(const struct headroom *headroom, uint64_t stored)
{
    char free[32], wanted[32], lent[32];

    log_warn("only %s of memory is available, --headroom is %s: pages are given back, of %s stored",
             units_format_size(headroom->status.available, free, sizeof(free)),
             units_format_size(headroom->bytes, wanted, sizeof(wanted)),
             units_format_size(stored, lent, sizeof(lent)));
}

static void shrink(struct headroom *headroom, uint64_t stored, uint64_t now_us)
{
    struct headroom_status *status = &headroom->status;
    uint64_t need = headroom->bytes - status->available + headroom->bytes / 8;

    if (status->ceiling == UINT64_MAX) {
        tell_short(headroom, stored);
    }
    headroom->calm_us = 0;
    status->ceiling = status->ceiling < stored ? status->ceiling : stored;
    if (need > status->asked) {
        choose(headroom, need - status->asked, now_us);
    }
}

static void grow(struct headroom *headroom, uint64_t stored, uint64_t now_us)
{
    struct headroom_status *status = &headroom->status;
    uint64_t memory = headroom->store->quota.memory;
    uint64_t step = memory / HEADROOM_STEPS > CHUNK_BYTES ? memory / HEADROOM_STEPS : CHUNK_BYTES;

    headroom->calm_us = headroom->calm_us ? headroom->calm_us : now_us;
    while (headroom->n_asks) {
        ask_drop(headroom, headroom->n_asks - 1);
    }
    if (now_us < headroom->calm_us + HEADROOM_CALM_US ||
        now_us < headroom->grown_us + HEADROOM_GROW_US) {
        return;
    }
    uint64_t most = stored + status->available - headroom->bytes;
    headroom->grown_us = now_us;
    status->ceiling = status->ceiling + step < most ? status->ceiling + step : most;
    if (status->ceiling >= memory) {
        status->ceiling = UINT64_MAX;
        log_info("there is memory again: all of it is lent");
    }
}

static void tick(struct headroom *headroom)
{
    struct headroom_status *status = &headroom->status;
    uint64_t now = units_now_us();
    uint64_t before = status->ceiling;
    struct quota_status quota;

    status->available = freemem_now("");
    quota_status(&headroom->store->quota, &quota);
    ask_settle(headroom, now);
    if (status->available < headroom->bytes) {
        shrink(headroom, quota.stored, now);
    } else if (status->ceiling != UINT64_MAX &&
               status->available >= headroom->bytes + headroom->bytes / 4) {
        grow(headroom, quota.stored, now);
    } else if (status->ceiling != UINT64_MAX) {
        headroom->calm_us = 0; /* what was given back is not taken again at once */
        status->ceiling = status->ceiling < quota.stored ? status->ceiling : quota.stored;
    }
    if (status->ceiling != before) {
        quota_set_ceiling(&headroom->store->quota, status->ceiling);
    }
}

static void *headroom_main(void *arg)
{
    struct headroom *headroom = arg;

    pthread_mutex_lock(&headroom->lock);
    while (!headroom->stop) {
        tick(headroom);
        struct timespec at;
        clock_gettime(CLOCK_REALTIME, &at);
        at.tv_nsec += HEADROOM_TICK_MS * 1000000L;
        at.tv_sec += at.tv_nsec / 1000000000L;
        at.tv_nsec %= 1000000000L;
        if (!headroom->stop) {
            pthread_cond_timedwait(&headroom->changed, &headroom->lock, &at);
        }
    }
    pthread_mutex_unlock(&headroom->lock);
    return NULL;
}

int headroom_start(struct headroom **result, struct store *store, uint64_t bytes)
{
    struct headroom *headroom = calloc(1, sizeof(*headroom));

    if (!headroom) {
        return -ENOMEM;
    }
    headroom->store = store;
    headroom->bytes = bytes;
    headroom->seed = (unsigned)units_now_us();
    headroom->status = (struct headroom_status){
        .headroom = bytes, .ceiling = UINT64_MAX, .available = freemem_now("")};
    pthread_mutex_init(&headroom->lock, NULL);
    pthread_cond_init(&headroom->changed, NULL);
    int err = pthread_create(&headroom->thread, NULL, headroom_main, headroom);
    if (err) {
        free(headroom);
        return -err;
    }
    pthread_setname_np(headroom->thread, "headroom");
    *result = headroom;
    return 0;
}

void headroom_stop(struct headroom *headroom)
{
    if (!headroom) {
        return;
    }
    pthread_mutex_lock(&headroom->lock);
    headroom->stop = true;
    pthread_cond_signal(&headroom->changed);
    pthread_mutex_unlock(&headroom->lock);
    pthread_join(headroom->thread, NULL);
    while (headroom->n_asks) {
        ask_drop(headroom, headroom->n_asks - 1);
    }
    pthread_mutex_destroy(&headroom->lock);
    pthread_cond_destroy(&headroom->changed);
    free(headroom);
}

/* ---- for the pagers ---- */

json_t *headroom_wanted(struct headroom *headroom, const struct region *region)
{
    json_t *wanted = json_array();

    if (!headroom) {
        return wanted;
    }
    pthread_mutex_lock(&headroom->lock);
    for (unsigned i = 0; i < headroom->n_asks; i++) {
        const struct ask *ask = &headroom->ask[i];
        if (ask->region == region && !ask->refused) {
            json_array_append_new(wanted, json_pack("[I, I]", (json_int_t)ask->offset,
                                                    (json_int_t)ask->bytes));
        }
    }
    pthread_mutex_unlock(&headroom->lock);
    return wanted;
}

bool headroom_refuse(struct headroom *headroom, const struct region *region, uint64_t offset,
                     const char *why)
{
    struct ask *ask = NULL;

    if (headroom) {
        pthread_mutex_lock(&headroom->lock);
        ask = ask_find(headroom, region, offset);
        if (ask) {
            ask_refuse(headroom, ask, why);
        }
        pthread_mutex_unlock(&headroom->lock);
    }
    return ask != NULL;
}

void headroom_status(struct headroom *headroom, struct headroom_status *status)
{
    *status = (struct headroom_status){.ceiling = UINT64_MAX};
    if (headroom) {
        pthread_mutex_lock(&headroom->lock);
        *status = headroom->status;
        pthread_mutex_unlock(&headroom->lock);
    }
}
