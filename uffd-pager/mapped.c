// SPDX-License-Identifier: GPL-2.0-or-later
#include "uffd-pager/mapped.h"

#include <errno.h>
#include <unistd.h>

#include "common/units.h"

#define MAPPED_PRESENT 63 /* of an entry's bits */

int mapped_window(int pagemap, uint64_t hva, unsigned n, uint64_t *bits)
{
    uint64_t entry[MAPPED_WINDOW];
    ssize_t size = (ssize_t)(n * sizeof(entry[0]));
    ssize_t got = pread(pagemap, entry, (size_t)size, (off_t)(hva / PAGE_BYTES * sizeof(entry[0])));

    *bits = 0;
    if (got != size) {
        return got < 0 ? -errno : -ESRCH;
    }
    for (unsigned i = 0; i < n; i++) {
        *bits |= (entry[i] >> MAPPED_PRESENT) << i;
    }
    return 0;
}
