// SPDX-License-Identifier: GPL-2.0-or-later
/* rdma_region.c - a region's slabs: registered on demand, revoked when they are empty or the region goes */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/rdma_limits.h"
#include "common/units.h"
#include "common/racy.h"
#include "subhost-server/rdma_internal.h"

#define GIVE_BACK_US 2000000u /* after the last TRIM */

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
    r->slabs = calloc(r->n_slabs, sizeof(*r->slabs));
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

static uint32_t slab_length(const struct rdma_region *r, uint64_t number)
{
    uint64_t left = region_size(r->region) - number * r->slab_bytes;

    return left < r->slab_bytes ? (uint32_t)left : r->slab_bytes;
}

static int register_memory(struct rdma_region *r, struct rdma_slab *slab, void *memory,
                           uint32_t length)
{
    struct reason reason = {""};

    slab->mr = ibv_reg_mr(r->pd, memory, length,
                          IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE);
    if (!slab->mr) {
        int err = rdma_limits_reason(errno, length, &reason);
        log_error("%s", reason.text);
        return err == -EAGAIN ? -ENOMEM : err;
    }
    return 0;
}

static int register_slab(struct rdma_region *r, uint64_t number)
{
    struct rdma_slab *slab = &r->slabs[number];
    uint64_t offset = number * r->slab_bytes;
    uint32_t length = slab_length(r, number);
    void *memory;

    int err = region_write_begin(r->region, offset, length, false, &memory);
    if (err) {
        return err;
    }
    err = register_memory(r, slab, memory, length);
    if (err || slab->lent) {
        region_write_end(r->region, offset, length, slab->lent);
        return err;
    }
    region_lend(r->region, offset, length);
    slab->lent = true;
    return 0;
}

int rdma_region_slab(struct rdma_region *r, uint64_t offset, struct rdma_message *answer)
{
    uint64_t number = offset / r->slab_bytes;

    if (offset % r->slab_bytes || number >= r->n_slabs) {
        return -EINVAL;
    }
    const struct rdma_slab *slab = &r->slabs[number];
    int err = slab->mr ? 0 : register_slab(r, number);
    if (!err) {
        answer->address = (uintptr_t)slab->mr->addr;
        answer->rkey = slab->mr->rkey;
        answer->length = slab_length(r, number);
    }
    return err;
}

/* ---- giving back ---- */

static bool page_is_zero(const uint8_t *page)
{
    racy_begin();
    bool zero = page[0] == 0 && memcmp(page, page + 1, PAGE_BYTES - 1) == 0;
    racy_end();
    return zero;
}

/* What was not zero the last time seldom is now, so a slab in use costs one look. */
static bool slab_is_zero(struct rdma_slab *slab, const uint8_t *memory, uint32_t length)
{
    if (slab->used < length && !page_is_zero(memory + slab->used)) {
        return false;
    }
    for (uint64_t at = 0; at < length; at += PAGE_BYTES) {
        if (!page_is_zero(memory + at)) {
            slab->used = at;
            return false;
        }
    }
    return true;
}

static bool give_back(struct rdma_region *r, uint64_t number)
{
    struct rdma_slab *slab = &r->slabs[number];
    uint32_t length = slab_length(r, number);
    void *memory = slab->mr->addr;

    if (!slab_is_zero(slab, memory, length)) {
        return false;
    }
    if (ibv_dereg_mr(slab->mr)) {
        log_error("a slab's key cannot be revoked: %m");
        return false;
    }
    slab->mr = NULL;
    /* From here on nothing can be written. */
    if (!slab_is_zero(slab, memory, length)) {
        return false; /* there is another key for who asks */
    }
    slab->lent = false;
    region_take_back(r->region, number * r->slab_bytes, length);
    return true;
}

void rdma_region_trimmed(struct rdma_region *r)
{
    r->look_us = units_now_us() + GIVE_BACK_US;
}

void rdma_region_give_back(struct rdma_region *r)
{
    unsigned n = 0;

    for (uint64_t i = 0; i < r->n_slabs; i++) {
        n += r->slabs[i].mr && give_back(r, i);
    }
    if (n) {
        log_debug("%u slabs are empty and given back", n);
    }
}

void rdma_region_free(struct rdma_region *r)
{
    for (uint64_t i = 0; r->slabs && i < r->n_slabs; i++) {
        if (r->slabs[i].mr && ibv_dereg_mr(r->slabs[i].mr)) {
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
