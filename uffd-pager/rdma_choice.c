// SPDX-License-Identifier: GPL-2.0-or-later
#include "uffd-pager/rdma_choice.h"

#include <errno.h>

#include "common/nbd_rdma.h"

int rdma_choice_parse(const json_t *subhost, struct endpoint *address, bool *has_rdma,
                      bool *tcp_will_do, struct reason *reason)
{
    const json_t *rdma = json_object_get(subhost, "rdma");
    const json_t *fallback = json_object_get(subhost, "fallback");

    *has_rdma = rdma != NULL;
    *tcp_will_do = json_is_true(fallback);
    if (fallback && !json_is_boolean(fallback)) {
        return reason_set(reason, -EINVAL, "'fallback' must be true or false");
    }
    if (!rdma) {
        return 0;
    }
    if (!json_is_string(rdma)) {
        return reason_set(reason, -EINVAL, "'rdma' must be an address rdma:HOST:PORT");
    }
    return nbd_rdma_parse(json_string_value(rdma), address, reason);
}

void rdma_choice_add(json_t *subhost, const struct endpoint *address, bool has_rdma,
                     bool tcp_will_do)
{
    char text[ENDPOINT_TEXT_LEN];

    if (has_rdma) {
        json_object_set_new(subhost, "rdma", json_string(nbd_rdma_format(address, text)));
        json_object_set_new(subhost, "fallback", json_boolean(tcp_will_do));
    }
}
