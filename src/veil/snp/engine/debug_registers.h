/* SPDX-License-Identifier: GPL-2.0-or-later */
/* DR0 to DR7: the guest's own breakpoints, and its #DB. */
#ifndef VEIL_DEBUG_REGISTERS_H
#define VEIL_DEBUG_REGISTERS_H

#include "core.h"

/* With VMRUN: DR0 to DR3 of the VMSA, if it has DebugSwap; DR6 and DR7 are loaded already. */
void veil_debug_enter(struct veil_engine *e);
/* What is translated and in the TLB is as the registers say; after the context's address space was loaded. */
void veil_debug_follow(struct veil_engine *e);
void veil_debug_leave(struct veil_engine *e);
/* Before the core is freed, which frees all that is in its list of breakpoints. */
void veil_debug_free(struct veil_engine *e);

/* Translations of single steps are not those of blocks that have one instruction for another reason. */
void veil_debug_choose_translations(struct veil_engine *e);
/* A block ended in front of a breakpoint at RIP: the guest's own? Then #DB is what comes next. */
bool veil_debug_take_code_breakpoint(struct veil_engine *e);
/* The accesses of the instruction that is done; false: it holds #DB back (MOV SS, POP SS). */
bool veil_debug_take_data_breakpoint(struct veil_engine *e);
/* Is there a trap behind an instruction that transfers no control? */
bool veil_debug_steps(const struct veil_engine *e);
/* The trap of a single step, over an instruction that generated code did not end. */
void veil_debug_take_single_step(struct veil_engine *e);
/* Another exception begins. */
void veil_debug_exception(struct veil_engine *e, int vector, bool is_software);

#endif
