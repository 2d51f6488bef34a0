/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The soft TLB: the translations that generated code uses, and what a change of the address space leaves of them.
 */
#include "tlb.h"
#include "spaces.h"
#include "walked.h"
#include "watch.h"

#include "exec/ram_addr.h"

/* Above this many entries, searching a table costs more than filling it again. */
#define LARGE_TABLE 4096
/* To this size conflicts make a table grow. */
#define ROOMY_TABLE 16384
/* The least that tables shrink to. A user's is cleared at each MOV to CR3; the kernel's pages stay, and there are more.
 */
#define LEAST_USER 256
#define LEAST_KERNEL 2048
/* Conflicts in one address space that cost about as much as filling a larger table. */
#define MANY_CONFLICTS 2000

void __wrap_cpu_x86_update_cr3_x86_64(CPUX86State *env, target_ulong cr3);
void __wrap_tlb_flush_page_x86_64(CPUState *cs, target_ulong addr);
void __real_tlb_flush_page_x86_64(CPUState *cs, target_ulong addr);
void veil_tlb_flushed(CPUState *cs, bool all);
void veil_tlb_conflict(CPUState *cs, int mmu_idx);
void veil_tlb_resized(struct uc_struct *uc);
size_t veil_tlb_least(struct uc_struct *uc, const CPUTLBDesc *desc);

/*
 * An access found its entry among the displaced ones, and displaces another (the edit of cputlb.c). The table is direct
 * mapped: two pages that are a multiple of its size apart, a heap's and a stack's, displace each other at every use.
 * Where Linux puts them is random in each run, so a program had either none of this or millions.
 */
void veil_tlb_conflict(CPUState *cs, int mmu_idx)
{
    struct veil_engine *e = veil_of(cs->env_ptr);

    e->counters.tlb_conflicts++;
    if (++e->space->conflicts[mmu_idx] > MANY_CONFLICTS) {
        e->crowded = true;
    }
}

static size_t table_entries(CPUTLB *tlb, int mmu_idx)
{
    return (tlb->f[mmu_idx].mask >> CPU_TLB_ENTRY_BITS) + 1;
}

/* Tables that have many conflicts are made four times as large; not while an access looks into one. */
void veil_tlb_relieve(struct veil_engine *e)
{
    CPUTLB *tlb = env_tlb(e->env);
    int mmu_idx, twice;

    e->crowded = false;
    for (mmu_idx = 0; mmu_idx < NB_MMU_MODES; mmu_idx++) {
        if (e->space->conflicts[mmu_idx] <= MANY_CONFLICTS) {
            continue;
        }
        e->space->conflicts[mmu_idx] = 0;
        for (twice = 0; twice < 2 && table_entries(tlb, mmu_idx) < ROOMY_TABLE; twice++) {
            /* QEMU's rule, in a flush: a table that was full doubles. */
            tlb->d[mmu_idx].window_max_entries = table_entries(tlb, mmu_idx);
            tlb->c.dirty |= 1 << mmu_idx;
            tlb_flush_by_mmuidx(e->cs, 1 << mmu_idx);
        }
    }
}

/* QEMU's rule would let a kernel's table have 64 entries or 4096 for the same work, as the boot before it went. */
size_t veil_tlb_least(struct uc_struct *uc, const CPUTLBDesc *desc)
{
    return desc == &env_tlb((CPUX86State *)uc->cpu->env_ptr)->d[MMU_USER_IDX] ? LEAST_USER : LEAST_KERNEL;
}

void veil_tlb_resized(struct uc_struct *uc)
{
    struct veil_engine *e = uc->cpu ? veil_of(uc->cpu->env_ptr) : NULL;

    if (e) {
        e->counters.tlb_resizes++;
    }
}

void veil_jump_cached(struct veil_engine *e, uint64_t pc)
{
    if (pc >> 63) {
        e->space->high_jumps = true;
    } else {
        e->space->low_jumps = true;
    }
}

static bool is_empty(const CPUTLBEntry *te)
{
    return te->addr_read == (target_ulong)-1 && te->addr_write == (target_ulong)-1 && te->addr_code == (target_ulong)-1;
}

static bool is_of(const CPUTLBEntry *te, target_ulong page)
{
    return (te->addr_read & TARGET_PAGE_MASK) == page || (te->addr_write & TARGET_PAGE_MASK) == page ||
           te->addr_code == page;
}

/* QEMU's way: one region that has all large pages in it. */
static void remember_large_page(struct veil_region *region, target_ulong vaddr, target_ulong size)
{
    target_ulong address = region->address, mask = ~(size - 1);

    if (address == (target_ulong)-1) {
        address = vaddr;
    } else {
        mask &= region->mask;
        while ((address ^ vaddr) & mask) {
            mask <<= 1;
        }
    }
    region->address = address & mask;
    region->mask = mask;
}

static void add_large_page(struct veil_engine *e, int mmu_idx, const struct veil_translation *t)
{
    CPUTLBDesc *desc = &env_tlb(e->env)->d[mmu_idx];
    struct veil_region all = {desc->large_page_addr, desc->large_page_mask};

    remember_large_page(&all, t->vaddr, t->page_size);
    desc->large_page_addr = all.address;
    desc->large_page_mask = all.mask;
    if (t->global) {
        remember_large_page(&e->space->global_large[mmu_idx], t->vaddr, t->page_size);
    }
}

static void watch(const struct veil_engine *e, CPUTLBEntry *te, target_ulong page)
{
    struct veil_watched watched = veil_watched_page(e, page);

    te->addr_read |= watched.read; /* -1, which stands for no access, stays */
    te->addr_write |= watched.write;
}

static void watch_anew(const struct veil_engine *e, CPUTLBEntry *te, target_ulong page)
{
    if (te->addr_read != (target_ulong)-1 && (te->addr_read & TARGET_PAGE_MASK) == page) {
        te->addr_read &= ~(target_ulong)TLB_WATCHPOINT;
    }
    if (te->addr_write != (target_ulong)-1 && (te->addr_write & TARGET_PAGE_MASK) == page) {
        te->addr_write &= ~(target_ulong)TLB_WATCHPOINT;
    }
    watch(e, te, page);
}

void veil_tlb_watch_anew(struct veil_engine *e, uint64_t vaddr)
{
    CPUTLB *tlb = env_tlb(e->env);
    target_ulong page = vaddr & TARGET_PAGE_MASK;
    int mmu_idx, i;

    for (mmu_idx = 0; mmu_idx < NB_MMU_MODES; mmu_idx++) {
        CPUTLBEntry *te = tlb_entry(e->env, mmu_idx, page);

        if (is_of(te, page)) {
            watch_anew(e, te, page);
        }
        for (i = 0; i < CPU_VTLB_SIZE; i++) {
            te = &tlb->d[mmu_idx].vtable[i];
            if (is_of(te, page)) {
                watch_anew(e, te, page);
            }
        }
    }
}

void veil_tlb_add(struct veil_engine *e, int mmu_idx, const struct veil_translation *t)
{
    CPUX86State *env = e->env;
    CPUTLB *tlb = env_tlb(env);
    CPUTLBDesc *desc = &tlb->d[mmu_idx];
    target_ulong page = t->vaddr & TARGET_PAGE_MASK;
    uint64_t gpa = t->gpa & TARGET_PAGE_MASK;
    size_t entries = table_entries(tlb, mmu_idx);
    CPUTLBEntry *te;
    uintptr_t index;
    int i;

    /* The soft TLB grows only when it is flushed: a program that touches more pages than it has entries would miss
     * forever. */
    if (++e->space->fills[mmu_idx] > 2 * entries && desc->n_used_entries * 10 > entries * 7 &&
        entries < (1u << CPU_TLB_DYN_MAX_BITS)) {
        e->space->fills[mmu_idx] = 0;
        tlb_flush_by_mmuidx(e->cs, 1 << mmu_idx);
    }
    if (t->page_size > TARGET_PAGE_SIZE) {
        add_large_page(e, mmu_idx, t);
    }
    index = tlb_index(env, mmu_idx, page);
    te = tlb_entry(env, mmu_idx, page);
    tlb->c.dirty |= 1 << mmu_idx;
    e->space->local_high_code |= t->vaddr >> 63 && !t->global && (t->prot & PAGE_EXEC);

    for (i = 0; i < CPU_VTLB_SIZE; i++) {
        CPUTLBEntry *v = &desc->vtable[i];

        if (is_of(v, page)) {
            memset(v, -1, sizeof(*v));
        }
    }
    if (!t->global && mmu_idx != MMU_USER_IDX) {
        struct veil_locals *locals = &e->space->locals[mmu_idx];

        if (locals->count < VEIL_LOCAL_PLACES) {
            locals->place[locals->count] = index;
        }
        locals->count++;
    }
    if (is_empty(te)) {
        desc->n_used_entries++;
    } else if (!is_of(te, page)) {
        unsigned victim = desc->vindex++ % CPU_VTLB_SIZE;

        desc->vtable[victim] = *te;
        desc->viotlb[victim] = desc->iotlb[index];
    }
    desc->iotlb[index].addr = gpa - page;
    desc->iotlb[index].attrs = (MemTxAttrs){.unspecified = 1, .target_tlb_bit0 = t->global};
    te->addend = (uintptr_t)e->ram + gpa - page;
    te->paddr = gpa;
    te->addr_read = t->prot & PAGE_READ ? page : (target_ulong)-1;
    te->addr_code = t->prot & PAGE_EXEC ? page : (target_ulong)-1;
    te->addr_write = t->prot & PAGE_WRITE ? page | (e->code_map[gpa >> TARGET_PAGE_BITS] & VEIL_CODE ? TLB_NOTDIRTY : 0)
                                          : (target_ulong)-1;
    if (unlikely(e->watching)) {
        watch(e, te, page);
    }
}

/* Returns how many entries go: one or none. */
static size_t drop_if_local(CPUTLBEntry *te, const CPUIOTLBEntry *more)
{
    if (is_empty(te) || more->attrs.target_tlb_bit0) {
        return 0;
    }
    memset(te, -1, sizeof(*te));
    return 1;
}

static void drop_local(struct veil_engine *e, int mmu_idx)
{
    CPUTLB *tlb = env_tlb(e->env);
    CPUTLBDesc *desc = &tlb->d[mmu_idx];
    CPUTLBEntry *table = tlb->f[mmu_idx].table;
    struct veil_locals *locals = &e->space->locals[mmu_idx];
    size_t entries = table_entries(tlb, mmu_idx), dropped = 0, i;

    if (locals->count <= VEIL_LOCAL_PLACES) {
        /* An entry that was displaced and came back is at the place that it had: there is one for each page. */
        for (i = 0; i < locals->count; i++) {
            if (locals->place[i] < entries) { /* the table may be smaller than it was */
                dropped += drop_if_local(&table[locals->place[i]], &desc->iotlb[locals->place[i]]);
            }
        }
    } else {
        for (i = 0; i < entries; i++) {
            dropped += drop_if_local(&table[i], &desc->iotlb[i]);
        }
    }
    desc->n_used_entries -= MIN(dropped, desc->n_used_entries);
    for (i = 0; i < CPU_VTLB_SIZE; i++) {
        drop_if_local(&desc->vtable[i], &desc->viotlb[i]);
    }
    desc->large_page_addr = e->space->global_large[mmu_idx].address;
    desc->large_page_mask = e->space->global_large[mmu_idx].mask;
}

/*
 * MOV to CR3: the guest's global pages stay (APM vol. 2, 5.5). QEMU drops all of them, and a kernel that switches
 * between programs then spends a third of its time on finding its own pages and translated code again.
 */
void __wrap_cpu_x86_update_cr3_x86_64(CPUX86State *env, target_ulong cr3)
{
    struct veil_engine *e = veil_of(env);
    CPUTLB *tlb = env_tlb(env);
    bool again = cr3 == env->cr[3];
    int mmu_idx;

    env->cr[3] = cr3;
    e->counters.cr3_loads++;
    if (!(env->cr[0] & CR0_PG_MASK) || (again && veil_walked_same(e))) {
        return;
    }
    veil_walked_reset(e);
    for (mmu_idx = 0; mmu_idx < NB_MMU_MODES; mmu_idx++) {
        bool search = e->space->locals[mmu_idx].count > VEIL_LOCAL_PLACES;

        e->space->conflicts[mmu_idx] = 0;
        /* Of a user's pages hardly any is global; and a flush is what makes a table smaller again. */
        if (mmu_idx == MMU_USER_IDX || (search && table_entries(tlb, mmu_idx) > LARGE_TABLE)) {
            tlb_flush_by_mmuidx(e->cs, 1 << mmu_idx);
        } else if (tlb->c.dirty & 1 << mmu_idx) {
            drop_local(e, mmu_idx);
        }
        e->space->locals[mmu_idx].count = 0;
    }
    veil_forget_jumps(e, e->space->local_high_code);
}

/* INVLPG of any address in a large page drops all of it; QEMU forgets the jumps to its other 4 KiB pages. */
void __wrap_tlb_flush_page_x86_64(CPUState *cs, target_ulong addr)
{
    CPUTLB *tlb = env_tlb((CPUX86State *)cs->env_ptr);
    target_ulong page = addr & TARGET_PAGE_MASK;
    bool large = false;
    int mmu_idx;

    veil_of(cs->env_ptr)->counters.page_flushes++;
    for (mmu_idx = 0; mmu_idx < NB_MMU_MODES; mmu_idx++) {
        large |= (page & tlb->d[mmu_idx].large_page_mask) == tlb->d[mmu_idx].large_page_addr;
    }
    __real_tlb_flush_page_x86_64(cs, addr);
    if (large) {
        veil_forget_jumps(veil_of(cs->env_ptr), true);
    }
}

/* Called after every flush by QEMU's code (patched in cputlb.c). A partial flush never follows a change of
 * translations, so only a full one is handled. */
void veil_tlb_flushed(CPUState *cs, bool all)
{
    struct veil_engine *e = veil_of(cs->env_ptr);

    if (!all || !e) { /* without an engine the core is being made, and its jump cache is empty */
        return;
    }
    veil_forget_jumps(e, true);
    e->counters.full_flushes++;
    veil_walked_reset(e);
    memset(e->space->conflicts, 0, sizeof(e->space->conflicts));
    e->space->local_high_code = false;
    memset(e->space->global_large, -1, sizeof(e->space->global_large));
}
