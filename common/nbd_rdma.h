/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * nbd_rdma.h - a region's READs and WRITEs as one-sided RDMA, behind the face of an NBD connection
 *
 * Theory of operation
 * -------------------
 * Who uses it speaks NBD: requests go in by nbd_rdma_send(), simple replies come out of
 * nbd_rdma_receive(), in the order of the requests.  Nothing of that is on the wire.  A READ becomes
 * an RDMA READ, a WRITE an RDMA WRITE, and the reply is made here when the card reports completion:
 * the sub-host's processor has no part in it.  A TRIM, and the question for a slab's address and key,
 * are messages which the sub-host answers (common/rdma_wire.h).
 *
 * Pages pass through a staging buffer that is registered once.  To register the guest's memory
 * itself would pin it, which is what page-out must not have, and would fill the holes in it.
 *
 * Requests form a queue.  Those at its front have been posted; the first that has not may wait for
 * its slab's key, for room in the send queue or for an answer slot, and all behind it wait as well.
 * A send queue completes in order, so a completion stands for all posted before: READs and the last
 * WRITE of each post ask for one, and every 16th WRITE in between.
 *
 * Waiting: whoever is about to sleep on nbd_rdma_fd() calls nbd_rdma_sleep() first, which arms the
 * completion queue.  While it is not armed a completion costs no interrupt and no system call, so to
 * spin means to call nbd_rdma_receive() again and again.
 *
 * A connection belongs to one thread.  Errors stick: close it and connect anew.
 */
#ifndef COMMON_NBD_RDMA_H
#define COMMON_NBD_RDMA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "common/endpoint.h"
#include "common/log.h"

struct nbd_rdma;

/** nbd_rdma_parse() - rdma:HOST:PORT. Return: 0, or -EINVAL with a sentence in @reason */
int nbd_rdma_parse(const char *text, struct endpoint *address, struct reason *reason);

/** nbd_rdma_format() - the text form; Return: @text */
const char *nbd_rdma_format(const struct endpoint *address, char text[ENDPOINT_TEXT_LEN]);

/**
 * nbd_rdma_connect() - connect to a sub-host's region
 * @export_name: REGION[.TICKET]; only its hash travels
 * @staging: bytes of requests under way at most; a request must not be longer than half of it
 *
 * Return: 0; -ENOENT (no such region or ticket), -ENOTSUP (no RDMA here), -ETIMEDOUT, -ECONNREFUSED
 * or another -errno, with a sentence in @reason.  May wait for
 * @timeout_ms until the way is found, and for as long again until the answer is there.
 */
int nbd_rdma_connect(struct nbd_rdma **connection, const struct endpoint *address,
                     const char *export_name, size_t staging, int timeout_ms,
                     struct reason *reason);

/** nbd_rdma_close() - NULL is allowed */
void nbd_rdma_close(struct nbd_rdma *connection);

/** nbd_rdma_size() - bytes of the region */
uint64_t nbd_rdma_size(const struct nbd_rdma *connection);

/** nbd_rdma_fd() - becomes readable when something may have happened, if nbd_rdma_sleep() said so */
int nbd_rdma_fd(const struct nbd_rdma *connection);

/**
 * nbd_rdma_send() - take requests over: headers, and WRITEs' payloads right behind theirs
 * Payloads are copied.  Return: bytes taken, whole requests; 0 if there is no room; -errno: broken.
 */
ssize_t nbd_rdma_send(struct nbd_rdma *connection, const struct iovec *iov, size_t n);

/**
 * nbd_rdma_receive() - whole replies that are there, as simple replies with their payloads
 * Return: bytes; 0: there are none, or @size is too small for the next; -errno: broken.
 */
ssize_t nbd_rdma_receive(struct nbd_rdma *connection, void *buffer, size_t size);

/** nbd_rdma_sleep() - arm the descriptor. Return: false if there is something to receive already. */
bool nbd_rdma_sleep(struct nbd_rdma *connection);

/** nbd_rdma_abort() - the connection breaks (-ECANCELED) and its descriptor wakes; any thread */
void nbd_rdma_abort(struct nbd_rdma *connection);

#endif
