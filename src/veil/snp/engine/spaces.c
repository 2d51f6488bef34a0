/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The soft TLB describes one address space. Those of contexts that ran before are kept beside it, as a processor keeps
 * entries of several with their tags: a kernel and an enclave that call each other would else find their pages again at
 * each switch. What became outdated meanwhile is found when a space is entered again.
 */
#include "spaces.h"
#include "walked.h"

#include "exec/tb-hash.h"

#define NOBODY (~0ULL)

void veil_spaces_init(struct veil_engine *e)
{
    unsigned i;

    for (i = 0; i < VEIL_SPACES; i++) {
        e->spaces[i].vmsa = NOBODY;
        e->spaces[i].jump_low = e->spaces[i].jump_high = i * TB_JMP_PAGE_SIZE;
    }
    e->next_low = e->next_high = VEIL_SPACES * TB_JMP_PAGE_SIZE;
    e->space = &e->spaces[0]; /* the tables that QEMU made with the core are its */
    e->space->has_tables = true;
    memset(e->space->global_large, -1, sizeof(e->space->global_large));
}

void veil_spaces_free(struct veil_engine *e)
{
    unsigned i;
    int mmu_idx;

    for (i = 0; i < VEIL_SPACES; i++) {
        struct veil_space *s = &e->spaces[i];

        if (!s->has_tables || s == e->space) { /* those that are loaded are QEMU's to free */
            continue;
        }
        for (mmu_idx = 0; mmu_idx < NB_MMU_MODES; mmu_idx++) {
            free(s->tlb.f[mmu_idx].table);
            free(s->tlb.d[mmu_idx].iotlb);
        }
    }
}

void veil_spaces_forget(struct veil_engine *e)
{
    unsigned i;

    for (i = 0; i < VEIL_SPACES; i++) {
        e->spaces[i].vmsa = NOBODY;
    }
}

void veil_spaces_drop(struct veil_engine *e)
{
    unsigned i;

    for (i = 0; i < VEIL_SPACES; i++) {
        if (&e->spaces[i] != e->space) {
            e->spaces[i].vmsa = NOBODY;
        }
    }
    e->counters.flushes++;
    tlb_flush(e->cs);
}

/* The guest has no SVM; with the bit that SNP demands in its VMSA, QEMU would think so. */
uint64_t veil_guest_efer(const struct veil_vmsa *v)
{
    return v->efer & ~(uint64_t)MSR_EFER_SVME;
}

/* Does it describe what the VMSA says? VeilMon may have changed registers. It is the one that is loaded. */
static bool is_as_left(const struct veil_engine *e, const struct veil_space *s)
{
    const struct veil_vmsa *v = e->vmsa;

    if (e->vmpl == VEIL_HOSTED_TABLES_VMPL && s->table_writes != e->table_writes && !veil_walked_same(e)) {
        return false;
    }
    if ((v->cr4 & CR4_PKE_MASK) && s->pkru != v->pkru) {
        return false;
    }
    return s->cr0 == v->cr0 && s->cr3 == v->cr3 && s->cr4 == v->cr4 && s->efer == veil_guest_efer(v);
}

/* This context's, or the one that was not entered for the longest time, which is nobody's then. */
static struct veil_space *find(struct veil_engine *e)
{
    struct veil_space *oldest = NULL;
    unsigned i;

    for (i = 0; i < VEIL_SPACES; i++) {
        struct veil_space *s = &e->spaces[i];

        if (s->vmsa == e->vmcb->vmsa_pa && s->vmpl == e->vmpl) {
            return s;
        }
        if (!oldest || s->vmsa == NOBODY || (oldest->vmsa != NOBODY && s->entered < oldest->entered)) {
            oldest = s;
        }
    }
    oldest->vmsa = NOBODY;
    return oldest;
}

static void exchange(struct veil_engine *e, struct veil_space *s)
{
    e->space->tlb = *env_tlb(e->env);
    e->space->jump_low = e->cs->tb_jmp_low;
    e->space->jump_high = e->cs->tb_jmp_high;
    e->space = s;
    e->cs->tb_jmp_low = s->jump_low;
    e->cs->tb_jmp_high = s->jump_high;
    if (s->has_tables) {
        *env_tlb(e->env) = s->tlb;
    } else {
        tlb_init(e->cs);
        s->has_tables = true;
        memset(s->global_large, -1, sizeof(s->global_large));
    }
}

static void mark(struct veil_engine *e, CPUTLBEntry *te)
{
    if (te->addr_write != (target_ulong)-1 && e->code_map[te->paddr >> TARGET_PAGE_BITS] & VEIL_CODE) {
        te->addr_write |= TLB_NOTDIRTY;
    }
}

/* Code was translated from further pages while another space was loaded: stores to them come to self_modifying_code.c.
 */
static void mark_code(struct veil_engine *e)
{
    CPUTLB *tlb = env_tlb(e->env);
    int mmu_idx, i;
    size_t place;

    for (mmu_idx = 0; mmu_idx < NB_MMU_MODES; mmu_idx++) {
        if (!(tlb->c.dirty & 1 << mmu_idx)) {
            continue;
        }
        for (place = 0; place <= tlb->f[mmu_idx].mask >> CPU_TLB_ENTRY_BITS; place++) {
            mark(e, &tlb->f[mmu_idx].table[place]);
        }
        for (i = 0; i < CPU_VTLB_SIZE; i++) {
            mark(e, &tlb->d[mmu_idx].vtable[i]);
        }
    }
}

void veil_space_enter(struct veil_engine *e)
{
    struct veil_space *s = e->space;

    if (s->vmsa != e->vmcb->vmsa_pa || s->vmpl != e->vmpl) {
        s = find(e);
        if (s != e->space) {
            exchange(e, s);
        }
    }
    if (s->vmsa == NOBODY || !is_as_left(e, s)) {
        s->vmsa = e->vmcb->vmsa_pa;
        s->vmpl = e->vmpl;
        s->rmp_generation = e->rmp->generation;
        e->counters.flushes++;
        tlb_flush(e->cs);
    } else if (s->code_pages != e->code_pages) {
        mark_code(e);
    }
    s->code_pages = e->code_pages;
    s->table_writes = e->table_writes;
    s->entered = e->counters.vmruns;
}

void veil_space_leave(struct veil_engine *e)
{
    const CPUX86State *env = e->env;
    struct veil_space *s = e->space;

    s->cr0 = env->cr[0];
    s->cr3 = env->cr[3];
    s->cr4 = env->cr[4];
    s->efer = env->efer;
    s->pkru = env->pkru;
}

/* Places that no space has; when there are none left, all begin anew. */
void veil_forget_jumps(struct veil_engine *e, bool high)
{
    TranslationBlock **cache = e->cs->tb_jmp_cache;
    unsigned i;

    if (e->space->low_jumps) {
        e->space->low_jumps = false;
        if (e->next_low == TB_JMP_LOW_SIZE) {
            memset(cache, 0, TB_JMP_LOW_SIZE * sizeof(*cache));
            for (i = 0; i < VEIL_SPACES; i++) {
                e->spaces[i].jump_low = i * TB_JMP_PAGE_SIZE;
            }
            e->next_low = VEIL_SPACES * TB_JMP_PAGE_SIZE;
            e->cs->tb_jmp_low = e->space->jump_low;
        } else {
            e->cs->tb_jmp_low = e->next_low;
            e->next_low += TB_JMP_PAGE_SIZE;
        }
    }
    if (high && e->space->high_jumps) {
        e->space->high_jumps = false;
        if (e->next_high == TB_JMP_HIGH_SIZE) {
            memset(cache + TB_JMP_LOW_SIZE, 0, TB_JMP_HIGH_SIZE * sizeof(*cache));
            for (i = 0; i < VEIL_SPACES; i++) {
                e->spaces[i].jump_high = i * TB_JMP_PAGE_SIZE;
            }
            e->next_high = VEIL_SPACES * TB_JMP_PAGE_SIZE;
            e->cs->tb_jmp_high = e->space->jump_high;
        } else {
            e->cs->tb_jmp_high = e->next_high;
            e->next_high += TB_JMP_PAGE_SIZE;
        }
    }
}
