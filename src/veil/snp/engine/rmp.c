// SPDX-License-Identifier: GPL-2.0-or-later
// The instructions that change the RMP.  Every function decodes and checks everything, then changes the table.
#include "rmp.h"

#include <string.h>

#define PAGES_2M UINT64_C(512)
#define PAGE_MASK UINT64_C(0xFFF)
#define ALL_LEVELS ((1u << VEIL_RMP_VMPLS) - 1)

static int valid_range(const veil_rmp *rmp, uint64_t page, unsigned size_2m)
{
    if (!size_2m)
        return page < rmp->pages;
    // Not page + 512 <= pages: that sum can wrap for a hostile address.
    return page % PAGES_2M == 0 && rmp->pages >= PAGES_2M && page <= rmp->pages - PAGES_2M;
}

static int holds_running_vmsa(const veil_rmp *rmp, uint64_t page, unsigned size_2m)
{
    uint64_t vmsa = rmp->vmsa_in_use >> 12;

    if (rmp->vmsa_in_use == VEIL_RMP_NO_VMSA)
        return 0;
    return vmsa - page < (size_2m ? PAGES_2M : 1);
}

// An access that was allowed is not any more: who caches checks of these pages has to forget them.
static void access_ended(veil_rmp *rmp, uint64_t page, unsigned size_2m, unsigned levels, unsigned rights)
{
    rmp->last_ended[rmp->generation % VEIL_RMP_REMEMBERED] =
        page << 12 | levels << VEIL_RMP_ENDED_LEVELS |
        (rights & (VEIL_RMP_UX | VEIL_RMP_SX) ? VEIL_RMP_ENDED_EXECUTION : 0) |
        (size_2m || rights & VEIL_RMP_R ? VEIL_RMP_ENDED_MORE : 0);
    rmp->generation++;
}

// What PVALIDATE, RMPADJUST and RMPQUERY need of the entry before they look at it: a private translation of a page
// that the guest owns and that the firmware does not hold, not smaller than the RMP entry.
static uint64_t guest_fault(const veil_rmp *rmp, uint64_t page, int cbit, int smaller_is_fault, unsigned size_2m)
{
    const veil_rmp_entry *entry;

    if (!cbit)
        return VEIL_RMP_FAULT_RMP;
    if (page >= rmp->pages)
        return VEIL_RMP_FAULT_RMP | VEIL_RMP_FAULT_ENC;
    entry = &rmp->entries[veil_rmp_index(rmp, page)];
    if (!(entry->flags & VEIL_RMP_ASSIGNED) || (entry->flags & VEIL_RMP_IMMUTABLE))
        return VEIL_RMP_FAULT_RMP | VEIL_RMP_FAULT_ENC;
    // The host answers this exit with PSMASH and resumes the guest, which repeats the instruction.
    if (smaller_is_fault && (entry->flags & VEIL_RMP_SIZE_2M) && !size_2m)
        return VEIL_RMP_FAULT_RMP | VEIL_RMP_FAULT_ENC | VEIL_RMP_FAULT_SIZEM;
    return 0;
}

uint64_t veil_pvalidate(veil_rmp *rmp, unsigned vmpl, unsigned cpl, uint64_t gpa, int cbit, unsigned size_2m,
                        unsigned validate)
{
    uint64_t page = gpa >> 12;
    uint64_t fault;
    veil_rmp_entry *entry;

    if (cpl != 0)
        return VEIL_RMP_GP;
    // An error code rather than an exception: software that was not told of its level can find out and ask a monitor.
    if (vmpl != 0)
        return VEIL_RMP_FAIL_PERMISSION;
    size_2m &= 1;
    validate &= 1;
    if (size_2m && page % PAGES_2M)
        return VEIL_RMP_FAIL_INPUT;
    fault = guest_fault(rmp, page, cbit, 1, size_2m);
    if (fault)
        return fault;
    entry = &rmp->entries[veil_rmp_index(rmp, page)];
    if (size_2m && !(entry->flags & VEIL_RMP_SIZE_2M))
        return VEIL_RMP_FAIL_SIZEMISMATCH;
    if (holds_running_vmsa(rmp, page, size_2m))
        return VEIL_RMP_FAIL_INUSE;
    if (!(entry->flags & VEIL_RMP_VALIDATED) == !validate)
        return VEIL_RMP_SUCCESS | 1u << 8;
    // The permissions stay: RMPUPDATE alone resets them, so a monitor must revoke before it invalidates.
    entry->flags ^= VEIL_RMP_VALIDATED;
    if (!validate)
        access_ended(rmp, page, size_2m, ALL_LEVELS, VEIL_RMP_ALL);
    return VEIL_RMP_SUCCESS;
}

uint64_t veil_rmpadjust(veil_rmp *rmp, unsigned vmpl, unsigned cpl, uint64_t gpa, int cbit, unsigned size_2m,
                        uint64_t attributes)
{
    uint64_t page = gpa >> 12;
    unsigned target = attributes & 0xFF;
    unsigned perms = (attributes >> 8) & 0xFF;
    unsigned vmsa = (attributes >> 16) & 1;
    uint64_t fault;
    veil_rmp_entry *entry;

    if (cpl != 0)
        return VEIL_RMP_GP;
    vmpl &= 3;
    size_2m &= 1;
    // The supervisor shadow stack permission (mask bit 4) belongs to a feature that this processor lacks.
    if (target >= VEIL_RMP_VMPLS || perms & ~VEIL_RMP_ALL || attributes >> 17 || (size_2m && page % PAGES_2M))
        return VEIL_RMP_FAIL_INPUT;
    if (target <= vmpl)
        return VEIL_RMP_FAIL_PERMISSION;
    fault = guest_fault(rmp, page, cbit, 1, size_2m);
    if (fault)
        return fault;
    entry = &rmp->entries[veil_rmp_index(rmp, page)];
    if (!(entry->flags & VEIL_RMP_VALIDATED))
        return VEIL_RMP_NOT_VALIDATED;
    if (size_2m && !(entry->flags & VEIL_RMP_SIZE_2M))
        return VEIL_RMP_FAIL_SIZEMISMATCH;
    if (holds_running_vmsa(rmp, page, size_2m))
        return VEIL_RMP_FAIL_INUSE;
    if (perms & ~(unsigned)entry->perms[vmpl])
        return VEIL_RMP_FAIL_PERMISSION;
    // Hardware keeps a VMSA in one 4 KiB page.
    if (vmpl == 0 && vmsa && size_2m)
        return VEIL_RMP_FAIL_INPUT;
    if (entry->perms[target] & ~perms)
        access_ended(rmp, page, size_2m, 1u << target, entry->perms[target] & ~perms);
    entry->perms[target] = (uint8_t)perms;
    // Other levels' VMSA bit is ignored, not refused: software finds out by choosing VMPL 1 as the target.
    if (vmpl == 0)
        entry->flags = (uint8_t)((entry->flags & ~VEIL_RMP_VMSA) | (vmsa ? VEIL_RMP_VMSA : 0));
    return VEIL_RMP_SUCCESS;
}

uint64_t veil_rmpadjust_all(veil_rmp *rmp, unsigned vmpl, unsigned cpl, const veil_rmp_adjustment *adjustments,
                            uint64_t count, uint64_t *failed)
{
    const veil_rmp_adjustment *each;
    uint64_t page, result;

    *failed = 0;
    for (each = adjustments; each < adjustments + count; each++)
        for (page = 0; page < each->pages; page++) {
            *failed = each->gpa + (page << 12);
            result = veil_rmpadjust(rmp, vmpl, cpl, *failed, 1, 0, each->attributes);
            if (result)
                return result;
        }
    return VEIL_RMP_SUCCESS;
}

uint64_t veil_rmpquery(const veil_rmp *rmp, unsigned vmpl, unsigned cpl, uint64_t gpa, int cbit, uint64_t attributes)
{
    uint64_t page = gpa >> 12;
    unsigned target = attributes & 0xFF;
    uint64_t fault;
    const veil_rmp_entry *entry;

    if (cpl != 0)
        return VEIL_RMP_GP;
    if (target >= VEIL_RMP_VMPLS)
        return VEIL_RMP_FAIL_INPUT;
    if (target < (vmpl & 3))
        return VEIL_RMP_FAIL_PERMISSION;
    fault = guest_fault(rmp, page, cbit, 0, 0);
    if (fault)
        return fault;
    entry = &rmp->entries[veil_rmp_index(rmp, page)];
    if (!(entry->flags & VEIL_RMP_VALIDATED))
        return VEIL_RMP_NOT_VALIDATED;
    return VEIL_RMP_SUCCESS | (uint64_t)entry->perms[target] << 8 |
           (entry->flags & VEIL_RMP_VMSA ? UINT64_C(1) << 16 : 0) |
           (entry->flags & VEIL_RMP_SIZE_2M ? UINT64_C(1) << 17 : 0);
}

static void reset_entry(veil_rmp_entry *entry, unsigned flags)
{
    memset(entry, 0, sizeof(*entry));
    entry->flags = (uint8_t)flags;
    if (flags & VEIL_RMP_ASSIGNED)
        entry->perms[0] = VEIL_RMP_ALL;
}

uint32_t veil_rmpupdate(veil_rmp *rmp, uint64_t gpa, unsigned flags)
{
    uint64_t page = gpa >> 12;
    unsigned size_2m = flags & VEIL_RMP_SIZE_2M;
    unsigned assigned = flags & VEIL_RMP_ASSIGNED;
    const veil_rmp_entry *old;
    unsigned was;
    uint64_t i;

    if ((gpa & PAGE_MASK) || !valid_range(rmp, page, size_2m) ||
        (flags & ~(VEIL_RMP_ASSIGNED | VEIL_RMP_SIZE_2M | VEIL_RMP_IMMUTABLE)) ||
        (!assigned && (flags & VEIL_RMP_IMMUTABLE)))
        return VEIL_RMP_FAIL_INPUT;
    old = &rmp->entries[veil_rmp_index(rmp, page)];
    was = old->flags;
    if (was & VEIL_RMP_NO_RAM)
        return VEIL_RMP_FAIL_INPUT;
    if (was & VEIL_RMP_IMMUTABLE)
        return VEIL_RMP_FAIL_PERMISSION;
    if (holds_running_vmsa(rmp, page, size_2m))
        return VEIL_RMP_FAIL_INUSE;
    if (!size_2m != !(was & VEIL_RMP_SIZE_2M)) {
        // One 4 KiB page of a 2 MiB entry (the host must PSMASH first), or 2 MiB over assigned 4 KiB entries.
        if (!size_2m)
            return VEIL_RMP_FAIL_OVERLAP;
        for (i = 0; i < PAGES_2M; i++)
            if (rmp->entries[page + i].flags & VEIL_RMP_ASSIGNED)
                return VEIL_RMP_FAIL_OVERLAP;
    }
    // Giving a page away ends the shared accesses to it, touching a validated one ends the private accesses.
    if ((assigned && !(was & VEIL_RMP_ASSIGNED)) || (was & VEIL_RMP_VALIDATED))
        access_ended(rmp, page, size_2m, ALL_LEVELS, VEIL_RMP_ALL);
    // An unassigned page has no size: the entry of a freed 2 MiB page is 512 free 4 KiB pages.
    reset_entry(&rmp->entries[page], assigned ? flags : 0);
    return VEIL_RMP_SUCCESS;
}

uint32_t veil_rmpupdate_range(veil_rmp *rmp, uint64_t gpa, unsigned flags, uint64_t count, uint64_t *done)
{
    uint64_t step = flags & VEIL_RMP_SIZE_2M ? PAGES_2M << 12 : UINT64_C(1) << 12;
    uint32_t code;

    for (*done = 0; *done < count; ++*done) {
        code = veil_rmpupdate(rmp, gpa + *done * step, flags);
        if (code)
            return code;
    }
    return VEIL_RMP_SUCCESS;
}

uint32_t veil_psmash(veil_rmp *rmp, uint64_t gpa)
{
    uint64_t page = gpa >> 12;
    veil_rmp_entry *entries;
    uint64_t i;

    if ((gpa & PAGE_MASK) || !valid_range(rmp, page, 1))
        return VEIL_RMP_FAIL_INPUT;
    entries = &rmp->entries[page];
    if (entries->flags & VEIL_RMP_IMMUTABLE)
        return VEIL_RMP_FAIL_PERMISSION;
    if (!(entries->flags & VEIL_RMP_SIZE_2M))
        return VEIL_RMP_FAIL_INPUT;
    // No VMSA can be in use here: those have 4 KiB entries.
    entries->flags &= (uint8_t)~VEIL_RMP_SIZE_2M;
    for (i = 1; i < PAGES_2M; i++)
        entries[i] = entries[0];
    return VEIL_RMP_SUCCESS;
}

uint32_t veil_rmp_launch_page(veil_rmp *rmp, uint64_t gpa, unsigned size_2m, unsigned vmsa, uint32_t perms)
{
    uint64_t page = gpa >> 12;
    veil_rmp_entry *entry;

    if ((gpa & PAGE_MASK) || !valid_range(rmp, page, size_2m) || (size_2m && vmsa) || perms & ~UINT32_C(0x0F0F0F))
        return VEIL_RMP_FAIL_INPUT;
    entry = &rmp->entries[veil_rmp_index(rmp, page)];
    if (!(entry->flags & VEIL_RMP_ASSIGNED) || (entry->flags & VEIL_RMP_VALIDATED))
        return VEIL_RMP_FAIL_PERMISSION;
    if (!size_2m != !(entry->flags & VEIL_RMP_SIZE_2M))
        return VEIL_RMP_FAIL_SIZEMISMATCH;
    entry->flags = (uint8_t)(VEIL_RMP_ASSIGNED | VEIL_RMP_VALIDATED | (size_2m ? VEIL_RMP_SIZE_2M : 0) |
                             (vmsa ? VEIL_RMP_VMSA : 0));
    entry->perms[0] = VEIL_RMP_ALL;
    entry->perms[1] = (uint8_t)perms;
    entry->perms[2] = (uint8_t)(perms >> 8);
    entry->perms[3] = (uint8_t)(perms >> 16);
    return VEIL_RMP_SUCCESS;
}

int veil_rmp_is_vmsa(const veil_rmp *rmp, uint64_t gpa)
{
    const unsigned need = VEIL_RMP_ASSIGNED | VEIL_RMP_VALIDATED | VEIL_RMP_VMSA;
    uint64_t page = gpa >> 12;
    unsigned flags;

    if ((gpa & PAGE_MASK) || page >= rmp->pages)
        return 0;
    flags = rmp->entries[veil_rmp_index(rmp, page)].flags;
    return (flags & (need | VEIL_RMP_SIZE_2M | VEIL_RMP_IMMUTABLE)) == need;
}

uint64_t veil_rmp_check_range(const veil_rmp *rmp, uint64_t gpa, uint64_t length, unsigned vmpl, unsigned access,
                              int cbit, uint64_t *fault_gpa)
{
    uint64_t page, last, fault;

    if (!length)
        return 0;
    last = (gpa + length - 1) >> 12;
    for (page = gpa >> 12; page <= last; page++) {
        fault = veil_rmp_check(rmp, page << 12, vmpl, access, cbit);
        if (fault) {
            *fault_gpa = page == gpa >> 12 ? gpa : page << 12;
            return fault;
        }
    }
    return 0;
}
