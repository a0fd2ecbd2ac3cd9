// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/layout.h"

static void add(struct layout *layout, const char *idstr, uint64_t hva, uint64_t size)
{
    struct layout_block *block = &layout->block[layout->n_blocks];

    memset(block, 0, sizeof(*block));
    snprintf(block->idstr, sizeof(block->idstr), "%s", idstr);
    block->index = layout->n_blocks++;
    block->hva = hva;
    block->size = size;
    block->page_size = PAGE_BYTES;
    block->fd = memfd_create("ram", MFD_CLOEXEC);
    assert_true(block->fd >= 0);
    assert_int_equal(ftruncate(block->fd, (off_t)(block->fd_offset + size)), 0);
}

static void blocks_are_sorted_and_aligned(void **state)
{
    struct layout *layout = calloc(1, sizeof(*layout));
    struct reason reason;

    (void)state;
    add(layout, "pc.ram", 0x100000000, 64 * MIB);
    add(layout, "bios", 0x200000000, 3 * PAGE_BYTES);
    add(layout, "dimm0", 0x300000000, 5 * MIB);
    assert_int_equal(layout_finish(layout, &reason), 0);
    assert_string_equal(layout->block[0].idstr, "bios");
    assert_string_equal(layout->block[1].idstr, "dimm0");
    assert_string_equal(layout->block[2].idstr, "pc.ram");
    assert_int_equal(layout->block[1].flat, 2 * MIB);
    assert_int_equal(layout->block[2].flat, 8 * MIB);
    assert_int_equal(layout->flat_size, 72 * MIB);
    assert_int_equal(layout_by_index(layout, 0)->flat, 8 * MIB);
    assert_ptr_equal(layout_by_flat(layout, 2 * MIB), &layout->block[1]);
    assert_null(layout_by_flat(layout, 3 * PAGE_BYTES)); /* the gap after bios */
    assert_null(layout_by_flat(layout, 72 * MIB));
    assert_ptr_equal(layout_by_hva(layout, 0x100000000 + 64 * MIB - 1), &layout->block[2]);
    assert_null(layout_by_hva(layout, 0x100000000 + 64 * MIB));
    assert_int_equal(layout_hva(&layout->block[2], 9 * MIB), 0x100000000 + MIB);
    layout_close(layout);
    free(layout);
}

static void expect_refused(void (*spoil)(struct layout *layout), const char *word)
{
    struct layout *layout = calloc(1, sizeof(*layout));
    struct reason reason = {""};

    add(layout, "a", 0x100000000, 4 * MIB);
    add(layout, "b", 0x200000000, 4 * MIB);
    spoil(layout);
    assert_int_equal(layout_finish(layout, &reason), -EINVAL);
    assert_non_null(strstr(reason.text, word));
    layout_close(layout);
    free(layout);
}

static void spoil_huge_pages(struct layout *layout)
{
    layout->block[0].page_size = CHUNK_BYTES;
}
static void spoil_size(struct layout *layout)
{
    layout->block[0].size = 4 * MIB + 1;
}
static void spoil_wrap(struct layout *layout)
{
    layout->block[1].hva = UINT64_MAX - PAGE_BYTES + 1;
}
static void spoil_short_file(struct layout *layout)
{
    layout->block[1].size = 8 * MIB;
}
static void spoil_twice(struct layout *layout)
{
    snprintf(layout->block[1].idstr, HANDOFF_IDSTR_LEN, "a");
}
static void spoil_offset(struct layout *layout)
{
    layout->block[0].fd_offset = UINT64_MAX & ~(PAGE_BYTES - 1);
}

static void nonsense_is_refused(void **state)
{
    struct layout *layout = calloc(1, sizeof(*layout));
    struct reason reason;

    (void)state;
    assert_int_equal(layout_finish(layout, &reason), -EINVAL);
    free(layout);
    expect_refused(spoil_huge_pages, "4096");
    expect_refused(spoil_size, "impossible");
    expect_refused(spoil_wrap, "impossible");
    expect_refused(spoil_offset, "impossible");
    expect_refused(spoil_short_file, "larger than the file");
    expect_refused(spoil_twice, "twice");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_are_sorted_and_aligned),
        cmocka_unit_test(nonsense_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
