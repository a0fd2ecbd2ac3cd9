// SPDX-License-Identifier: GPL-2.0-or-later
/* nbd_rdma_address.c - rdma:HOST:PORT; needs no RDMA library */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/nbd_rdma.h"

int nbd_rdma_parse(const char *text, struct endpoint *address, struct reason *reason)
{
    char tcp[ENDPOINT_TEXT_LEN];

    if (strncmp(text, "rdma:", 5) != 0 || strlen(text) >= sizeof(tcp)) {
        return reason_set(reason, -EINVAL, "address '%.64s' is not of the form rdma:HOST:PORT", text);
    }
    snprintf(tcp, sizeof(tcp), "tcp:%s", text + 5);
    return endpoint_parse(tcp, address, reason);
}

const char *nbd_rdma_format(const struct endpoint *address, char text[ENDPOINT_TEXT_LEN])
{
    char tcp[ENDPOINT_TEXT_LEN];

    endpoint_format(address, tcp);
    snprintf(text, ENDPOINT_TEXT_LEN, "rdma:%.290s", tcp + 4);
    return text;
}
