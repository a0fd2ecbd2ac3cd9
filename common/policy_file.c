// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * policy_file.c - read a policy file
 *
 * libinih splits lines into keys and values.  It gives no line numbers, stays
 * silent about sections without keys, folds indented lines and cuts long ones,
 * so the reader we hand to it looks at each line first: what it passes on is
 * one whole line without indentation, and errors come in the file's order.
 */
#include <ctype.h>
#include <errno.h>
#include <ini.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/policy_internal.h"

/* What the reader and the handler share while one file is read. */
struct policy_parser {
    struct policy *policy;
    struct reason *reason;
    FILE *file;
    unsigned line;
    char section[POLICY_NAME_LEN]; /* "" before the first header */
    struct policy_subhost *subhost;
    bool failed;
};

/* Put "FILE:LINE: " before the sentence; the first error of a file is the one that counts. */
static int policy_fail(struct policy_parser *parser, const struct reason *why)
{
    if (!parser->failed) {
        parser->failed = true;
        reason_set(parser->reason, -EINVAL, "%.80s:%u: %s", parser->policy->file, parser->line,
                   why->text);
    }
    return -EINVAL;
}

#define policy_refuse(parser, ...)                                                                 \
    do {                                                                                           \
        struct reason why_;                                                                        \
        reason_set(&why_, -EINVAL, __VA_ARGS__);                                                   \
        policy_fail(parser, &why_);                                                                \
    } while (0)

static void policy_section_names(char *text, size_t size)
{
    const char *last = "";

    text[0] = '\0';
    for (size_t i = 0; i < policy_n_keys; i++) {
        if (strcmp(policy_keys[i].section, last) != 0) {
            size_t used = strlen(text);
            last = policy_keys[i].section;
            snprintf(text + used, size - used, "%s[%s%s]", used ? ", " : "", last,
                     strcmp(last, POLICY_SUBHOST) == 0 ? " NAME" : "");
        }
    }
}

static void policy_key_names(const char *section, char *text, size_t size)
{
    text[0] = '\0';
    for (size_t i = 0; i < policy_n_keys; i++) {
        if (strcmp(policy_keys[i].section, section) == 0) {
            size_t used = strlen(text);
            snprintf(text + used, size - used, "%s%s", used ? ", " : "", policy_keys[i].name);
        }
    }
}

static bool policy_name_good(const char *name)
{
    size_t length = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                 "0123456789._-");

    return length > 0 && !name[length] && length < POLICY_NAME_LEN;
}

static void policy_new_subhost(struct policy_parser *parser, const char *name)
{
    struct policy *policy = parser->policy;

    if (!policy_name_good(name)) {
        policy_refuse(parser,
                      "section [subhost %.64s] must have a name of letters, digits, '.', '_' and "
                      "'-', at most %d of them",
                      name, POLICY_NAME_LEN - 1);
        return;
    }
    for (unsigned i = 0; i < policy->n_subhosts; i++) {
        if (strcmp(policy->subhost[i].name, name) == 0) {
            policy_refuse(parser,
                          "section [subhost %s] is there twice, first in line %u: names must "
                          "differ",
                          name, policy->subhost[i].line);
            return;
        }
    }
    if (policy->n_subhosts == PAGEMAP_MAX_SUBHOSTS) {
        policy_refuse(parser, "there are too many sub-hosts: at most %u are possible",
                      PAGEMAP_MAX_SUBHOSTS);
        return;
    }
    parser->subhost = &policy->subhost[policy->n_subhosts++];
    memset(parser->subhost, 0, sizeof(*parser->subhost));
    snprintf(parser->subhost->name, sizeof(parser->subhost->name), "%s", name);
    parser->subhost->line = parser->line;
    parser->subhost->weight = 1;
}

/* @text: what stands between the brackets, without blanks at its ends */
static void policy_section(struct policy_parser *parser, char *text)
{
    size_t length = strcspn(text, " \t");
    char *name = text + length + strspn(text + length, " \t");
    bool is_subhost =
        length == strlen(POLICY_SUBHOST) && strncmp(text, POLICY_SUBHOST, length) == 0;

    parser->subhost = NULL;
    if (is_subhost) {
        snprintf(parser->section, sizeof(parser->section), "%s", POLICY_SUBHOST);
        policy_new_subhost(parser, name);
        return;
    }
    for (size_t i = 0; i < policy_n_keys; i++) {
        if (strcmp(policy_keys[i].section, text) == 0) {
            snprintf(parser->section, sizeof(parser->section), "%s", text);
            return;
        }
    }
    char known[128];
    policy_section_names(known, sizeof(known));
    policy_refuse(parser, "section [%.64s] is not known: there are %s", text, known);
}

/* Look at one line. false: do not go on. */
static bool policy_line(struct policy_parser *parser, char *line)
{
    char *comment = strstr(line, " ;");

    if (!*line || *line == ';' || *line == '#') {
        return true;
    }
    if (*line != '[') {
        if (!strchr(line, '=')) {
            policy_refuse(parser,
                          "'%.64s' is no setting: a line must be 'key = value', [section] "
                          "or a comment after '#'",
                          line);
        }
        return !parser->failed;
    }
    char text[256];
    snprintf(text, sizeof(text), "%.*s", comment ? (int)(comment - line) : 255, line);
    size_t length = strlen(text);
    while (length && isspace((unsigned char)text[length - 1])) {
        text[--length] = '\0';
    }
    if (length < 2 || text[length - 1] != ']') {
        policy_refuse(parser, "'%.64s' is no section: ']' must end it", line);
        return false;
    }
    do {
        text[--length] = '\0';
    } while (length > 1 && isspace((unsigned char)text[length - 1]));
    policy_section(parser, text + 1 + strspn(text + 1, " \t"));
    return !parser->failed;
}

static char *policy_read(char *buffer, int size, void *opaque)
{
    struct policy_parser *parser = opaque;
    char *text = NULL;
    size_t room = 0;

    ssize_t length = parser->failed ? -1 : getline(&text, &room, parser->file);
    if (length < 0) {
        free(text);
        return NULL;
    }
    parser->line++;
    char *start = text;
    if (parser->line == 1 && strncmp(start, "\xef\xbb\xbf", 3) == 0) {
        start += 3;
    }
    start += strspn(start, " \t");
    start[strcspn(start, "\r\n")] = '\0';
    bool good = false;
    if (strlen(text) + 2 < (size_t)length) {
        policy_refuse(parser, "the line holds a NUL byte: a policy is a text file");
    } else if (strlen(start) + 3 > (size_t)size) {
        policy_refuse(parser, "the line is too long: it must have at most %d characters", size - 3);
    } else {
        good = policy_line(parser, start);
    }
    if (good) {
        snprintf(buffer, (size_t)size, "%s\n", start);
    }
    free(text);
    return good ? buffer : NULL;
}

static int policy_handle(void *opaque, const char *section, const char *name, const char *value)
{
    struct policy_parser *parser = opaque;
    struct reason why;
    char known[256];

    (void)section; /* cut at 50 characters there */
    if (!parser->section[0]) {
        policy_refuse(parser, "key '%.64s' stands before the first [section]", name);
        return 0;
    }
    for (size_t i = 0; i < policy_n_keys; i++) {
        const struct policy_key *key = &policy_keys[i];
        if (strcmp(key->section, parser->section) != 0 || strcmp(key->name, name) != 0) {
            continue;
        }
        unsigned *line =
            parser->subhost ? &parser->subhost->key_line[i] : &parser->policy->key_line[i];
        if (*line) {
            policy_refuse(parser, "%s is set twice, first in line %u", name, *line);
            return 0;
        }
        *line = parser->line;
        if (policy_set(parser->policy, parser->subhost, key, value, &why) < 0) {
            policy_fail(parser, &why);
            return 0;
        }
        return 1;
    }
    policy_key_names(parser->section, known, sizeof(known));
    policy_refuse(parser, "key '%.40s' is not known in [%s]: there are %s", name, parser->section,
                  known);
    return 0;
}

int policy_load(struct policy *policy, const char *file, struct reason *reason)
{
    struct policy_parser parser = {.policy = policy, .reason = reason};

    snprintf(policy->file, sizeof(policy->file), "%s", file);
    parser.file = fopen(file, "re");
    if (!parser.file) {
        return reason_set(reason, -errno, "policy file '%.150s' cannot be read: %s", file,
                          strerror(errno));
    }
    int err = ini_parse_stream(policy_read, &parser, policy_handle, &parser);
    bool broken = ferror(parser.file);
    fclose(parser.file);
    if (parser.failed) {
        return -EINVAL;
    }
    if (broken || err) {
        return reason_set(reason, -EIO, "policy file '%.150s' cannot be read to its end", file);
    }
    return 0;
}
