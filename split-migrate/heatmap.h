/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * heatmap.h - where each part of a guest's memory is and how hot it is, and pictures of that
 *
 * Cells stand for equal, consecutive parts of the guest's memory, in the order of flat RAM.  A
 * cell's place is where most of it is; its heat is that of its hottest chunk (the predictor's
 * history of accesses: 0 to 255), so that one hot chunk does not vanish among cold ones.
 */
#ifndef SPLIT_MIGRATE_HEATMAP_H
#define SPLIT_MIGRATE_HEATMAP_H

#include <jansson.h>
#include <stdio.h>

#include "common/pagemap.h"
#include "common/policy.h"

struct heatmap {
    uint64_t n_chunks;
    uint16_t *resident; /* [n_chunks] pages */
    uint16_t *remote;   /* [n_chunks] pages, all on the chunk's sub-host */
    uint8_t *subhost;   /* [n_chunks] PAGEMAP_NO_SUBHOST: none */
    uint8_t *heat;      /* [n_chunks] */
    unsigned n_subhosts;
    char name[PAGEMAP_MAX_SUBHOSTS][POLICY_NAME_LEN];
};

#define HEATMAP_NOWHERE (-1) /* never touched */
#define HEATMAP_MAIN 0       /* sub-host i is 1 + i */

struct heatmap_cell {
    int place;
    unsigned heat;
    uint64_t pages, resident, remote;
};

/** heatmap_parse() - from what `query-heatmap` returns. Return: 0, or -EPROTO/-ENOMEM with @reason. */
int heatmap_parse(struct heatmap *map, const json_t *answer, struct reason *reason);
void heatmap_free(struct heatmap *map);

/** heatmap_cell() - chunks [first, first + n), cut at the end of the guest */
void heatmap_cell(const struct heatmap *map, uint64_t first, uint64_t n, struct heatmap_cell *cell);

/** heatmap_total() - bytes at @place */
uint64_t heatmap_total(const struct heatmap *map, int place);

/** heatmap_name() - of a place */
const char *heatmap_name(const struct heatmap *map, int place);

/** heatmap_label() - an address exactly, in GiB or MiB. Return: @text. */
const char *heatmap_label(uint64_t bytes, char text[32]);

/** heatmap_json() - a new object: arrays with an entry for each chunk */
json_t *heatmap_json(const struct heatmap *map);

/** heatmap_draw() - on a terminal, as wide as it is; in letters and digits where there are no colours */
void heatmap_draw(const struct heatmap *map);

/** heatmap_svg() - a picture; @title is written above it */
void heatmap_svg(const struct heatmap *map, const char *title, FILE *to);

#endif
