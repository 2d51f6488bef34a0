/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * REP MOVS, a page at a time: QEMU's core goes back to the start of the instruction for each element. An element that
 * reaches into the next page, an access that the TLB does not have, that a watchpoint marks or that writes to code is
 * left to the core, which does one and begins again.
 */
#include "core.h"

#include "exec/cpu_ldst.h"
#include "exec/helper-proto.h"

static target_ulong rest_of_page(target_ulong address)
{
    return TARGET_PAGE_SIZE - (address & ~TARGET_PAGE_MASK);
}

/* 64-bit addresses without a segment; `size`: of an element, as MemOp. */
void helper_veil_rep_movs(CPUX86State *env, uint32_t size)
{
    const unsigned shift = size & MO_SIZE;
    const target_ulong from = env->regs[R_ESI], to = env->regs[R_EDI];
    const target_ulong room = MIN(rest_of_page(from), rest_of_page(to)) >> shift;
    const target_ulong count = MIN(env->regs[R_ECX], room), bytes = count << shift;
    const int mmu_idx = cpu_mmu_index(env, false);
    const CPUTLBEntry *source = tlb_entry(env, mmu_idx, from), *target = tlb_entry(env, mmu_idx, to);
    uintptr_t source_at, target_at;

    if (env->df != 1 || !count) {
        return;
    }
    /* Any mark in an entry makes it another address. */
    if (source->addr_read != (from & TARGET_PAGE_MASK) || target->addr_write != (to & TARGET_PAGE_MASK)) {
        return;
    }
    source_at = source->addend + (uintptr_t)from;
    target_at = target->addend + (uintptr_t)to;
    /* What is read was written by the same instruction; a page may have two addresses. */
    if (target_at - source_at < bytes) {
        return;
    }
    memmove((void *)target_at, (const void *)source_at, bytes);
    env->regs[R_ESI] = from + bytes;
    env->regs[R_EDI] = to + bytes;
    env->regs[R_ECX] -= count;
}
