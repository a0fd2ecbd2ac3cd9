// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/output.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/units.h"

#define OUTPUT_NAME_WIDTH 20

void output_table_begin(struct output_table *table, const char *const *titles)
{
    memset(table, 0, sizeof(*table));
    while (titles[table->n_columns]) {
        table->n_columns++;
    }
    unsigned row = output_table_row(table);
    for (unsigned i = 0; i < table->n_columns; i++) {
        output_cell(table, row, i, "%s", titles[i]);
    }
}

unsigned output_table_row(struct output_table *table)
{
    table->cells = realloc(table->cells, (table->n_rows + 1) * sizeof(*table->cells));
    if (!table->cells) {
        abort();
    }
    memset(table->cells[table->n_rows], 0, sizeof(*table->cells));
    return table->n_rows++;
}

void output_cell(struct output_table *table, unsigned row, unsigned column, const char *fmt, ...)
{
    char text[OUTPUT_CELL_LEN];
    char *to = table->cells[row][column];
    size_t used = 0;
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    for (const char *p = text; *p && used < OUTPUT_CELL_LEN - 5; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7f) {
            used += (size_t)snprintf(to + used, 5, "\\x%02x", (unsigned char)*p);
        } else {
            to[used++] = *p;
        }
    }
    to[used] = '\0';
}

void output_cell_size(struct output_table *table, unsigned row, unsigned column, uint64_t bytes)
{
    char text[32];

    output_cell(table, row, column, "%s", units_format_size(bytes, text, sizeof(text)));
}

void output_table_free(struct output_table *table)
{
    free(table->cells);
    table->cells = NULL;
}

void output_table_write(struct output_table *table, bool quiet, FILE *to)
{
    size_t width[OUTPUT_MAX_COLUMNS] = {0};
    size_t total = 1;

    for (unsigned i = 0; i < table->n_columns; i++) {
        for (unsigned row = quiet ? 1 : 0; row < table->n_rows; row++) {
            size_t length = strlen(table->cells[row][i]);
            width[i] = length > width[i] ? length : width[i];
        }
        total += width[i] + (i + 1 < table->n_columns ? 3 : 0);
    }
    for (unsigned row = quiet ? 1 : 0; row < table->n_rows; row++) {
        for (unsigned i = 0; i < table->n_columns; i++) {
            bool last = i + 1 == table->n_columns;
            fprintf(to, "%s%-*s", i ? "   " : " ", last ? 0 : (int)width[i], table->cells[row][i]);
        }
        putc('\n', to);
        for (size_t k = 0; row == 0 && k < total + 1; k++) {
            putc('-', to);
        }
        if (row == 0) {
            putc('\n', to);
        }
    }
    output_table_free(table);
}

void output_table_end(struct output_table *table, bool quiet)
{
    output_table_write(table, quiet, stdout);
}

void output_line(const char *name, const char *fmt, ...)
{
    char head[64];
    va_list args;

    snprintf(head, sizeof(head), "%s:", name);
    printf("%-*s ", OUTPUT_NAME_WIDTH, head);
    va_start(args, fmt);
    vprintf(fmt, args);
    va_end(args);
    putchar('\n');
}

void output_size(const char *name, uint64_t bytes)
{
    char text[32];

    output_line(name, "%s", units_format_size(bytes, text, sizeof(text)));
}

void output_json(json_t *object)
{
    json_dumpf(object, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(object);
}

void output_error(const char *fmt, ...)
{
    va_list args;

    fputs("error: ", stderr);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputc('\n', stderr);
}
