/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A debugger's stops, of which the guest sees nothing: no byte of its memory and no register of its changes. */
#ifndef VEIL_DEBUG_H
#define VEIL_DEBUG_H

#include "core.h"

/* Flags for the TLB's entry of a page: accesses that must be looked at. */
struct veil_watched {
    target_ulong read, write;
};

struct veil_watched veil_watched_page(const struct veil_engine *e, uint64_t vaddr);

#endif
