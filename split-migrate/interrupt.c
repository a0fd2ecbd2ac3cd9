// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/interrupt.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <sys/socket.h>

static volatile sig_atomic_t interrupt_flag;
static volatile sig_atomic_t interrupt_fd = -1;

static void interrupt_handle(int number)
{
    int saved = errno;

    (void)number;
    interrupt_flag = 1;
    if (interrupt_fd >= 0) {
        shutdown(interrupt_fd, SHUT_RDWR);
    }
    errno = saved;
}

void interrupt_init(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action = {.sa_handler = interrupt_handle, .sa_flags = (int)SA_RESETHAND};

    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        sigaction(numbers[i], &action, NULL);
    }
    signal(SIGPIPE, SIG_IGN);
}

bool interrupt_pending(void)
{
    return interrupt_flag != 0;
}

void interrupt_shut(int fd)
{
    interrupt_fd = fd;
    if (fd >= 0 && interrupt_flag) {
        shutdown(fd, SHUT_RDWR);
    }
}
