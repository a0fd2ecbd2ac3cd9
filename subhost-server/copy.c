// SPDX-License-Identifier: GPL-2.0-or-later
#include "subhost-server/copy.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/nbd_client.h"
#include "common/racy.h"

#define COPY_BYTES (256u << 10)
#define COPY_TIMEOUT_MS 4000 /* shorter than the pager's patience: it is to hear who is silent */

struct copier {
    struct nbd_client source;
    bool connected;
    struct endpoint data;
    char export_name[NBD_MAX_STRING + 1];
    uint8_t *buffer; /* COPY_BYTES, not in cores */
};

/* One copy, as its steps see it. */
struct copy {
    struct copier *copier;
    struct region *region;
    uint64_t serial;
    unsigned epoch; /* of the region: the ticket may expire meanwhile */
    uint64_t copied;
};

static void hang_up(struct copier *copier)
{
    if (copier->connected) {
        nbd_client_close(&copier->source, false);
    }
    copier->connected = false;
}

void copier_free(struct copier *copier)
{
    if (copier) {
        hang_up(copier);
        if (copier->buffer) {
            munmap(copier->buffer, COPY_BYTES);
        }
        explicit_bzero(copier, sizeof(*copier));
        free(copier);
    }
}

static struct copier *copier_new(void)
{
    struct copier *copier = calloc(1, sizeof(*copier));
    void *buffer = copier ? mmap(NULL, COPY_BYTES, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                          : MAP_FAILED;

    if (buffer == MAP_FAILED) {
        copier_free(copier);
        return NULL;
    }
    madvise(buffer, COPY_BYTES, MADV_DONTDUMP);
    copier->buffer = buffer;
    return copier;
}

/* Have a connection to what @request names: the one of last time, if it was the same. */
static int dial(struct copier *copier, const struct copy_request *request, struct reason *reason)
{
    struct endpoint data;
    char name[NBD_MAX_STRING + 1];
    struct reason why = {""};

    int n = snprintf(name, sizeof(name), "%s/strict", request->export);
    if ((size_t)n >= sizeof(name)) {
        return reason_set(reason, -EINVAL, "'export' is too long");
    }
    int err = endpoint_parse(request->data, &data, reason);
    if (err) {
        return err;
    }
    if (copier->connected && memcmp(&copier->data, &data, sizeof(data)) == 0 &&
        strcmp(copier->export_name, name) == 0) {
        return 0;
    }
    hang_up(copier);
    err = nbd_client_connect(&copier->source, &data, name, COPY_TIMEOUT_MS, &why);
    if (err) {
        return reason_set(reason, -EREMOTEIO, "cannot connect to the other sub-host: %.300s", why.text);
    }
    nbd_client_set_timeout(&copier->source, COPY_TIMEOUT_MS);
    copier->data = data;
    memcpy(copier->export_name, name, sizeof(name));
    copier->connected = true;
    return 0;
}

static bool copy_is_on(const struct copy *copy)
{
    return region_pull_is_on(copy->region, copy->serial) &&
           copy->epoch == region_epoch(copy->region);
}

static int copy_store(struct copy *copy, uint64_t offset, uint32_t length)
{
    void *memory;
    int err = region_write_begin(copy->region, offset, length, true, &memory);

    if (err) {
        return err;
    }
    if (!memory) {
        err = region_fill(copy->region, offset, length, copy->copier->buffer);
    } else {
        racy_begin();
        memcpy(memory, copy->copier->buffer, length);
        racy_end();
    }
    int end = region_write_end(copy->region, offset, length, !err);
    copy->copied += err || end ? 0 : length;
    return end ? end : err;
}

/* Up to COPY_BYTES.  The wait is for reading: whether the copy is still wanted is asked after it. */
static int copy_piece(struct copy *copy, uint64_t offset, uint32_t length, struct reason *reason)
{
    int err = nbd_client_read(&copy->copier->source, copy->copier->buffer, offset, length);

    if (!copy_is_on(copy)) {
        return reason_set(reason, -ESTALE, "the copy was given up");
    }
    if (err == -EIO && length > PAGE_BYTES) {
        err = 0;
        for (uint32_t at = 0; at < length && !err; at += PAGE_BYTES) {
            err = copy_piece(copy, offset + at, PAGE_BYTES, reason);
        }
        return err;
    }
    if (err == -EIO) {
        /* It is not there: nor must it be where it is looked for next. */
        return region_trim(copy->region, offset, length);
    }
    if (err) {
        hang_up(copy->copier);
        return reason_set(reason, -EREMOTEIO, "cannot read from the other sub-host: %s",
                          strerror(-err));
    }
    err = copy_store(copy, offset, length);
    return err ? reason_set(reason, err, "cannot store the copy: %s", strerror(-err)) : 0;
}

static int copy_run(struct copy *copy, uint64_t offset, uint64_t length, struct reason *reason)
{
    int err = 0;

    while (length && !err) {
        uint32_t piece = length < COPY_BYTES ? (uint32_t)length : COPY_BYTES;
        err = copy_piece(copy, offset, piece, reason);
        offset += piece;
        length -= piece;
    }
    return err;
}

/* Judge all runs before any of them is copied. */
static int check_runs(const struct region *region, const json_t *runs, struct reason *reason)
{
    uint64_t size = region_size(region);
    const json_t *run;
    size_t i;

    json_array_foreach(runs, i, run) {
        const json_t *offset = json_array_get(run, 0), *length = json_array_get(run, 1);
        uint64_t at = (uint64_t)json_integer_value(offset), n = (uint64_t)json_integer_value(length);
        if (!json_is_integer(offset) || !json_is_integer(length) || at % PAGE_BYTES ||
            n % PAGE_BYTES || at > size || n > size - at) {
            return reason_set(reason, -EINVAL,
                              "'runs' must be pairs of offset and length, whole pages within the region");
        }
    }
    return json_is_array(runs) ? 0 : reason_set(reason, -EINVAL, "'runs' must be an array");
}

static int copy_all(struct copy *copy, const struct copy_request *request, struct reason *reason)
{
    const json_t *run;
    size_t i;
    int err = dial(copy->copier, request, reason);

    if (err) {
        return err;
    }
    if (region_pull_begin(copy->region, copy->serial) < 0) {
        return reason_set(reason, -ESTALE, "the copy was given up");
    }
    json_array_foreach(request->runs, i, run) {
        err = copy_run(copy, (uint64_t)json_integer_value(json_array_get(run, 0)),
                       (uint64_t)json_integer_value(json_array_get(run, 1)), reason);
        if (err) {
            break;
        }
    }
    region_pull_end(copy->region);
    return err;
}

int copier_pull(struct copier **copier, struct region *region, const struct copy_request *request,
                uint64_t *copied, struct reason *reason)
{
    int err = check_runs(region, request->runs, reason);

    *copied = 0;
    *copier = *copier ? *copier : copier_new();
    if (!err && !*copier) {
        err = reason_set(reason, -ENOMEM, "no memory for another copy");
    }
    if (err) {
        return err;
    }
    struct copy copy = {.copier = *copier, .region = region, .serial = request->serial,
                        .epoch = region_epoch(region)};
    bool kept = (*copier)->connected;
    err = copy_all(&copy, request, reason);
    if (err == -EREMOTEIO && kept) { /* it may have been restarted since the last copy */
        err = copy_all(&copy, request, reason);
    }
    *copied = copy.copied;
    return err;
}
