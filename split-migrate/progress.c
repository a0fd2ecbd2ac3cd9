// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/progress.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/units.h"

#define PROGRESS_TERMINAL_US 100000
#define PROGRESS_LINES_US 1000000
#define PROGRESS_RATE_US 250000

void progress_begin(struct progress *progress, bool enabled)
{
    memset(progress, 0, sizeof(*progress));
    progress->enabled = enabled;
    progress->terminal = isatty(STDERR_FILENO) == 1;
}

void progress_end(struct progress *progress)
{
    if (progress->open_line) {
        fputc('\n', stderr);
        progress->open_line = false;
    }
}

void progress_note(struct progress *progress, const char *text)
{
    if (progress->enabled) {
        progress_end(progress);
        fprintf(stderr, "%s\n", text);
    }
}

unsigned progress_percent(uint64_t total, uint64_t remaining)
{
    if (total == 0 || remaining >= total) {
        return 0;
    }
    if (remaining == 0) {
        return 100;
    }
    unsigned percent = (unsigned)((unsigned __int128)(total - remaining) * 100 / total);
    return percent > 99 ? 99 : percent;
}

static void progress_rate(struct progress *progress, uint64_t bytes, uint64_t now)
{
    uint64_t passed = now - progress->rate_us;

    if (!progress->rate_us) {
        progress->rate_us = now;
        progress->rate_bytes = bytes;
        return;
    }
    if (passed < PROGRESS_RATE_US || bytes < progress->rate_bytes) {
        return;
    }
    double rate = (double)(bytes - progress->rate_bytes) * 1e6 / (double)passed;
    progress->rate = progress->rate > 0 ? progress->rate * 0.6 + rate * 0.4 : rate;
    progress->rate_us = now;
    progress->rate_bytes = bytes;
}

void progress_show(struct progress *progress, const struct progress_values *values, bool final)
{
    uint64_t now = units_now_us();
    uint64_t step = progress->terminal ? PROGRESS_TERMINAL_US : PROGRESS_LINES_US;
    char left[32] = "";

    if (!progress->enabled) {
        return;
    }
    progress_rate(progress, values->wire_bytes, now);
    if (!final && progress->shown_us && now - progress->shown_us < step) {
        return;
    }
    progress->shown_us = now;
    if (progress->rate > 1 && !final) {
        snprintf(left, sizeof(left), ", %.0f s left", (double)values->remaining / progress->rate);
    }
    fprintf(stderr,
            "%sMigration: [%3u %%] %s, round %llu: %llu MiB to main, %llu MiB to sub-hosts, "
            "%.0f MiB/s%s%s",
            progress->terminal ? "\r" : "", progress_percent(values->total, values->remaining),
            values->phase, (unsigned long long)values->rounds,
            (unsigned long long)(values->main_bytes / MIB),
            (unsigned long long)(values->sub_bytes / MIB), progress->rate / (double)MIB, left,
            progress->terminal ? "\033[K" : "\n");
    progress->open_line = progress->terminal;
    fflush(stderr);
}
