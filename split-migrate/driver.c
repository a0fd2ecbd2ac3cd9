// SPDX-License-Identifier: GPL-2.0-or-later
#include "split-migrate/driver.h"

#include <stddef.h>
#include <string.h>

static const struct driver_ops *const driver_table[] = {
    &driver_qmp,
#ifdef HAVE_LIBVIRT
    &driver_libvirt,
#endif
};

const struct driver_ops *driver_find(const struct target *target)
{
    for (size_t i = 0; i < sizeof(driver_table) / sizeof(driver_table[0]); i++) {
        if (strcmp(driver_table[i]->scheme, target->scheme) == 0) {
            return driver_table[i];
        }
    }
    return NULL;
}
