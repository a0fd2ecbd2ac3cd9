// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * memguest_work.c - the tested memory and the threads that touch it
 *
 * Page p belongs to worker p % threads, so pages need no locks.  A worker picks a page by a Zipf
 * distribution, checks the whole page and sometimes rewrites it with the next generation.  Which
 * generation a page has is kept twice, plain and inverted, in memory that is moved with the guest
 * as well: damage there is found too.  A memory error (SIGBUS) marks the page dead.
 *
 * Jobs on all memory (sweep, zero, spoil) are published by a serial number; every worker does them
 * on its own pages before it goes on.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "memguest.h"
#include "pattern.h"

#define MAX_ERROR_LINES 200
#define GENERATION_DEAD 0xffffffffu /* lost to a memory error: never touched again */
#define GENERATION_ZERO 0x80000000u /* zeroed or dropped by command: must stay zero */

struct worker workers[MAX_THREADS];
struct job job;
atomic_uint job_serial, job_workers_left;
_Atomic uint64_t job_end_ns, job_pages;
atomic_bool stopped;
uint32_t n_pages;

static uint64_t *memory;
static volatile uint32_t *generations, *inverted;
static uint32_t n_clusters;
static uint32_t quantiles[PATTERN_QUANTILES + 1];
static atomic_uint error_lines;
static _Thread_local struct worker *self;
static _Thread_local uintptr_t lost_address;

/* ---- the pages ------------------------------------------------------------------------------- */

uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void *map_memory(uint64_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        say("cannot map %llu MiB: %s", (unsigned long long)bytes >> 20, strerror(errno));
        return NULL;
    }
    madvise(p, bytes, MADV_NOHUGEPAGE);
    return p;
}

static uint64_t *page_words(uint32_t page)
{
    return memory + (size_t)page * PATTERN_WORDS;
}

static void set_generation(uint32_t page, uint32_t generation)
{
    generations[page] = generation;
    inverted[page] = ~generation;
}

static void add(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static void rewrite_page(struct worker *w, uint32_t page)
{
    uint32_t next = (generations[page] + 1) & ~GENERATION_ZERO;

    pattern_fill(page_words(page), option.seed, page, next);
    set_generation(page, next);
    add(&w->writes, 1);
}

/* What word @index, wrong, looks like: stale, of another page, or made by nobody. */
static void classify(const uint64_t *words, unsigned index, uint32_t page, uint32_t generation,
                     char *text, size_t size)
{
    uint32_t other, older;

    pattern_origin(words[index], index, option.seed, &other, &older);
    if (pattern_is_zero(words)) {
        snprintf(text, size, "zero page");
    } else if (other == page && older < GENERATION_ZERO) {
        snprintf(text, size, "%s generation %u", older < generation ? "older" : "newer", older);
    } else if (other < n_pages && older < GENERATION_ZERO) {
        snprintf(text, size, "other page %u generation %u", other, older);
    } else {
        snprintf(text, size, "garbage 0x%016llx", (unsigned long long)words[index]);
    }
}

static void report_wrong_page(struct worker *w, uint32_t page, uint32_t generation)
{
    uint64_t words[PATTERN_WORDS], right[PATTERN_WORDS] = {0};
    unsigned first = PATTERN_WORDS, wrong = 0;
    char text[80] = "right when read again", expected[24] = "zero";

    add(&w->errors, 1);
    if (atomic_fetch_add(&error_lines, 1) >= MAX_ERROR_LINES) {
        return;
    }
    memcpy(words, page_words(page), sizeof(words));
    if (generation != GENERATION_ZERO) {
        pattern_fill(right, option.seed, page, generation);
        snprintf(expected, sizeof(expected), "%u", generation);
    }
    for (unsigned i = PATTERN_WORDS; i-- > 0;) {
        if (words[i] != right[i]) {
            first = i;
            wrong++;
        }
    }
    if (wrong) {
        classify(words, first, page, generation, text, sizeof(text));
    }
    say("ERROR page=%u word=%u wrong_words=%u expected generation %s got %s", page, first, wrong,
        expected, text);
}

/* Check the whole of @page.  A wrong page is reported once, then written anew. */
static void verify_page(struct worker *w, uint32_t page)
{
    uint32_t generation = generations[page];

    if (generation != ~inverted[page]) {
        add(&w->errors, 1);
        if (atomic_fetch_add(&error_lines, 1) < MAX_ERROR_LINES) {
            say("ERROR page=%u record damaged: generation %u, inverted copy %u", page, generation,
                ~inverted[page]);
        }
        rewrite_page(w, page);
        return;
    }
    if (generation == GENERATION_DEAD) {
        return;
    }
    bool right = generation == GENERATION_ZERO
                     ? pattern_is_zero(page_words(page))
                     : pattern_check(page_words(page), option.seed, page, generation);
    if (!right) {
        report_wrong_page(w, page, generation);
        rewrite_page(w, page);
    }
    add(&w->verified, 1);
}

/* Damage a page on purpose, to see that it is found.  Return: whether it was done. */
static bool spoil_page(uint32_t page, const char *how)
{
    uint64_t *words = page_words(page);

    if (generations[page] == GENERATION_DEAD) {
        return false;
    } else if (!strcmp(how, "bit")) {
        words[page % PATTERN_WORDS] ^= 1ull << page % 64;
    } else if (!strcmp(how, "zero")) {
        memset(words, 0, PATTERN_BYTES);
    } else if (!strcmp(how, "older")) {
        pattern_fill(words, option.seed, page, generations[page] ? generations[page] - 1 : 1);
    } else if (!strcmp(how, "other")) {
        pattern_fill(words, option.seed, (page + 1) % n_pages, 0);
    } else if (!strcmp(how, "record")) {
        generations[page]++;
    } else if (!strcmp(how, "lost") && getpid() == 1) { /* not on a host: its memory would be lost */
        return madvise(words, PATTERN_BYTES, MADV_HWPOISON) == 0;
    } else {
        return false;
    }
    return true;
}

/* ---- workers --------------------------------------------------------------------------------- */

static uint64_t worker_random(struct worker *w)
{
    return pattern_mix(w->random += PATTERN_STEP);
}

void store_larger(_Atomic uint64_t *at, uint64_t value)
{
    uint64_t old = atomic_load_explicit(at, memory_order_relaxed);

    while (old < value && !atomic_compare_exchange_weak(at, &old, value)) {
    }
}

/* End of one step: the time since the end of the last one is a stall if it is long. */
static void worker_mark(struct worker *w)
{
    uint64_t now = now_ns(), last = atomic_load_explicit(&w->last_ns, memory_order_relaxed);

    if (now > last) {
        store_larger(&w->longest_recent_ns, now - last);
        store_larger(&w->longest_ns, now - last);
        atomic_store_explicit(&w->last_ns, now, memory_order_relaxed);
    }
}

void sleep_until(uint64_t ns)
{
    struct timespec until = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)};

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {
    }
}

/* Keep to the rate.  Time slept on purpose is no stall, so the next step is measured from when
 * it was due; after a stall the missed accesses are not made up for. */
static void worker_pace(struct worker *w)
{
    uint64_t now = now_ns();

    if (w->due_ns + 100000000 < now) {
        w->due_ns = now;
    }
    w->due_ns += 1000000000ull * option.threads / option.rate;
    if (w->due_ns > now + 1000000) {
        sleep_until(w->due_ns);
        atomic_store_explicit(&w->last_ns, w->due_ns, memory_order_relaxed);
    }
}

static void worker_access(struct worker *w)
{
    uint32_t rank = pattern_draw(quantiles, worker_random(w));
    uint64_t cluster = pattern_permute(rank / option.cluster % n_clusters, n_clusters, option.seed);
    uint32_t page = (uint32_t)((cluster * option.cluster + rank % option.cluster) % n_pages);

    page = page - page % option.threads + w->id;
    if (page >= n_pages) {
        page = w->id;
    }
    verify_page(w, page);
    if (generations[page] < GENERATION_ZERO && worker_random(w) % 100 < option.write_percent) {
        rewrite_page(w, page);
    }
    if (option.rate) {
        worker_pace(w);
    }
}

/* The worker's own @i-th page in the order of sweeps. */
static uint32_t worker_page(const struct worker *w, uint32_t i, uint64_t key)
{
    return pattern_permute(i, w->own_pages, option.seed + key) * option.threads + w->id;
}

/* Dropped: given back to the guest's kernel, which may do with it what it likes. */
static void worker_zero_one(struct worker *w)
{
    uint32_t page = worker_page(w, w->zero_position++, 0x5eed);

    if (generations[page] < GENERATION_ZERO) {
        if (job.kind == JOB_DROP) {
            madvise(page_words(page), PATTERN_BYTES, MADV_DONTNEED);
        } else {
            memset(page_words(page), 0, PATTERN_BYTES);
        }
        set_generation(page, GENERATION_ZERO);
        w->job_done++;
    }
}

static void worker_refill_one(struct worker *w)
{
    uint32_t page = worker_page(w, w->job_position++, 0x5eed);

    if (generations[page] == GENERATION_ZERO) {
        verify_page(w, page);
        rewrite_page(w, page);
        w->job_done++;
    }
}

/* One page of the job.  Return: false when this worker has no more to do for it. */
static bool worker_job_step(struct worker *w)
{
    uint32_t share;

    switch (job.kind) {
    case JOB_SWEEP:
        if (w->job_position == w->own_pages) {
            return false;
        }
        w->job_done++;
        verify_page(w, worker_page(w, w->job_position++, w->job_serial));
        return true;
    case JOB_REFILL:
        if (w->job_position == w->own_pages) {
            w->zero_position = 0;
            return false;
        }
        worker_refill_one(w);
        return true;
    case JOB_ZERO:
    case JOB_DROP:
        share = job.pages / option.threads + (w->id < job.pages % option.threads);
        if (w->job_done == share || w->zero_position == w->own_pages) {
            return false;
        }
        worker_zero_one(w);
        return true;
    case JOB_SPOIL:
        w->job_done += job.page % option.threads == w->id && spoil_page(job.page, job.how);
        return false;
    }
    return false;
}

static void worker_job(struct worker *w, unsigned serial)
{
    if (worker_job_step(w)) {
        return;
    }
    add(&job_pages, w->job_done);
    w->job_serial = serial;
    w->job_position = w->job_done = 0;
    atomic_store(&job_end_ns, now_ns());
    atomic_fetch_sub(&job_workers_left, 1);
}

static void worker_step(struct worker *w)
{
    unsigned serial = atomic_load(&job_serial);

    if (w->job_serial != serial) {
        worker_job(w, serial);
    } else if (atomic_load(&stopped)) {
        atomic_store(&w->idle, true);
        sleep_until(now_ns() + 1000000);
        atomic_store(&w->last_ns, now_ns());
        atomic_store(&w->idle, atomic_load(&stopped) && w->job_serial == atomic_load(&job_serial));
        return;
    } else {
        worker_access(w);
    }
    worker_mark(w);
}

/* Memory was lost at @address: the page, or the records of 1024 pages. Return: whether it was ours. */
static bool worker_lost(struct worker *w, uintptr_t address)
{
    uintptr_t tables[] = {(uintptr_t)generations, (uintptr_t)inverted};
    uintptr_t offset = address - (uintptr_t)memory;

    if (offset < (uintptr_t)n_pages * PATTERN_BYTES) {
        set_generation((uint32_t)(offset / PATTERN_BYTES), GENERATION_DEAD);
        add(&w->memory_errors, 1);
        say("MEMORY-ERROR page=%u", (uint32_t)(offset / PATTERN_BYTES));
        return true;
    }
    for (unsigned t = 0; t < 2; t++) {
        offset = (address - tables[t]) / PATTERN_BYTES * PATTERN_BYTES;
        if (offset >= (uintptr_t)n_pages * 4) {
            continue;
        }
        mmap((void *)(tables[t] + offset), PATTERN_BYTES, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        uint32_t page = (uint32_t)(offset / 4), end = page + PATTERN_BYTES / 4;
        say("MEMORY-ERROR records of pages %u to %u", page, end - 1);
        for (; page < end && page < n_pages; page++) {
            set_generation(page, GENERATION_DEAD);
            add(&w->memory_errors, 1);
        }
        return true;
    }
    return false;
}

static void on_sigbus(int number, siginfo_t *info, void *context)
{
    (void)context;
    if (!self) {
        say("memory error outside the tested memory, address %p", info->si_addr);
        signal(number, SIG_DFL);
        return;
    }
    lost_address = (uintptr_t)info->si_addr;
    siglongjmp(self->trap, 1);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;

    if (sigsetjmp(w->trap, 0) && !worker_lost(w, lost_address)) {
        say("memory error outside the tested memory, address %#lx", (unsigned long)lost_address);
        abort();
    }
    self = w;
    for (;;) {
        worker_step(w);
    }
    return NULL;
}

bool work_fill(void)
{
    n_pages = (uint32_t)(option.size / PATTERN_BYTES);
    n_pages = n_pages < option.threads ? option.threads : n_pages;
    option.cluster = option.cluster > n_pages ? n_pages : option.cluster;
    n_clusters = (n_pages + option.cluster - 1) / option.cluster;
    option.hot = option.hot < 0.01 ? 0.01 : option.hot > 100 ? 100 : option.hot;
    pattern_zipf(quantiles, n_pages, option.hot / 100);
    memory = map_memory((uint64_t)n_pages * PATTERN_BYTES);
    generations = map_memory((uint64_t)n_pages * 4);
    inverted = map_memory((uint64_t)n_pages * 4);
    if (!memory || !generations || !inverted) {
        return false;
    }
    uint64_t due = 0;
    for (uint32_t page = 0; page < n_pages; page++) {
        if (page % 256 == 0 && now_ns() >= due) {
            say("filling %u MiB", page / 256);
            due = now_ns() + 1000000000;
        }
        pattern_fill(page_words(page), option.seed, page, 1);
        set_generation(page, 1);
    }
    say("ready filled=%u MiB pages=%u", n_pages / 256, n_pages);
    return true;
}

bool work_tests(uintptr_t address)
{
    return address - (uintptr_t)memory < (uintptr_t)n_pages * PATTERN_BYTES;
}

bool work_start(uint64_t start_ns)
{
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER};

    sigaction(SIGBUS, &action, NULL);
    for (unsigned i = 0; i < option.threads; i++) {
        struct worker *w = &workers[i];
        w->id = i;
        w->own_pages = n_pages / option.threads + (i < n_pages % option.threads);
        w->random = pattern_mix(option.seed) + i;
        w->last_ns = w->due_ns = start_ns;
        if (pthread_create(&w->thread, NULL, worker_main, w)) {
            return false;
        }
    }
    return true;
}
