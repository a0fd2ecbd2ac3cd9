// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/options.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum options_global_index {
    GLOBAL_CONNECT,
    GLOBAL_DEBUG,
    GLOBAL_HELP,
    GLOBAL_QUIET,
    GLOBAL_TLS_CERTIFICATES,
    GLOBAL_TLS_PSK,
    GLOBAL_TLS_USERNAME,
    GLOBAL_VERSION,
};

const struct option_def options_global[] = {
    [GLOBAL_CONNECT] = {"connect", 'c', "URI", "the libvirt that has the domain, as virsh's -c"},
    [GLOBAL_DEBUG] = {"debug", 'd', "LEVEL",
                      "write messages up to LEVEL: error, warning, info, debug (or 0 to 3)"},
    [GLOBAL_HELP] = {"help", 'h', NULL, "show this help, or that of the verb"},
    [GLOBAL_QUIET] = {"quiet", 'q', NULL, "leave out headers and chatter, never data"},
    [GLOBAL_TLS_CERTIFICATES] = {"tls-certificates", 0, "DIR",
                                 "certificates and keys for TLS (those of libvirt in /etc/pki)"},
    [GLOBAL_TLS_PSK] = {"tls-psk", 0, "FILE", "keys for TLS, as psktool makes them"},
    [GLOBAL_TLS_USERNAME] = {"tls-username", 0, "NAME",
                             "whose key to use (the first of the file)"},
    [GLOBAL_VERSION] = {"version", 'v', NULL, "show the version"},
    {NULL, 0, NULL, NULL},
};

const struct verb *options_find_verb(const struct verb *verbs, const char *name)
{
    for (; verbs->name; verbs++) {
        if (strcmp(verbs->name, name) == 0) {
            return verbs;
        }
    }
    return NULL;
}

static int options_index(const struct option_def *table, const char *name, size_t length)
{
    for (int i = 0; table[i].name; i++) {
        if (strlen(table[i].name) == length && strncmp(table[i].name, name, length) == 0) {
            return i;
        }
    }
    return -1;
}

const char *options_get(const struct arguments *arguments, const char *name)
{
    int i = options_index(arguments->verb->options, name, strlen(name));

    if (i < 0) {
        abort(); /* a verb asks for what is not in its table */
    }
    return arguments->option[i];
}

/*
 * Take the option at argv[*at], "--name", "--name=value" or "-x", from @table.
 * Return: its index with *value set ("" if it takes none) and *at moved on, or -EINVAL.
 */
static int options_take(const struct option_def *table, int argc, char *const *argv, int *at,
                        const char **value, struct reason *reason)
{
    const char *text = argv[(*at)++];
    const char *equals = NULL;
    int i = -1;

    *value = "";
    if (text[1] == '-') {
        equals = strchr(text, '=');
        i = options_index(table, text + 2, equals ? (size_t)(equals - text - 2) : strlen(text + 2));
    } else {
        for (int k = 0; table[k].name && !text[2]; k++) {
            if (table[k].letter && table[k].letter == text[1]) {
                i = k;
            }
        }
    }
    if (i < 0) {
        return reason_set(reason, -EINVAL, "option '%.64s' is not known", text);
    }
    if (!table[i].value) {
        return equals ? reason_set(reason, -EINVAL, "option '--%s' takes no value", table[i].name)
                      : i;
    }
    if (equals) {
        *value = equals + 1;
    } else if (*at < argc) {
        *value = argv[(*at)++];
    } else {
        return reason_set(reason, -EINVAL, "option '%s' must have a value: %s", text,
                          table[i].value);
    }
    return i;
}

static int options_debug(struct arguments *arguments, const char *value, struct reason *reason)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};

    for (int i = 0; i < 4; i++) {
        if (strcmp(value, names[i]) == 0 || (value[0] == '0' + i && !value[1])) {
            arguments->debug = (enum log_level)i;
            return 0;
        }
    }
    return reason_set(reason, -EINVAL,
                      "debug level '%.32s' must be error, warning, info, debug or 0 to 3", value);
}

static int options_parse_global(struct arguments *arguments, int argc, char *const *argv, int *at,
                                struct reason *reason)
{
    while (*at < argc && argv[*at][0] == '-' && argv[*at][1]) {
        const char *value = "";
        int i = options_take(options_global, argc, argv, at, &value, reason);
        if (i < 0) {
            return i;
        }
        arguments->connect = i == GLOBAL_CONNECT ? value : arguments->connect;
        arguments->help |= i == GLOBAL_HELP;
        const char **tls = i == GLOBAL_TLS_CERTIFICATES ? &arguments->tls.certificates
                           : i == GLOBAL_TLS_PSK        ? &arguments->tls.psk
                           : i == GLOBAL_TLS_USERNAME   ? &arguments->tls.username
                                                        : NULL;
        if (tls) {
            *tls = value;
        }
        arguments->quiet |= i == GLOBAL_QUIET;
        arguments->version |= i == GLOBAL_VERSION;
        int err = i == GLOBAL_DEBUG ? options_debug(arguments, value, reason) : 0;
        if (err) {
            return err;
        }
    }
    return 0;
}

static int options_parse_verb(struct arguments *arguments, int argc, char *const *argv, int at,
                              struct reason *reason)
{
    const struct verb *verb = arguments->verb;
    bool words_only = false;

    while (at < argc) {
        const char *text = argv[at];
        if (!words_only && strcmp(text, "--") == 0) {
            words_only = true;
            at++;
            continue;
        }
        if (!words_only && text[0] == '-' && text[1]) {
            const char *value = "";
            if (strcmp(text, "--help") == 0 || strcmp(text, "-h") == 0) {
                arguments->help = true;
                return 0;
            }
            int i = options_take(verb->options, argc, argv, &at, &value, reason);
            if (i < 0) {
                return i;
            }
            if (arguments->option[i]) {
                return reason_set(reason, -EINVAL, "option '--%s' is given twice",
                                  verb->options[i].name);
            }
            arguments->option[i] = value;
            continue;
        }
        if (arguments->n_words == verb->most) {
            return reason_set(reason, -EINVAL, "'%.64s' is too much: %s takes %s", text, verb->name,
                              verb->words[0] ? verb->words : "no arguments");
        }
        arguments->word[arguments->n_words++] = text;
        at++;
    }
    if (arguments->n_words < verb->least) {
        return reason_set(reason, -EINVAL, "%s must have %s", verb->name, verb->words);
    }
    return 0;
}

int options_parse(struct arguments *arguments, const struct verb *verbs, int argc,
                  char *const *argv, struct reason *reason)
{
    int at = 1;

    memset(arguments, 0, sizeof(*arguments));
    arguments->debug = LOG_LEVEL_WARN;
    int err = options_parse_global(arguments, argc, argv, &at, reason);
    if (err || arguments->version) {
        return err;
    }
    if (at == argc) {
        return arguments->help ? 0 : reason_set(reason, -EINVAL, "no verb is given");
    }
    arguments->verb = options_find_verb(verbs, argv[at]);
    if (!arguments->verb) {
        return reason_set(reason, -EINVAL, "verb '%.64s' is not known", argv[at]);
    }
    return arguments->help ? 0 : options_parse_verb(arguments, argc, argv, at + 1, reason);
}

/* ---- help ---- */

#define OPTIONS_COLUMN 26

static void options_print(FILE *to, const struct option_def *table)
{
    for (; table->name; table++) {
        char left[64];
        char letter[8] = "    ";
        if (table->letter) {
            snprintf(letter, sizeof(letter), "-%c, ", table->letter);
        }
        snprintf(left, sizeof(left), "%s--%s%s%s", letter, table->name, table->value ? " " : "",
                 table->value ? table->value : "");
        fprintf(to, "  %-*s  %s\n", OPTIONS_COLUMN, left, table->help);
    }
}

void options_usage(FILE *to, const struct verb *verbs)
{
    fputs("Usage: split-migrate [OPTION]... VERB [ARG]...\n\nOptions:\n", to);
    options_print(to, options_global);
    fputs("\nVerbs:\n", to);
    for (; verbs->name; verbs++) {
        if (!verbs->hidden) {
            fprintf(to, "  %-*s  %s\n", OPTIONS_COLUMN, verbs->name, verbs->summary);
        }
    }
    fputs("\nHelp on a verb: split-migrate help VERB\n", to);
}

void options_verb_usage(FILE *to, const struct verb *verb)
{
    bool options = verb->options[0].name != NULL;

    fprintf(to, "Usage: split-migrate %s%s%s%s\n\n%c%s.\n", verb->name,
            options ? " [OPTION]..." : "", verb->words[0] ? " " : "", verb->words,
            toupper((unsigned char)verb->summary[0]), verb->summary + 1);
    if (options) {
        fputs("\nOptions:\n", to);
        options_print(to, verb->options);
    }
}

/* ---- self-test ---- */

#define OPTIONS_UPPER "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

static int options_test_table(const char *owner, const struct option_def *table,
                              struct reason *reason)
{
    for (int i = 0; table[i].name; i++) {
        if (i >= OPTIONS_MAX) {
            return reason_set(reason, -EINVAL, "%s: more than %d options", owner, OPTIONS_MAX);
        }
        if (!table[i].name[0] ||
            strspn(table[i].name, "abcdefghijklmnopqrstuvwxyz-") != strlen(table[i].name)) {
            return reason_set(reason, -EINVAL, "%s: option '%s' is not lower case and hyphens",
                              owner, table[i].name);
        }
        if (!table[i].help || !table[i].help[0] ||
            table[i].help[strlen(table[i].help) - 1] == '.') {
            return reason_set(reason, -EINVAL, "%s: the help of --%s is missing or ends in a dot",
                              owner, table[i].name);
        }
        if (table[i].value && (!table[i].value[0] || strspn(table[i].value, OPTIONS_UPPER) !=
                                                         strlen(table[i].value))) {
            return reason_set(reason, -EINVAL, "%s: the value of --%s is not upper case", owner,
                              table[i].name);
        }
        if (table != options_global && strcmp(table[i].name, "help") == 0) {
            return reason_set(reason, -EINVAL, "%s: --help is there for every verb", owner);
        }
        for (int k = 0; k < i; k++) {
            if (strcmp(table[k].name, table[i].name) == 0 ||
                (table[i].letter && table[k].letter == table[i].letter)) {
                return reason_set(reason, -EINVAL, "%s: --%s is there twice", owner, table[i].name);
            }
        }
    }
    return 0;
}

/* "DOMAIN [DESTURI]": how many words there may be is what the row says. */
static bool options_test_words(const struct verb *verb)
{
    const char *text = verb->words;
    unsigned least = 0;
    unsigned most = 0;

    while (*text) {
        bool optional = *text == '[';
        text += optional;
        size_t length = strspn(text, OPTIONS_UPPER);
        if (!length || (optional && text[length] != ']')) {
            return false;
        }
        text += length + optional;
        bool many = strncmp(text, "...", 3) == 0;
        text += many ? 3 : 0;
        if ((*text && *text != ' ') || (!optional && most > least) || (many && *text)) {
            return false;
        }
        text += *text == ' ';
        least += !optional;
        most = many ? OPTIONS_MAX_WORDS : most + 1;
    }
    return verb->least == least && verb->most == most;
}

int options_self_test(const struct verb *verbs, struct reason *reason)
{
    int err = options_test_table("split-migrate", options_global, reason);

    for (const struct verb *verb = verbs; verb->name && !err; verb++) {
        if (options_find_verb(verbs, verb->name) != verb) {
            err = reason_set(reason, -EINVAL, "%s: the verb is there twice", verb->name);
        } else if (!verb->run || !verb->summary || !verb->words || !verb->options ||
                   verb->least > verb->most || verb->most > OPTIONS_MAX_WORDS) {
            err = reason_set(reason, -EINVAL, "%s: the verb's row is not complete", verb->name);
        } else if (!options_test_words(verb)) {
            err = reason_set(reason, -EINVAL, "%s: '%s' is not from %u to %u words", verb->name,
                             verb->words, verb->least, verb->most);
        } else {
            err = options_test_table(verb->name, verb->options, reason);
        }
    }
    return err;
}
