/* SPDX-License-Identifier: GPL-2.0-or-later */
/* handoff_io.h - send and receive the frames of common/handoff.h */
#ifndef COMMON_HANDOFF_IO_H
#define COMMON_HANDOFF_IO_H

#include <stdint.h>

#include "common/handoff.h"
#include "common/log.h"

#define HANDOFF_MAX_FDS (HANDOFF_MAX_BLOCKS + 1)

/* A received frame; `body` is aligned for every body struct and NUL-terminated beyond its length. */
struct handoff_frame {
    struct handoff_header header;
    unsigned n_fds;
    int fds[HANDOFF_MAX_FDS]; /* the receiver's to close; taken ones are set to -1 */
    union {
        uint64_t align;
        uint8_t bytes[HANDOFF_MAX_BODY + 1];
    } body;
};

/**
 * handoff_send() - send one frame, fds with its first byte
 * Blocks at most @deadline_us (of units_now_us(); UINT64_MAX: no limit), whether the socket blocks
 * or not.  One sender at a time.
 *
 * Return: 0, -EPIPE if the peer is gone, -ETIMEDOUT, or another -errno; after any error the
 * socket cannot be used further.
 */
int handoff_send(int fd, uint16_t type, uint32_t cookie, const void *body, uint32_t length,
                 const int *fds, unsigned n_fds, uint64_t deadline_us);

/** handoff_send_result() - send a struct handoff_result: @err is 0 or -errno, @reason may be NULL */
int handoff_send_result(int fd, uint16_t type, uint32_t cookie, int err,
                        const struct reason *reason, uint64_t deadline_us);

/**
 * handoff_recv() - receive one frame and check its header and that its body fits its type
 *
 * Return: 0; -ECONNRESET at end of file; -ETIMEDOUT; -EPROTO with a sentence in @reason for
 * what is not a frame of ours.  After any error no fds are left open in @frame.
 */
int handoff_recv(int fd, struct handoff_frame *frame, uint64_t deadline_us, struct reason *reason);

/** handoff_check() - is a body of @length bytes right for @type? Counted bodies are checked too. */
int handoff_check(uint16_t type, const void *body, uint32_t length, struct reason *reason);

/** handoff_frame_close() - close the fds nobody took */
void handoff_frame_close(struct handoff_frame *frame);

/** handoff_result_reason() - a result's sentence as a struct reason, made safe; Return: -status */
int handoff_result_reason(const struct handoff_result *result, struct reason *reason);

#endif
