// SPDX-License-Identifier: GPL-2.0-or-later
/* virt_none.c - the verbs that need libvirt, in a program that was built without it */
#include "split-migrate/names.h"
#include "split-migrate/output.h"
#include "split-migrate/verbs.h"

const struct option_def verb_enable_options[] = {{NULL, 0, NULL, NULL}};
const struct option_def verb_check_options[] = {{NULL, 0, NULL, NULL}};

static int virt_none(const struct arguments *arguments)
{
    output_error("%s needs libvirt, and this split-migrate was built without it",
                 arguments->verb->name);
    return EXIT_UNCHANGED;
}

int verb_enable(const struct arguments *arguments)
{
    return virt_none(arguments);
}

int verb_disable(const struct arguments *arguments)
{
    return virt_none(arguments);
}

int verb_check(const struct arguments *arguments)
{
    return virt_none(arguments);
}

json_t *names_load(const char *uri)
{
    (void)uri;
    return json_object();
}
