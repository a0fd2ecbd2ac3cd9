// SPDX-License-Identifier: GPL-2.0-or-later
/* Which pages are mapped is seen page by page, and a fault maps no neighbours of write-protectable memory. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/units.h"
#include "uffd-pager/mapped.h"
#include "uffd-pager/uffd_abi.h"

#define N MAPPED_WINDOW

struct memory {
    volatile uint8_t *base;
    int pagemap, uffd;
};

static int setup(void **state)
{
    static struct memory memory;
    int fd = memfd_create("memory", MFD_CLOEXEC);

    memory.pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    memory.uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    assert_true(fd >= 0 && memory.pagemap >= 0 && memory.uffd >= 0);
    assert_int_equal(ftruncate(fd, N * PAGE_BYTES), 0);
    void *base = mmap(NULL, N * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(base, MAP_FAILED);
    close(fd);
    memset(base, 1, N * PAGE_BYTES);
    memory.base = base;
    *state = &memory;
    return 0;
}

static int teardown(void **state)
{
    struct memory *memory = *state;

    munmap((void *)memory->base, N * PAGE_BYTES);
    close(memory->pagemap);
    close(memory->uffd);
    return 0;
}

static uint64_t mapped(const struct memory *memory, unsigned n)
{
    uint64_t bits = 0;

    assert_int_equal(mapped_window(memory->pagemap, (uintptr_t)memory->base, n, &bits), 0);
    return bits;
}

static void zap(struct memory *memory)
{
    assert_int_equal(madvise((void *)memory->base, N * PAGE_BYTES, MADV_DONTNEED), 0);
}

static void pages_that_are_zapped_and_touched(void **state)
{
    struct memory *memory = *state;
    uint64_t start = (uintptr_t)memory->base;

    assert_int_equal(uffd_api(memory->uffd), 0);
    assert_int_equal(uffd_register(memory->uffd, start, N * PAGE_BYTES, UFFDIO_REGISTER_MODE_WP), 0);
    assert_true(mapped(memory, N) == UINT64_MAX);
    zap(memory);
    assert_true(mapped(memory, N) == 0);
    (void)memory->base[5 * PAGE_BYTES];
    memory->base[63 * PAGE_BYTES] = 2;
    assert_true(mapped(memory, N) == ((uint64_t)1 << 5 | (uint64_t)1 << 63));
    assert_true(mapped(memory, 6) == (uint64_t)1 << 5);
}

/* A page under protection that was unmapped is so still when it is read again. */
static void protection_outlives_a_zap(void **state)
{
    struct memory *memory = *state;
    uint64_t start = (uintptr_t)memory->base;
    struct uffd_msg message;

    assert_int_equal(uffd_api(memory->uffd), 0);
    assert_int_equal(uffd_register(memory->uffd, start, N * PAGE_BYTES, UFFDIO_REGISTER_MODE_WP), 0);
    assert_int_equal(uffd_protect(memory->uffd, start, 2 * PAGE_BYTES), 0);
    zap(memory);
    assert_int_equal(memory->base[0], 1);
    assert_true(mapped(memory, N) == 1);
    assert_int_equal(read(memory->uffd, &message, sizeof(message)), -1); /* to read was no fault of ours */
    assert_int_equal(uffd_unprotect(memory->uffd, start, 2 * PAGE_BYTES), 0);
    memory->base[0] = 7;
    assert_int_equal(memory->base[0], 7);
}

static void a_process_that_has_ended(void **state)
{
    struct memory *memory = *state;
    int go[2];
    uint64_t bits = 1;
    char path[64];

    assert_int_equal(pipe(go), 0);
    int child = fork();
    if (child == 0) {
        char byte;
        close(go[1]);
        _exit(read(go[0], &byte, 1) != 0);
    }
    snprintf(path, sizeof(path), "/proc/%d/pagemap", child);
    int pagemap = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(pagemap >= 0);
    close(go[0]);
    close(go[1]);
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_int_equal(mapped_window(pagemap, (uintptr_t)memory->base, N, &bits), -ESRCH);
    assert_true(bits == 0);
    close(pagemap);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(pages_that_are_zapped_and_touched, setup, teardown),
        cmocka_unit_test_setup_teardown(protection_outlives_a_zap, setup, teardown),
        cmocka_unit_test_setup_teardown(a_process_that_has_ended, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
