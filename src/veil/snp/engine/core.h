/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The CPU engine: one x86-64 core that runs the guest context of one VMSA at a
 * time. This is its state, which all of the engine's files work on; Python sees
 * api.h.
 */
#ifndef VEIL_CORE_H
#define VEIL_CORE_H

#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "uc_priv.h"

#include <pthread.h>

#include "rmp.h"
#include "vmsa.h"
#include "api.h"

/* Pseudo exception numbers, above every value that QEMU's core uses. */
#define VEIL_EXCP_EXIT 0x20000

#define VEIL_VECTOR_HV 28
#define VEIL_VECTOR_VC 29

#define VEIL_C_BIT (1ULL << 51)

/* QEMU's core knows no UMIP. */
#define VEIL_CR4_UMIP (1U << 11)

/* An event whose delivery is under way; kept so that a nested page fault in the
 * middle of it reports EXITINTINFO (APM vol. 2, 15.7.2) and can be repeated. */
struct veil_event {
    bool pending;
    uint8_t vector;
    uint8_t type; /* EVENTINJ encoding: 0 external, 2 NMI, 3 exception, 4 software */
    bool has_error_code;
    uint32_t error_code;
    uint64_t next_rip; /* software interrupts only */
};

/* Addresses that are `address` under `mask`; all ones: none. */
struct veil_region {
    uint64_t address, mask;
};

/* Places in a TLB's table that may have an entry of this address space alone; `count` goes on when there is no room. */
#define VEIL_LOCAL_PLACES 512
struct veil_locals {
    uint32_t count;
    uint32_t place[VEIL_LOCAL_PLACES];
};

/* In code_map: code was translated from the page; and it is a page table of a context whose tables hosted code writes.
 */
#define VEIL_CODE 1
#define VEIL_TABLE 2
/* No instruction of such a context tells of its changes: what hosted code writes to them outdates its TLB. */
#define VEIL_HOSTED_TABLES_VMPL 2

/* The address space of one context, as the TLB has it or had it (spaces.c). */
#define VEIL_SPACES 16
/* walked.c: so many entries of page tables; more are not remembered. */
#define VEIL_WALKED 2048
#define VEIL_WALKED_SLOT_BITS 12
#define VEIL_WALKED_SLOTS (1 << VEIL_WALKED_SLOT_BITS)

struct veil_walked_entry {
    uint64_t gpa, value;
};

struct veil_walked {
    struct veil_walked_entry entries[VEIL_WALKED];
    uint16_t slots[VEIL_WALKED_SLOTS]; /* by a hash of the GPA: an entry's number and 1, or 0 */
    unsigned count;
    bool wide, overflow;
};

/* What DR7 enables of DR0 to DR3; all of it zero: nothing (debug_registers.c). */
#define VEIL_DEBUG_REGISTERS 4
struct veil_breakpoints {
    uint64_t address[VEIL_DEBUG_REGISTERS];
    uint8_t length[VEIL_DEBUG_REGISTERS]; /* of data */
    uint8_t code, reads, writes;          /* which of them are about that: a bit for each */
    uint8_t reserved;
};

struct veil_space {
    uint64_t vmsa;                /* whose it is, all ones: nobody's, */
    int vmpl;                     /* and with whose permissions */
    uint64_t cr0, cr3, cr4, efer; /* when it was left */
    uint32_t pkru;
    struct veil_breakpoints breakpoints;               /* whose pages its entries have marked */
    uint64_t rmp_generation, code_pages, table_writes; /* what its entries know of */
    uint64_t entered;
    bool has_tables;
    bool low_jumps, high_jumps; /* the jump cache has blocks of that half of it */
    bool local_high_code; /* since the last flush: code in the upper half of the address space that is not global */
    unsigned jump_low, jump_high;     /* its places in the jump cache, while it is not loaded */
    uint32_t fills[NB_MMU_MODES];     /* since the table grew */
    uint32_t conflicts[NB_MMU_MODES]; /* since the address space changed */
    struct veil_region global_large[NB_MMU_MODES];
    struct veil_locals locals[NB_MMU_MODES]; /* since the last MOV to CR3 */
    struct veil_walked walked;               /* since the last flush */
    CPUTLB tlb;                              /* while it is not loaded */
};

#define VEIL_CODE_SETS 128

struct veil_engine {
    uc_engine *uc;
    CPUState *cs;
    CPUX86State *env;

    uint8_t *ram;
    uint64_t ram_size;                                 /* bytes of guest-physical space, the holes included */
    uint64_t low_end, high_start, high_end, far_start; /* RAM is what lies in front of, between and behind the holes */
    MemoryRegion *ram_region;
    struct veil_rmp *rmp;
    uint8_t *code_map; /* one byte a page: VEIL_CODE, VEIL_TABLE */

    /* the context being run */
    struct veil_vmcb *vmcb;
    struct veil_vmsa *vmsa;
    int vmpl;
    bool restricted;          /* no event from the host but #HV */
    bool alternate;           /* none from the host at all, but those of the VMSA */
    uint64_t v_intr;          /* interrupts on offer: the VMCB's, or with `alternate` the VMSA's */
    struct veil_space *space; /* that the TLB describes */
    struct veil_event delivering;
    uint32_t features; /* VEIL_CPU_ */

    /* debug registers */
    bool debug_swap;                                          /* DR0 to DR3 are the VMSA's */
    uint64_t own_dr[VEIL_DEBUG_REGISTERS];                    /* the core's meanwhile */
    struct veil_breakpoints breakpoints;                      /* of the context being run */
    uint32_t data_hits;                                       /* DR6 bits of accesses of the instruction at hand */
    CPUBreakpoint code_breakpoints[VEIL_DEBUG_REGISTERS];     /* in the core's list, as `breakpoints.code` says */
    uint64_t code_sets[VEIL_CODE_SETS][VEIL_DEBUG_REGISTERS]; /* for each there are translations of their own */
    unsigned code_set_count;

    uint64_t deadline_ns;
    uint64_t tsc_offset;
    bool crowded; /* one of the conflicts is above the bound */
    struct veil_space spaces[VEIL_SPACES];
    unsigned next_low, next_high; /* places in the jump cache that no space has */
    uint64_t code_pages;          /* grows with each page from which code is translated */
    uint64_t table_writes;        /* with each write of hosted code to a page with VEIL_TABLE */
    uint32_t pauses;
    uint32_t pause_limit;

    /* a debugger's */
    struct veil_watchpoint watchpoints[VEIL_MAX_WATCHPOINTS];
    uint32_t watchpoint_count;
    bool watching;       /* some accesses are a debugger's or the guest's breakpoints */
    uint32_t debug_stop; /* why the VMRUN that ended stopped */
    uint64_t debug_address;

    /* the exit being taken */
    uint64_t exit_code, exit_info_1, exit_info_2;

    pthread_t ticker;
    pthread_mutex_t ticker_lock;
    pthread_cond_t ticker_wake;
    volatile bool ticker_stop;
    volatile bool ticker_asleep;
    volatile bool running;
    volatile bool kicked;

    struct veil_engine_counters counters;
};

/* The engine of a CPU. VM_HSAVE_PA's place in the CPU state is free: the guest cannot reach that MSR. */
static inline struct veil_engine *veil_of(CPUX86State *env)
{
    return (struct veil_engine *)(uintptr_t)env->vm_hsave;
}

static inline bool veil_is_ram(const struct veil_engine *e, uint64_t gpa)
{
    return gpa < e->low_end || (gpa >= e->high_start && gpa < e->high_end) ||
           (gpa >= e->far_start && gpa < e->ram_size);
}

#endif
