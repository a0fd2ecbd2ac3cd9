/* SPDX-License-Identifier: GPL-2.0-or-later */
/* log.h - levelled messages on stderr, one whole line per write */
#ifndef COMMON_LOG_H
#define COMMON_LOG_H

#include <stdbool.h>
#include <stddef.h>

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/**
 * log_init() - set the name that starts every line, and the level
 * @program: kept by reference; a literal, e.g. "uffd-pager"
 * @level: messages above this level are dropped
 *
 * When stderr is the journal (JOURNAL_STREAM names it) lines get "<N>" priority
 * prefixes; time and program are the journal's own to say.  Call once, before threads start.
 */
void log_init(const char *program, enum log_level level);

/**
 * log_set_instance() - add "[instance]" after the program's name, e.g. a guest's UUID
 * @instance: copied, cut at 63 characters
 */
void log_set_instance(const char *instance);

/** log_enabled() - true if messages of @level are written; cheap */
bool log_enabled(enum log_level level);

/**
 * log_write() - write one line; errno is preserved; any thread
 * Never give it page contents or tickets.
 */
void log_write(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...) log_write(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...) log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...)                                                                             \
    do {                                                                                           \
        if (log_enabled(LOG_LEVEL_DEBUG)) {                                                        \
            log_write(LOG_LEVEL_DEBUG, __VA_ARGS__);                                               \
        }                                                                                          \
    } while (0)

/* struct reason: room for the one sentence an operator gets to see. */
#define REASON_LEN 256
struct reason {
    char text[REASON_LEN];
};

/**
 * reason_set() - store a sentence, cutting it at REASON_LEN - 1
 * @reason: may be NULL, then nothing happens
 * @err: returned, so that `return reason_set(r, -EINVAL, "...")` reads well
 */
int reason_set(struct reason *reason, int err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
