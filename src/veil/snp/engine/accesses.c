/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the core itself reads and writes: gates, descriptors, task states, and the frames of events and of IRET. Fifteen
 * accesses for one exception and its return, for which QEMU's helpers take longer than for all the rest of it. Here an
 * access that the soft TLB has goes to memory at once, as one of generated code does; each other is QEMU's.
 */
#include "core.h"

#include "exec/cpu_ldst.h"

uint32_t __real_cpu_ldl_mmuidx_ra_x86_64(CPUX86State *env, abi_ptr addr, int mmu_idx, uintptr_t retaddr);
uint32_t __wrap_cpu_ldl_mmuidx_ra_x86_64(CPUX86State *env, abi_ptr addr, int mmu_idx, uintptr_t retaddr);
uint64_t __real_cpu_ldq_mmuidx_ra_x86_64(CPUX86State *env, abi_ptr addr, int mmu_idx, uintptr_t retaddr);
uint64_t __wrap_cpu_ldq_mmuidx_ra_x86_64(CPUX86State *env, abi_ptr addr, int mmu_idx, uintptr_t retaddr);
void __real_cpu_stq_mmuidx_ra_x86_64(CPUX86State *env, abi_ptr addr, uint64_t value, int mmu_idx, uintptr_t retaddr);
void __wrap_cpu_stq_mmuidx_ra_x86_64(CPUX86State *env, abi_ptr addr, uint64_t value, int mmu_idx, uintptr_t retaddr);

/* `known`: the address that the entry has for this kind of access; a page of code has a flag in it, and is no hit. */
static inline bool is_hit(target_ulong known, target_ulong addr, unsigned bytes)
{
    return known == (addr & TARGET_PAGE_MASK) && (addr & ~TARGET_PAGE_MASK) <= TARGET_PAGE_SIZE - bytes;
}

uint32_t __wrap_cpu_ldl_mmuidx_ra_x86_64(CPUX86State *env, abi_ptr addr, int mmu_idx, uintptr_t retaddr)
{
    const CPUTLBEntry *entry = tlb_entry(env, mmu_idx, addr);

    if (likely(is_hit(entry->addr_read, addr, 4))) {
        return (uint32_t)ldl_le_p((void *)(uintptr_t)(addr + entry->addend));
    }
    return __real_cpu_ldl_mmuidx_ra_x86_64(env, addr, mmu_idx, retaddr);
}

uint64_t __wrap_cpu_ldq_mmuidx_ra_x86_64(CPUX86State *env, abi_ptr addr, int mmu_idx, uintptr_t retaddr)
{
    const CPUTLBEntry *entry = tlb_entry(env, mmu_idx, addr);

    if (likely(is_hit(entry->addr_read, addr, 8))) {
        return ldq_le_p((void *)(uintptr_t)(addr + entry->addend));
    }
    return __real_cpu_ldq_mmuidx_ra_x86_64(env, addr, mmu_idx, retaddr);
}

void __wrap_cpu_stq_mmuidx_ra_x86_64(CPUX86State *env, abi_ptr addr, uint64_t value, int mmu_idx, uintptr_t retaddr)
{
    const CPUTLBEntry *entry = tlb_entry(env, mmu_idx, addr);

    if (likely(is_hit(entry->addr_write, addr, 8))) {
        stq_le_p((void *)(uintptr_t)(addr + entry->addend), value);
        return;
    }
    __real_cpu_stq_mmuidx_ra_x86_64(env, addr, value, mmu_idx, retaddr);
}
