/* SPDX-License-Identifier: GPL-2.0-or-later */
/* progress.h - how far a move is, on stderr: one line that changes on a terminal, plain lines
 * elsewhere */
#ifndef SPLIT_MIGRATE_PROGRESS_H
#define SPLIT_MIGRATE_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
    bool enabled;
    bool terminal;
    bool open_line; /* the terminal's cursor stands behind text */
    uint64_t shown_us;
    uint64_t rate_us; /* when the rate was last looked at; 0: never */
    uint64_t rate_bytes;
    double rate; /* bytes/s, smoothed */
};

struct progress_values {
    const char *phase;
    uint64_t total; /* bytes the guest has */
    uint64_t remaining;
    uint64_t main_bytes;
    uint64_t sub_bytes;
    uint64_t wire_bytes;
    uint64_t rounds;
};

/** progress_begin() - @enabled: --verbose was given */
void progress_begin(struct progress *progress, bool enabled);
/** progress_note() - a line about a step */
void progress_note(struct progress *progress, const char *text);
/** progress_show() - at most as often as it makes sense, unless @final */
void progress_show(struct progress *progress, const struct progress_values *values, bool final);
/** progress_end() - leave the terminal at the beginning of a line */
void progress_end(struct progress *progress);
/** progress_percent() - 0 to 100; 100 only when nothing remains */
unsigned progress_percent(uint64_t total, uint64_t remaining);

#endif
