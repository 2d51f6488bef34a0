/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Address translation: the guest's page tables with the C-bit, then the RMP
 * check (APM vol. 2, 15.34.5 and 15.36.10), on every TLB fill. A TLB entry grants
 * only what both allow, so generated code needs no check of its own; whatever
 * reduces an RMP permission bumps the RMP's generation, which flushes the TLB.
 */
#include "engine.h"

#define ADDRESS_MASK 0x0007fffffffff000ULL  /* bits 50:12, the C-bit taken out */
#define RESERVED_HIGH 0x0007000000000000ULL /* MAXPHYADDR is 48 */

/* Bits of EXITINFO1 of a nested page fault (APM vol. 2, table 15-40). */
#define NPF_PRESENT (1ULL << 0)
#define NPF_WRITE (1ULL << 1)
#define NPF_USER (1ULL << 2)
#define NPF_FETCH (1ULL << 4)
#define NPF_FINAL (1ULL << 32)
#define NPF_TABLE (1ULL << 33)

enum outcome { TRANSLATED, GUEST_PAGE_FAULT, NESTED_FAULT, NOT_VALIDATED, OUTSIDE_RAM };

struct walk {
    uint64_t gpa; /* of the byte accessed, or of the table entry at fault */
    bool private_page;
    bool global; /* the same in every address space, says the guest */
    int prot;
    uint64_t page_size;
    uint32_t page_fault_error;
    uint64_t npf_info;
};

/* One access of the page walk itself: always private, a supervisor read or write. */
static enum outcome table_access(struct veil_engine *e, struct walk *w, uint64_t entry_gpa, unsigned access)
{
    uint64_t fault;

    w->gpa = entry_gpa;
    w->private_page = true;
    if (!veil_is_ram(e, entry_gpa)) {
        w->npf_info = NPF_TABLE | NPF_USER | (access == VEIL_RMP_W ? NPF_WRITE : 0);
        return NESTED_FAULT;
    }
    fault = veil_rmp_check(e->rmp, entry_gpa, e->vmpl, access, true);
    if (!fault) {
        return TRANSLATED;
    }
    if (fault == VEIL_RMP_NOT_VALIDATED) {
        return NOT_VALIDATED;
    }
    w->npf_info = fault | NPF_TABLE | NPF_PRESENT | NPF_USER | (access == VEIL_RMP_W ? NPF_WRITE : 0);
    return NESTED_FAULT;
}

/* A table may lie in a page of code: what was translated from it is outdated like after any other store. */
static void mark_entry(struct veil_engine *e, uint64_t entry_gpa, unsigned bits)
{
    e->ram[entry_gpa] |= bits;
    if (e->code_map[entry_gpa >> TARGET_PAGE_BITS]) {
        tb_invalidate_phys_range(e->uc, entry_gpa, entry_gpa + 1);
    }
}

static enum outcome page_fault(struct walk *w, CPUX86State *env, uint32_t error, MMUAccessType access, bool user)
{
    if (access == MMU_DATA_STORE) {
        error |= PG_ERROR_W_MASK;
    }
    if (user) {
        error |= PG_ERROR_U_MASK;
    }
    if (access == MMU_INST_FETCH &&
        (((env->efer & MSR_EFER_NXE) && (env->cr[4] & CR4_PAE_MASK)) || (env->cr[4] & CR4_SMEP_MASK))) {
        error |= PG_ERROR_I_D_MASK;
    }
    w->page_fault_error = error;
    return GUEST_PAGE_FAULT;
}

/* The guest's own page tables. mark: set accessed and dirty bits, as an access does and a probe does not. */
static enum outcome walk_tables(struct veil_engine *e, struct walk *w, uint64_t addr, MMUAccessType access, int mmu_idx,
                                bool mark)
{
    CPUX86State *env = e->env;
    bool user = mmu_idx == MMU_USER_IDX;
    bool long_mode = env->hflags & HF_LMA_MASK;
    bool pae = env->cr[4] & CR4_PAE_MASK;
    bool no_execute = pae && (env->efer & MSR_EFER_NXE);
    uint64_t rights = PG_NX_MASK | PG_USER_MASK | PG_RW_MASK; /* NX inverted: set = executable */
    uint64_t entry = 0, entry_gpa = 0, table, physical_mask = pae ? ADDRESS_MASK : 0xfffff000;
    unsigned entry_size = pae ? 8 : 4;
    int level, shift;
    enum outcome o;

    if (!(env->cr[0] & CR0_PG_MASK)) {
        w->gpa = addr & 0xffffffff;
        w->private_page = true;
        w->prot = PAGE_READ | PAGE_WRITE | PAGE_EXEC;
        w->page_size = TARGET_PAGE_SIZE;
        return TRANSLATED;
    }
    if (long_mode) {
        int64_t sign = (int64_t)addr >> 47;

        if (sign != 0 && sign != -1) { /* only wrap-around gets here: instructions check before */
            return page_fault(w, env, 0, access, user);
        }
        level = 4;
        table = env->cr[3] & ADDRESS_MASK;
    } else if (pae) {
        addr &= 0xffffffff;
        level = 3;
        table = env->cr[3] & 0xffffffe0;
    } else {
        addr &= 0xffffffff;
        level = 2;
        table = env->cr[3] & 0xfffff000;
    }
    for (;; level--) {
        uint64_t reserved = 0;
        unsigned index_bits = pae ? 9 : 10;

        shift = 12 + index_bits * (level - 1);
        entry_gpa = table + ((addr >> shift) & ((1u << index_bits) - 1)) * entry_size;
        o = table_access(e, w, entry_gpa, VEIL_RMP_R);
        if (o != TRANSLATED) {
            return o;
        }
        entry = pae ? ldq_le_p(e->ram + entry_gpa) : (uint32_t)ldl_le_p(e->ram + entry_gpa);
        if (!(entry & PG_PRESENT_MASK)) {
            return page_fault(w, env, 0, access, user);
        }
        if (pae) {
            reserved = long_mode ? RESERVED_HIGH : RESERVED_HIGH | VEIL_C_BIT;
            if (!no_execute) {
                reserved |= PG_NX_MASK;
            }
            if (!long_mode && level == 3) { /* PDPTEs of legacy PAE carry no rights */
                table = entry & ADDRESS_MASK;
                continue;
            }
            if (level == 4) {
                reserved |= PG_PSE_MASK;
            }
        }
        if (entry & reserved) {
            return page_fault(w, env, PG_ERROR_RSVD_MASK | PG_ERROR_P_MASK, access, user);
        }
        rights &= entry ^ PG_NX_MASK;
        if (level == 1 || (entry & PG_PSE_MASK && (pae || env->cr[4] & CR4_PSE_MASK))) {
            w->page_size = 1ULL << shift;
            if (level > 1 && pae && entry & (w->page_size - 1) & ADDRESS_MASK & ~PG_PSE_PAT_MASK) {
                return page_fault(w, env, PG_ERROR_RSVD_MASK | PG_ERROR_P_MASK, access, user);
            }
            break;
        }
        if (mark && !(entry & PG_ACCESSED_MASK)) {
            o = table_access(e, w, entry_gpa, VEIL_RMP_W);
            if (o != TRANSLATED) {
                return o;
            }
            mark_entry(e, entry_gpa, PG_ACCESSED_MASK);
        }
        table = entry & physical_mask;
    }

    if (user && !(rights & PG_USER_MASK)) {
        return page_fault(w, env, PG_ERROR_P_MASK, access, user);
    }
    w->prot = 0;
    if (mmu_idx != MMU_KSMAP_IDX || !(rights & PG_USER_MASK)) {
        w->prot |= PAGE_READ;
        if ((rights & PG_RW_MASK) || (!user && !(env->cr[0] & CR0_WP_MASK))) {
            w->prot |= PAGE_WRITE;
        }
    }
    if ((rights & PG_NX_MASK) && (user || !((env->cr[4] & CR4_SMEP_MASK) && (rights & PG_USER_MASK)))) {
        w->prot |= PAGE_EXEC;
    }
    if (!(w->prot & (1 << access))) {
        return page_fault(w, env, PG_ERROR_P_MASK, access, user);
    }
    if (mark) {
        unsigned wanted = PG_ACCESSED_MASK | (access == MMU_DATA_STORE ? PG_DIRTY_MASK : 0);

        if ((entry & wanted) != wanted) {
            o = table_access(e, w, entry_gpa, VEIL_RMP_W);
            if (o != TRANSLATED) {
                return o;
            }
            entry |= wanted;
            mark_entry(e, entry_gpa, wanted);
        }
        if (!(entry & PG_DIRTY_MASK)) {
            w->prot &= ~PAGE_WRITE; /* the first store comes back to set the bit */
        }
    }
    w->gpa = (entry & physical_mask & ~(w->page_size - 1)) | (addr & (w->page_size - 1));
    w->global = (env->cr[4] & CR4_PGE_MASK) && (entry & PG_GLOBAL_MASK);
    /* Memory encryption is a property of long mode's entries; in the legacy modes all is private. */
    w->private_page = !long_mode || (entry & VEIL_C_BIT);
    return TRANSLATED;
}

static unsigned rmp_access(MMUAccessType access, bool user)
{
    switch (access) {
    case MMU_DATA_STORE:
        return VEIL_RMP_W;
    case MMU_INST_FETCH:
        return user ? VEIL_RMP_UX : VEIL_RMP_SX;
    default:
        return VEIL_RMP_R;
    }
}

/* The RMP's word on the page found; takes away from w->prot what only the RMP forbids. */
static enum outcome check_final(struct veil_engine *e, struct walk *w, MMUAccessType access, bool user)
{
    bool c_bit = w->private_page || access == MMU_INST_FETCH; /* fetches are private always */
    uint64_t fault;

    if (!veil_is_ram(e, w->gpa)) {
        w->npf_info = NPF_FINAL | NPF_USER | (access == MMU_DATA_STORE ? NPF_WRITE : 0);
        return c_bit ? NESTED_FAULT : OUTSIDE_RAM;
    }
    fault = veil_rmp_check(e->rmp, w->gpa, e->vmpl, rmp_access(access, user), c_bit);
    if (fault == VEIL_RMP_NOT_VALIDATED) {
        return NOT_VALIDATED;
    }
    if (fault) {
        w->npf_info = fault | NPF_FINAL | NPF_PRESENT | NPF_USER | (access == MMU_DATA_STORE ? NPF_WRITE : 0) |
                      (access == MMU_INST_FETCH ? NPF_FETCH : 0);
        return NESTED_FAULT;
    }
    for (int other = MMU_DATA_LOAD; other <= MMU_INST_FETCH; other++) {
        bool other_c = w->private_page || other == MMU_INST_FETCH;

        if (other != (int)access && (w->prot & (1 << other)) &&
            veil_rmp_check(e->rmp, w->gpa, e->vmpl, rmp_access(other, user), other_c)) {
            w->prot &= ~(1 << other);
        }
    }
    return TRANSLATED;
}

/* What the guest or the host gets of an access that was not translated. */
static void QEMU_NORETURN refuse(struct veil_engine *e, enum outcome o, const struct walk *w, uint64_t addr,
                                 uintptr_t retaddr)
{
    switch (o) {
    case GUEST_PAGE_FAULT:
        e->env->cr[2] = addr;
        raise_exception_err_ra(e->env, EXCP0E_PAGE, w->page_fault_error, retaddr);
        break;
    case NOT_VALIDATED:
        e->env->cr[2] = addr;
        veil_raise_vc(e, VEIL_EXIT_NOT_VALIDATED, retaddr);
        break;
    case OUTSIDE_RAM:
        /* The host marks addresses without memory reserved, and the CPU turns that into #VC (56421, 4.1.5: MMIO). */
        veil_raise_vc(e, VEIL_EXIT_NPF, retaddr);
        break;
    default:
        e->counters.nested_faults++;
        veil_exit(e, VEIL_EXIT_NPF, w->npf_info, w->gpa, retaddr);
        break;
    }
    g_assert_not_reached();
}

bool veil_tlb_fill(CPUState *cs, vaddr addr, int size, MMUAccessType access, int mmu_idx, bool probe, uintptr_t retaddr)
{
    CPUX86State *env = cs->env_ptr;
    struct veil_engine *e = veil_of(env);
    bool user = mmu_idx == MMU_USER_IDX;
    struct walk w = {0};
    enum outcome o;

    e->counters.tlb_fills++;
    o = walk_tables(e, &w, addr, access, mmu_idx, true);
    if (o == TRANSLATED) {
        o = check_final(e, &w, access, user);
    }
    if (o == TRANSLATED) {
        veil_tlb_add(e, mmu_idx,
                     &(struct veil_translation){
                         .vaddr = addr, .gpa = w.gpa, .page_size = w.page_size, .prot = w.prot, .global = w.global});
        return true;
    }
    if (probe) {
        return false;
    }
    refuse(e, o, &w, addr, retaddr);
}

/* The walk alone, for instructions that name a page by its address; the page itself is theirs to check. May not return.
 */
uint64_t veil_translate_operand(struct veil_engine *e, uint64_t addr, bool *private_page)
{
    struct walk w = {0};
    enum outcome o = walk_tables(e, &w, addr, MMU_DATA_LOAD, MMU_KNOSMAP_IDX, true);

    if (o != TRANSLATED) {
        refuse(e, o, &w, addr, 0);
    }
    *private_page = w.private_page;
    return w.gpa;
}

static bool translate(struct veil_engine *e, uint64_t addr, uint64_t *gpa, bool *private_page)
{
    struct walk w = {0};

    if (walk_tables(e, &w, addr, MMU_DATA_LOAD, MMU_KNOSMAP_IDX, false) != TRANSLATED || !veil_is_ram(e, w.gpa)) {
        return false;
    }
    *gpa = w.gpa;
    *private_page = w.private_page;
    return true;
}

bool veil_read_virtual(struct veil_engine *e, uint64_t addr, void *to, unsigned length)
{
    uint8_t *out = to;

    while (length) {
        unsigned chunk = MIN(length, TARGET_PAGE_SIZE - (unsigned)(addr & ~TARGET_PAGE_MASK));
        uint64_t gpa;
        bool private_page;

        if (!translate(e, addr, &gpa, &private_page)) {
            return false;
        }
        memcpy(out, e->ram + gpa, chunk);
        out += chunk;
        addr += chunk;
        length -= chunk;
    }
    return true;
}
