/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which entries of the guest's page tables the TLB comes from, with their values. A guest that loads CR3 with what is
 * there already has its TLB emptied; when none of these entries has changed, walks would fill it with the same again.
 * Stock firmware does so at the end of each exception, so at each #VC. And hosted code that has written to a context's
 * tables has mapped further pages, most often: a page that was not there is in no TLB.
 *
 * Rights that only the RMP takes away do not matter here: they empty the TLB by the RMP's generation.
 */
#include "walked.h"

static uint64_t value_of(const struct veil_engine *e, uint64_t gpa, bool wide)
{
    return wide ? ldq_le_p(e->ram + gpa) : (uint32_t)ldl_le_p(e->ram + gpa);
}

/* The processor itself sets accessed and dirty bits. Where the guest cleared one, the next access must set it again. */
static bool is_same(uint64_t was, uint64_t is)
{
    return !((was ^ is) & ~(is & (PG_ACCESSED_MASK | PG_DIRTY_MASK)));
}

static void add(struct veil_engine *e, uint64_t gpa, bool wide)
{
    struct veil_walked *w = &e->space->walked;
    uint64_t value = value_of(e, gpa, wide);
    unsigned slot = gpa / 4 * 0x9e3779b1u >> (32 - VEIL_WALKED_SLOT_BITS) & (VEIL_WALKED_SLOTS - 1);

    while (w->slots[slot]) {
        struct veil_walked_entry *old = &w->entries[w->slots[slot] - 1];

        if (old->gpa == gpa && is_same(old->value, value)) {
            old->value = value; /* a bit that this walk has set must stay set as well */
            return;
        }
        slot = (slot + 1) & (VEIL_WALKED_SLOTS - 1);
    }
    if (w->count >= VEIL_WALKED) {
        w->overflow = true;
        return;
    }
    w->entries[w->count] = (struct veil_walked_entry){gpa, value};
    w->slots[slot] = ++w->count;
}

void veil_walked_add(struct veil_engine *e, const uint64_t *entry_gpas, unsigned levels, bool wide)
{
    struct veil_walked *w = &e->space->walked;
    unsigned i;

    if (!w->count) {
        w->wide = wide; /* changes of how entries are read empty the TLB at once */
    }
    for (i = 0; i < levels && !w->overflow; i++) {
        add(e, entry_gpas[i], wide);
    }
}

void veil_walked_reset(struct veil_engine *e)
{
    struct veil_walked *w = &e->space->walked;

    if (w->count) {
        memset(w->slots, 0, sizeof(w->slots));
        w->count = 0;
    }
    w->overflow = false;
}

bool veil_walked_same(const struct veil_engine *e)
{
    const struct veil_walked *w = &e->space->walked;
    unsigned i;

    if (w->overflow) {
        return false;
    }
    for (i = 0; i < w->count; i++) {
        if (!is_same(w->entries[i].value, value_of(e, w->entries[i].gpa, w->wide))) {
            return false;
        }
    }
    return true;
}
