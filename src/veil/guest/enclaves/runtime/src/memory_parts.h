/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What memory.c and moving.c share: the map's lock, its areas' pages, and where areas may be. */
#ifndef RUNTIME_MEMORY_PARTS_H
#define RUNTIME_MEMORY_PARTS_H

#include "runtime.h"

extern struct lock memory_lock;

/* Of the service. The lock is held. False: it has no pages for all of them, and there are none then. */
bool memory_ask_map(struct thread *, u64 start, u64 end, u32 prot);
void memory_ask_unmap(struct thread *, u64 start, u64 end);
void memory_ask_protect(struct thread *, u64 start, u64 end, u32 prot);

/* Take away what is in a range, pages too. The lock is held. */
bool memory_clear(struct thread *, u64 start, u64 end);
/* What there is may be done with from here on. The lock is held. */
s64 memory_protect_parts(struct thread *, u64 start, u64 end, u32 prot);
/* The service has mapped these pages of an area. The lock is held. */
void memory_note_pages(struct thread *, u64 start, u64 end);
/* What the processor's tables know of it: a page that can be written or executed can be read. */
u32 memory_real_prot(u32 prot);

/* Where the service maps pages: below the arena, and in it. */
bool memory_may_be(u64 start, u64 bytes);
/* Where to put a new area; a negative error. */
s64 memory_choose(struct thread *, u64 wanted, u64 bytes, u32 flags);
_Noreturn void memory_is_out(struct thread *);

/* trusted_maps.c: 0 or -EIO */
struct area;
s64 memory_bring_trusted(struct thread *, struct area, u64 address);

#endif
