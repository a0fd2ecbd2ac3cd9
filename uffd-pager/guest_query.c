// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "uffd-pager/worker.h"

static uint64_t guest_present_block(const struct layout_block *block, uint32_t *present)
{
    off_t at = (off_t)block->fd_offset;
    off_t end = at + (off_t)block->size;
    uint64_t pages = 0;

    while (at < end) {
        off_t data = lseek(block->fd, at, SEEK_DATA);
        if (data < 0 || data >= end) {
            break;
        }
        off_t hole = lseek(block->fd, data, SEEK_HOLE);
        if (hole < 0 || hole > end) {
            hole = end;
        }
        uint64_t first = (block->flat + (uint64_t)data - block->fd_offset) / PAGE_BYTES;
        uint64_t last = (block->flat + (uint64_t)hole - block->fd_offset) / PAGE_BYTES;
        pages += last - first;
        for (uint64_t page = first; present && page < last;) {
            uint64_t chunk_end = (page / CHUNK_PAGES + 1) * CHUNK_PAGES;
            uint64_t stop = chunk_end < last ? chunk_end : last;
            present[page / CHUNK_PAGES] += (uint32_t)(stop - page);
            page = stop;
        }
        at = hole;
    }
    return pages;
}

uint64_t guest_present(const struct layout *layout, uint32_t *present)
{
    uint64_t pages = 0;

    for (uint32_t i = 0; i < layout->n_blocks; i++) {
        pages += guest_present_block(&layout->block[i], present);
    }
    return pages;
}

static json_t *guest_subhosts(const struct worker *worker)
{
    json_t *array = json_array();

    for (unsigned i = 0; i < worker->session.n_subhosts; i++) {
        const struct session_subhost *subhost = &worker->session.subhost[i];
        char data[ENDPOINT_TEXT_LEN], control[ENDPOINT_TEXT_LEN];
        json_array_append_new(
            array, json_pack("{s:s, s:s, s:s, s:s}", "name", subhost->name, "data",
                             endpoint_format(&subhost->data, data), "control",
                             endpoint_format(&subhost->control, control), "export",
                             subhost->export_name));
    }
    return array;
}

/* The engine's statistics name each sub-host's pages by position; put them beside its name. */
static void guest_merge_subhosts(json_t *object, json_t *subhosts)
{
    json_t *numbers = json_object_get(object, "subhosts");

    for (size_t i = 0; i < json_array_size(numbers) && i < json_array_size(subhosts); i++) {
        json_object_update_missing(json_array_get(subhosts, i), json_array_get(numbers, i));
    }
    json_object_set(object, "subhosts", subhosts);
}

json_t *guest_query(struct worker *worker)
{
    uint64_t resident = worker->have_layout ? engine_resident(&worker->layout) : 0;
    json_t *object = json_object();

    if (worker->engine) {
        engine_stats(worker->engine, object);
    }
    if (resident > worker->resident_max) {
        worker->resident_max = resident;
    }
    json_t *more = json_pack(
        "{s:s, s:s, s:b, s:i, s:i, s:I, s:I, s:I, s:I, s:I}", "uuid", worker->uuid_text, "state",
        worker_state_name(worker->state), "connected", worker->qemu_fd >= 0, "pid",
        (int)worker->qemu_pid, "worker_pid", (int)getpid(), "ram",
        (json_int_t)(worker->have_layout ? worker->layout.flat_size : 0), "resident",
        (json_int_t)resident, "unpaged", (json_int_t)worker->unpaged, "resident_max", (json_int_t)worker->resident_max, "uptime_ms",
        (json_int_t)((units_now_us() - worker->started_us) / 1000));
    json_object_update(object, more);
    json_decref(more);
    bool has_session = worker->state >= WORKER_INCOMING;
    json_object_set_new(object, "present",
                        json_integer((json_int_t)(worker->state == WORKER_SPLIT ? 0 : resident)));
    if (has_session) {
        json_t *subhosts = guest_subhosts(worker);
        guest_merge_subhosts(object, subhosts);
        json_decref(subhosts);
        json_object_set_new(object, "budget", json_integer((json_int_t)worker->session.budget));
        json_object_set_new(object, "low_watermark",
                            json_integer((json_int_t)worker->session.low_watermark));
        json_object_set_new(object, "high_watermark",
                            json_integer((json_int_t)worker->session.high_watermark));
        json_object_set_new(object, "redundancy",
                            json_string(engine_redundancy_name(worker->session.redundancy)));
    }
    if (worker->state == WORKER_SPLIT) {
        struct pagemap_counts counts;
        pagemap_count(&worker->map, 0, worker->map.n_pages, &counts);
        uint64_t pages = counts.local + counts.clean + counts.remote;
        json_object_set_new(object, "present", json_integer((json_int_t)(pages * PAGE_BYTES)));
    }
    if (worker->state == WORKER_INCOMING && worker->receive) {
        json_object_set_new(object, "received",
                            json_integer((json_int_t)receive_bytes(worker->receive)));
    }
    if (worker->incoming_failed) {
        json_object_set_new(object, "reason", json_string(worker->incoming_reason.text));
    }
    return object;
}

/* One row of `query-pages`; equal neighbours are joined. */
struct guest_run {
    uint64_t first, n;
    struct pagemap_counts counts;
    int subhost;
    int heat;
};

static bool guest_same_run(const struct guest_run *a, const struct guest_run *b)
{
    return a->counts.local == b->counts.local && a->counts.clean == b->counts.clean &&
           a->counts.remote == b->counts.remote && a->counts.untouched == b->counts.untouched &&
           a->counts.lost == b->counts.lost && a->subhost == b->subhost && a->heat == b->heat;
}

static void guest_emit_run(json_t *runs, const struct guest_run *run)
{
    if (run->n) {
        json_array_append_new(
            runs, json_pack("[I,I,I,I,I,I,I,i,i]", (json_int_t)run->first, (json_int_t)run->n,
                            (json_int_t)run->counts.local, (json_int_t)run->counts.clean,
                            (json_int_t)run->counts.remote, (json_int_t)run->counts.untouched,
                            (json_int_t)run->counts.lost, run->subhost, run->heat));
    }
}

static void guest_chunk(struct worker *worker, uint64_t chunk, uint32_t present,
                        struct guest_run *run)
{
    memset(run, 0, sizeof(*run));
    run->first = chunk;
    run->n = 1;
    run->subhost = -1;
    if (worker->state == WORKER_SPLIT) {
        uint8_t subhost = worker->map.subhost[chunk];
        pagemap_count(&worker->map, chunk * CHUNK_PAGES, CHUNK_PAGES, &run->counts);
        run->subhost = subhost < PAGEMAP_MAX_SUBHOSTS ? subhost : -1; /* or the backup */
        run->heat = engine_heat(worker->engine, chunk);
    } else {
        run->counts.local = present;
        run->counts.untouched = CHUNK_PAGES - present;
        run->heat = worker->predictor ? predictor_heat(worker->predictor, chunk) : 0;
    }
}

/* Pages that exist, per chunk; NULL with *err if the guest is not in a state to be looked at. */
static uint32_t *guest_chunks_present(struct worker *worker, int *err, struct reason *reason)
{
    if (!worker->have_layout || worker->state == WORKER_INCOMING ||
        worker->state == WORKER_COMMITTING) {
        *err = reason_set(reason, -EBUSY, "guest %s is %s: its pages cannot be told yet",
                          worker->uuid_text, worker_state_name(worker->state));
        return NULL;
    }
    uint32_t *present = calloc(worker->layout.flat_size / CHUNK_BYTES + 1, sizeof(*present));
    if (!present) {
        *err = reason_set(reason, -ENOMEM, "out of memory");
        return NULL;
    }
    guest_present(&worker->layout, present);
    return present;
}

json_t *guest_query_pages(struct worker *worker, int *err, struct reason *reason)
{
    uint64_t n_chunks = worker->layout.flat_size / CHUNK_BYTES;
    struct guest_run run = {0};

    uint32_t *present = guest_chunks_present(worker, err, reason);

    if (!present) {
        return NULL;
    }
    json_t *runs = json_array();
    for (uint64_t chunk = 0; chunk < n_chunks; chunk++) {
        struct guest_run next;
        guest_chunk(worker, chunk, present[chunk], &next);
        if (run.n && guest_same_run(&run, &next)) {
            run.n++;
            continue;
        }
        guest_emit_run(runs, &run);
        run = next;
    }
    guest_emit_run(runs, &run);
    free(present);
    json_t *subhosts = worker->state == WORKER_SPLIT ? guest_subhosts(worker) : json_array();
    return json_pack("{s:I, s:I, s:I, s:o, s:o}", "page_bytes", (json_int_t)PAGE_BYTES,
                     "chunk_bytes", (json_int_t)CHUNK_BYTES, "n_chunks", (json_int_t)n_chunks,
                     "subhosts", subhosts, "runs", runs);
}

/* One column of `query-heatmap`: @digits hexadecimal digits for each chunk. */
struct guest_column {
    const char *name;
    unsigned digits;
    char *text;
};

static void guest_column_put(struct guest_column *column, uint64_t chunk, unsigned value)
{
    static const char hex[] = "0123456789abcdef";

    for (unsigned i = 0; i < column->digits; i++) {
        column->text[chunk * column->digits + i] = hex[value >> 4 * (column->digits - 1 - i) & 15];
    }
}

json_t *guest_query_heatmap(struct worker *worker, int *err, struct reason *reason)
{
    enum { RESIDENT, REMOTE, SUBHOST, HEAT, N_COLUMNS };
    struct guest_column column[N_COLUMNS] = {
        {"resident", 3, NULL}, {"remote", 3, NULL}, {"subhost", 2, NULL}, {"heat", 2, NULL}};
    uint32_t *present = guest_chunks_present(worker, err, reason);

    if (!present) {
        return NULL;
    }
    uint64_t n_chunks = worker->layout.flat_size / CHUNK_BYTES;
    for (unsigned i = 0; i < N_COLUMNS; i++) {
        column[i].text = calloc(n_chunks + 1, column[i].digits);
        *err = column[i].text ? *err : reason_set(reason, -ENOMEM, "out of memory");
    }
    for (uint64_t chunk = 0; chunk < n_chunks && !*err; chunk++) {
        struct guest_run run;
        guest_chunk(worker, chunk, present[chunk], &run);
        guest_column_put(&column[RESIDENT], chunk, (unsigned)(run.counts.local + run.counts.clean));
        guest_column_put(&column[REMOTE], chunk, (unsigned)run.counts.remote);
        guest_column_put(&column[SUBHOST], chunk,
                         run.subhost < 0 ? PAGEMAP_NO_SUBHOST : (unsigned)run.subhost);
        guest_column_put(&column[HEAT], chunk, (unsigned)run.heat);
    }
    json_t *answer = *err ? NULL
                          : json_pack("{s:I, s:I, s:o}", "chunk_bytes", (json_int_t)CHUNK_BYTES,
                                      "n_chunks", (json_int_t)n_chunks, "subhosts", json_array());
    for (unsigned i = 0; i < N_COLUMNS; i++) {
        if (answer) {
            json_object_set_new(answer, column[i].name, json_string(column[i].text));
        }
        free(column[i].text);
    }
    for (unsigned i = 0; answer && worker->state == WORKER_SPLIT && i < worker->session.n_subhosts;
         i++) {
        json_array_append_new(json_object_get(answer, "subhosts"),
                              json_string(worker->session.subhost[i].name));
    }
    free(present);
    return answer;
}
