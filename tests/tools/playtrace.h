/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * playtrace.h - a recorded program played in the guest's memory, for bench/rate.py
 *
 * Each event of a trace (predictor/replay.h) touches its page, as the program did, and is followed by as much
 * arithmetic as the program had between two events.  A page holds what follows from its generation, as in
 * playguest.h, but only one word of it is looked at or changed by an event, the way a program does.
 */
#ifndef TESTS_TOOLS_PLAYTRACE_H
#define TESTS_TOOLS_PLAYTRACE_H

#include "predictor/replay.h"
#include "tests/tools/playguest.h"

#define PLAY_TRACE_LOOKS 256u /* events between two looks at the clock */

struct play_trace {
    uint64_t first, n; /* events */
    uint64_t work;     /* rounds of arithmetic after each */
    uint64_t most_ns;  /* then it ends early */
};

static inline uint64_t play_rounds(uint64_t seed, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        seed = seed * 0x9e3779b97f4a7c15ull + (seed >> 32);
    }
    return seed;
}

/** play_pace() - ns of CPU that a thousand rounds of arithmetic take, the best of some tries */
static inline double play_pace(void)
{
    const uint64_t rounds = 4000000;
    double best = 1e9;
    volatile uint64_t sink = 1;

    for (unsigned i = 0; i < 9; i++) {
        struct timespec began, ended;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &began);
        sink = play_rounds(sink, rounds);
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ended);
        double ns = (double)(ended.tv_sec - began.tv_sec) * 1e9 +
                    (double)(ended.tv_nsec - began.tv_nsec);
        best = ns < best ? ns : best;
    }
    return best / (double)rounds * 1000;
}

/* The word of a page that an event touches is another one each generation. */
static inline uint64_t play_trace_want(const struct play *play, uint64_t page, uint64_t word)
{
    uint32_t generation = play->generation[page];
    uint64_t key = play_key(play, page, generation);

    return generation ? (key + word * 0x9e3779b97f4a7c15ull) ^ (key >> 13) : 0;
}

static inline void play_trace_touch(struct play *play, uint64_t page, bool write)
{
    uint64_t words = PAGE_BYTES / sizeof(uint64_t);
    uint64_t word = (page * 31 + play->generation[page] * 7) % words;
    volatile uint64_t *memory = (volatile uint64_t *)(void *)play_address(play, page);

    if (!memory) {
        return;
    }
    if (memory[word] != play_trace_want(play, page, word)) {
        atomic_fetch_add(&play->errors, 1);
    }
    if (write && play->generation[page] == 0) { /* all of a new page, lest it compresses to nothing */
        play->generation[page] = 1;
        for (uint64_t i = 0; i < words; i++) {
            memory[i] = play_trace_want(play, page, i);
        }
    } else if (write) {
        play->generation[page]++;
        word = (page * 31 + play->generation[page] * 7) % words;
        memory[word] = play_trace_want(play, page, word);
    }
    atomic_fetch_add_explicit(&play->checks, 1, memory_order_relaxed);
}

/** play_trace() - play events. @elapsed_ns: what it took. Return: how many were played. */
static inline uint64_t play_trace(struct play *play, const struct trace *trace,
                                  const struct play_trace *what, uint64_t *elapsed_ns)
{
    static volatile uint64_t sink;
    uint64_t began = play_now_ns(), played = 0;
    uint64_t state = 1;

    for (uint64_t i = what->first; i < trace->n && played < what->n; i++, played++) {
        uint64_t page = trace->event[i] >> 1;
        if (page < play->n_pages) {
            play_trace_touch(play, page, trace->event[i] & 1);
        }
        state = play_rounds(state, what->work);
        if (played % PLAY_TRACE_LOOKS == 0 && play_now_ns() - began > what->most_ns) {
            break;
        }
    }
    sink = state;
    (void)sink;
    *elapsed_ns = play_now_ns() - began;
    return played;
}

#endif
