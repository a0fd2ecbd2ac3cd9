// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * replay_oracle.c - policies that see every access, page by page: what could be had if hits were free to see
 *
 * No pager sees hits, so these are bounds, not candidates; but for FluidMem's queue and chance, which do
 * not look.  All work on 4 KiB pages, without prefetch, and evict one page for one that comes.
 *
 *   fluidmem   first in, first out, as in FluidMem (ICDCS 2020)
 *   random4k   any page
 *   clock      a queue with a second chance for pages that were accessed
 *   lru        the page not used for the longest time
 *   lfu        the fewest accesses, an access counting half after as many accesses as memory has pages;
 *              the victim is the least of 32 pages taken at random
 *   arc        Megiddo and Modha, FAST 2003
 *   lirs       Jiang and Zhang, SIGMETRICS 2002; a hundredth of the memory for pages of long distance,
 *              and no more than three times the memory in pages remembered
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "predictor/policy.h"
#include "predictor/replay_impl.h"

#define LFU_TRIES 32
#define N_LISTS 4

/* Doubly linked lists of pages in arrays: a page is on one of them at most; heads follow the pages. */
struct lists {
    uint32_t *next, *prev;
    uint8_t *on; /* which list + 1, or 0 */
    uint32_t head;
    uint64_t length[N_LISTS];
};

struct oracle {
    const struct trace *trace;
    const struct replay_options *options;
    struct replay_result *result;
    uint8_t *flags;
    uint64_t resident, local, now, random;
    struct lists a, b; /* b: for LIRS, which has pages on two at a time */
    double target;     /* ARC: how much of the memory is for pages used once */
    uint64_t lir;      /* LIRS: pages of short distance */
    uint32_t *place;   /* random4k, lfu: the resident pages */
    float *count;      /* lfu */
    uint64_t *counted; /* lfu: when */
};

struct oracle_ops {
    const char *name;
    void (*hit)(struct oracle *oracle, uint32_t page);
    void (*miss)(struct oracle *oracle, uint32_t page); /* make room if it is full, take it up */
};

/* ---- lists ---- */

static bool lists_new(struct lists *lists, uint64_t n_pages)
{
    lists->head = (uint32_t)n_pages;
    lists->next = calloc(n_pages + N_LISTS, sizeof(*lists->next));
    lists->prev = calloc(n_pages + N_LISTS, sizeof(*lists->prev));
    lists->on = calloc(n_pages + N_LISTS, 1);
    for (uint32_t i = 0; lists->next && lists->prev && i < N_LISTS; i++) {
        lists->next[lists->head + i] = lists->prev[lists->head + i] = lists->head + i;
    }
    return lists->next && lists->prev && lists->on;
}

static void lists_free(struct lists *lists)
{
    free(lists->next);
    free(lists->prev);
    free(lists->on);
}

static void lists_remove(struct lists *lists, uint32_t page)
{
    if (lists->on[page]) {
        lists->next[lists->prev[page]] = lists->next[page];
        lists->prev[lists->next[page]] = lists->prev[page];
        lists->length[lists->on[page] - 1]--;
        lists->on[page] = 0;
    }
}

/* Put the page in front of list @list, wherever it was. */
static void lists_push(struct lists *lists, unsigned list, uint32_t page)
{
    uint32_t head = lists->head + list;

    lists_remove(lists, page);
    lists->next[page] = lists->next[head];
    lists->prev[page] = head;
    lists->prev[lists->next[page]] = page;
    lists->next[head] = page;
    lists->on[page] = (uint8_t)(list + 1);
    lists->length[list]++;
}

/* The last of a list that is not empty. */
static uint32_t lists_last(const struct lists *lists, unsigned list)
{
    return lists->prev[lists->head + list];
}

/* ---- what all share ---- */

static void page_enters(struct oracle *oracle, uint32_t page)
{
    bool fill = oracle->options->fresh && !(oracle->flags[page] & PAGE_KNOWN);

    oracle->result->misses += !fill;
    oracle->flags[page] = PAGE_HERE | (fill ? PAGE_DIRTY : 0);
    oracle->resident++;
}

static void page_leaves(struct oracle *oracle, uint32_t page)
{
    oracle->result->page_outs++;
    oracle->result->sent += (oracle->flags[page] & PAGE_DIRTY) != 0;
    oracle->flags[page] = PAGE_KNOWN;
    oracle->resident--;
}

static bool is_full(const struct oracle *oracle)
{
    return oracle->resident >= oracle->local;
}

static void hit_nothing(struct oracle *oracle, uint32_t page)
{
    (void)oracle;
    (void)page;
}

/* ---- queues ---- */

static void queue_miss(struct oracle *oracle, uint32_t page)
{
    if (is_full(oracle)) {
        uint32_t victim = lists_last(&oracle->a, 0);
        lists_remove(&oracle->a, victim);
        page_leaves(oracle, victim);
    }
    page_enters(oracle, page);
    lists_push(&oracle->a, 0, page);
}

static void lru_hit(struct oracle *oracle, uint32_t page)
{
    lists_push(&oracle->a, 0, page);
}

static void clock_hit(struct oracle *oracle, uint32_t page)
{
    oracle->flags[page] |= PAGE_USED;
}

static void clock_miss(struct oracle *oracle, uint32_t page)
{
    while (is_full(oracle) && oracle->flags[lists_last(&oracle->a, 0)] & PAGE_USED) {
        uint32_t spared = lists_last(&oracle->a, 0);
        oracle->flags[spared] &= (uint8_t)~PAGE_USED;
        lists_push(&oracle->a, 0, spared);
    }
    queue_miss(oracle, page);
}

/* ---- by chance, and by count ---- */

static void place_take(struct oracle *oracle, uint64_t place, uint32_t page)
{
    if (is_full(oracle)) {
        page_leaves(oracle, oracle->place[place]);
    } else {
        place = oracle->resident;
    }
    page_enters(oracle, page);
    oracle->place[place] = page;
}

static void random_miss(struct oracle *oracle, uint32_t page)
{
    place_take(oracle, policy_below(&oracle->random, oracle->local), page);
}

static float lfu_count(const struct oracle *oracle, uint32_t page)
{
    double age = (double)(oracle->now - oracle->counted[page]) / (double)oracle->local;

    return oracle->count[page] * exp2f(-(float)age);
}

static void lfu_hit(struct oracle *oracle, uint32_t page)
{
    oracle->count[page] = lfu_count(oracle, page) + 1;
    oracle->counted[page] = oracle->now;
}

static void lfu_miss(struct oracle *oracle, uint32_t page)
{
    uint64_t best = 0;
    float least = INFINITY;

    for (unsigned i = 0; is_full(oracle) && i < LFU_TRIES; i++) {
        uint64_t place = policy_below(&oracle->random, oracle->local);
        float count = lfu_count(oracle, oracle->place[place]);
        best = count < least ? place : best;
        least = count < least ? count : least;
    }
    place_take(oracle, best, page);
    lfu_hit(oracle, page);
}

/* ---- ARC: lists T1, T2 of pages here, B1, B2 of pages that left them ---- */

enum { ARC_T1, ARC_T2, ARC_B1, ARC_B2 };

static void arc_hit(struct oracle *oracle, uint32_t page)
{
    lists_push(&oracle->a, ARC_T2, page);
}

static void arc_adapt(struct oracle *oracle, unsigned list)
{
    double b1 = (double)oracle->a.length[ARC_B1], b2 = (double)oracle->a.length[ARC_B2];
    double step = list == ARC_B1 ? (b1 >= b2 ? 1 : b2 / b1) : -(b2 >= b1 ? 1 : b1 / b2);

    oracle->target = fmin(fmax(oracle->target + step, 0), (double)oracle->local);
}

static void arc_evict(struct oracle *oracle, bool from_b2)
{
    struct lists *lists = &oracle->a;
    double t1 = (double)lists->length[ARC_T1];
    bool first = lists->length[ARC_T1] &&
                 (t1 > oracle->target || (from_b2 && t1 >= oracle->target) || !lists->length[ARC_T2]);
    uint32_t victim = lists_last(lists, first ? ARC_T1 : ARC_T2);

    page_leaves(oracle, victim);
    lists_push(lists, first ? ARC_B1 : ARC_B2, victim);
}

static void arc_miss(struct oracle *oracle, uint32_t page)
{
    struct lists *lists = &oracle->a;
    unsigned list = lists->on[page];
    bool ghost = list == ARC_B1 + 1 || list == ARC_B2 + 1;

    if (ghost) {
        arc_adapt(oracle, list - 1);
        lists_remove(lists, page);
    }
    if (is_full(oracle)) {
        arc_evict(oracle, list == ARC_B2 + 1);
    }
    while (lists->length[ARC_B1] && lists->length[ARC_T1] + lists->length[ARC_B1] > oracle->local) {
        lists_remove(lists, lists_last(lists, ARC_B1));
    }
    while (lists->length[ARC_B2] && lists->length[ARC_B1] + lists->length[ARC_B2] > oracle->local) {
        lists_remove(lists, lists_last(lists, ARC_B2));
    }
    page_enters(oracle, page);
    lists_push(lists, ghost ? ARC_T2 : ARC_T1, page);
}

/*
 * ---- LIRS ----
 * Stack: list 0 of a.  Resident pages of long distance (HIR): list 0 of b; remembered ones that are not
 * resident: list 1 of b; pages of short distance (LIR): PAGE_USED, only on the stack.
 */

static void lirs_prune(struct oracle *oracle)
{
    while (oracle->a.length[0] && !(oracle->flags[lists_last(&oracle->a, 0)] & PAGE_USED)) {
        uint32_t page = lists_last(&oracle->a, 0);
        lists_remove(&oracle->a, page);
        if (oracle->b.on[page] == 2) {
            lists_remove(&oracle->b, page);
        }
    }
}

static void lirs_make_lir(struct oracle *oracle, uint32_t page)
{
    lists_push(&oracle->a, 0, page);
    lists_remove(&oracle->b, page);
    oracle->flags[page] |= PAGE_USED;
    oracle->lir++;
    if (oracle->lir > oracle->local - oracle->local / 100 - 1) {
        uint32_t last = lists_last(&oracle->a, 0);
        lists_remove(&oracle->a, last);
        oracle->flags[last] &= (uint8_t)~PAGE_USED;
        oracle->lir--;
        lists_push(&oracle->b, 0, last);
        lirs_prune(oracle);
    }
}

static void lirs_hit(struct oracle *oracle, uint32_t page)
{
    if (oracle->flags[page] & PAGE_USED) {
        lists_push(&oracle->a, 0, page);
        lirs_prune(oracle);
    } else if (oracle->a.on[page]) {
        lirs_make_lir(oracle, page);
    } else {
        lists_push(&oracle->a, 0, page);
        lists_push(&oracle->b, 0, page);
    }
}

static void lirs_evict(struct oracle *oracle)
{
    bool hir = oracle->b.length[0] > 0;
    uint32_t victim = hir ? lists_last(&oracle->b, 0) : lists_last(&oracle->a, 0);

    lists_remove(&oracle->b, victim);
    if (!hir) {
        lists_remove(&oracle->a, victim);
        oracle->lir--;
    } else if (oracle->a.on[victim]) {
        lists_push(&oracle->b, 1, victim);
    }
    page_leaves(oracle, victim);
    lirs_prune(oracle);
}

static void lirs_miss(struct oracle *oracle, uint32_t page)
{
    bool filling = oracle->resident + oracle->local / 100 + 1 < oracle->local;

    if (is_full(oracle)) {
        lirs_evict(oracle);
    }
    bool remembered = oracle->b.on[page] == 2;
    page_enters(oracle, page);
    if (remembered || filling) {
        lirs_make_lir(oracle, page);
    } else {
        lists_push(&oracle->a, 0, page);
        lists_push(&oracle->b, 0, page);
    }
    if (oracle->b.length[1] > 3 * oracle->local) {
        uint32_t oldest = lists_last(&oracle->b, 1);
        lists_remove(&oracle->b, oldest);
        lists_remove(&oracle->a, oldest);
        lirs_prune(oracle);
    }
}

/* ---- */

static const struct oracle_ops oracles[] = {
    {"random4k", hit_nothing, random_miss}, {"fluidmem", hit_nothing, queue_miss},
    {"clock", clock_hit, clock_miss},       {"lru", lru_hit, queue_miss},
    {"lfu", lfu_hit, lfu_miss},             {"arc", arc_hit, arc_miss},
    {"lirs", lirs_hit, lirs_miss},
};

const char *const *replay_oracles(void)
{
    static const char *const names[] = {"random4k", "fluidmem", "clock", "lru",
                                        "lfu",      "arc",      "lirs",  NULL};

    _Static_assert(sizeof(names) / sizeof(names[0]) == sizeof(oracles) / sizeof(oracles[0]) + 1,
                   "a policy without a name");
    return names;
}

static bool oracle_new(struct oracle *oracle)
{
    uint64_t n = oracle->trace->n_pages;

    oracle->flags = calloc(n + 1, 1);
    oracle->place = calloc(oracle->local + 1, sizeof(*oracle->place));
    oracle->count = calloc(n + 1, sizeof(*oracle->count));
    oracle->counted = calloc(n + 1, sizeof(*oracle->counted));
    return lists_new(&oracle->a, n) && lists_new(&oracle->b, n) && oracle->flags &&
           oracle->place && oracle->count && oracle->counted;
}

static void oracle_run(struct oracle *oracle, const struct oracle_ops *ops)
{
    const struct trace *trace = oracle->trace;

    for (size_t i = 0; i < trace->n; i++) {
        uint32_t page = trace->event[i] >> 1;
        if (trace->event[i] == TRACE_TICK) {
            continue;
        }
        oracle->now++;
        if (oracle->flags[page] & PAGE_HERE) {
            ops->hit(oracle, page);
        } else {
            ops->miss(oracle, page);
        }
        oracle->flags[page] |= trace->event[i] & 1 ? PAGE_DIRTY : 0;
    }
}

int replay_oracle(const struct trace *trace, const char *policy,
                  const struct replay_options *options, struct replay_result *result)
{
    struct oracle oracle = {.trace = trace,
                            .options = options,
                            .result = result,
                            .local = options->local_pages,
                            .random = options->seed};
    int err = -ENOMEM;

    memset(result, 0, sizeof(*result));
    if (oracle_new(&oracle)) {
        err = -ENOENT;
        for (size_t i = 0; i < sizeof(oracles) / sizeof(oracles[0]) && err; i++) {
            if (!strcmp(policy, oracles[i].name)) {
                oracle_run(&oracle, &oracles[i]);
                err = 0;
            }
        }
    }
    lists_free(&oracle.a);
    lists_free(&oracle.b);
    free(oracle.flags);
    free(oracle.place);
    free(oracle.count);
    free(oracle.counted);
    return err;
}
