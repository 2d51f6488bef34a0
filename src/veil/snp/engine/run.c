/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The execution loop of one VMRUN: translated blocks, and what must be looked at between them.
 */
#include "run.h"
#include "clock.h"
#include "debug_registers.h"
#include "events.h"
#include "rights.h"
#include "snp_opcodes.h"
#include "tlb.h"

#include "exec/tb-hash.h"
#include "exec/tb-lookup.h"
#include "tcg/tcg.h"
#include "translate-all.h"

TranslationBlock *__real_tb_htable_lookup_x86_64(CPUState *cs, target_ulong pc, target_ulong cs_base, uint32_t flags,
                                                 uint32_t cf_mask);
TranslationBlock *__wrap_tb_htable_lookup_x86_64(CPUState *cs, target_ulong pc, target_ulong cs_base, uint32_t flags,
                                                 uint32_t cf_mask);

/* As if a timer of the host had fired. */
static void leave(struct veil_engine *e)
{
    e->exit_code = VEIL_EXIT_INTR;
    e->exit_info_1 = e->exit_info_2 = 0;
    e->cs->exception_index = VEIL_EXCP_EXIT;
}

/* In front of a breakpoint or of a watched access (debug.c), or behind a single step. */
static void stop(struct veil_engine *e)
{
    leave(e);
    if (e->debug_stop == VEIL_STOP_NONE) {
        e->debug_stop = e->cs->singlestep_enabled ? VEIL_STOP_STEP : VEIL_STOP_BREAKPOINT;
    }
}

/* Somebody asked for the core: if the host did, or time is up, the exit is set up. */
static bool must_leave(struct veil_engine *e)
{
    CPUState *cs = e->cs;

    if (likely(!cs->icount_decr_ptr->u16.high)) {
        return false;
    }
    atomic_set(&cs->icount_decr_ptr->u16.high, 0);
    if (!e->kicked && !(e->deadline_ns && veil_monotonic_ns() >= e->deadline_ns)) {
        return false;
    }
    e->kicked = false;
    leave(e);
    return true;
}

/* True when the loop must leave generated code: an interrupt to take, or an exit was set up. */
static bool attend(struct veil_engine *e)
{
    if (unlikely(e->data_hits)) { /* in front of what the host wants; if #DB is held back, for one instruction */
        bool taken = veil_debug_take_data_breakpoint(e);

        atomic_set(&e->cs->icount_decr_ptr->u16.high, taken ? -1 : 0);
        return taken;
    }
    if (unlikely(e->cs->singlestep_enabled) && veil_debug_take_code_breakpoint(e)) {
        return true;
    }
    if (must_leave(e)) {
        return true;
    }
    veil_follow_rights(e);
    if (unlikely(e->crowded)) {
        veil_tlb_relieve(e);
    }
    return unlikely(veil_offers(e->v_intr)) && veil_take_offered(e);
}

/* Every block that comes into the jump cache was looked up first. */
TranslationBlock *__wrap_tb_htable_lookup_x86_64(CPUState *cs, target_ulong pc, target_ulong cs_base, uint32_t flags,
                                                 uint32_t cf_mask)
{
    struct veil_engine *e = veil_of(cs->env_ptr);

    e->counters.block_lookups++;
    veil_jump_cached(e, pc);
    return __real_tb_htable_lookup_x86_64(cs, pc, cs_base, flags, cf_mask);
}

static TranslationBlock *find_block(CPUState *cs, TranslationBlock *last, int exit)
{
    TranslationBlock *tb;
    target_ulong pc, cs_base;
    uint32_t flags, cflags = cs->cflags_next_tb;

    if (cflags == (uint32_t)-1) {
        cflags = curr_cflags();
    } else {
        cs->cflags_next_tb = -1;
    }
    if (unlikely(cs->singlestep_enabled)) {
        /* A block of one instruction, which is never mistaken for a longer one: this is part of what it is found by. */
        cflags = (cflags & ~CF_COUNT_MASK) | 1;
    }
    tb = tb_lookup__cpu_state(cs, &pc, &cs_base, &flags, cflags);
    if (!tb) {
        mmap_lock();
        veil_of(cs->env_ptr)->counters.blocks_made++;
        tb = tb_gen_code(cs, pc, cs_base, flags, cflags);
        mmap_unlock();
        cs->tb_jmp_cache[tb_jmp_cache_hash_func(cs->uc, pc)] = tb;
    }
    /* A block over two pages must be looked up each time: the second page may be mapped elsewhere by then. */
    if (last && tb->page_addr[1] == -1 && !(tb->cflags & CF_INVALID) && !last->jmp_dest[exit]) {
        last->jmp_dest[exit] = (uintptr_t)tb;
        tb_set_jmp_target(last, exit, (uintptr_t)tb->tc.ptr);
        last->jmp_list_next[exit] = tb->jmp_list_head;
        tb->jmp_list_head = (uintptr_t)last | exit;
    }
    return tb;
}

static void run_blocks(struct veil_engine *e)
{
    CPUState *cs = e->cs;
    CPUX86State *env = e->env;
    struct uc_struct *uc = e->uc; /* the name that QEMU's macro tcg_qemu_tb_exec uses */
    TranslationBlock *last = NULL;
    int exit = 0;

    (void)uc;
    while (!attend(e)) {
        TranslationBlock *tb = find_block(cs, last, exit);
        e->counters.loop_entries++;
        uintptr_t ret = tcg_qemu_tb_exec(env, tb->tc.ptr);

        cs->can_do_io = 1;
        last = (TranslationBlock *)(ret & ~TB_EXIT_MASK);
        exit = ret & TB_EXIT_MASK;
        if (exit > TB_EXIT_IDX1) {
            /* Left at the block's start, before its first instruction. */
            env->eip = last->pc - last->cs_base;
            last = NULL;
        }
    }
}

/* EXCP_DEBUG: in front of a breakpoint, or behind a single step. Is it about the guest's own debug registers? */
static bool take_guests_own(struct veil_engine *e)
{
    CPUX86State *env = e->env;
    CPUBreakpoint *bp;

    if (e->debug_stop != VEIL_STOP_NONE) {
        return false;
    }
    if (e->cs->singlestep_enabled) {
        return e->data_hits && veil_debug_take_data_breakpoint(e);
    }
    QTAILQ_FOREACH(bp, &e->cs->breakpoints, entry)
    {
        if ((bp->flags & BP_GDB) && bp->pc == env->segs[R_CS].base + env->eip) {
            return false;
        }
    }
    return veil_debug_take_code_breakpoint(e);
}

void veil_run(struct veil_engine *e)
{
    CPUState *cs = e->cs;
    CPUX86State *env = e->env;

    e->uc->nested_level = 1;
    if (sigsetjmp(e->uc->jmp_bufs[0], 0)) {
        env->hflags |= HF_GUEST_MASK;
        cs->can_do_io = 1;
    }
    for (;;) {
        int exception = cs->exception_index;

        if (exception == VEIL_EXCP_EXIT) {
            break;
        }
        if (exception == EXCP_HLT) { /* a fault on the way to the double fault handler */
            e->exit_code = VEIL_EXIT_SHUTDOWN;
            e->exit_info_1 = e->exit_info_2 = 0;
            e->delivering.pending = false;
            break;
        }
        if (exception == EXCP_DEBUG && !take_guests_own(e)) {
            stop(e);
            continue;
        }
        exception = cs->exception_index;
        if (exception >= EXCP_INTERRUPT) {
            cs->exception_index = -1;
        } else if (exception >= 0) {
            if (exception == EXCP06_ILLOP && !env->exception_is_int && veil_snp_instruction(e)) {
                if (cs->exception_index == -1 && veil_debug_steps(e)) {
                    veil_debug_take_single_step(e);
                } else if (unlikely(cs->singlestep_enabled) && cs->exception_index != VEIL_EXCP_EXIT) {
                    stop(e);
                }
                continue;
            }
            veil_take_exception(e);
        }
        if (e->delivering.pending) {
            /* A guest whose events raise others without end gets nowhere, but must not hold the host. */
            if (veil_may_wait(e) && must_leave(e)) {
                continue;
            }
            veil_deliver_event(e);
            if (unlikely(cs->singlestep_enabled)) {
                stop(e);
                continue;
            }
        }
        run_blocks(e);
    }
    cs->exception_index = -1;
    e->uc->nested_level = 0;
}
