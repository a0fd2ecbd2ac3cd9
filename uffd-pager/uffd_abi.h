/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * uffd_abi.h - userfaultfd: what older kernel headers lack, and one function per ioctl
 *
 * All functions may be called by any thread.  They retry EAGAIN, which the
 * kernel gives while the address space changes, and go on after a part done.
 * Errors that callers must expect:
 *
 *   -EEXIST   something is there already; the kernel has NOT woken the faulter
 *   -ENOENT   the range is not (any more) registered memory
 *   -ESRCH    the guest's process is going away
 */
#ifndef UFFD_PAGER_UFFD_ABI_H
#define UFFD_PAGER_UFFD_ABI_H

#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stdint.h>

#ifndef UFFD_FEATURE_WP_UNPOPULATED /* Linux 6.4 */
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_POISON /* Linux 6.6 */
#define UFFD_FEATURE_POISON (1 << 14)
#endif
#ifndef UFFDIO_POISON /* Linux 6.6 */
#define _UFFDIO_POISON (0x08)
struct uffdio_poison {
    struct uffdio_range range;
#define UFFDIO_POISON_MODE_DONTWAKE ((uint64_t)1 << 0)
    uint64_t mode;
    int64_t updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, _UFFDIO_POISON, struct uffdio_poison)
#endif

/** uffd_api() - negotiate; one that was negotiated before (an earlier worker) is left as it is. Return: 0 or -errno. */
int uffd_api(int uffd);

/** uffd_features() - the kernel's UFFD_FEATURE_* */
uint64_t uffd_features(void);

/** uffd_register() - @mode: UFFDIO_REGISTER_MODE_*. Return: 0 or -errno. */
int uffd_register(int uffd, uint64_t start, uint64_t length, uint64_t mode);

/** uffd_unregister() - also wakes whoever waits in the range. Return: 0 or -errno. */
int uffd_unregister(int uffd, uint64_t start, uint64_t length);

/** uffd_copy() - one page from @from, which needs no alignment, and wake; @protect: write-protected */
int uffd_copy(int uffd, uint64_t to, const void *from, bool protect);

/**
 * uffd_copy_range() - several pages, without waking
 * @done: bytes that were installed, from the beginning
 */
int uffd_copy_range(int uffd, uint64_t to, const void *from, uint64_t length, bool protect,
                    uint64_t *done);

/** uffd_zero() - zero pages and wake. @done: bytes that were installed, from the beginning */
int uffd_zero(int uffd, uint64_t start, uint64_t length, uint64_t *done);

/** uffd_protect() - write-protect a range, mapped or not */
int uffd_protect(int uffd, uint64_t start, uint64_t length);

/** uffd_unprotect() - lift it and wake */
int uffd_unprotect(int uffd, uint64_t start, uint64_t length);

/** uffd_poison() - make a page that is nowhere raise SIGBUS, and wake; also if it was poisoned before */
int uffd_poison(int uffd, uint64_t start);

/** uffd_wake() - make whoever waits in the range fault again */
int uffd_wake(int uffd, uint64_t start, uint64_t length);

#endif
