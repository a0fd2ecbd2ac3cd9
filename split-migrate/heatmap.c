// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/heatmap.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEATMAP_MAX_CHUNKS (UINT64_C(1) << 24) /* 32 TiB */

static int heatmap_digit(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* A column of @digits hexadecimal digits a chunk; @most: what a value may be. */
static int heatmap_column(const json_t *answer, const char *name, unsigned digits, unsigned most,
                          uint64_t n, uint16_t *to)
{
    const json_t *column = json_object_get(answer, name);
    const char *text = json_string_value(column);

    if (!text || json_string_length(column) != n * digits) {
        return -EPROTO;
    }
    for (uint64_t i = 0; i < n; i++) {
        unsigned value = 0;
        for (unsigned k = 0; k < digits; k++) {
            int digit = heatmap_digit(*text++);
            if (digit < 0) {
                return -EPROTO;
            }
            value = value << 4 | (unsigned)digit;
        }
        if (value > most) {
            return -EPROTO;
        }
        to[i] = (uint16_t)value;
    }
    return 0;
}

static int heatmap_bytes(const json_t *answer, const char *name, uint64_t n, uint16_t *wide,
                         uint8_t *to)
{
    int err = heatmap_column(answer, name, 2, UINT8_MAX, n, wide);

    for (uint64_t i = 0; i < n && !err; i++) {
        to[i] = (uint8_t)wide[i];
    }
    return err;
}

static int heatmap_columns(struct heatmap *map, const json_t *answer)
{
    uint64_t n = map->n_chunks;
    uint16_t *wide = calloc(n + 1, sizeof(*wide));

    map->resident = calloc(n + 1, sizeof(*map->resident));
    map->remote = calloc(n + 1, sizeof(*map->remote));
    map->subhost = calloc(n + 1, sizeof(*map->subhost));
    map->heat = calloc(n + 1, sizeof(*map->heat));
    int err =
        wide && map->resident && map->remote && map->subhost && map->heat ? 0 : -ENOMEM;
    if (!err) {
        err = heatmap_column(answer, "resident", 3, CHUNK_PAGES, n, map->resident);
    }
    if (!err) {
        err = heatmap_column(answer, "remote", 3, CHUNK_PAGES, n, map->remote);
    }
    if (!err) {
        err = heatmap_bytes(answer, "subhost", n, wide, map->subhost);
    }
    if (!err) {
        err = heatmap_bytes(answer, "heat", n, wide, map->heat);
    }
    free(wide);
    return err;
}

int heatmap_parse(struct heatmap *map, const json_t *answer, struct reason *reason)
{
    const json_t *names = json_object_get(answer, "subhosts");
    json_int_t n = json_integer_value(json_object_get(answer, "n_chunks"));
    int err = -EPROTO;

    memset(map, 0, sizeof(*map));
    if (n > 0 && (uint64_t)n <= HEATMAP_MAX_CHUNKS &&
        json_array_size(names) <= PAGEMAP_MAX_SUBHOSTS) {
        map->n_chunks = (uint64_t)n;
        err = heatmap_columns(map, answer);
    }
    for (size_t i = 0; i < json_array_size(names) && !err; i++) {
        const char *name = json_string_value(json_array_get(names, i));
        snprintf(map->name[map->n_subhosts++], POLICY_NAME_LEN, "%s", name ? name : "?");
    }
    for (uint64_t i = 0; i < map->n_chunks && !err; i++) {
        bool known = map->subhost[i] == PAGEMAP_NO_SUBHOST || map->subhost[i] < map->n_subhosts;
        err = known && map->resident[i] + map->remote[i] <= (int)CHUNK_PAGES ? 0 : -EPROTO;
    }
    if (err) {
        heatmap_free(map);
        reason_set(reason, err, err == -ENOMEM ? "out of memory"
                                               : "the pager's answer to query-heatmap is not whole");
    }
    return err;
}

void heatmap_free(struct heatmap *map)
{
    free(map->resident);
    free(map->remote);
    free(map->subhost);
    free(map->heat);
    memset(map, 0, sizeof(*map));
}

void heatmap_cell(const struct heatmap *map, uint64_t first, uint64_t n, struct heatmap_cell *cell)
{
    uint64_t on[PAGEMAP_MAX_SUBHOSTS + 1] = {0};
    uint64_t end = first + n < map->n_chunks ? first + n : map->n_chunks;
    uint64_t most = 0;

    memset(cell, 0, sizeof(*cell));
    cell->place = HEATMAP_NOWHERE;
    for (uint64_t i = first; i < end; i++) {
        cell->pages += CHUNK_PAGES;
        cell->resident += map->resident[i];
        cell->remote += map->remote[i];
        cell->heat = map->heat[i] > cell->heat ? map->heat[i] : cell->heat;
        on[HEATMAP_MAIN] += map->resident[i];
        if (map->subhost[i] < map->n_subhosts) {
            on[1 + map->subhost[i]] += map->remote[i];
        }
    }
    for (unsigned place = 0; place <= map->n_subhosts; place++) {
        if (on[place] > most) {
            most = on[place];
            cell->place = (int)place;
        }
    }
}

uint64_t heatmap_total(const struct heatmap *map, int place)
{
    uint64_t pages = 0;

    for (uint64_t i = 0; i < map->n_chunks; i++) {
        if (place == HEATMAP_MAIN) {
            pages += map->resident[i];
        } else if (place == HEATMAP_NOWHERE) {
            pages += CHUNK_PAGES - map->resident[i] - map->remote[i];
        } else if (map->subhost[i] + 1 == place) {
            pages += map->remote[i];
        }
    }
    return pages * PAGE_BYTES;
}

const char *heatmap_name(const struct heatmap *map, int place)
{
    if (place == HEATMAP_NOWHERE) {
        return "untouched";
    }
    return place == HEATMAP_MAIN ? "main" : map->name[place - 1];
}

const char *heatmap_label(uint64_t bytes, char text[32])
{
    bool whole = bytes % GIB == 0;

    snprintf(text, 32, "%llu %s", (unsigned long long)(bytes / (whole ? GIB : MIB)),
             whole ? "GiB" : "MiB");
    return text;
}

json_t *heatmap_json(const struct heatmap *map)
{
    json_t *resident = json_array();
    json_t *remote = json_array();
    json_t *subhost = json_array();
    json_t *heat = json_array();

    for (uint64_t i = 0; i < map->n_chunks; i++) {
        json_array_append_new(resident, json_integer(map->resident[i]));
        json_array_append_new(remote, json_integer(map->remote[i]));
        json_array_append_new(subhost, map->subhost[i] < map->n_subhosts
                                           ? json_string(map->name[map->subhost[i]])
                                           : json_null());
        json_array_append_new(heat, json_integer(map->heat[i]));
    }
    return json_pack("{s:I, s:I, s:o, s:o, s:o, s:o}", "chunk_bytes", (json_int_t)CHUNK_BYTES,
                     "page_bytes", (json_int_t)PAGE_BYTES, "resident_pages", resident,
                     "remote_pages", remote, "subhost", subhost, "heat", heat);
}
