/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mapped.h - which pages a guest's process has in its page tables
 *
 * To see whether pages are in use their mapping is taken away (QEMU zaps them; they stay in the
 * memfd).  The next access brings a page's mapping back, inside the kernel and in a microsecond or
 * two, if nobody has registered the memory for MINOR faults.  So a look at the page tables later on
 * tells which pages were accessed meanwhile.  /proc/PID/pagemap is such a look; only QEMU itself
 * may open its own without privileges, so it hands it over (common/handoff.h, LAYOUT_END).
 *
 * A fault on a file's page maps up to 15 of its neighbours too, but not where the memory is registered
 * for write-protect faults (mm/memory.c, should_fault_around()): register before looking.
 *
 * Source: Documentation/admin-guide/mm/pagemap.rst.
 */
#ifndef UFFD_PAGER_MAPPED_H
#define UFFD_PAGER_MAPPED_H

#include <stdint.h>

#define MAPPED_WINDOW 64u /* pages looked at together */

/**
 * mapped_window() - which of the @n pages from address @hva on are mapped; any thread
 * @pagemap: /proc/PID/pagemap of the process, open for reading
 * @hva: of its address space, page-aligned
 * @n: 1 to MAPPED_WINDOW
 * @bits: result; bit i is page i
 * Return: 0 or -errno; -ESRCH: the process has ended.
 */
int mapped_window(int pagemap, uint64_t hva, unsigned n, uint64_t *bits);

#endif
