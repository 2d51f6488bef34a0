/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The reverse map table (RMP) of the software SEV-SNP machine.
 *
 * AMD64 Architecture Programmer's Manual (24593) volume 2, section 15.36 "Secure Nested Paging", volume 3 (24594),
 * instructions PVALIDATE, RMPADJUST, RMPQUERY (guest) and RMPUPDATE, PSMASH (host).
 *
 * The machine has one guest, and its nested page tables are the identity: one entry per 4 KiB guest-physical page,
 * and the architecture's GPA and ASID checks hold by construction.  The entry at a 2 MiB boundary whose
 * VEIL_RMP_SIZE_2M flag is set is authoritative for all of its 512 pages; the other 511 entries are then zero.
 *
 * Nothing here locks: one thread runs the machine.
 */
#ifndef VEIL_RMP_H
#define VEIL_RMP_H

#include <stddef.h>
#include <stdint.h>

/* veil_rmp_entry.flags */
#define VEIL_RMP_ASSIGNED 0x01u
#define VEIL_RMP_VALIDATED 0x02u
#define VEIL_RMP_VMSA 0x04u
#define VEIL_RMP_SIZE_2M 0x08u
#define VEIL_RMP_IMMUTABLE 0x10u
#define VEIL_RMP_NO_RAM 0x80u /* an address in the hole below 4 GiB: nothing to assign */

/* Permission bits: of veil_rmp_entry.perms[], of RMPADJUST's and RMPQUERY's masks, and of the access of a check. */
#define VEIL_RMP_R 0x1u
#define VEIL_RMP_W 0x2u
#define VEIL_RMP_UX 0x4u
#define VEIL_RMP_SX 0x8u
#define VEIL_RMP_ALL 0xFu

#define VEIL_RMP_VMPLS 4u

/* Result codes that the instructions leave in EAX. */
#define VEIL_RMP_SUCCESS 0u
#define VEIL_RMP_FAIL_INPUT 1u
#define VEIL_RMP_FAIL_PERMISSION 2u
#define VEIL_RMP_FAIL_INUSE 3u
#define VEIL_RMP_FAIL_OVERLAP 4u /* RMPUPDATE only */
#define VEIL_RMP_FAIL_SIZEMISMATCH 6u

/*
 * Faults.  A result with a bit of VEIL_RMP_FAULT_MASK set is a fault and nothing was changed:
 *   EXITINFO1 bits of a #NPF exit (APM vol 2, 15.36.10); the caller adds bits 0..4 (present, write, user, fetch) and
 *     32 or 33 (final translation, table walk);
 *   VEIL_RMP_NOT_VALIDATED: #VC with error code 0x404 (PAGE_NOT_VALIDATED) in the guest;
 *   VEIL_RMP_GP: #GP(0) in the guest.
 */
#define VEIL_RMP_FAULT_RMP (UINT64_C(1) << 31)
#define VEIL_RMP_FAULT_ENC (UINT64_C(1) << 34)
#define VEIL_RMP_FAULT_SIZEM (UINT64_C(1) << 35)
#define VEIL_RMP_FAULT_VMPL (UINT64_C(1) << 36)
#define VEIL_RMP_GP (UINT64_C(1) << 62)
#define VEIL_RMP_NOT_VALIDATED (UINT64_C(1) << 63)
#define VEIL_RMP_FAULT_MASK (~(UINT64_C(1) << 31) + 1)

/* The result of an instruction that did not fault. */
#define VEIL_RMP_CODE(result) ((uint32_t)((result) & 0xFFu))
#define VEIL_RMP_CF(result) ((uint32_t)((result) >> 8) & 1u)             /* PVALIDATE */
#define VEIL_RMP_QUERY_PERMS(result) ((uint32_t)((result) >> 8) & 0xFFu) /* RMPQUERY: RDX[15:8] */
#define VEIL_RMP_QUERY_VMSA(result) ((uint32_t)((result) >> 16) & 1u)    /* RMPQUERY: RDX[16] */
#define VEIL_RMP_QUERY_SIZE(result) ((uint32_t)((result) >> 17) & 1u)    /* RMPQUERY: RCX[0] */

#define VEIL_RMP_NO_VMSA (~UINT64_C(0))

typedef struct veil_rmp_entry {
    uint8_t flags;
    uint8_t reserved[3];
    uint8_t perms[VEIL_RMP_VMPLS]; /* perms[0] of an assigned page is always VEIL_RMP_ALL */
} veil_rmp_entry;

/* Changes that ended an access and are remembered; of older ones it is not known where they were. */
#define VEIL_RMP_REMEMBERED 256
/* In last_ended, below the page's GPA. */
#define VEIL_RMP_ENDED_EXECUTION 1 /* a right to execute */
/* A right to read, so that what page tables in it say is not known any more; or rights to more than the page. */
#define VEIL_RMP_ENDED_MORE 2
#define VEIL_RMP_ENDED_LEVELS 4 /* the first of four bits: for VMPL 0, and so on */

typedef struct veil_rmp {
    veil_rmp_entry *entries;
    uint64_t pages; /* 4 KiB pages of guest-physical memory */
    /* Grows with every change that ends an access which was allowed, and only then.  A change of vmsa_in_use is not
     * counted: who caches checks keeps the caches of different VMSAs apart, or flushes at VMRUN. */
    uint64_t generation;
    uint64_t vmsa_in_use;                     /* GPA of the VMSA that runs now, VEIL_RMP_NO_VMSA if none */
    uint64_t last_ended[VEIL_RMP_REMEMBERED]; /* at generation % VEIL_RMP_REMEMBERED: where the change after it was */
} veil_rmp;

_Static_assert(sizeof(veil_rmp_entry) == 8, "numpy and snapshots rely on 8 byte entries");
_Static_assert(sizeof(veil_rmp) == 32 + 8 * VEIL_RMP_REMEMBERED, "ctypes relies on this layout");

/* Index of the entry that governs a page; page < rmp->pages. */
static inline uint64_t veil_rmp_index(const veil_rmp *rmp, uint64_t page)
{
    uint64_t base = page & ~UINT64_C(511);

    return rmp->entries[base].flags & VEIL_RMP_SIZE_2M ? base : page;
}

/*
 * May the guest at this VMPL make this access?  access is a set of permission bits, all of them needed (an A/D update
 * of a page table is R|W); cbit is the C-bit of the guest's translation.  Returns 0 or a fault.
 *
 * APM vol 2, table "RMP memory access checks" for SNP-active guests, in the order of the checks: guest-owned or
 * hypervisor-owned, then validated, then VMPL permissions.  Memory that the RMP does not cover is hypervisor-owned.
 *
 * A page that hardware holds as a running VMSA refuses writes (APM vol 2, 15.36.12); an idle VMSA page is subject to
 * its permissions only, which is why a monitor must revoke them before it sets the VMSA attribute.
 */
static inline uint64_t veil_rmp_check(const veil_rmp *rmp, uint64_t gpa, unsigned vmpl, unsigned access, int cbit)
{
    uint64_t page = gpa >> 12;
    const veil_rmp_entry *entry;

    if (page >= rmp->pages)
        return cbit ? VEIL_RMP_FAULT_RMP | VEIL_RMP_FAULT_ENC : 0;
    entry = &rmp->entries[veil_rmp_index(rmp, page)];
    if (!cbit)
        return entry->flags & (VEIL_RMP_ASSIGNED | VEIL_RMP_NO_RAM) ? VEIL_RMP_FAULT_RMP : 0;
    if (!(entry->flags & VEIL_RMP_ASSIGNED))
        return VEIL_RMP_FAULT_RMP | VEIL_RMP_FAULT_ENC;
    if (!(entry->flags & VEIL_RMP_VALIDATED))
        return VEIL_RMP_NOT_VALIDATED;
    if (access & ~(unsigned)entry->perms[vmpl & 3])
        return VEIL_RMP_FAULT_RMP | VEIL_RMP_FAULT_ENC | VEIL_RMP_FAULT_VMPL;
    if ((access & VEIL_RMP_W) && page == rmp->vmsa_in_use >> 12)
        return VEIL_RMP_FAULT_RMP | VEIL_RMP_FAULT_ENC;
    return 0;
}

#pragma GCC visibility push(default)

/*
 * Guest instructions.  gpa is the translation of RAX with the low 12 bits cleared, cbit that translation's C-bit;
 * size_2m is ECX[0].  #UD (not an SNP guest) and the guest's own #PF are the caller's.  All return a fault, or the
 * code for EAX in bits 7:0 with the other outputs as the macros above say.
 */

/* PVALIDATE: validate is EDX[0]; bit 8 of the result is CF, 1 if the entry was not changed. */
uint64_t veil_pvalidate(veil_rmp *rmp, unsigned vmpl, unsigned cpl, uint64_t gpa, int cbit, unsigned size_2m,
                        unsigned validate);

/* RMPADJUST: attributes is RDX (target VMPL 7:0, permission mask 15:8, VMSA 16). */
uint64_t veil_rmpadjust(veil_rmp *rmp, unsigned vmpl, unsigned cpl, uint64_t gpa, int cbit, unsigned size_2m,
                        uint64_t attributes);

/* RMPADJUST of `pages` private 4 KiB pages in a row. */
typedef struct veil_rmp_adjustment {
    uint64_t gpa;
    uint64_t pages;
    uint64_t attributes;
} veil_rmp_adjustment;

/* Many of them, one after the other, until the first page that does not succeed; *failed is its address. */
uint64_t veil_rmpadjust_all(veil_rmp *rmp, unsigned vmpl, unsigned cpl, const veil_rmp_adjustment *adjustments,
                            uint64_t count, uint64_t *failed);

/* RMPQUERY: attributes is RDX (target VMPL 7:0). */
uint64_t veil_rmpquery(const veil_rmp *rmp, unsigned vmpl, unsigned cpl, uint64_t gpa, int cbit, uint64_t attributes);

/* Host instructions: return the code for EAX.  */

/*
 * RMPUPDATE: flags is the new state, a set of VEIL_RMP_ASSIGNED, _SIZE_2M and _IMMUTABLE.  An entry that it writes is
 * not validated, no VMSA, and open to VMPL 0 only.
 */
uint32_t veil_rmpupdate(veil_rmp *rmp, uint64_t gpa, unsigned flags);

/* RMPUPDATE of count pages in a row, until the first that fails; *done is how many were updated. */
uint32_t veil_rmpupdate_range(veil_rmp *rmp, uint64_t gpa, unsigned flags, uint64_t count, uint64_t *done);

/* PSMASH: splits the 2 MiB entry at gpa into 512 entries of 4 KiB with the same state. */
uint32_t veil_psmash(veil_rmp *rmp, uint64_t gpa);

/* The secure processor. */

/*
 * SNP_LAUNCH_UPDATE: turns an assigned page that is not validated into a validated, mutable one.  perms has the
 * permissions of VMPL 1 in bits 7:0, of VMPL 2 in 15:8, of VMPL 3 in 23:16.
 */
uint32_t veil_rmp_launch_page(veil_rmp *rmp, uint64_t gpa, unsigned size_2m, unsigned vmsa, uint32_t perms);

/* May VMRUN enter the VMSA at gpa?  (APM vol 2, 15.36.12: guest-owned, validated, VMSA, 4 KiB.) */
int veil_rmp_is_vmsa(const veil_rmp *rmp, uint64_t gpa);

/* veil_rmp_check over every page of [gpa, gpa + length); the first fault, with *fault_gpa its address. */
uint64_t veil_rmp_check_range(const veil_rmp *rmp, uint64_t gpa, uint64_t length, unsigned vmpl, unsigned access,
                              int cbit, uint64_t *fault_gpa);

#pragma GCC visibility pop

#endif
