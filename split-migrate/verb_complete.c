// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * verb_complete.c - what a command line may go on with, for the shell
 *
 * The words are those of the line up to the cursor, without the program's name; the last one is
 * begun, and may be empty.  Candidates are printed a line each; "@files" says: names of files.
 */
#include <stdio.h>
#include <string.h>

#include "split-migrate/names.h"
#include "split-migrate/verbs.h"

#define COMPLETE_FILES "@files"

/* What the words before the last one say. */
struct complete {
    const struct verb *verb;
    const struct option_def *open; /* the last word is its value */
    unsigned n_words;              /* of the verb */
    bool astray;                   /* there is no such verb */
    const char *connect;
    const char *pager;
};

static void complete_offer(const char *begun, const char *candidate)
{
    if (strncmp(candidate, begun, strlen(begun)) == 0) {
        puts(candidate);
    }
}

static const struct option_def *complete_option(const struct option_def *table, const char *word)
{
    for (; table->name; table++) {
        bool is_long = word[0] == '-' && word[1] == '-' && strcmp(word + 2, table->name) == 0;
        bool is_short = table->letter && word[0] == '-' && word[1] == table->letter && !word[2];
        if (is_long || is_short) {
            return table;
        }
    }
    return NULL;
}

static void complete_take(struct complete *line, const char *word)
{
    if (line->open) {
        if (strcmp(line->open->name, "connect") == 0) {
            line->connect = word;
        } else if (strcmp(line->open->name, "pager") == 0) {
            line->pager = word;
        }
        line->open = NULL;
    } else if (word[0] == '-') {
        const struct option_def *option =
            complete_option(line->verb ? line->verb->options : options_global, word);
        line->open = option && option->value ? option : NULL;
    } else if (!line->verb) {
        line->verb = options_find_verb(verbs_table, word);
        line->astray |= !line->verb;
    } else {
        line->n_words++;
    }
}

static void complete_options(const struct option_def *table, const char *begun)
{
    char text[64];

    for (; table->name; table++) {
        snprintf(text, sizeof(text), "--%s", table->name);
        complete_offer(begun, text);
    }
}

static void complete_verbs(const char *begun)
{
    for (const struct verb *verb = verbs_table; verb->name; verb++) {
        if (!verb->hidden) {
            complete_offer(begun, verb->name);
        }
    }
}

/* Names of libvirt, and UUIDs of what the pager has that libvirt does not. */
static void complete_domains(const struct complete *line, const char *begun)
{
    const struct option_def options[] = {OPTION_PAGER, OPTIONS_END};
    const struct verb verb = {.name = "complete", .options = options};
    struct arguments arguments = {
        .verb = &verb, .connect = line->connect, .option = {line->pager}};
    json_t *names = names_load(verbs_uri(&arguments));
    json_t *guests = NULL;
    struct pager pager;
    const char *uuid;
    json_t *name;
    size_t i;
    json_t *guest;

    json_object_foreach(names, uuid, name) {
        complete_offer(begun, json_string_value(name));
    }
    if (verbs_pager(&pager, &arguments) == EXIT_OK) {
        pager_call(&pager, "query-guests", NULL, &guests, HOSTS_CALL_MS, NULL);
        json_array_foreach(guests, i, guest) {
            uuid = hosts_text(guest, "uuid");
            if (!json_object_get(names, uuid)) {
                complete_offer(begun, uuid);
            }
        }
    }
    json_decref(guests);
    json_decref(names);
    pager_close(&pager);
}

static void complete_value(const struct option_def *option, const char *begun)
{
    static const char *const levels[] = {"error", "warning", "info", "debug"};

    if (strcmp(option->value, "FILE") == 0 || strcmp(option->value, "PATH") == 0) {
        puts(COMPLETE_FILES);
    } else if (strcmp(option->value, "LEVEL") == 0) {
        for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++) {
            complete_offer(begun, levels[i]);
        }
    } else if (strcmp(option->value, "ADDR") == 0) {
        complete_offer(begun, "unix:");
        complete_offer(begun, "tcp:");
    }
}

static void complete_word(const struct complete *line, const char *begun)
{
    /* The verb's words as its usage has them: "DOMAIN [DESTURI]". */
    const char *word = line->verb->words;

    for (unsigned i = 0; i < line->n_words && *word; i++) {
        word += strcspn(word, " ");
        word += *word == ' ';
    }
    word += *word == '[';
    if (strncmp(word, "DOMAIN", 6) == 0) {
        complete_domains(line, begun);
    } else if (strncmp(word, "DESTURI", 7) == 0) {
        complete_offer(begun, "qemu+ssh://");
        complete_offer(begun, "qemu+tls://");
    } else if (strncmp(word, "URI", 3) == 0) {
        complete_offer(begun, "subhost://");
    } else if (strncmp(word, "VERB", 4) == 0) {
        complete_verbs(begun);
    }
}

int verb_complete(const struct arguments *arguments)
{
    struct complete line = {.verb = NULL};
    const char *begun = arguments->n_words ? arguments->word[arguments->n_words - 1] : "";

    for (unsigned i = 0; i + 1 < arguments->n_words; i++) {
        complete_take(&line, arguments->word[i]);
    }
    if (line.open) {
        complete_value(line.open, begun);
    } else if (begun[0] == '-') {
        complete_options(line.verb ? line.verb->options : options_global, begun);
    } else if (line.verb) {
        complete_word(&line, begun);
    } else if (!line.astray) {
        complete_verbs(begun);
    }
    return EXIT_OK;
}
