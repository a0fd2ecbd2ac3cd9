/* SPDX-License-Identifier: GPL-2.0-or-later */
/* slab_return.h - give slabs back whose pages are all on this host again */
#ifndef UFFD_PAGER_SLAB_RETURN_H
#define UFFD_PAGER_SLAB_RETURN_H

#include "uffd-pager/chunk_move.h"
#include "uffd-pager/engine_impl.h"

/**
 * slab_return() - look at some slabs, and give back those that hold nothing that counts
 * @cursor: the slab to go on with; 0 at first
 *
 * What was fetched and then written leaves an old copy behind, which the next page-out replaces.  If
 * no page of a slab leaves any more, these copies are memory that is lent for nothing.  A slab that
 * has a CLEAN page is kept, as that page can leave unsent.
 */
void slab_return(struct engine *engine, struct chunk_mover *mover, uint64_t *cursor);

#endif
