// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * heatmap_svg.c - a heat map as a picture
 *
 * A cell is filled from below: with the main host's colour as far as it is resident there, above
 * it with its sub-host's.  The hotter, the stronger the colour.
 */
#include <stdio.h>

#include "split-migrate/heatmap.h"

#define SVG_WIDTH 768u /* of all columns */
#define SVG_MIN_COLUMNS 16u
#define SVG_MAX_COLUMNS 64u
#define SVG_MAX_CELLS 4096u
#define SVG_SAMPLE 12u /* a field of the legend */
#define SVG_LEFT 76u
#define SVG_TOP 44u
#define SVG_LEGEND 22u /* a line of it */
#define SVG_LABEL 24u /* between two labels */

static const char *const svg_colors[] = {
    "#d9480f", /* main */
    "#1971c2", "#2f9e44", "#9c36b5", "#e8a800", "#0c8599", "#5f3dc4",
};
#define SVG_SUBHOST_COLORS (sizeof(svg_colors) / sizeof(svg_colors[0]) - 1)

static const char *svg_color(int place)
{
    return svg_colors[place == HEATMAP_MAIN ? 0 : 1 + ((size_t)place - 1) % SVG_SUBHOST_COLORS];
}

static void svg_escaped(const char *text, FILE *to)
{
    for (; *text; text++) {
        switch (*text) {
        case '<':
            fputs("&lt;", to);
            break;
        case '>':
            fputs("&gt;", to);
            break;
        case '&':
            fputs("&amp;", to);
            break;
        default:
            putc((unsigned char)*text < 0x20 ? '?' : *text, to);
        }
    }
}

static double svg_opacity(unsigned heat)
{
    return 0.22 + 0.78 * heat / 255;
}

static void svg_rect(FILE *to, double x, double y, double width, double height, int place,
                     unsigned heat)
{
    fprintf(to, "<rect x=\"%.0f\" y=\"%.1f\" width=\"%.0f\" height=\"%.1f\" fill=\"%s\""
                " fill-opacity=\"%.2f\"/>\n",
            x, y, width, height, svg_color(place), svg_opacity(heat));
}

/* The sub-host of most of what is remote in the cell. */
static int svg_remote_place(const struct heatmap *map, uint64_t first, uint64_t n)
{
    struct heatmap_cell cell;
    int best = HEATMAP_NOWHERE;
    uint64_t most = 0;

    for (uint64_t i = first; i < first + n && i < map->n_chunks; i++) {
        heatmap_cell(map, i, 1, &cell);
        if (cell.remote > most && map->subhost[i] < map->n_subhosts) {
            most = cell.remote;
            best = 1 + map->subhost[i];
        }
    }
    return best;
}

static void svg_cell(const struct heatmap *map, uint64_t first, uint64_t n, unsigned x, unsigned y,
                     double side, FILE *to)
{
    struct heatmap_cell cell;

    heatmap_cell(map, first, n, &cell);
    if (cell.place == HEATMAP_NOWHERE) {
        return; /* the ground shows it */
    }
    double resident = side * (double)cell.resident / (double)cell.pages;
    double remote = side * (double)cell.remote / (double)cell.pages;
    int there = svg_remote_place(map, first, n);
    if (cell.resident) {
        svg_rect(to, x, y + side - resident, side, resident, HEATMAP_MAIN, cell.heat);
    }
    if (cell.remote && there != HEATMAP_NOWHERE) {
        svg_rect(to, x, y + side - resident - remote, side, remote, there, cell.heat);
    }
}

static void svg_legend(const struct heatmap *map, unsigned y, uint64_t step, FILE *to)
{
    char size[32];

    for (int place = HEATMAP_NOWHERE; place <= (int)map->n_subhosts; place++, y += SVG_LEGEND) {
        if (place == HEATMAP_NOWHERE) {
            fprintf(to, "<rect x=\"%u\" y=\"%u\" width=\"11\" height=\"11\" fill=\"#eceff1\"/>\n",
                    SVG_LEFT, y);
        } else {
            svg_rect(to, SVG_LEFT, y, 11, 11, place, 255);
        }
        fprintf(to, "<text x=\"%u\" y=\"%u\">", SVG_LEFT + 20, y + 10);
        svg_escaped(heatmap_name(map, place), to);
        fprintf(to, " %s</text>\n",
                units_format_size(heatmap_total(map, place), size, sizeof(size)));
    }
    for (unsigned i = 0; i < 9; i++) {
        svg_rect(to, SVG_LEFT + i * SVG_SAMPLE, y, SVG_SAMPLE, 11, HEATMAP_MAIN, i * 255 / 8);
    }
    fprintf(to, "<text x=\"%u\" y=\"%u\">cold to hot; a cell is %s, filled from below with what is "
                "on the main host</text>\n",
            SVG_LEFT + 9 * SVG_SAMPLE + 9, y + 10,
            units_format_size(step * CHUNK_BYTES, size, sizeof(size)));
}

static void svg_rows(const struct heatmap *map, uint64_t step, unsigned columns, unsigned cells,
                     FILE *to)
{
    unsigned side = SVG_WIDTH / columns;
    unsigned label_rows = side < SVG_LABEL ? SVG_LABEL / side : 1;
    char size[32];

    for (unsigned at = 0; at < cells; at += columns) {
        unsigned row = at / columns;
        unsigned y = SVG_TOP + row * side;
        unsigned n = cells - at < columns ? cells - at : columns;
        if (row % label_rows == 0) {
            fprintf(to, "<text x=\"%u\" y=\"%u\" text-anchor=\"end\">%s</text>\n", SVG_LEFT - 8,
                    y + side / 2 + 4,
                    heatmap_label(at * step * CHUNK_BYTES, size));
        }
        fprintf(to, "<rect x=\"%u\" y=\"%u\" width=\"%u\" height=\"%u\" fill=\"#eceff1\"/>\n",
                SVG_LEFT, y, n * side - 1, side - 1);
        for (unsigned i = 0; i < n; i++) {
            svg_cell(map, (at + i) * step, step, SVG_LEFT + i * side, y, side - 1, to);
        }
    }
}

void heatmap_svg(const struct heatmap *map, const char *title, FILE *to)
{
    unsigned columns = SVG_MIN_COLUMNS;
    uint64_t step = 1;

    while (step * SVG_MAX_CELLS < map->n_chunks) {
        step *= 2;
    }
    unsigned cells = (unsigned)((map->n_chunks + step - 1) / step);
    while (columns < SVG_MAX_COLUMNS && cells > columns * columns / 2) {
        columns *= 2;
    }
    unsigned rows = (cells + columns - 1) / columns;
    unsigned width = SVG_LEFT + SVG_WIDTH + 24;
    unsigned bottom = SVG_TOP + rows * (SVG_WIDTH / columns) + 18;
    unsigned height = bottom + (map->n_subhosts + 3) * SVG_LEGEND + 8;
    fprintf(to,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%u\" height=\"%u\" viewBox=\"0 0 %u "
            "%u\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#263238\">\n"
            "<rect width=\"%u\" height=\"%u\" fill=\"#ffffff\"/>\n"
            "<text x=\"%u\" y=\"26\" font-size=\"16\">",
            width, height, width, height, width, height, SVG_LEFT);
    svg_escaped(title, to);
    fputs("</text>\n", to);
    svg_rows(map, step, columns, cells, to);
    svg_legend(map, bottom, step, to);
    fputs("</svg>\n", to);
}
