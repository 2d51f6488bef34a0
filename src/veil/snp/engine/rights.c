/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Rights that the RMP took away. A monitor takes the right to write or to execute from a few pages at a time, and were
 * the whole TLB dropped for it, the kernel would find all other pages again. An entry has the page that it leads to, so
 * all of a page's entries are found, whatever their virtual addresses. A jump does not look at the TLB: where code may
 * not be executed any more, all jumps of the space are forgotten. Where reading ended all goes, for the page may be a
 * page table, and entries for other pages found through it.
 */
#include "rights.h"
#include "spaces.h"

/* The pages that lost rights, by the last bits of their numbers: a page that is taken for another one is found again.
 */
#define LOST_PAGES 4096
#define NO_PAGE ((hwaddr) - 1) /* of an empty entry, which is all ones */
struct lost {
    uint64_t bits[LOST_PAGES / 64];
};

static size_t drop_if_lost(CPUTLBEntry *te, const struct lost *lost)
{
    uint64_t place = (te->paddr >> TARGET_PAGE_BITS) % LOST_PAGES;

    if (!(lost->bits[place / 64] >> place % 64 & 1) || te->paddr == NO_PAGE) {
        return 0;
    }
    memset(te, -1, sizeof(*te));
    return 1;
}

static void drop_lost(struct veil_engine *e, int mmu_idx, const struct lost *lost)
{
    CPUTLB *tlb = env_tlb(e->env);
    CPUTLBDesc *desc = &tlb->d[mmu_idx];
    size_t place, dropped = 0;
    int i;

    for (place = 0; place <= tlb->f[mmu_idx].mask >> CPU_TLB_ENTRY_BITS; place++) {
        dropped += drop_if_lost(&tlb->f[mmu_idx].table[place], lost);
    }
    desc->n_used_entries -= MIN(dropped, desc->n_used_entries);
    for (i = 0; i < CPU_VTLB_SIZE; i++) {
        drop_if_lost(&desc->vtable[i], lost);
    }
}

void veil_forget_lost_rights(struct veil_engine *e)
{
    const struct veil_rmp *rmp = e->rmp;
    uint64_t change = e->space->rmp_generation;
    bool all = rmp->generation - change > VEIL_RMP_REMEMBERED, jumps = false;
    struct lost lost = {0};
    int mmu_idx;

    for (; !all && change != rmp->generation; change++) {
        uint64_t ended = rmp->last_ended[change % VEIL_RMP_REMEMBERED];
        uint64_t page = ended >> TARGET_PAGE_BITS;

        if (!(ended >> VEIL_RMP_ENDED_LEVELS & 1ULL << e->space->vmpl)) {
            continue;
        }
        all = ended & VEIL_RMP_ENDED_MORE;
        jumps |= ended & VEIL_RMP_ENDED_EXECUTION && e->code_map[page] & VEIL_CODE;
        lost.bits[page % LOST_PAGES / 64] |= 1ULL << page % 64;
    }
    e->space->rmp_generation = rmp->generation;
    if (all) {
        e->counters.flushes++;
        tlb_flush(e->cs);
        return;
    }
    for (mmu_idx = 0; mmu_idx < NB_MMU_MODES; mmu_idx++) {
        if (env_tlb(e->env)->c.dirty & 1 << mmu_idx) {
            drop_lost(e, mmu_idx, &lost);
        }
    }
    if (jumps) {
        veil_forget_jumps(e, true);
    }
}
