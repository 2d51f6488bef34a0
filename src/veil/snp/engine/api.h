/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What Python calls. Every function is made for one thread. */
#ifndef VEIL_API_H
#define VEIL_API_H

#include <stdint.h>

struct veil_engine;
struct veil_rmp;
struct veil_vmcb;

/* Totals since the engine was made; counting them costs nothing that could be measured. */
struct veil_engine_counters {
    uint64_t vmruns;
    uint64_t tlb_fills;
    uint64_t nested_faults;
    uint64_t redelivered; /* events whose delivery a nested page fault interrupted */
    uint64_t vc;
    uint64_t flushes;       /* of all of the TLB: another VMSA, or a right that was taken away */
    uint64_t full_flushes;  /* these, and those that the guest asked for */
    uint64_t cr3_loads;     /* MOV to CR3 */
    uint64_t page_flushes;  /* INVLPG */
    uint64_t tlb_conflicts; /* accesses whose entry had been displaced by another one, and was found again */
    uint64_t tlb_resizes;
    uint64_t loop_entries;  /* the run loop went into generated code */
    uint64_t block_lookups; /* jumps to a block that the jump cache did not have */
    uint64_t blocks_made;   /* translated */
    uint64_t code_stores;   /* stores to pages that code was translated from */
    uint64_t events;        /* exceptions and interrupts, their delivery begun */
    uint64_t switches;      /* between VMPL 3 and 2, without the host */
    uint64_t instructions;  /* begun by the guest; 0 unless the engine was built to count them */
};

/* VCPUs that a host has beside the one that runs. */
#define VEIL_MAX_HELD 63

#define VEIL_API __attribute__((visibility("default")))

#define VEIL_MAX_HOLES 2
/* edges: where each hole in guest-physical space begins and ends; ram_size for those that there are not. */
VEIL_API struct veil_engine *veil_engine_new(uint8_t *ram, uint64_t ram_size,
                                             const uint64_t edges[static 2 * VEIL_MAX_HOLES], struct veil_rmp *rmp,
                                             uint8_t *code_map);
VEIL_API void veil_engine_free(struct veil_engine *engine);
/* Runs the VMSA that the VMCB names until an exit, or until CLOCK_MONOTONIC
 * reaches deadline_ns (0: no deadline), which is exit INTR. */
VEIL_API void veil_engine_vmrun(struct veil_engine *engine, struct veil_vmcb *vmcb, uint64_t deadline_ns);
/*
 * What the host has done by itself in veil_engine_run_switching: one VCPU's kernel of VMPL 3, and the contexts of VMPL
 * 2 that it may have run in its place.
 */
struct veil_switch_policy {
    uint64_t kernel;   /* address of its VMCB */
    uint64_t contexts; /* address of `pages` numbers: for each page of memory the address of the VMCB of the context
                          whose VMSA is there, or 0 */
    uint64_t pages;
    uint32_t held_count;
    uint32_t reserved;
    uint64_t held[VEIL_MAX_HELD]; /* VMSAs that other VCPUs are in the middle of */
};
/* The same, and goes on with the other side where the kernel asks for a context, or a context leaves with VMGEXIT.
 * Returns the VMSA of what left in the end. */
VEIL_API uint64_t veil_engine_run_switching(struct veil_engine *engine, struct veil_vmcb *vmcb,
                                            const struct veil_switch_policy *policy, uint64_t deadline_ns);
/* Translations of [gpa, gpa + length) are dropped: somebody else wrote there. */
VEIL_API void veil_engine_code_written(struct veil_engine *engine, uint64_t gpa, uint64_t length);
/* All memory was replaced (snapshot restored). */
VEIL_API void veil_engine_reset(struct veil_engine *engine);
/* May be called from another thread or a signal handler: leave vmrun soon, exit INTR. */
VEIL_API void veil_engine_kick(struct veil_engine *engine);
/* What the processor has beside what it always has; before the first VMRUN. */
enum { VEIL_CPU_XSAVE = 1, VEIL_CPU_PKU = 2 };
VEIL_API void veil_engine_set_cpu_features(struct veil_engine *engine, uint32_t features);
VEIL_API void veil_engine_cpuid(struct veil_engine *engine, uint32_t leaf, uint32_t subleaf, uint32_t out[4]);
/* The guest's TSC is CLOCK_MONOTONIC in nanoseconds and this. */
VEIL_API void veil_engine_set_tsc_offset(struct veil_engine *engine, uint64_t offset);
VEIL_API void veil_engine_set_pause_limit(struct veil_engine *engine, uint32_t limit);
/* Not 0: each VMRUN ends with INTR after one instruction, or one iteration of it, or the delivery of one event. */
VEIL_API void veil_engine_set_single_step(struct veil_engine *engine, uint32_t on);

/* A debugger's stops: VMRUN ends with INTR, and veil_engine_debug_stop says why. */
enum { VEIL_STOP_NONE, VEIL_STOP_STEP, VEIL_STOP_BREAKPOINT, VEIL_STOP_WATCHPOINT };
enum { VEIL_WATCH_READ = 1, VEIL_WATCH_WRITE = 2 };
#define VEIL_MAX_WATCHPOINTS 32
struct veil_watchpoint {
    uint64_t address, length; /* virtual, of whichever context */
    uint32_t kinds;
    uint32_t reserved;
};
/* In front of the instructions at these virtual addresses, in all contexts; in place of those that there were. */
VEIL_API void veil_engine_set_breakpoints(struct veil_engine *engine, const uint64_t *addresses, uint32_t count);
/* In front of accesses; the same. */
VEIL_API void veil_engine_set_watchpoints(struct veil_engine *engine, const struct veil_watchpoint *watchpoints,
                                          uint32_t count);
/* Why the last VMRUN stopped, once; `address` is that of the watchpoint. */
VEIL_API uint32_t veil_engine_debug_stop(struct veil_engine *engine, uint64_t *address);
VEIL_API const struct veil_engine_counters *veil_engine_counters(struct veil_engine *engine);

#endif
