// SPDX-License-Identifier: GPL-2.0-or-later
/* verb_self_test.c - the tables of verbs, options and policy keys: checked, or for other programs */
#include "common/policy.h"
#include "split-migrate/output.h"
#include "split-migrate/verbs.h"

const struct option_def verb_self_test_options[] = {
    OPTION_JSON("print the tables"),
    OPTIONS_END,
};

static json_t *self_test_options(const struct option_def *table)
{
    json_t *array = json_array();

    for (; table->name; table++) {
        const char letter[2] = {table->letter, '\0'};
        json_array_append_new(array, json_pack("{s:s, s:s, s:s?, s:s}", "name", table->name,
                                               "letter", letter, "value", table->value, "help",
                                               table->help));
    }
    return array;
}

static json_t *self_test_tables(void)
{
    json_t *verbs = json_array();
    json_t *keys = json_array();
    const char *section, *name;

    for (const struct verb *verb = verbs_table; verb->name; verb++) {
        json_array_append_new(verbs, json_pack("{s:s, s:s, s:s, s:b, s:o}", "name", verb->name,
                                               "words", verb->words, "summary", verb->summary,
                                               "hidden", verb->hidden, "options",
                                               self_test_options(verb->options)));
    }
    for (size_t i = 0; policy_key(i, &section, &name); i++) {
        json_array_append_new(keys, json_pack("{s:s, s:s}", "section", section, "name", name));
    }
    return json_pack("{s:o, s:o, s:o}", "options", self_test_options(options_global), "verbs",
                     verbs, "policy", keys);
}

int verb_self_test(const struct arguments *arguments)
{
    struct reason reason = {""};

    if (options_self_test(verbs_table, &reason) < 0) {
        output_error("%s", reason.text);
        return EXIT_UNCHANGED;
    }
    if (options_get(arguments, "json")) {
        output_json(self_test_tables());
    }
    return EXIT_OK;
}
