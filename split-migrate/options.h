/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * options.h - verbs and their options as data; parsing and help read the same tables
 *
 * split-migrate [OPTION]... VERB [ARG]...   Options of the program stand before the verb and may
 * have letters; options of a verb are long, and stand anywhere after it.
 */
#ifndef SPLIT_MIGRATE_OPTIONS_H
#define SPLIT_MIGRATE_OPTIONS_H

#include <stdbool.h>
#include <stdio.h>

#include "common/log.h"
#include "common/tls.h"

/* Exit statuses, as split-migrate(1) lists them. */
enum {
    EXIT_OK = 0,
    EXIT_UNCHANGED = 1, /* failed; the guest runs on at the source, or nothing happened */
    EXIT_USAGE = 2,
    EXIT_ATTENTION = 3, /* failed, and the guest needs somebody to look at it */
};

#define OPTIONS_MAX 40
#define OPTIONS_MAX_WORDS 64

struct option_def {
    const char *name;  /* NULL ends a table */
    char letter;       /* 0: none */
    const char *value; /* what stands for the value in the help; NULL: the option takes none */
    const char *help;
};

struct arguments;

struct verb {
    const char *name;     /* NULL ends the table */
    const char *words;    /* e.g. "DOMAIN [DESTURI]" */
    unsigned least, most; /* of words */
    const char *summary;
    const struct option_def *options;
    bool hidden;
    int (*run)(const struct arguments *arguments);
};

/* The result of parsing; strings are argv's. */
struct arguments {
    const struct verb *verb;
    bool quiet;
    bool help;
    bool version;
    struct tls_config tls;
    const char *connect; /* libvirt's URI; NULL: not given */
    enum log_level debug;
    const char *option[OPTIONS_MAX]; /* by the verb's table; "" for an option without value */
    const char *word[OPTIONS_MAX_WORDS];
    unsigned n_words;
};

/* Rows that several verbs have. */
#define OPTION_JSON(what) {"json", 0, NULL, what}
#define OPTION_PAGER {"pager", 0, "ADDR", "the control address of the host's pager"}
#define OPTIONS_END {NULL, 0, NULL, NULL}

extern const struct option_def options_global[];

/**
 * options_parse() - parse a command line
 * Return: 0, or -EINVAL with a sentence in @reason.
 */
int options_parse(struct arguments *arguments, const struct verb *verbs, int argc,
                  char *const *argv, struct reason *reason);

/** options_get() - the value of option @name of the verb, NULL if it was not given */
const char *options_get(const struct arguments *arguments, const char *name);

/** options_find_verb() - NULL if there is none of this name */
const struct verb *options_find_verb(const struct verb *verbs, const char *name);

/** options_usage()/options_verb_usage() - print the help of the program or of one verb */
void options_usage(FILE *to, const struct verb *verbs);
void options_verb_usage(FILE *to, const struct verb *verb);

/** options_self_test() - check the tables. Return: 0, or -EINVAL with what is wrong in @reason. */
int options_self_test(const struct verb *verbs, struct reason *reason);

#endif
