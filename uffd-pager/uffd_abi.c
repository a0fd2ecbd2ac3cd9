// SPDX-License-Identifier: GPL-2.0-or-later
#include "uffd-pager/uffd_abi.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/units.h"

#define UFFD_WANTED                                                                                \
    ((uint64_t)(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_MISSING_SHMEM |                      \
                UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_POISON))

static int uffd_ioctl(int uffd, unsigned long request, void *arg)
{
    while (ioctl(uffd, request, arg) < 0) {
        if (errno != EAGAIN && errno != EINTR) {
            return -errno;
        }
        sched_yield();
    }
    return 0;
}

uint64_t uffd_features(void)
{
    struct uffdio_api api = {.api = UFFD_API};
    /* Everybody may have a descriptor of this kind; it is only asked what the kernel knows. */
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

    if (fd < 0) {
        return UFFD_WANTED;
    }
    int rc = ioctl(fd, UFFDIO_API, &api);
    close(fd);
    return rc < 0 ? 0 : api.features;
}

int uffd_api(int uffd)
{
    uint64_t features = UFFD_WANTED & uffd_features();
    struct uffdio_api api = {.api = UFFD_API, .features = features};

    if (ioctl(uffd, UFFDIO_API, &api) < 0) {
        /* EINVAL: an earlier worker has done it, since we ask for nothing the kernel lacks. */
        return errno == EINVAL ? 0 : -errno;
    }
    return 0;
}

int uffd_register(int uffd, uint64_t start, uint64_t length, uint64_t mode)
{
    struct uffdio_register arg = {.range = {.start = start, .len = length}, .mode = mode};

    return uffd_ioctl(uffd, UFFDIO_REGISTER, &arg);
}

int uffd_unregister(int uffd, uint64_t start, uint64_t length)
{
    struct uffdio_range range = {.start = start, .len = length};

    return uffd_ioctl(uffd, UFFDIO_UNREGISTER, &range);
}

/*
 * COPY and ZEROPAGE stop in the middle with EAGAIN and the bytes done (only the next call
 * tells why), or with EAGAIN and a negative number for a change of the address space.
 * Return: true to go on.
 */
static bool uffd_part(int rc, int64_t part, uint64_t length, uint64_t *done, int *err)
{
    if (rc == 0) {
        *done += length;
        *err = 0;
        return false;
    }
    if (errno != EAGAIN && errno != EINTR) {
        *err = -errno;
        return false;
    }
    if (part > 0) {
        *done += (uint64_t)part;
    } else {
        sched_yield();
    }
    return true;
}

static int uffd_copy_mode(int uffd, uint64_t to, const void *from, uint64_t length, uint64_t mode,
                          uint64_t *done)
{
    int err;
    int rc;
    struct uffdio_copy arg;

    *done = 0;
    do {
        arg = (struct uffdio_copy){.dst = to + *done,
                                   .src = (uint64_t)(uintptr_t)from + *done,
                                   .len = length - *done,
                                   .mode = mode};
        rc = ioctl(uffd, UFFDIO_COPY, &arg);
    } while (uffd_part(rc, arg.copy, arg.len, done, &err));
    return err;
}

int uffd_copy(int uffd, uint64_t to, const void *from, bool protect)
{
    uint64_t done;

    return uffd_copy_mode(uffd, to, from, PAGE_BYTES, protect ? UFFDIO_COPY_MODE_WP : 0, &done);
}

int uffd_copy_range(int uffd, uint64_t to, const void *from, uint64_t length, bool protect,
                    uint64_t *done)
{
    return uffd_copy_mode(uffd, to, from, length,
                          (protect ? UFFDIO_COPY_MODE_WP : 0) | UFFDIO_COPY_MODE_DONTWAKE, done);
}

int uffd_zero(int uffd, uint64_t start, uint64_t length, uint64_t *done)
{
    int err;
    int rc;
    struct uffdio_zeropage arg;

    *done = 0;
    do {
        arg = (struct uffdio_zeropage){.range = {.start = start + *done, .len = length - *done}};
        rc = ioctl(uffd, UFFDIO_ZEROPAGE, &arg);
    } while (uffd_part(rc, arg.zeropage, arg.range.len, done, &err));
    return err;
}

int uffd_protect(int uffd, uint64_t start, uint64_t length)
{
    struct uffdio_writeprotect arg = {.range = {.start = start, .len = length},
                                      .mode = UFFDIO_WRITEPROTECT_MODE_WP};

    return uffd_ioctl(uffd, UFFDIO_WRITEPROTECT, &arg);
}

int uffd_unprotect(int uffd, uint64_t start, uint64_t length)
{
    struct uffdio_writeprotect arg = {.range = {.start = start, .len = length}};

    return uffd_ioctl(uffd, UFFDIO_WRITEPROTECT, &arg);
}

int uffd_poison(int uffd, uint64_t start)
{
    struct uffdio_poison arg = {.range = {.start = start, .len = PAGE_BYTES}};
    int err = uffd_ioctl(uffd, UFFDIO_POISON, &arg);

    if (err == -EEXIST) {
        /* A write-protection marker is in the way, or it is poisoned already. */
        uffd_unprotect(uffd, start, PAGE_BYTES);
        arg = (struct uffdio_poison){.range = {.start = start, .len = PAGE_BYTES}};
        err = uffd_ioctl(uffd, UFFDIO_POISON, &arg);
        if (err == -EEXIST) {
            err = uffd_wake(uffd, start, PAGE_BYTES);
        }
    }
    return err;
}

int uffd_wake(int uffd, uint64_t start, uint64_t length)
{
    struct uffdio_range range = {.start = start, .len = length};

    return uffd_ioctl(uffd, UFFDIO_WAKE, &range);
}
