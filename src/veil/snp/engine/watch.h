/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Accesses to memory that somebody watches: a debugger (debug.c), or the guest by its debug registers. */
#ifndef VEIL_WATCH_H
#define VEIL_WATCH_H

#include "core.h"

/* Flags for the TLB's entry of a page: accesses that must be looked at. */
struct veil_watched {
    target_ulong read, write;
};

/* After a change of either. */
void veil_watch_changed(struct veil_engine *e);
struct veil_watched veil_watched_page(const struct veil_engine *e, uint64_t vaddr);

#endif
