/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Self-modifying code. A page from which code was translated is marked in
 * code_map; every TLB entry of it, through whatever virtual address, sends stores
 * to veil_notdirty_write(). (Unicorn's own way forgets aliases after the first
 * store; Linux patches its text through one.)
 */
#include "core.h"

#include "exec/cputlb.h"
#include "exec/exec-all.h"
#include "translate-all.h"

void __wrap_tlb_protect_code_x86_64(struct uc_struct *uc, ram_addr_t ram_addr);
void __wrap_tlb_unprotect_code_x86_64(struct uc_struct *uc, ram_addr_t ram_addr);
void __wrap_tlb_reset_dirty_by_vaddr_x86_64(CPUState *cpu, target_ulong start, target_ulong length);
void veil_notdirty_write(CPUState *cpu, vaddr mem_vaddr, unsigned size, CPUIOTLBEntry *iotlbentry, uintptr_t retaddr,
                         CPUTLBEntry *tlbe);

void __wrap_tlb_protect_code_x86_64(struct uc_struct *uc, ram_addr_t ram_addr)
{
    struct veil_engine *e = veil_of(uc->cpu->env_ptr);

    if (!(e->code_map[ram_addr >> TARGET_PAGE_BITS] & VEIL_CODE)) {
        e->code_map[ram_addr >> TARGET_PAGE_BITS] |= VEIL_CODE;
        /* Spaces that are not loaded see that they missed it. */
        e->space->code_pages = ++e->code_pages;
        tlb_reset_dirty(e->cs, (uintptr_t)e->ram + (ram_addr & TARGET_PAGE_MASK), TARGET_PAGE_SIZE);
    }
}

void __wrap_tlb_unprotect_code_x86_64(struct uc_struct *uc, ram_addr_t ram_addr)
{
    veil_of(uc->cpu->env_ptr)->code_map[ram_addr >> TARGET_PAGE_BITS] &= ~VEIL_CODE;
}

void __wrap_tlb_reset_dirty_by_vaddr_x86_64(CPUState *cpu, target_ulong start, target_ulong length)
{
    /* Done once a page, by physical address, in tlb_protect_code. */
}

void veil_notdirty_write(CPUState *cpu, vaddr mem_vaddr, unsigned size, CPUIOTLBEntry *iotlbentry, uintptr_t retaddr,
                         CPUTLBEntry *tlbe)
{
    struct veil_engine *e = veil_of(cpu->env_ptr);
    uint64_t page = tlbe->paddr >> TARGET_PAGE_BITS;

    e->counters.code_stores++;
    if (e->code_map[page] & VEIL_CODE) {
        ram_addr_t address = tlbe->paddr | (mem_vaddr & ~TARGET_PAGE_MASK);
        struct page_collection *pages = page_collection_lock(e->uc, address, address + size);

        tb_invalidate_phys_page_fast(e->uc, pages, address, size, retaddr);
        page_collection_unlock(pages);
    }
    if (!(e->code_map[page] & VEIL_CODE)) {
        tlb_set_dirty(cpu, mem_vaddr);
    }
}
