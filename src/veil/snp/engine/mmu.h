/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Translation of guest-virtual addresses. */
#ifndef VEIL_MMU_H
#define VEIL_MMU_H

#include "core.h"

bool veil_tlb_fill(CPUState *cs, vaddr addr, int size, MMUAccessType access, int mmu_idx, bool probe,
                   uintptr_t retaddr);
bool veil_read_virtual(struct veil_engine *e, uint64_t addr, void *to, unsigned length);
/* The walk alone, for instructions that name a page by its address; the page itself is theirs to check. May not return.
 */
uint64_t veil_translate_operand(struct veil_engine *e, uint64_t addr, bool *private_page);

#endif
