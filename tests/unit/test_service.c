// SPDX-License-Identifier: GPL-2.0-or-later
/* What a daemon says to its service manager: readiness, and lines that the journal understands. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/log.h"
#include "common/notify.h"

static void readiness_by(const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char text[64] = "";
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);

    memcpy(address.sun_path, name, strlen(name));
    if (*name == '@') {
        address.sun_path[0] = '\0';
    }
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name));
    assert_int_equal(bind(fd, (struct sockaddr *)&address, size), 0);
    setenv("NOTIFY_SOCKET", name, 1);
    assert_int_equal(notify_service("READY=1"), 0);
    assert_int_equal(recv(fd, text, sizeof(text) - 1, MSG_DONTWAIT), 7);
    assert_string_equal(text, "READY=1");
    close(fd);
}

static void readiness(void **state)
{
    char name[64];

    (void)state;
    unsetenv("NOTIFY_SOCKET");
    assert_int_equal(notify_service("READY=1"), 0);
    snprintf(name, sizeof(name), "/tmp/test_service.%d", (int)getpid());
    readiness_by(name);
    unlink(name);
    assert_true(notify_service("READY=1") < 0); /* nobody is there any more */
    snprintf(name, sizeof(name), "@test_service.%d", (int)getpid());
    readiness_by(name);
    setenv("NOTIFY_SOCKET", "relative", 1);
    assert_true(notify_service("READY=1") < 0);
}

/* One warning, as stderr gets it with JOURNAL_STREAM naming stderr itself or something else. */
static void one_line(bool journal, const char *instance, char *line, size_t size)
{
    int fds[2], saved = dup(STDERR_FILENO);
    struct stat st;
    char stream[64];

    assert_int_equal(pipe(fds), 0);
    dup2(fds[1], STDERR_FILENO);
    fstat(STDERR_FILENO, &st);
    snprintf(stream, sizeof(stream), "%llu:%llu", (unsigned long long)st.st_dev,
             (unsigned long long)st.st_ino + !journal);
    setenv("JOURNAL_STREAM", stream, 1);
    log_init("program", LOG_LEVEL_INFO);
    log_set_instance(instance);
    log_warn("%d pages", 5);
    dup2(saved, STDERR_FILENO);
    ssize_t n = read(fds[0], line, size - 1);
    assert_true(n > 0);
    line[n] = '\0';
    close(fds[0]);
    close(fds[1]);
    close(saved);
}

static void lines(void **state)
{
    char line[200];

    (void)state;
    one_line(true, "", line, sizeof(line));
    assert_string_equal(line, "<4>5 pages\n");
    one_line(true, "guest", line, sizeof(line));
    assert_string_equal(line, "<4>guest: 5 pages\n");
    /* Our parent was in the journal, our stderr is a file: it gets the time. */
    one_line(false, "", line, sizeof(line));
    assert_true(line[2] == ':' && strstr(line, " program: warning: 5 pages\n"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(readiness),
        cmocka_unit_test(lines),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
