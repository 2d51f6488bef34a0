/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Stands in for QEMU's header of this name: where in the jump cache (the
 * translated blocks jumped to last, by virtual address) a block's place is. QEMU's
 * has 4096 places and 64 for each page. A kernel's code alone needs more, and a
 * change of the address space then made it look up its own blocks again, so code
 * in the upper half of the address space has a part of its own here, which
 * outlives that change. Sizes are in the edit of hw/core/cpu.h.
 *
 * A place depends on the address space, too (tb_jmp_low and tb_jmp_high, multiples of TB_JMP_PAGE_SIZE): the block of
 * an address in one is never at its place in another, so several can be in the cache at once (engine/spaces.c).
 */
#ifndef EXEC_TB_HASH_H
#define EXEC_TB_HASH_H

#include "exec/cpu-defs.h"
#include "exec/exec-all.h"
#include "qemu/xxhash.h"

/* A page's blocks have these many places in a row, so that those of one page can be cleared. */
#define TB_JMP_PAGE_BITS 7
#define TB_JMP_PAGE_SIZE (1 << TB_JMP_PAGE_BITS)

static inline unsigned int tb_jmp_cache_hash_page(struct uc_struct *uc, target_ulong pc)
{
    target_ulong mixed = (pc ^ pc >> (TARGET_PAGE_BITS - TB_JMP_PAGE_BITS)) >> (TARGET_PAGE_BITS - TB_JMP_PAGE_BITS);

    if (pc >> (TARGET_LONG_BITS - 1)) {
        return TB_JMP_LOW_SIZE + ((mixed ^ uc->cpu->tb_jmp_high) & (TB_JMP_HIGH_SIZE - TB_JMP_PAGE_SIZE));
    }
    return (mixed ^ uc->cpu->tb_jmp_low) & (TB_JMP_LOW_SIZE - TB_JMP_PAGE_SIZE);
}

static inline unsigned int tb_jmp_cache_hash_func(struct uc_struct *uc, target_ulong pc)
{
    return tb_jmp_cache_hash_page(uc, pc) |
           ((pc ^ pc >> (TARGET_PAGE_BITS - TB_JMP_PAGE_BITS)) & (TB_JMP_PAGE_SIZE - 1));
}

static inline uint32_t tb_hash_func(tb_page_addr_t phys_pc, target_ulong pc, uint32_t flags, uint32_t cf_mask,
                                    uint32_t trace_vcpu_dstate)
{
    return qemu_xxhash7(phys_pc, pc, flags, cf_mask, trace_vcpu_dstate);
}

#endif
