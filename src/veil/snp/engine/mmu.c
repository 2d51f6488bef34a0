/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Address translation: the guest's page tables with the C-bit, then the RMP
 * check (APM vol. 2, 15.34.5 and 15.36.10), on every TLB fill. A TLB entry grants
 * only what both allow, so generated code needs no check of its own; whatever
 * reduces an RMP permission bumps the RMP's generation, which flushes the TLB.
 */
#include "mmu.h"
#include "events.h"
#include "exits.h"
#include "tlb.h"
#include "walked.h"

#define ADDRESS_MASK 0x0007fffffffff000ULL  /* bits 50:12, the C-bit taken out */
#define RESERVED_HIGH 0x0007000000000000ULL /* MAXPHYADDR is 48 */

/* Of PDPTEs in legacy PAE: bits that must be zero (APM vol. 2, 5.2.3), which with nested paging are looked at when the
 * entry is used, not by MOV to CR3 (15.25.10). */
#define PDPTE_RESERVED 0xffff0000000001e6ULL

enum outcome { TRANSLATED, GUEST_PAGE_FAULT, NOT_CANONICAL, NESTED_FAULT, NOT_VALIDATED, OUTSIDE_RAM };

struct walk {
    uint64_t gpa; /* of the byte accessed, or of the table entry at fault */
    bool private_page;
    bool global; /* the same in every address space, says the guest */
    int prot;
    uint64_t page_size;
    uint64_t entry, entry_gpa; /* the entry that maps the page */
    uint64_t rights;           /* what all levels allow; NX inverted: set = executable */
    uint32_t page_fault_error;
    uint64_t npf_info;
    uint64_t path[4]; /* the entries on the way, */
    unsigned levels;  /* so many, */
    bool wide;        /* of 8 bytes */
};

/* The tables of a paging mode. */
struct tables {
    bool long_mode, pae;
    int levels;
    uint64_t root;
    uint64_t address_mask; /* of an entry */
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
    if (e->code_map[entry_gpa >> TARGET_PAGE_BITS] & VEIL_CODE) {
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

static inline struct tables find_root(const CPUX86State *env)
{
    uint64_t cr3 = env->cr[3];

    if (env->hflags & HF_LMA_MASK) {
        return (struct tables){true, true, 4, cr3 & ADDRESS_MASK, ADDRESS_MASK};
    }
    if (env->cr[4] & CR4_PAE_MASK) {
        return (struct tables){false, true, 3, cr3 & 0xffffffe0, ADDRESS_MASK};
    }
    return (struct tables){false, false, 2, cr3 & 0xfffff000, 0xfffff000};
}

static inline uint64_t reserved_bits(const CPUX86State *env, const struct tables *t, int level)
{
    uint64_t reserved;

    if (!t->pae) {
        return 0;
    }
    reserved = t->long_mode ? RESERVED_HIGH : RESERVED_HIGH | VEIL_C_BIT;
    if (!(env->efer & MSR_EFER_NXE)) {
        reserved |= PG_NX_MASK;
    }
    return level == 4 ? reserved | PG_PSE_MASK : reserved;
}

/* Sets accessed and dirty bits that are not set yet. */
static inline enum outcome mark(struct veil_engine *e, struct walk *w, uint64_t entry, uint64_t entry_gpa,
                                unsigned bits)
{
    enum outcome o;

    if ((entry & bits) == bits) {
        return TRANSLATED;
    }
    o = table_access(e, w, entry_gpa, VEIL_RMP_W);
    if (o == TRANSLATED) {
        mark_entry(e, entry_gpa, bits);
    }
    return o;
}

/* From the root to the entry that maps the page. */
static inline enum outcome descend(struct veil_engine *e, struct walk *w, const struct tables *t, uint64_t addr,
                                   MMUAccessType access, bool user, bool marking)
{
    CPUX86State *env = e->env;
    unsigned index_bits = t->pae ? 9 : 10, entry_size = t->pae ? 8 : 4;
    uint64_t table = t->root, entry, entry_gpa;
    enum outcome o;

    w->rights = PG_NX_MASK | PG_USER_MASK | PG_RW_MASK;
    w->wide = t->pae;
    for (int level = t->levels;; level--) {
        int shift = 12 + index_bits * (level - 1);

        entry_gpa = table + ((addr >> shift) & ((1u << index_bits) - 1)) * entry_size;
        o = table_access(e, w, entry_gpa, VEIL_RMP_R);
        if (o != TRANSLATED) {
            return o;
        }
        w->path[w->levels++] = entry_gpa;
        if (e->vmpl == VEIL_HOSTED_TABLES_VMPL) {
            e->code_map[entry_gpa >> TARGET_PAGE_BITS] |= VEIL_TABLE;
        }
        entry = t->pae ? ldq_le_p(e->ram + entry_gpa) : (uint32_t)ldl_le_p(e->ram + entry_gpa);
        if (!(entry & PG_PRESENT_MASK)) {
            return page_fault(w, env, 0, access, user);
        }
        if (level == 3 && !t->long_mode) { /* PDPTEs of legacy PAE carry no rights */
            if (entry & PDPTE_RESERVED) {
                return page_fault(w, env, PG_ERROR_RSVD_MASK | PG_ERROR_P_MASK, access, user);
            }
            table = entry & ADDRESS_MASK;
            continue;
        }
        if (entry & reserved_bits(env, t, level)) {
            return page_fault(w, env, PG_ERROR_RSVD_MASK | PG_ERROR_P_MASK, access, user);
        }
        w->rights &= entry ^ PG_NX_MASK;
        if (level == 1 || (entry & PG_PSE_MASK && (t->pae || env->cr[4] & CR4_PSE_MASK))) {
            w->page_size = 1ULL << shift;
            if (level > 1 && t->pae && entry & (w->page_size - 1) & ADDRESS_MASK & ~PG_PSE_PAT_MASK) {
                return page_fault(w, env, PG_ERROR_RSVD_MASK | PG_ERROR_P_MASK, access, user);
            }
            w->entry = entry;
            w->entry_gpa = entry_gpa;
            return TRANSLATED;
        }
        if (marking) {
            o = mark(e, w, entry, entry_gpa, PG_ACCESSED_MASK);
            if (o != TRANSLATED) {
                return o;
            }
        }
        table = entry & t->address_mask;
    }
}

/* What the key of a program's page leaves of it, the kernel's data accesses among it (APM vol. 2, 5.6.7). */
static inline int key_allows(const CPUX86State *env, const struct walk *w, bool user)
{
    unsigned bits = env->pkru >> 2 * ((w->entry & PG_PKRU_MASK) >> PG_PKRU_BIT);

    if (!(env->cr[4] & CR4_PKE_MASK) || !(env->hflags & HF_LMA_MASK) || !(w->rights & PG_USER_MASK)) {
        return PAGE_READ | PAGE_WRITE | PAGE_EXEC;
    }
    if (bits & 1) {
        return PAGE_EXEC;
    }
    return bits & 2 && (user || env->cr[0] & CR0_WP_MASK) ? PAGE_READ | PAGE_EXEC : PAGE_READ | PAGE_WRITE | PAGE_EXEC;
}

/* w->prot: what the rights found allow in this mode. */
static inline enum outcome check_rights(struct veil_engine *e, struct walk *w, MMUAccessType access, int mmu_idx)
{
    CPUX86State *env = e->env;
    bool user = mmu_idx == MMU_USER_IDX;
    int by_key;

    if (user && !(w->rights & PG_USER_MASK)) {
        return page_fault(w, env, PG_ERROR_P_MASK, access, user);
    }
    w->prot = 0;
    if (mmu_idx != MMU_KSMAP_IDX || !(w->rights & PG_USER_MASK)) {
        w->prot |= PAGE_READ;
        if ((w->rights & PG_RW_MASK) || (!user && !(env->cr[0] & CR0_WP_MASK))) {
            w->prot |= PAGE_WRITE;
        }
    }
    if ((w->rights & PG_NX_MASK) && (user || !((env->cr[4] & CR4_SMEP_MASK) && (w->rights & PG_USER_MASK)))) {
        w->prot |= PAGE_EXEC;
    }
    by_key = key_allows(env, w, user);
    w->prot &= by_key;
    if (!(w->prot & (1 << access))) { /* the key's word is told whether or not it is the only one */
        return page_fault(w, env, PG_ERROR_P_MASK | (by_key & (1 << access) ? 0 : PG_ERROR_PK_MASK), access, user);
    }
    return TRANSLATED;
}

/* The guest's own page tables. marking: set accessed and dirty bits, as an access does and a probe does not. */
static enum outcome walk_tables(struct veil_engine *e, struct walk *w, uint64_t addr, MMUAccessType access, int mmu_idx,
                                bool marking)
{
    CPUX86State *env = e->env;
    struct tables t = find_root(env);
    bool user = mmu_idx == MMU_USER_IDX;
    unsigned wanted = PG_ACCESSED_MASK | (access == MMU_DATA_STORE ? PG_DIRTY_MASK : 0);
    enum outcome o;

    if (!(env->cr[0] & CR0_PG_MASK)) {
        w->gpa = addr & 0xffffffff;
        w->private_page = true;
        w->prot = PAGE_READ | PAGE_WRITE | PAGE_EXEC;
        w->page_size = TARGET_PAGE_SIZE;
        return TRANSLATED;
    }
    if (!t.long_mode) {
        addr &= 0xffffffff;
    } else if ((uint64_t)((int64_t)addr >> 47) + 1 > 1) {
        return NOT_CANONICAL;
    }
    o = descend(e, w, &t, addr, access, user, marking);
    if (o == TRANSLATED) {
        o = check_rights(e, w, access, mmu_idx);
    }
    if (o == TRANSLATED && marking) {
        o = mark(e, w, w->entry, w->entry_gpa, wanted);
    }
    if (o != TRANSLATED) {
        return o;
    }
    if (marking && !((w->entry | wanted) & PG_DIRTY_MASK)) {
        w->prot &= ~PAGE_WRITE; /* the first store comes back to set the bit */
    }
    w->gpa = (w->entry & t.address_mask & ~(w->page_size - 1)) | (addr & (w->page_size - 1));
    w->global = (env->cr[4] & CR4_PGE_MASK) && (w->entry & PG_GLOBAL_MASK);
    /* Memory encryption is a property of long mode's entries; in the legacy modes all is private. */
    w->private_page = !t.long_mode || (w->entry & VEIL_C_BIT);
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
static void QEMU_NORETURN refuse(struct veil_engine *e, enum outcome o, const struct walk *w, uint64_t addr, bool store,
                                 uintptr_t retaddr)
{
    switch (o) {
    case GUEST_PAGE_FAULT:
        e->env->cr[2] = addr;
        raise_exception_err_ra(e->env, EXCP0E_PAGE, w->page_fault_error, retaddr);
        break;
    case NOT_CANONICAL: /* what the delivery of an event stores is on a stack */
        raise_exception_err_ra(e->env, e->delivering.pending && store ? EXCP0C_STACK : EXCP0D_GPF, 0, retaddr);
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
        veil_walked_add(e, w.path, w.levels, w.wide);
        veil_tlb_add(e, mmu_idx,
                     &(struct veil_translation){
                         .vaddr = addr, .gpa = w.gpa, .page_size = w.page_size, .prot = w.prot, .global = w.global});
        return true;
    }
    if (probe) {
        return false;
    }
    refuse(e, o, &w, addr, access == MMU_DATA_STORE, retaddr);
}

uint64_t veil_translate_operand(struct veil_engine *e, uint64_t addr, bool *private_page)
{
    struct walk w = {0};
    enum outcome o = walk_tables(e, &w, addr, MMU_DATA_LOAD, cpu_mmu_index(e->env, false), true);

    if (o != TRANSLATED) {
        refuse(e, o, &w, addr, false, 0);
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
