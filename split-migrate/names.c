// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/names.h"

const char *names_find(const json_t *names, const char *uuid)
{
    const char *name = json_string_value(json_object_get(names, uuid));

    return name ? name : uuid;
}
