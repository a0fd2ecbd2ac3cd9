/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pattern.h - what memguest writes into its pages, and in which order it visits them
 *
 * Every 8-byte word of a page is a reversible function of (page number, generation, seed, place in
 * the page).  Checking a page recomputes all 512 words.  Being reversible is what makes a wrong page
 * speak: its words are turned back into the page number and generation they were made for, so a stale
 * page, another page's contents and plain garbage are told apart.
 *
 * The word function is a counter and one multiplication: no dependency from word to word, and few
 * instructions, because under TCG every one of them counts.
 */
#ifndef TESTS_GUEST_PATTERN_H
#define TESTS_GUEST_PATTERN_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PATTERN_BYTES 4096
#define PATTERN_WORDS (PATTERN_BYTES / 8)

#define PATTERN_STEP 0x9e3779b97f4a7c15ull
#define PATTERN_MUL 0xd6e8feb86659fd93ull
#define PATTERN_MIX1 0xbf58476d1ce4e5b9ull
#define PATTERN_MIX2 0x94d049bb133111ebull

/* The finalizer of splitmix64: a bijection of 64 bits. */
static inline uint64_t pattern_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * PATTERN_MIX1;
    x = (x ^ (x >> 27)) * PATTERN_MIX2;
    return x ^ (x >> 31);
}

/* The number that undoes a multiplication by odd @x: Newton's iteration, 3 bits right to begin with. */
static inline uint64_t pattern_inverse(uint64_t x)
{
    uint64_t y = x;

    for (int i = 0; i < 5; i++) {
        y *= 2 - x * y;
    }
    return y;
}

static inline uint64_t pattern_unshift(uint64_t x, unsigned bits)
{
    uint64_t y = x;

    for (unsigned done = bits; done < 64; done += bits) {
        y = x ^ (y >> bits);
    }
    return y;
}

static inline uint64_t pattern_unmix(uint64_t x)
{
    x = pattern_unshift(x, 31) * pattern_inverse(PATTERN_MIX2);
    x = pattern_unshift(x, 27) * pattern_inverse(PATTERN_MIX1);
    return pattern_unshift(x, 30);
}

static inline uint64_t pattern_base(uint64_t seed, uint32_t page, uint32_t generation)
{
    return pattern_mix(((uint64_t)generation << 32 | page) ^ pattern_mix(seed));
}

/** pattern_fill() - write page @page of generation @generation */
static inline void pattern_fill(uint64_t *words, uint64_t seed, uint32_t page, uint32_t generation)
{
    uint64_t s = pattern_base(seed, page, generation);

    for (unsigned i = 0; i < PATTERN_WORDS; i++) {
        s += PATTERN_STEP;
        words[i] = (s ^ (s >> 29)) * PATTERN_MUL;
    }
}

/** pattern_check() - Return: whether the whole page is as pattern_fill() left it */
static inline bool pattern_check(const uint64_t *words, uint64_t seed, uint32_t page,
                                 uint32_t generation)
{
    uint64_t s = pattern_base(seed, page, generation);
    uint64_t wrong = 0;

    for (unsigned i = 0; i < PATTERN_WORDS; i += 4) {
        uint64_t s1 = s + PATTERN_STEP, s2 = s + 2 * PATTERN_STEP, s3 = s + 3 * PATTERN_STEP;
        s += 4 * PATTERN_STEP;
        wrong |= words[i] ^ ((s1 ^ (s1 >> 29)) * PATTERN_MUL);
        wrong |= words[i + 1] ^ ((s2 ^ (s2 >> 29)) * PATTERN_MUL);
        wrong |= words[i + 2] ^ ((s3 ^ (s3 >> 29)) * PATTERN_MUL);
        wrong |= words[i + 3] ^ ((s ^ (s >> 29)) * PATTERN_MUL);
    }
    return wrong == 0;
}

/** pattern_is_zero() - Return: whether the whole page is zero */
static inline bool pattern_is_zero(const uint64_t *words)
{
    uint64_t any = 0;

    for (unsigned i = 0; i < PATTERN_WORDS; i++) {
        any |= words[i];
    }
    return any == 0;
}

/** pattern_origin() - which page and generation word @index with this @value was written for */
static inline void pattern_origin(uint64_t value, unsigned index, uint64_t seed, uint32_t *page,
                                  uint32_t *generation)
{
    uint64_t s = pattern_unshift(value * pattern_inverse(PATTERN_MUL), 29);
    uint64_t key = pattern_unmix(s - (index + 1) * PATTERN_STEP) ^ pattern_mix(seed);

    *page = (uint32_t)key;
    *generation = (uint32_t)(key >> 32);
}

/**
 * pattern_permute() - the @i-th of 0 to @n - 1 in a pseudo-random order
 *
 * A Feistel network over the next even power of two, walked until it lands inside: no table, so
 * nothing that could be damaged in guest memory.
 */
static inline uint32_t pattern_permute(uint32_t i, uint32_t n, uint64_t key)
{
    unsigned half = 1;

    while (half < 16 && (uint64_t)1 << (2 * half) < n) {
        half++;
    }
    uint32_t mask = (uint32_t)((1ull << half) - 1);
    do {
        uint32_t left = i >> half, right = i & mask;
        for (unsigned round = 0; round < 4; round++) {
            uint64_t x = (right + 1 + round * 0x9e3779b9ull + key) * PATTERN_MUL;
            uint32_t next = left ^ (uint32_t)((x ^ (x >> 32)) >> 13 & mask);
            left = right;
            right = next;
        }
        i = left << half | right;
    } while (i >= n);
    return i;
}

#define PATTERN_QUANTILES 4096

static inline double pattern_zipf_integral(double x, double s)
{
    return fabs(1 - s) < 1e-9 ? log(x) : (pow(x, 1 - s) - 1) / (1 - s);
}

/**
 * pattern_zipf() - quantiles of a Zipf distribution over ranks 0 to @n - 1
 * @hot: the share (0 to 1) of the ranks that shall get nine tenths of the accesses
 *
 * The exponent is found by halving an interval.  Drawing is then a table lookup: under TCG a pow()
 * for each access would cost as much as checking a page.
 */
static inline void pattern_zipf(uint32_t quantiles[PATTERN_QUANTILES + 1], uint32_t n, double hot)
{
    double low = 0, high = 4;

    for (int i = 0; i < 60; i++) {
        double s = (low + high) / 2;
        double share = pattern_zipf_integral(1 + hot * n, s) / pattern_zipf_integral(1.0 + n, s);
        *(share < 0.9 ? &low : &high) = s;
    }
    double total = pattern_zipf_integral(1.0 + n, low);
    for (unsigned k = 0; k <= PATTERN_QUANTILES; k++) {
        double y = total * k / PATTERN_QUANTILES;
        double x = fabs(1 - low) < 1e-9 ? exp(y) : pow(1 + (1 - low) * y, 1 / (1 - low));
        quantiles[k] = x - 1 >= n ? n : (uint32_t)(x - 1);
    }
    quantiles[PATTERN_QUANTILES] = n;
}

/** pattern_draw() - a rank, from the random bits @r */
static inline uint32_t pattern_draw(const uint32_t *quantiles, uint64_t r)
{
    const uint32_t *q = quantiles + (r >> 52);

    return q[0] + (uint32_t)((q[1] - q[0]) * (r & 0xffffffff) >> 32);
}

#endif
