/* SPDX-License-Identifier: GPL-2.0-or-later */
/* output.h - what goes to stdout and stderr: tables, name-value lines, JSON, errors */
#ifndef SPLIT_MIGRATE_OUTPUT_H
#define SPLIT_MIGRATE_OUTPUT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define OUTPUT_MAX_COLUMNS 12
#define OUTPUT_CELL_LEN 160

struct output_table {
    unsigned n_columns;
    unsigned n_rows;
    char (*cells)[OUTPUT_MAX_COLUMNS][OUTPUT_CELL_LEN]; /* row 0 is the header */
};

/** output_table_begin() - @titles: one per column, then NULL */
void output_table_begin(struct output_table *table, const char *const *titles);
/** output_table_row() - a new row, its cells empty; Return: its number, for output_cell() */
unsigned output_table_row(struct output_table *table);
/** output_cell() - set a cell; control characters become \xNN */
void output_cell(struct output_table *table, unsigned row, unsigned column, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
void output_cell_size(struct output_table *table, unsigned row, unsigned column, uint64_t bytes);
/** output_table_end() - print as virsh does, without header if @quiet, and free */
void output_table_end(struct output_table *table, bool quiet);

/** output_table_write() - the same to @to */
void output_table_write(struct output_table *table, bool quiet, FILE *to);

/** output_table_free() - without printing */
void output_table_free(struct output_table *table);

/** output_line()/output_size() - "Name:   value" */
void output_line(const char *name, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void output_size(const char *name, uint64_t bytes);

/** output_json() - print and free */
void output_json(json_t *object);

/** output_error() - "error: sentence" on stderr */
void output_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
