// SPDX-License-Identifier: GPL-2.0-or-later
/* The split of a guest: budgets exact, every chunk placed, proportions, ties without address bias. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/units.h"
#include "predictor/page_heat.h"
#include "predictor/policy.h"

#define N 2000
#define SUBS_MAX 127

struct guest {
    struct predictor *predictor;
    uint32_t present[N];
    uint8_t heat[N];
    uint64_t total;
    uint64_t sub_pages[SUBS_MAX];
    uint32_t weight[SUBS_MAX];
    struct predictor_partition want;
    uint8_t out[N];
    uint64_t hot[N * CHUNK_PAGES / 64];
    uint64_t hot_pages, cold_pages[SUBS_MAX], all_pages[SUBS_MAX], empty_chunks[SUBS_MAX];
};

/* Chunks of the given fullness: 0 all 512 pages, 1 anything, 2 half of them empty. */
static void guest_make(struct guest *g, uint64_t seed, unsigned levels, unsigned fullness)
{
    uint64_t random = seed;

    memset(g, 0, sizeof(*g));
    g->predictor = predictor_new(NULL, N, seed);
    for (unsigned i = 0; i < N; i++) {
        g->present[i] = fullness ? (uint32_t)policy_below(&random, 513) : 512;
        if (fullness == 2 && policy_below(&random, 2)) {
            g->present[i] = 0;
        }
        g->heat[i] = (uint8_t)(policy_below(&random, levels) * 255 / levels);
        g->total += g->present[i];
    }
    predictor_import(g->predictor, g->heat);
    g->want.present = g->present;
    g->want.sub_pages = g->sub_pages;
    g->want.sub_weight = g->weight;
}

static int guest_split(struct guest *g)
{
    memset(g->out, 0xff, sizeof(g->out));
    memset(g->hot, 0, sizeof(g->hot));
    int err = predictor_split(g->predictor, &g->want, g->out, g->hot);

    for (unsigned i = 0; i < N && !err; i++) {
        unsigned sub = g->out[i] & ~PREDICTOR_HOT;
        assert_true(sub < g->want.n_subhosts); /* every chunk is placed */
        if (g->out[i] & PREDICTOR_HOT) {
            g->hot_pages += g->present[i];
        } else {
            g->cold_pages[sub] += g->present[i];
        }
        g->all_pages[sub] += g->present[i];
        g->empty_chunks[sub] += !g->present[i];
    }
    return err;
}

static void check_hot(const struct guest *g)
{
    uint64_t left = g->want.main_pages - g->hot_pages;
    unsigned coldest = 256;

    assert_true(g->hot_pages <= g->want.main_pages);
    for (unsigned i = 0; i < N; i++) {
        if (g->out[i] & PREDICTOR_HOT) {
            assert_true(g->present[i] > 0);
            coldest = g->heat[i] < coldest ? g->heat[i] : coldest;
        } else {
            assert_true(!g->present[i] || g->present[i] > left); /* what fits is on the main host */
        }
    }
    for (unsigned i = 0; i < N; i++) { /* hotter ones stay out only if too big for what was left */
        if (!(g->out[i] & PREDICTOR_HOT) && g->present[i] && g->heat[i] > coldest) {
            uint64_t hotter = 0;
            for (unsigned j = 0; j < N; j++) {
                hotter += g->out[j] & PREDICTOR_HOT && g->heat[j] >= g->heat[i] ? g->present[j] : 0;
            }
            assert_true(hotter + g->present[i] > g->want.main_pages);
        }
    }
}

static void test_random_cases(void **state)
{
    struct guest *g = malloc(sizeof(*g));

    (void)state;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        uint64_t random = seed * 77;
        guest_make(g, seed, 1 + (unsigned)policy_below(&random, 255), seed % 3);
        g->want.n_subhosts = 1 + (unsigned)policy_below(&random, seed % 10 ? 6 : SUBS_MAX);
        g->want.main_pages = policy_below(&random, g->total + g->total / 8);
        for (unsigned i = 0; i < g->want.n_subhosts; i++) {
            g->sub_pages[i] = g->total * policy_below(&random, 200) / 100 / g->want.n_subhosts;
            g->weight[i] = (uint32_t)policy_below(&random, 4);
        }
        int err = guest_split(g);
        uint64_t room = g->want.main_pages;
        for (unsigned i = 0; i < g->want.n_subhosts; i++) {
            room += g->sub_pages[i];
            assert_true(err || g->cold_pages[i] <= g->sub_pages[i]);
        }
        if (err) { /* refused rightly: at most a chunk's size a host was left over */
            assert_int_equal(err, -ENOSPC);
            assert_true(g->total + (g->want.n_subhosts + 1) * 511ull >= room || g->total > room);
        } else {
            check_hot(g);
        }
        predictor_free(g->predictor);
    }
    free(g);
}

/* All chunks of one size: the budget is filled to the page. */
static void test_exact_budget(void **state)
{
    struct guest g;

    (void)state;
    guest_make(&g, 1, 20, 0);
    g.want.n_subhosts = 2;
    g.weight[0] = g.weight[1] = 1;
    g.want.main_pages = 700 * 512;
    g.sub_pages[0] = g.sub_pages[1] = 650 * 512;
    assert_int_equal(guest_split(&g), 0);
    assert_int_equal(g.hot_pages, 700 * 512);
    assert_int_equal(g.cold_pages[0], 650 * 512);
    assert_int_equal(g.cold_pages[1], 650 * 512);
    g.sub_pages[1]--;
    assert_int_equal(guest_split(&g), -ENOSPC);
    predictor_free(g.predictor);
}

/* A hot chunk that does not fit any more gives way to a smaller one of the same heat. */
static void test_skips_too_big(void **state)
{
    struct guest g;

    (void)state;
    guest_make(&g, 1, 1, 0);
    memset(g.present, 0, sizeof(g.present));
    g.present[5] = 512;
    g.present[6] = 512;
    g.present[7] = 100;
    g.want.main_pages = 620;
    g.want.n_subhosts = 1;
    g.sub_pages[0] = 512;
    assert_int_equal(guest_split(&g), 0);
    assert_int_equal(g.hot_pages, 612);
    assert_true(g.out[7] & PREDICTOR_HOT);
    predictor_free(g.predictor);
}

static void check_share(uint64_t part, uint64_t whole, double wanted, double slack)
{
    double share = (double)part / (double)whole;

    assert_true(share > wanted - slack && share < wanted + slack);
}

static void test_proportions(void **state)
{
    static const uint32_t weights[] = {1, 2, 5, 0};
    struct guest g;

    (void)state;
    guest_make(&g, 9, 50, 2);
    g.want.n_subhosts = 4;
    g.want.main_pages = g.total / 3;
    for (unsigned i = 0; i < 4; i++) {
        g.weight[i] = weights[i];
        g.sub_pages[i] = g.total;
    }
    assert_int_equal(guest_split(&g), 0);
    uint64_t empty = g.empty_chunks[0] + g.empty_chunks[1] + g.empty_chunks[2];
    for (unsigned i = 0; i < 4; i++) {
        check_share(g.cold_pages[i], g.total - g.hot_pages, weights[i] / 8.0, 0.005);
        check_share(g.all_pages[i], g.total, weights[i] / 8.0, 0.005);
        check_share(g.empty_chunks[i], empty, weights[i] / 8.0, 0.005);
    }
    predictor_free(g.predictor);
}

/* Weight 0 is taken when the others are full, and no sooner. */
static void test_spare_subhost(void **state)
{
    struct guest g;

    (void)state;
    guest_make(&g, 3, 10, 0);
    g.want.n_subhosts = 3;
    g.want.main_pages = 0;
    g.weight[1] = 3;
    g.weight[2] = 1;
    g.sub_pages[0] = g.total;
    g.sub_pages[1] = 300 * 512;
    g.sub_pages[2] = 200 * 512 + 511;
    assert_int_equal(guest_split(&g), 0);
    assert_int_equal(g.hot_pages, 0);
    assert_int_equal(g.cold_pages[1], 300 * 512);
    assert_int_equal(g.cold_pages[2], 200 * 512);
    assert_int_equal(g.cold_pages[0], (N - 500) * 512);
    predictor_free(g.predictor);
}

/* With no room left on sub-hosts, hot chunks still have one, by weight. */
static void test_hot_chunks_have_a_subhost(void **state)
{
    struct guest g;

    (void)state;
    guest_make(&g, 4, 10, 0);
    g.want.n_subhosts = 2;
    g.want.main_pages = g.total;
    g.weight[0] = 1;
    g.weight[1] = 3;
    assert_int_equal(guest_split(&g), 0);
    assert_int_equal(g.hot_pages, g.total);
    check_share(g.all_pages[1], g.total, 0.75, 0.005);
    predictor_free(g.predictor);
}

static void test_subhost_count(void **state)
{
    struct guest g;

    (void)state;
    guest_make(&g, 4, 10, 0);
    g.want.main_pages = g.total;
    assert_int_equal(guest_split(&g), -EINVAL);
    g.want.n_subhosts = 128;
    assert_int_equal(guest_split(&g), -EINVAL);
    predictor_free(g.predictor);
}

static void test_determinism(void **state)
{
    struct guest g, h;

    (void)state;
    for (uint64_t seed = 20; seed < 23; seed++) {
        guest_make(&g, 20, 3, 1);
        guest_make(&h, 20, 3, 1);
        predictor_free(h.predictor);
        h.predictor = predictor_new(NULL, N, seed);
        predictor_import(h.predictor, h.heat);
        g.want.n_subhosts = h.want.n_subhosts = 3;
        g.want.main_pages = h.want.main_pages = g.total / 2;
        for (unsigned i = 0; i < 3; i++) {
            g.sub_pages[i] = h.sub_pages[i] = g.total;
            g.weight[i] = h.weight[i] = i + 1;
        }
        assert_int_equal(guest_split(&g), 0);
        assert_int_equal(guest_split(&h), 0);
        assert_int_equal(memcmp(g.out, h.out, N) == 0, seed == 20); /* the same seed, the same split */
        predictor_free(g.predictor);
        predictor_free(h.predictor);
    }
}

/* Equal heat: the lower half of the addresses gets half of the main host, not all of it. */
static void test_no_address_bias(void **state)
{
    struct guest g;
    uint64_t low = 0, hot = 0, low_sub = 0, sub = 0;

    (void)state;
    for (uint64_t seed = 0; seed < 60; seed++) {
        guest_make(&g, seed, 1, 0);
        g.want.n_subhosts = 2;
        g.want.main_pages = 200 * 512;
        g.weight[0] = 1;
        g.weight[1] = 9;
        g.sub_pages[0] = g.sub_pages[1] = g.total;
        assert_int_equal(guest_split(&g), 0);
        for (unsigned i = 0; i < N; i++) {
            if (g.out[i] & PREDICTOR_HOT) {
                hot++;
                low += i < N / 2;
            } else if (g.out[i] == 0) {
                sub++;
                low_sub += i < N / 2;
            }
        }
        predictor_free(g.predictor);
    }
    check_share(low, hot, 0.5, 0.02); /* standard errors: under 0.005 */
    check_share(low_sub, sub, 0.5, 0.02);
}

/* On how many sub-hosts there are pages of a slab, on average. */
static double subhosts_per_slab(const struct guest *g, unsigned slab)
{
    unsigned slabs = 0, places = 0;

    for (unsigned first = 0; first < N; first += slab) {
        bool seen[SUBS_MAX] = {false};
        for (unsigned i = first; i < first + slab && i < N; i++) {
            unsigned sub = g->out[i] & ~PREDICTOR_HOT;
            places += !seen[sub];
            seen[sub] = true;
        }
        slabs++;
    }
    return (double)places / slabs;
}

static void test_slabs_stay_together(void **state)
{
    struct guest g;

    (void)state;
    for (unsigned fullness = 0; fullness < 3; fullness++) {
        for (unsigned tight = 0; tight < 2; tight++) {
            double places[2];
            for (unsigned whole = 0; whole < 2; whole++) {
                guest_make(&g, 7 + fullness, 8, fullness);
                g.want.main_pages = g.total / 4;
                g.want.n_subhosts = 3;
                g.want.slab_chunks = whole ? 32 : 0;
                for (unsigned i = 0; i < 3; i++) {
                    g.weight[i] = i + 1;
                    /* tight: not 1 % to spare; else by far enough */
                    g.sub_pages[i] = tight ? g.total * 3 / 4 * (i + 1) / 6 * 101 / 100 : g.total;
                }
                assert_int_equal(guest_split(&g), 0);
                for (unsigned i = 0; i < 3; i++) {
                    assert_true(g.cold_pages[i] <= g.sub_pages[i]);
                    double share = (double)g.cold_pages[i] / (double)(g.total - g.hot_pages);
                    assert_true(share > (i + 1) / 6.0 - 0.08 && share < (i + 1) / 6.0 + 0.08);
                }
                places[whole] = subhosts_per_slab(&g, 32);
                predictor_free(g.predictor);
            }
            assert_true(places[0] > 2.8); /* strewn */
            assert_true(tight ? places[1] < 2 : places[1] == 1);
        }
    }
    /* What only fits chunk by chunk is divided chunk by chunk. */
    guest_make(&g, 1, 8, 0);
    g.want.n_subhosts = 2;
    g.want.slab_chunks = 32;
    g.weight[0] = g.weight[1] = 1;
    g.sub_pages[0] = g.sub_pages[1] = g.total / 2;
    assert_int_equal(guest_split(&g), 0);
    predictor_free(g.predictor);
}

static bool is_hot(const struct guest *g, uint64_t page)
{
    return g->out[page / CHUNK_PAGES] & PREDICTOR_HOT || g->hot[page / 64] >> page % 64 & 1;
}

/* A guest of full chunks, with a page in eight of each in use; looked at four times. */
static struct guest *guest_with_strewn_pages(uint8_t **heat)
{
    struct guest *g = malloc(sizeof(*g));

    guest_make(g, 5, 4, 0);
    *heat = calloc(N, CHUNK_PAGES);
    for (uint64_t page = 0; page < N * CHUNK_PAGES; page++) {
        for (unsigned look = 0; look < 4; look++) {
            page_heat_note(*heat + page, page % 8 == 0);
        }
    }
    g->want.n_subhosts = 2;
    g->sub_pages[0] = g->sub_pages[1] = N * CHUNK_PAGES;
    g->weight[0] = g->weight[1] = 1;
    g->want.page_heat = *heat;
    return g;
}

static void test_strewn_hot_pages(void **state)
{
    uint8_t *heat;
    struct guest *g = guest_with_strewn_pages(&heat);
    uint64_t on_main = 0;

    (void)state;
    g->want.main_pages = N * CHUNK_PAGES / 4; /* room for all that is in use, and for an eighth more */
    assert_int_equal(guest_split(g), 0);
    for (uint64_t page = 0; page < N * CHUNK_PAGES; page++) {
        on_main += is_hot(g, page);
        assert_true(page % 8 || is_hot(g, page));
    }
    assert_true(on_main <= g->want.main_pages);
    assert_true(on_main + CHUNK_PAGES > g->want.main_pages);
    predictor_free(g->predictor);
    free(heat);
    free(g);
}

static void test_more_hot_pages_than_room(void **state)
{
    uint8_t *heat;
    struct guest *g = guest_with_strewn_pages(&heat);
    uint64_t on_main = 0, best = 0;

    (void)state;
    for (uint64_t page = 0; page < N * CHUNK_PAGES; page += 8) { /* half of them was in use half as often */
        heat[page] = page % 16 ? 0x24 : 0x44;
    }
    g->want.main_pages = N * CHUNK_PAGES / 8 - N * CHUNK_PAGES / 32;
    assert_int_equal(guest_split(g), 0);
    for (uint64_t page = 0; page < N * CHUNK_PAGES; page++) {
        on_main += is_hot(g, page);
        best += is_hot(g, page) && page % 16 == 0;
        assert_true(page % 8 == 0 || !is_hot(g, page));
    }
    assert_int_equal(on_main, g->want.main_pages);
    assert_int_equal(best, N * CHUNK_PAGES / 16);
    predictor_free(g->predictor);
    free(heat);
    free(g);
}

/* Slabs are taken whole: strewn pages would not make them smaller. */
static void test_slabs_know_no_single_pages(void **state)
{
    uint8_t *heat;
    struct guest *g = guest_with_strewn_pages(&heat);

    (void)state;
    g->want.main_pages = N * CHUNK_PAGES / 4;
    g->want.slab_chunks = 4;
    assert_int_equal(guest_split(g), 0);
    for (unsigned i = 0; i < N * CHUNK_PAGES / 64; i++) {
        assert_int_equal(g->hot[i], 0);
    }
    predictor_free(g->predictor);
    free(heat);
    free(g);
}

/* Pages that are alike in all but luck go by the chunk, those that differ do not. */
static void test_luck_is_no_heat(void **state)
{
    uint8_t heat[CHUNK_PAGES] = {0}, keys[CHUNK_PAGES];
    uint64_t random = 9;

    (void)state;
    for (unsigned looks = 1; looks <= 8; looks++) {
        for (unsigned i = 0; i < CHUNK_PAGES; i++) {
            page_heat_note(&heat[i], policy_below(&random, 10) < 4);
        }
        page_heat_keys(heat, true, keys);
        for (unsigned i = 0; i < CHUNK_PAGES; i++) {
            assert_int_equal(keys[i], keys[0]);
            assert_in_range(keys[i], 80, 125);
        }
    }
    page_heat_keys(heat, false, keys);
    assert_int_equal(keys[7], page_heat_key(heat[7]));
    memset(heat, 0, sizeof(heat));
    for (unsigned look = 0; look < 2; look++) {
        for (unsigned i = 0; i < CHUNK_PAGES; i++) {
            page_heat_note(&heat[i], i % 5 == 0);
        }
    }
    page_heat_keys(heat, true, keys);
    for (unsigned i = 0; i < CHUNK_PAGES; i++) {
        assert_int_equal(keys[i], i % 5 == 0 ? 255 : 0);
    }
}

static void test_page_heat(void **state)
{
    uint8_t heat = 0;

    (void)state;
    assert_int_equal(page_heat_key(heat), 0);
    for (unsigned i = 0; i < 1000; i++) {
        page_heat_note(&heat, true);
        assert_int_equal(page_heat_key(heat), 255);
    }
    for (unsigned i = 0; i < 1000; i++) { /* what it was once is forgotten */
        page_heat_note(&heat, false);
    }
    assert_int_equal(page_heat_key(heat), 0);
    for (unsigned i = 0; i < 1000; i++) {
        page_heat_note(&heat, i % 2);
    }
    assert_in_range(page_heat_key(heat), 90, 165);
}

static void test_one_tebibyte(void **state)
{
    const uint64_t n_chunks = (uint64_t)1 << 19;
    struct predictor *p = predictor_new(NULL, n_chunks, 1);
    uint32_t *present = calloc(n_chunks, sizeof(*present)), weight[4] = {1, 1, 1, 1};
    uint8_t *out = malloc(n_chunks);
    uint64_t *hot = calloc(n_chunks, CHUNK_PAGES / 8);
    uint64_t room[4];
    struct predictor_partition want = {.present = present,
                                       .main_pages = n_chunks * 128,
                                       .n_subhosts = 4,
                                       .sub_pages = room,
                                       .sub_weight = weight};

    (void)state;
    for (uint64_t i = 0; i < n_chunks; i++) {
        present[i] = 512;
    }
    for (unsigned i = 0; i < 4; i++) {
        room[i] = n_chunks * 96; /* not a page to spare */
    }
    uint64_t begin = units_now_us();
    assert_int_equal(predictor_split(p, &want, out, hot), 0);
    print_message("1 TiB: split in %lu ms\n", (unsigned long)(units_now_us() - begin) / 1000);
    free(present);
    free(out);
    free(hot);
    predictor_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_cases),
        cmocka_unit_test(test_exact_budget),
        cmocka_unit_test(test_skips_too_big),
        cmocka_unit_test(test_proportions),
        cmocka_unit_test(test_spare_subhost),
        cmocka_unit_test(test_hot_chunks_have_a_subhost),
        cmocka_unit_test(test_subhost_count),
        cmocka_unit_test(test_determinism),
        cmocka_unit_test(test_no_address_bias),
        cmocka_unit_test(test_slabs_stay_together),
        cmocka_unit_test(test_strewn_hot_pages),
        cmocka_unit_test(test_more_hot_pages_than_room),
        cmocka_unit_test(test_slabs_know_no_single_pages),
        cmocka_unit_test(test_luck_is_no_heat),
        cmocka_unit_test(test_page_heat),
        cmocka_unit_test(test_one_tebibyte),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
