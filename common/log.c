// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char *log_program = "split-migrate";
static char log_instance[64];
static enum log_level log_max = LOG_LEVEL_INFO;
static bool log_journal;

/* sd-daemon(3): the journal reads us only if JOURNAL_STREAM names what stderr is. */
static bool log_is_journal(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    unsigned long long device, inode;
    struct stat st;

    return stream && sscanf(stream, "%llu:%llu", &device, &inode) == 2 &&
           fstat(STDERR_FILENO, &st) == 0 && st.st_dev == device && st.st_ino == inode;
}

void log_init(const char *program, enum log_level level)
{
    log_program = program;
    log_max = level;
    log_journal = log_is_journal();
}

void log_set_instance(const char *instance)
{
    snprintf(log_instance, sizeof(log_instance), "%s", instance);
}

bool log_enabled(enum log_level level)
{
    return level <= log_max;
}

static int log_prefix(enum log_level level, char *line, size_t size)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    static const int priorities[] = {3, 4, 6, 7};
    const char *open = log_instance[0] ? "[" : "";
    const char *close = log_instance[0] ? "]" : "";

    if (log_journal) {
        return snprintf(line, size, "<%d>%s%s", priorities[level], log_instance,
                        log_instance[0] ? ": " : "");
    }
    struct timespec now;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &tm);
    return snprintf(line, size, "%02d:%02d:%02d.%03ld %s%s%s%s: %s: ", tm.tm_hour, tm.tm_min,
                    tm.tm_sec, now.tv_nsec / 1000000, log_program, open, log_instance, close,
                    names[level]);
}

void log_write(enum log_level level, const char *fmt, ...)
{
    if (!log_enabled(level)) {
        return;
    }
    int saved = errno;
    char line[1024];
    int used = log_prefix(level, line, sizeof(line));
    va_list args;

    va_start(args, fmt);
    errno = saved; /* for %m */
    int more = vsnprintf(line + used, sizeof(line) - (size_t)used - 1, fmt, args);
    va_end(args);
    size_t length = (size_t)used + (more > 0 ? (size_t)more : 0);
    if (length > sizeof(line) - 2) {
        length = sizeof(line) - 2;
    }
    line[length++] = '\n';
    /* One write per line, so that lines of several threads and processes stay whole. */
    ssize_t ignored = write(STDERR_FILENO, line, length);
    (void)ignored;
    errno = saved;
}

int reason_set(struct reason *reason, int err, const char *fmt, ...)
{
    if (reason) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(reason->text, sizeof(reason->text), fmt, args);
        va_end(args);
    }
    return err;
}
