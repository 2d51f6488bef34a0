/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The soft TLB and the jump cache. */
#ifndef VEIL_TLB_H
#define VEIL_TLB_H

#include "core.h"

struct veil_translation {
    uint64_t vaddr, gpa, page_size;
    int prot;
    bool global;
};
void veil_jump_cached(struct veil_engine *e, uint64_t pc);
void veil_tlb_relieve(struct veil_engine *e);
/* The entries of a page get their marks again, after a change of what is watched there. */
void veil_tlb_watch_anew(struct veil_engine *e, uint64_t vaddr);
void veil_tlb_add(struct veil_engine *e, int mmu_idx, const struct veil_translation *t);

#endif
