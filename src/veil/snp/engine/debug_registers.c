/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Debug registers (APM vol. 2, 13.1) and #DB. With DebugSwap (SEV_FEATURES bit 5) DR0 to DR3 are the VMSA's; without it
 * they are the core's, for whoever comes. DR6 and DR7 are the VMSA's always, but the host intercepts DR7 without the
 * feature.
 *
 * Breakpoints of code are part of the translation. Each set of addresses has translations of its own (QEMU's cluster
 * index is what tells them apart), so a kernel that changes DR7 with each thread loses none, and code runs at full
 * speed. Breakpoints of data are watch.c's. Breakpoints of ports meet nothing: IN and OUT are #VC.
 */
#include "debug_registers.h"
#include "branch_steps.h"
#include "tlb.h"
#include "watch.h"

#include "exec/exec-all.h"
#include "exec/helper-proto.h"
#include "tcg/tcg.h"

/* Cluster indices: of a set of addresses its number, and these. */
#define NO_CODE_SET 0xff
#define SINGLE_STEPS 0xfe

/* B0 to B3 are as the last #DB had them; the other bits stay until the guest clears them. */
#define DR6_HITS 0xfU
#define DR6_WRITABLE 0x0000e00fU
#define DR7_ENABLES 0xffU
#define DR7_WRITABLE 0xffff23ffU
#define DEBUGCTL_BTF (1U << 1)

void __wrap_helper_set_dr_x86_64(CPUX86State *env, int reg, target_ulong value);
target_ulong __wrap_helper_get_dr_x86_64(CPUX86State *env, int reg);
void __wrap_cpu_x86_update_dr7_x86_64(CPUX86State *env, uint32_t value);
void __wrap_helper_single_step_x86_64(CPUX86State *env);
void __wrap_helper_rechecking_single_step_x86_64(CPUX86State *env);

static struct veil_breakpoints enabled(const CPUX86State *env)
{
    struct veil_breakpoints b = {0};
    int i;

    for (i = 0; i < VEIL_DEBUG_REGISTERS; i++) {
        unsigned control = env->dr[7] >> (DR7_TYPE_SHIFT + 4 * i) & 15;

        if (!(env->dr[7] >> 2 * i & 3)) {
            continue;
        }
        b.address[i] = env->dr[i];
        switch (control & 3) {
        case DR7_TYPE_BP_INST:
            b.code |= 1 << i;
            break;
        case DR7_TYPE_IO_RW:
            b.address[i] = 0;
            break;
        case DR7_TYPE_DATA_RW:
            b.reads |= 1 << i;
            /* fall through */
        default:
            b.writes |= 1 << i;
            b.length[i] = control >> 2 == 2 ? 8 : (control >> 2) + 1;
            b.address[i] &= -(uint64_t)b.length[i];
        }
    }
    return b;
}

static bool is_same(const struct veil_breakpoints *a, const struct veil_breakpoints *b)
{
    return !memcmp(a, b, sizeof(*a));
}

/* The number of this set of addresses of code. */
static unsigned code_set(struct veil_engine *e)
{
    uint64_t wanted[VEIL_DEBUG_REGISTERS];
    unsigned i;

    for (i = 0; i < VEIL_DEBUG_REGISTERS; i++) {
        /* Where nothing is enabled, what is: the same addresses are the same set. */
        wanted[i] = e->breakpoints.address[e->breakpoints.code & 1 << i ? i : __builtin_ctz(e->breakpoints.code)];
    }
    for (i = 0; i < e->code_set_count; i++) {
        if (!memcmp(e->code_sets[i], wanted, sizeof(wanted))) {
            return i;
        }
    }
    if (e->code_set_count == VEIL_CODE_SETS) {
        tb_flush(e->cs);
        e->code_set_count = 0;
    }
    memcpy(e->code_sets[e->code_set_count], wanted, sizeof(wanted));
    return e->code_set_count++;
}

void veil_debug_choose_translations(struct veil_engine *e)
{
    if (unlikely(e->cs->singlestep_enabled)) {
        e->cs->cluster_index = SINGLE_STEPS;
    } else if (likely(!e->breakpoints.code)) {
        e->cs->cluster_index = NO_CODE_SET;
    } else {
        e->cs->cluster_index = code_set(e);
    }
}

/* The list that the translator looks into. */
static void list_code_breakpoints(struct veil_engine *e, uint8_t before)
{
    int i;

    for (i = 0; i < VEIL_DEBUG_REGISTERS; i++) {
        CPUBreakpoint *bp = &e->code_breakpoints[i];

        if (before & 1 << i) {
            QTAILQ_REMOVE(&e->cs->breakpoints, bp, entry);
        }
        if (e->breakpoints.code & 1 << i) {
            bp->pc = e->breakpoints.address[i];
            bp->flags = BP_CPU;
            QTAILQ_INSERT_TAIL(&e->cs->breakpoints, bp, entry);
        }
    }
}

void veil_debug_free(struct veil_engine *e)
{
    uint8_t before = e->breakpoints.code;

    e->breakpoints.code = 0;
    list_code_breakpoints(e, before);
}

static void watch_pages_anew(struct veil_engine *e, const struct veil_breakpoints *b)
{
    int i;

    for (i = 0; i < VEIL_DEBUG_REGISTERS; i++) {
        if (b->writes & 1 << i) {
            veil_tlb_watch_anew(e, b->address[i]);
        }
    }
}

/* From DR0 to DR3 and DR7. */
static void work_out(struct veil_engine *e)
{
    struct veil_breakpoints now = enabled(e->env);
    uint8_t before = e->breakpoints.code;

    if (!is_same(&now, &e->breakpoints)) {
        e->breakpoints = now;
        list_code_breakpoints(e, before);
        veil_watch_changed(e);
    }
    veil_debug_choose_translations(e);
}

void veil_debug_enter(struct veil_engine *e)
{
    const struct veil_vmsa *v = e->vmsa;
    target_ulong *dr = e->env->dr;

    e->data_hits = 0;
    e->debug_swap = v->sev_features & VEIL_SEV_DEBUG_SWAP;
    if (e->debug_swap) {
        memcpy(e->own_dr, dr, sizeof(e->own_dr));
        dr[0] = v->dr0;
        dr[1] = v->dr1;
        dr[2] = v->dr2;
        dr[3] = v->dr3;
    }
    if (unlikely((dr[7] & DR7_ENABLES) || e->breakpoints.code || e->watching)) {
        work_out(e);
    } else {
        veil_debug_choose_translations(e);
    }
}

void veil_debug_leave(struct veil_engine *e)
{
    struct veil_vmsa *v = e->vmsa;
    target_ulong *dr = e->env->dr;

    if (e->debug_swap) {
        v->dr0 = dr[0];
        v->dr1 = dr[1];
        v->dr2 = dr[2];
        v->dr3 = dr[3];
        memcpy(dr, e->own_dr, sizeof(e->own_dr));
    }
}

void veil_debug_follow(struct veil_engine *e)
{
    struct veil_breakpoints before;

    if (likely(!(e->space->breakpoints.writes | e->breakpoints.writes))) { /* of data: each is about writes */
        return;
    }
    before = e->space->breakpoints;
    if (!is_same(&before, &e->breakpoints)) {
        e->space->breakpoints = e->breakpoints;
        watch_pages_anew(e, &before);
        watch_pages_anew(e, &e->breakpoints);
    }
}

static void take(struct veil_engine *e, uint32_t hits, uint32_t more)
{
    target_ulong *dr = e->env->dr;

    dr[6] = (dr[6] & ~(target_ulong)DR6_HITS) | hits | more;
    dr[7] &= ~(target_ulong)DR7_GD;
    e->vmsa->dbgctl &= ~(uint64_t)DEBUGCTL_BTF;
    e->data_hits = 0;
    e->cs->exception_index = -1;
    e->delivering = (struct veil_event){.pending = true, .vector = EXCP01_DB, .type = SVM_EVTINJ_TYPE_EXEPT >> 8};
}

bool veil_debug_take_code_breakpoint(struct veil_engine *e)
{
    CPUX86State *env = e->env;
    uint32_t hits = 0;
    int i;

    for (i = 0; i < VEIL_DEBUG_REGISTERS; i++) {
        if ((e->breakpoints.code & 1 << i) && e->breakpoints.address[i] == env->segs[R_CS].base + env->eip) {
            hits |= 1 << i;
        }
    }
    if (!hits || (env->eflags & RF_MASK)) {
        return false;
    }
    take(e, hits, 0);
    return true;
}

bool veil_debug_take_data_breakpoint(struct veil_engine *e)
{
    /* STI accesses no memory, so the shadow is that of MOV SS or POP SS. */
    if (e->env->hflags & HF_INHIBIT_IRQ_MASK) {
        return false;
    }
    take(e, e->data_hits, 0);
    return true;
}

static bool steps_branches(const struct veil_engine *e)
{
    return e->vmsa->dbgctl & DEBUGCTL_BTF;
}

bool veil_debug_steps(const struct veil_engine *e)
{
    return (e->env->eflags & TF_MASK) && !steps_branches(e);
}

void veil_debug_take_single_step(struct veil_engine *e)
{
    take(e, e->data_hits, DR6_BS);
}

/* What MOV SS held back comes behind a software interrupt, and together with INT1's #DB. A fault takes its instruction
 * back, and with it what that hit. */
void veil_debug_exception(struct veil_engine *e, int vector, bool is_software)
{
    if (is_software) {
        return;
    }
    if (vector == EXCP01_DB) {
        if (e->data_hits) {
            e->env->dr[6] = (e->env->dr[6] & ~(target_ulong)DR6_HITS) | e->data_hits;
        }
        e->env->dr[7] &= ~(target_ulong)DR7_GD;
        e->vmsa->dbgctl &= ~(uint64_t)DEBUGCTL_BTF;
    }
    if (e->data_hits) {
        e->data_hits = 0;
        atomic_set(&e->cs->icount_decr_ptr->u16.high, -1); /* the loop looks for what it put off */
    }
}

/* In generated code, RIP and flags stored; TF was set when the instruction began. What follows in the block, if a
 * debugger has the guest step, is its stop. */
void __wrap_helper_single_step_x86_64(CPUX86State *env)
{
    struct veil_engine *e = veil_of(env);
    const TranslationBlock *tb = tcg_tb_lookup(e->uc->tcg_ctx, GETPC());

    if (!steps_branches(e) || (tb && veil_is_control_transfer(e, tb))) {
        veil_debug_take_single_step(e);
    } else if (e->cs->singlestep_enabled) {
        return;
    }
    e->cs->exception_index = EXCP_INTERRUPT;
    cpu_loop_exit(e->cs);
}

void __wrap_helper_rechecking_single_step_x86_64(CPUX86State *env)
{
    struct veil_engine *e = veil_of(env);

    if (env->eflags & TF_MASK) { /* behind SYSCALL and SYSRET, which transfer control */
        veil_debug_take_single_step(e);
        e->cs->exception_index = EXCP_INTERRUPT;
        cpu_loop_exit(e->cs);
    }
}

/* DR4 and DR5 are other names of DR6 and DR7, or none. */
static int find_register(CPUX86State *env, int reg, uintptr_t retaddr)
{
    if (env->dr[7] & DR7_GD) {
        cpu_restore_state(env_cpu(env), retaddr, true);
        take(veil_of(env), 0, DR6_BD);
        env_cpu(env)->exception_index = EXCP_INTERRUPT;
        cpu_loop_exit(env_cpu(env));
    }
    if (reg == 4 || reg == 5) {
        if (env->cr[4] & CR4_DE_MASK) {
            raise_exception_err_ra(env, EXCP06_ILLOP, 0, retaddr);
        }
        reg += 2;
    }
    return reg;
}

target_ulong __wrap_helper_get_dr_x86_64(CPUX86State *env, int reg)
{
    return env->dr[find_register(env, reg, GETPC())];
}

static void changed(CPUX86State *env)
{
    work_out(veil_of(env));
    veil_debug_follow(veil_of(env));
}

void __wrap_helper_set_dr_x86_64(CPUX86State *env, int reg, target_ulong value)
{
    uint64_t written = env->hflags & HF_CS64_MASK ? value : (uint32_t)value;

    reg = find_register(env, reg, GETPC());
    if (reg >= 6 && written >> 32) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
    }
    switch (reg) {
    case 6:
        env->dr[6] = (written & DR6_WRITABLE) | DR6_FIXED_1;
        return;
    case 7:
        env->dr[7] = (written & DR7_WRITABLE) | DR7_FIXED_1;
        break;
    default:
        env->dr[reg] = written;
    }
    changed(env);
}

/* A task switch ends local breakpoints. */
void __wrap_cpu_x86_update_dr7_x86_64(CPUX86State *env, uint32_t value)
{
    env->dr[7] = (value & DR7_WRITABLE) | DR7_FIXED_1;
    changed(env);
}
