// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * heatmap_draw.c - a heat map on the terminal
 *
 * With colours a cell is a bar: its colour is the place, its height the heat.  Without, two lines
 * stand for each row of cells: a letter for the place, and below it a digit for the heat.
 */
#include <stdio.h>
#include <string.h>

#include "split-migrate/heatmap.h"
#include "split-migrate/screen.h"

#define DRAW_LABEL 11 /* columns left of the cells */
#define DRAW_MIN_COLUMNS 16u
#define DRAW_MAX_COLUMNS 128u
#define DRAW_OTHER_ROWS 10u /* what stands above and below */
#define DRAW_MIN_ROWS 8u

/* A dark ground and a bright bar of one colour, of the 256 that terminals know. */
static const struct {
    unsigned ground, bar;
} draw_colors[] = {
    {52, 208}, /* main: red, orange */
    {17, 39},  {22, 46}, {53, 207}, {58, 226}, {23, 51}, {54, 141},
};
#define DRAW_SUBHOST_COLORS (sizeof(draw_colors) / sizeof(draw_colors[0]) - 1)

static const char *const draw_bars[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
static const char *const draw_digits[] = {".", "1", "2", "3", "4", "5", "6", "7", "8"};

static unsigned draw_level(unsigned heat)
{
    return heat ? 1 + heat * 8 / 256 : 0;
}

static void draw_color(int place)
{
    if (place != HEATMAP_NOWHERE) {
        size_t i = place == HEATMAP_MAIN ? 0 : 1 + ((size_t)place - 1) % DRAW_SUBHOST_COLORS;
        printf("\033[48;5;%u;38;5;%um", draw_colors[i].ground, draw_colors[i].bar);
    }
}

/* main is M, sub-hosts are 1 to 9, then a to z, then others. */
static char draw_letter(int place)
{
    static const char letters[] = "M123456789abcdefghijklmnopqrstuvwxyz";

    if (place == HEATMAP_NOWHERE) {
        return '-';
    }
    return place < (int)sizeof(letters) - 1 ? letters[place] : '+';
}

struct draw {
    unsigned columns;
    uint64_t step; /* chunks in a cell */
    bool colors;
    const char *const *bars;
};

static void draw_fit(struct draw *draw, uint64_t n_chunks)
{
    unsigned width, height;

    screen_size(&width, &height);
    draw->columns = DRAW_MIN_COLUMNS;
    while (draw->columns < DRAW_MAX_COLUMNS && draw->columns * 2 + DRAW_LABEL <= width) {
        draw->columns *= 2;
    }
    unsigned rows = height > DRAW_OTHER_ROWS + DRAW_MIN_ROWS ? height - DRAW_OTHER_ROWS
                                                             : DRAW_MIN_ROWS;
    draw->step = 1;
    while (draw->step * draw->columns * rows < n_chunks) {
        draw->step *= 2;
    }
}

static void draw_label(uint64_t bytes)
{
    char text[32];

    printf("%*s ", DRAW_LABEL - 2, heatmap_label(bytes, text));
}

static void draw_row_colors(const struct draw *draw, const struct heatmap *map, uint64_t first)
{
    struct heatmap_cell cell;
    int before = HEATMAP_NOWHERE;

    for (unsigned i = 0; i < draw->columns && first < map->n_chunks; i++, first += draw->step) {
        heatmap_cell(map, first, draw->step, &cell);
        if (cell.place != before) {
            fputs("\033[0m", stdout);
            draw_color(cell.place);
            before = cell.place;
        }
        fputs(cell.place == HEATMAP_NOWHERE ? "\033[38;5;240m·" : draw->bars[draw_level(cell.heat)],
              stdout);
    }
    fputs("\033[0m\n", stdout);
}

static void draw_row_plain(const struct draw *draw, const struct heatmap *map, uint64_t first,
                           bool heat)
{
    struct heatmap_cell cell;

    for (unsigned i = 0; i < draw->columns && first < map->n_chunks; i++, first += draw->step) {
        heatmap_cell(map, first, draw->step, &cell);
        if (!heat) {
            putchar(draw_letter(cell.place));
        } else {
            fputs(cell.place == HEATMAP_NOWHERE ? " " : draw_digits[draw_level(cell.heat)], stdout);
        }
    }
    putchar('\n');
}

static void draw_legend(const struct draw *draw, const struct heatmap *map)
{
    char size[32];

    for (int place = HEATMAP_MAIN; place <= (int)map->n_subhosts; place++) {
        printf("%*s", DRAW_LABEL - 1, "");
        if (draw->colors) {
            draw_color(place);
            printf(" %s \033[0m", draw->bars[4]);
        } else {
            printf("%c", draw_letter(place));
        }
        printf(" %s %s\n", heatmap_name(map, place),
               units_format_size(heatmap_total(map, place), size, sizeof(size)));
    }
    printf("%*s%s untouched %s\n", DRAW_LABEL - 1, "", draw->colors ? " · " : "-",
           units_format_size(heatmap_total(map, HEATMAP_NOWHERE), size, sizeof(size)));
    if (draw->colors) {
        printf("%*s", DRAW_LABEL - 1, "");
        draw_color(HEATMAP_MAIN);
        for (size_t i = 0; i < sizeof(draw_bars) / sizeof(draw_bars[0]); i++) {
            fputs(draw->bars[i], stdout);
        }
        fputs("\033[0m cold to hot\n", stdout);
    } else {
        printf("%*s. to 8: cold to hot\n", DRAW_LABEL - 1, "");
    }
}

void heatmap_draw(const struct heatmap *map)
{
    struct draw draw = {.colors = screen_colors()};
    char size[32];

    /* Where block characters cannot be had, digits stand on the coloured ground. */
    draw.bars = screen_utf8() ? draw_bars : draw_digits;
    draw_fit(&draw, map->n_chunks);
    uint64_t row = draw.step * draw.columns;
    for (uint64_t first = 0; first < map->n_chunks; first += row) {
        draw_label(first * CHUNK_BYTES);
        if (draw.colors) {
            draw_row_colors(&draw, map, first);
        } else {
            draw_row_plain(&draw, map, first, false);
            printf("%*s", DRAW_LABEL - 1, "");
            draw_row_plain(&draw, map, first, true);
        }
    }
    printf("\n%*sa cell is %s\n", DRAW_LABEL - 1, "",
           units_format_size(draw.step * CHUNK_BYTES, size, sizeof(size)));
    draw_legend(&draw, map);
}
