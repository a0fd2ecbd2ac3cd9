// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/nbd.h"

#include <endian.h>
#include <errno.h>
#include <stddef.h>

#include "common/nbd_client.h"

static const struct {
    int err;
    uint32_t wire;
} nbd_errors[] = {
    {EPERM, NBD_EPERM},   {EACCES, NBD_EPERM},         {EROFS, NBD_EPERM},
    {EIO, NBD_EIO},       {ENOMEM, NBD_ENOMEM},        {EINVAL, NBD_EINVAL},
    {ENOSPC, NBD_ENOSPC}, {EDQUOT, NBD_ENOSPC},        {EFBIG, NBD_ENOSPC},
    {ENOTSUP, NBD_ENOTSUP}, {EOVERFLOW, NBD_EOVERFLOW}, {ESHUTDOWN, NBD_ESHUTDOWN},
};

uint32_t nbd_errno_to_wire(int err)
{
    if (err == 0) {
        return 0;
    }
    for (size_t i = 0; i < sizeof(nbd_errors) / sizeof(nbd_errors[0]); i++) {
        if (nbd_errors[i].err == err) {
            return nbd_errors[i].wire;
        }
    }
    return NBD_EIO;
}

int nbd_errno_from_wire(uint32_t error)
{
    if (error == 0) {
        return 0;
    }
    /* The first row of a wire error is the errno that means exactly it. */
    for (size_t i = 0; i < sizeof(nbd_errors) / sizeof(nbd_errors[0]); i++) {
        if (nbd_errors[i].wire == error) {
            return -nbd_errors[i].err;
        }
    }
    return -EIO;
}

void nbd_encode_request(struct nbd_request *request, uint16_t type, uint16_t flags,
                        uint64_t cookie, uint64_t offset, uint32_t length)
{
    *request = (struct nbd_request){
        .magic = htobe32(NBD_REQUEST_MAGIC),
        .flags = htobe16(flags),
        .type = htobe16(type),
        .cookie = htobe64(cookie),
        .offset = htobe64(offset),
        .length = htobe32(length),
    };
}

int nbd_decode_simple_reply(const struct nbd_simple_reply *reply, uint64_t *cookie, int *error)
{
    if (reply->magic != htobe32(NBD_SIMPLE_REPLY_MAGIC)) {
        return -EPROTO;
    }
    *cookie = be64toh(reply->cookie);
    *error = nbd_errno_from_wire(be32toh(reply->error));
    return 0;
}
