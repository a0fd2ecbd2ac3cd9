/* SPDX-License-Identifier: GPL-2.0-or-later */
/* control_line.h - JSON lines on a channel, for the control server and client */
#ifndef COMMON_CONTROL_LINE_H
#define COMMON_CONTROL_LINE_H

#include <jansson.h>
#include <stdint.h>

#include "common/channel.h"
#include "common/log.h"

struct control_line {
    const struct channel *channel;
    char *buffer; /* grows up to CONTROL_MAX_LINE */
    size_t used;
    size_t size;
    size_t scanned; /* no newline before this */
};

/** control_line_init() - @channel is borrowed */
void control_line_init(struct control_line *line, const struct channel *channel);
void control_line_free(struct control_line *line);

/**
 * control_line_read() - the next object
 * @deadline_us: of units_now_us(); 0: return -EAGAIN at once if no whole line is there; UINT64_MAX: none
 *
 * Return: 0 and a new reference in @object; -EAGAIN; -ETIMEDOUT; -ECONNRESET at end of file;
 * -EMSGSIZE for a line over the limit; -EBADMSG with a sentence in @reason for one that is no JSON object.
 */
int control_line_read(struct control_line *line, uint64_t deadline_us, json_t **object,
                      struct reason *reason);

/** control_line_write() - write @object (borrowed) and a newline. Return: 0 or -errno. */
int control_line_write(const struct channel *channel, const json_t *object);

#endif
