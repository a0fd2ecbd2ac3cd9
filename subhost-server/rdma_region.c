// SPDX-License-Identifier: GPL-2.0-or-later
/* rdma_region.c - a region's slabs: registered on demand, revoked all together */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/rdma_limits.h"
#include "common/units.h"
#include "subhost-server/rdma_internal.h"

struct rdma_region *rdma_region_get(struct rdma_server *server, struct region *region,
                                    uint64_t slab, struct ibv_context *verbs)
{
    for (struct rdma_region *r = server->regions; r; r = r->next) {
        if (r->region == region && r->verbs == verbs) {
            return r;
        }
    }
    struct rdma_region *r = calloc(1, sizeof(*r));
    if (!r) {
        return NULL;
    }
    r->slab_bytes = slab < RDMA_MAX_SLAB ? (uint32_t)slab : RDMA_MAX_SLAB;
    r->n_slabs = (region_size(region) + r->slab_bytes - 1) / r->slab_bytes;
    r->slabs = calloc(r->n_slabs, sizeof(struct ibv_mr *));
    r->pd = ibv_alloc_pd(verbs);
    r->verbs = verbs;
    if (!r->slabs || !r->pd) {
        rdma_region_free(r);
        return NULL;
    }
    r->region = region_ref(region);
    r->next = server->regions;
    server->regions = r;
    return r;
}

static int register_slab(struct rdma_region *r, uint64_t number, uint32_t length)
{
    uint64_t offset = number * r->slab_bytes;
    struct reason reason = {""};
    void *memory;

    int err = region_write_begin(r->region, offset, length, false, &memory);
    if (err) {
        return err;
    }
    r->slabs[number] = ibv_reg_mr(
        r->pd, memory, length,
        IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE);
    if (!r->slabs[number]) {
        err = rdma_limits_reason(errno, length, &reason);
        log_error("%s", reason.text);
        region_write_end(r->region, offset, length, false);
        return err == -EAGAIN ? -ENOMEM : err;
    }
    region_lend(r->region, offset, length);
    return 0;
}

int rdma_region_slab(struct rdma_region *r, uint64_t offset, struct rdma_message *answer)
{
    uint64_t number = offset / r->slab_bytes;

    if (offset % r->slab_bytes || number >= r->n_slabs) {
        return -EINVAL;
    }
    uint64_t left = region_size(r->region) - offset;
    uint32_t length = left < r->slab_bytes ? (uint32_t)left : r->slab_bytes;
    int err = r->slabs[number] ? 0 : register_slab(r, number, length);
    if (!err) {
        answer->address = (uintptr_t)r->slabs[number]->addr;
        answer->rkey = r->slabs[number]->rkey;
        answer->length = length;
    }
    return err;
}

void rdma_region_free(struct rdma_region *r)
{
    for (uint64_t i = 0; r->slabs && i < r->n_slabs; i++) {
        if (r->slabs[i] && ibv_dereg_mr(r->slabs[i])) {
            log_error("a slab's key cannot be revoked: %m");
        }
    }
    if (r->pd && ibv_dealloc_pd(r->pd)) {
        log_error("a protection domain is still in use: %m");
    }
    if (r->region) {
        region_unref(r->region);
    }
    free(r->slabs);
    free(r);
}
