// SPDX-License-Identifier: GPL-2.0-or-later
/* nbd_rdma_none.c - a build without libibverbs and librdmacm */
#include <errno.h>

#include "common/nbd_rdma.h"

int nbd_rdma_connect(struct nbd_rdma **connection, const struct endpoint *address,
                     const char *export_name, size_t staging, int timeout_ms,
                     struct reason *reason)
{
    (void)connection;
    (void)address;
    (void)export_name;
    (void)staging;
    (void)timeout_ms;
    return reason_set(reason, -ENOTSUP,
                      "this program was built without RDMA (libibverbs and librdmacm)");
}

/* There are no connections, so nobody calls the rest. */
void nbd_rdma_close(struct nbd_rdma *connection)
{
    (void)connection;
}

uint64_t nbd_rdma_size(const struct nbd_rdma *connection)
{
    (void)connection;
    return 0;
}

int nbd_rdma_fd(const struct nbd_rdma *connection)
{
    (void)connection;
    return -1;
}

ssize_t nbd_rdma_send(struct nbd_rdma *connection, const struct iovec *iov, size_t n)
{
    (void)connection;
    (void)iov;
    (void)n;
    return -ENOTSUP;
}

ssize_t nbd_rdma_receive(struct nbd_rdma *connection, void *buffer, size_t size)
{
    (void)connection;
    (void)buffer;
    (void)size;
    return -ENOTSUP;
}

bool nbd_rdma_sleep(struct nbd_rdma *connection)
{
    (void)connection;
    return false;
}

void nbd_rdma_abort(struct nbd_rdma *connection)
{
    (void)connection;
}
