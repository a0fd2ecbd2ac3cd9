// SPDX-License-Identifier: GPL-2.0-or-later
/* What the kernel can do is found out without privileges, too: the pager runs without any. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "uffd-pager/uffd_abi.h"

static void features_without_privileges(void **state)
{
    struct uffdio_api api = {.api = UFFD_API};
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);

    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(ioctl(fd, UFFDIO_API, &api), 0);
    close(fd);
    assert_true(api.features == uffd_features());
    pid_t child = fork();
    if (child == 0) {
        _exit(getuid() == 0 && setuid(65534) < 0 ? 2 : api.features != uffd_features());
    }
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(features_without_privileges)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
