// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/bounce.h"

#include <sys/mman.h>

#include "common/units.h"

void bounce_free(struct bounce *bounce)
{
    if (bounce->memory) {
        munmap(bounce->memory, bounce->size);
    }
    *bounce = (struct bounce){0};
}

void *bounce_get(struct bounce *bounce, size_t length)
{
    if (bounce->size >= length) {
        return bounce->memory;
    }
    bounce_free(bounce);
    size_t size = (length + CHUNK_BYTES - 1) & ~(size_t)(CHUNK_BYTES - 1);
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return NULL;
    }
    madvise(memory, size, MADV_DONTDUMP);
    *bounce = (struct bounce){.memory = memory, .size = size};
    return memory;
}

void bounce_trim(struct bounce *bounce, size_t most)
{
    if (bounce->size > most) {
        bounce_free(bounce);
    }
}
