// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/control_line.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/control.h"
#include "common/units.h"

void control_line_init(struct control_line *line, const struct channel *channel)
{
    memset(line, 0, sizeof(*line));
    line->channel = channel;
}

void control_line_free(struct control_line *line)
{
    free(line->buffer);
    line->buffer = NULL;
}

/* Take the first line out of the buffer, if a whole one is there. */
static int control_line_take(struct control_line *line, json_t **object, struct reason *reason)
{
    char *newline = line->used > line->scanned
                        ? memchr(line->buffer + line->scanned, '\n', line->used - line->scanned)
                        : NULL;

    if (!newline) {
        line->scanned = line->used;
        return -EAGAIN;
    }
    size_t length = (size_t)(newline - line->buffer);
    json_error_t error;
    *object = json_loadb(line->buffer, length, JSON_REJECT_DUPLICATES, &error);
    line->used -= length + 1;
    memmove(line->buffer, newline + 1, line->used);
    line->scanned = 0;
    if (!*object) {
        return reason_set(reason, -EBADMSG, "the line is not JSON: %s", error.text);
    }
    if (!json_is_object(*object)) {
        json_decref(*object);
        *object = NULL;
        return reason_set(reason, -EBADMSG, "the line is not a JSON object");
    }
    return 0;
}

static int control_line_room(struct control_line *line)
{
    if (line->used < line->size) {
        return 0;
    }
    if (line->size >= CONTROL_MAX_LINE) {
        return -EMSGSIZE;
    }
    size_t size = line->size ? line->size * 2 : 4096;
    char *buffer = realloc(line->buffer, size);
    if (!buffer) {
        return -ENOMEM;
    }
    line->buffer = buffer;
    line->size = size;
    return 0;
}

static int control_line_wait(int fd, uint64_t deadline_us)
{
    struct pollfd pfd = {.fd = fd, .events = POLLIN};
    int n = poll(&pfd, 1, units_timeout_ms(deadline_us));

    if (n < 0) {
        return errno == EINTR ? 0 : -errno;
    }
    return n == 0 ? (deadline_us ? -ETIMEDOUT : -EAGAIN) : 0;
}

int control_line_read(struct control_line *line, uint64_t deadline_us, json_t **object,
                      struct reason *reason)
{
    for (;;) {
        int err = control_line_take(line, object, reason);
        if (err != -EAGAIN) {
            return err;
        }
        err = control_line_room(line);
        if (err < 0) {
            return reason_set(reason, err, "the line is longer than %u bytes", CONTROL_MAX_LINE);
        }
        ssize_t n = channel_recv(line->channel, line->buffer + line->used, line->size - line->used,
                                 MSG_DONTWAIT);
        if (n == 0) {
            return reason_set(reason, -ECONNRESET, "the peer closed the control connection");
        }
        if (n > 0) {
            line->used += (size_t)n;
        } else if (n == -EAGAIN) {
            err = control_line_wait(line->channel->fd, deadline_us);
            if (err < 0) {
                return reason_set(reason, err, "the peer did not answer in time");
            }
        } else if (n != -EINTR) {
            return reason_set(reason, (int)n, "the control connection broke: %s",
                              channel_error(line->channel, (int)n));
        }
    }
}

int control_line_write(const struct channel *channel, const json_t *object)
{
    char *text = json_dumps(object, JSON_COMPACT | JSON_ENCODE_ANY);

    if (!text) {
        return -ENOMEM;
    }
    size_t left = strlen(text);
    const char *p = text;
    text[left++] = '\n'; /* instead of the NUL */
    int err = 0;
    while (left && !err) {
        ssize_t n = channel_send(channel, p, left, 0);
        if (n > 0) {
            p += n;
            left -= (size_t)n;
        } else if (n != -EINTR) {
            err = (int)n;
        }
    }
    free(text);
    return err;
}
