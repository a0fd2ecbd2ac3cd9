// SPDX-License-Identifier: GPL-2.0-or-later
/* Rounds and queues of the mover, without threads or connections. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "predictor/predictor.h"
#include "uffd-pager/mover_internal.h"

#define CHUNKS 4

struct lab {
    struct mover mover;
    struct mover_totals totals;
    struct mover_target target[3];
    uint8_t partition[CHUNKS], history[CHUNKS];
    uint64_t hot[CHUNKS * CHUNK_PAGES / 64];
};

static int setup(void **state)
{
    struct lab *lab = calloc(1, sizeof(*lab));
    struct mover *mover = &lab->mover;

    mover->layout.n_blocks = 1;
    mover->layout.block[0] = (struct layout_block){.idstr = "pc.ram", .index = 3,
                                                   .size = CHUNKS * CHUNK_BYTES};
    mover->n_chunks = CHUNKS;
    mover->n_pages = CHUNKS * CHUNK_PAGES;
    mover->event = -1;
    mover->connections = 1;
    mover->n_targets = 3;
    mover->target = lab->target;
    mover->totals = &lab->totals;
    mover->partition = lab->partition;
    mover->history = lab->history;
    mover->hot = lab->hot;
    mover->place = calloc(mover->n_pages, 1);
    mover->next = calloc(mover->n_pages / 64, 8);
    for (unsigned kind = 0; kind < 2; kind++) {
        mover->todo[kind] = calloc(mover->n_pages / 64, 8);
        mover->link[kind] = calloc(CHUNKS, sizeof(uint32_t));
        mover->queued[kind] = calloc(CHUNKS, 1);
    }
    for (unsigned i = 0; i < 3; i++) {
        lab->target[i].head = lab->target[i].tail = MOVER_NO_CHUNK;
        lab->target[i].stream[0] = mover_stream_new(mover, &lab->target[i]);
    }
    /* Chunk 0 is hot, 1 is of sub-host 0, 2 and 3 of sub-host 1. */
    memcpy(lab->partition, (uint8_t[]){PREDICTOR_HOT, 0, 1, 1}, CHUNKS);
    *state = lab;
    return 0;
}

static int teardown(void **state)
{
    struct lab *lab = *state;
    struct mover *mover = &lab->mover;

    for (unsigned i = 0; i < 3; i++) {
        mover_stream_free(lab->target[i].stream[0]);
    }
    for (unsigned kind = 0; kind < 2; kind++) {
        free(mover->todo[kind]);
        free(mover->link[kind]);
        free(mover->queued[kind]);
    }
    free(mover->next);
    free((void *)mover->place);
    free(lab);
    return 0;
}

static int hand_over(struct lab *lab, uint32_t round, uint64_t page, uint64_t count)
{
    struct handoff_runs *runs = calloc(1, sizeof(*runs) + sizeof(runs->run[0]));
    struct reason reason;

    runs->round = round;
    runs->n = 1;
    runs->run[0] = (struct handoff_run){.block = 3, .page = page, .count = count};
    int err = mover_hand_over(&lab->mover, runs, &reason);
    free(runs);
    return err;
}

/* Take the next chunk of a target; how many pages of it, -1 if there is none. */
static int take(struct lab *lab, unsigned target, uint64_t *chunk)
{
    uint64_t bits[MOVER_CHUNK_WORDS];
    int n = 0;

    if (!mover_take(lab->target[target].stream[0], chunk, bits)) {
        return -1;
    }
    for (unsigned i = 0; i < MOVER_CHUNK_WORDS; i++) {
        n += __builtin_popcountll(bits[i]);
    }
    return n;
}

static void pages_go_where_the_partition_says(void **state)
{
    struct lab *lab = *state;
    uint64_t chunk;

    assert_int_equal(hand_over(lab, 1, 0, CHUNKS * CHUNK_PAGES), 0);
    assert_int_equal(take(lab, 0, &chunk), CHUNK_PAGES);
    assert_int_equal(chunk, 0);
    assert_int_equal(take(lab, 1, &chunk), CHUNK_PAGES);
    assert_int_equal(chunk, 1);
    assert_int_equal(take(lab, 2, &chunk), CHUNK_PAGES);
    assert_int_equal(chunk, 2);
    assert_int_equal(take(lab, 2, &chunk), CHUNK_PAGES);
    assert_int_equal(chunk, 3);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(take(lab, i, &chunk), -1);
    }
}

static void hot_pages_go_without_their_chunk(void **state)
{
    struct lab *lab = *state;
    uint64_t chunk;

    lab->hot[CHUNK_PAGES / 64 + 2] = 0x5;
    assert_int_equal(hand_over(lab, 1, CHUNK_PAGES, CHUNK_PAGES), 0);
    assert_int_equal(take(lab, 0, &chunk), 2);
    assert_int_equal(chunk, 1);
    assert_int_equal(take(lab, 1, &chunk), CHUNK_PAGES - 2);
    assert_int_equal(chunk, 1);
}

static void pages_go_where_they_were(void **state)
{
    struct lab *lab = *state;
    uint64_t chunk;

    lab->mover.place[5] = PAGE_REMOTE;  /* of the hot chunk: the budget did not allow it */
    assert_int_equal(hand_over(lab, 1, 4, 2), 0);
    assert_int_equal(take(lab, 0, &chunk), 1);
    assert_int_equal(take(lab, 1, &chunk), 1);
    assert_int_equal(chunk, 0);
}

static void a_round_waits_for_the_one_before(void **state)
{
    struct lab *lab = *state;
    uint64_t chunk;

    assert_int_equal(hand_over(lab, 1, 0, 10), 0);
    assert_int_equal(take(lab, 0, &chunk), 10);
    assert_int_equal(hand_over(lab, 2, 5, 10), 0);
    assert_int_equal(take(lab, 0, &chunk), -1);
    mover_done(&lab->mover, 9, 0);
    assert_false(mover_next_round(&lab->mover));
    assert_int_equal(take(lab, 0, &chunk), -1);
    mover_done(&lab->mover, 1, 0);
    assert_false(mover_next_round(&lab->mover));
    assert_int_equal(take(lab, 0, &chunk), 10);
    mover_done(&lab->mover, 10, 0);
    assert_true(mover_next_round(&lab->mover));
    assert_int_equal(lab->totals.pages_done, 20);
    assert_int_equal(lab->totals.rounds, 2);
    assert_int_equal(lab->history[0], 0x80);
    assert_int_equal(lab->history[1], 0);
}

static void a_page_written_again_is_sent_once(void **state)
{
    struct lab *lab = *state;
    uint64_t chunk;

    assert_int_equal(hand_over(lab, 1, 0, 10), 0);
    assert_int_equal(hand_over(lab, 1, CHUNK_PAGES, 1), 0);
    assert_int_equal(hand_over(lab, 2, 5, 10), 0); /* 5 to 9 were not taken yet */
    assert_int_equal(lab->totals.pages_done, 5);
    assert_int_equal(hand_over(lab, 3, 5, 1), 0); /* nor was 5 of round 2 */
    assert_int_equal(lab->totals.pages_done, 6);
    assert_int_equal(take(lab, 0, &chunk), 5);
    mover_done(&lab->mover, 5, 0);
    assert_false(mover_next_round(&lab->mover)); /* chunk 1 is still to come */
    assert_int_equal(take(lab, 0, &chunk), -1);
    assert_int_equal(take(lab, 1, &chunk), 1);
    mover_done(&lab->mover, 1, 1);
    assert_false(mover_next_round(&lab->mover));
    assert_int_equal(take(lab, 0, &chunk), 10);
    mover_done(&lab->mover, 10, 0);
    assert_true(mover_next_round(&lab->mover));
    assert_int_equal(lab->totals.pages_done, 22); /* 10 + 1 + 10 + 1 */
    assert_int_equal(lab->totals.zero_pages, 1);
}

static void a_page_without_room_goes_elsewhere(void **state)
{
    struct lab *lab = *state;
    uint64_t chunk;

    assert_int_equal(hand_over(lab, 1, 0, 10), 0);
    assert_int_equal(take(lab, 0, &chunk), 10);
    mover_requeue(&lab->mover, 1, 3, 2);
    mover_done(&lab->mover, 8, 0);
    assert_false(mover_next_round(&lab->mover));
    assert_int_equal(take(lab, 1, &chunk), 2);
    assert_int_equal(chunk, 0);
    mover_done(&lab->mover, 2, 0);
    assert_true(mover_next_round(&lab->mover));
}

static void bad_runs_are_refused(void **state)
{
    struct lab *lab = *state;

    assert_int_equal(hand_over(lab, 2, CHUNKS * CHUNK_PAGES, 1), -EPROTO);
    assert_int_equal(hand_over(lab, 2, UINT64_MAX, 2), -EPROTO);
    assert_int_equal(hand_over(lab, 2, 1, UINT64_MAX), -EPROTO);
    assert_int_equal(hand_over(lab, 2, 0, 0), -EPROTO);
    assert_int_equal(hand_over(lab, 1, 0, 1), -EPROTO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(pages_go_where_the_partition_says, setup, teardown),
        cmocka_unit_test_setup_teardown(hot_pages_go_without_their_chunk, setup, teardown),
        cmocka_unit_test_setup_teardown(pages_go_where_they_were, setup, teardown),
        cmocka_unit_test_setup_teardown(a_round_waits_for_the_one_before, setup, teardown),
        cmocka_unit_test_setup_teardown(a_page_written_again_is_sent_once, setup, teardown),
        cmocka_unit_test_setup_teardown(a_page_without_room_goes_elsewhere, setup, teardown),
        cmocka_unit_test_setup_teardown(bad_runs_are_refused, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
