/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A VMSA page and the CPU state of QEMU's core, both ways. Everything that a
 * context is, is in its VMSA between two runs: a snapshot needs no more.
 */
#include "context.h"
#include "debug_registers.h"
#include "rights.h"
#include "spaces.h"

#include "exec/helper-proto.h"
#include "fpu/softfloat.h"

#define CC_FLAGS (CC_O | CC_S | CC_Z | CC_A | CC_P | CC_C)

/* The VMSA packs a descriptor's attributes into 12 bits: 15:12 of the high word's flags moved down by 4. */
static void load_segment(SegmentCache *to, const struct veil_vmsa_segment *from)
{
    to->selector = from->selector;
    to->base = from->base;
    to->limit = from->limit;
    to->flags = (from->attrib & 0xffu) << 8 | (from->attrib & 0xf00u) << 12;
}

static void save_segment(struct veil_vmsa_segment *to, const SegmentCache *from)
{
    to->selector = from->selector;
    to->base = from->base;
    to->limit = from->limit;
    to->attrib = (from->flags >> 8 & 0xff) | (from->flags >> 12 & 0xf00);
}

static void load_fpu(CPUX86State *env, const struct veil_vmsa *v)
{
    int i;

    env->fpstt = v->x87_fsw >> 11 & 7;
    env->fpus = v->x87_fsw & ~0x3800;
    for (i = 0; i < 8; i++) {
        env->fptags[i] = (v->x87_ftw >> 2 * i & 3) == 3;
        memcpy(&env->fpregs[i].d.low, v->fpreg_x87 + 10 * i, 8);
        memcpy(&env->fpregs[i].d.high, v->fpreg_x87 + 10 * i + 8, 2);
    }
    env->fpop = v->x87_fop;
    env->fpip = v->x87_rip;
    env->fpdp = v->x87_dp;
    env->fpcs = v->x87_cs;
    env->fpds = v->x87_ds;
    cpu_set_fpuc(env, v->x87_fcw);
    cpu_set_mxcsr(env, v->mxcsr);
    for (i = 0; i < 16; i++) {
        memcpy(&env->xmm_regs[i], v->fpreg_xmm + 16 * i, 16);
    }
}

static void save_fpu(CPUX86State *env, struct veil_vmsa *v)
{
    unsigned tags = 0;
    int i;

    helper_veil_collect_mxcsr(env);
    for (i = 0; i < 8; i++) {
        tags |= (env->fptags[i] ? 3u : 0u) << 2 * i;
        memcpy(v->fpreg_x87 + 10 * i, &env->fpregs[i].d.low, 8);
        memcpy(v->fpreg_x87 + 10 * i + 8, &env->fpregs[i].d.high, 2);
    }
    v->x87_fsw = (env->fpus & ~0x3800) | (env->fpstt & 7) << 11;
    v->x87_ftw = tags;
    v->x87_fcw = env->fpuc;
    v->x87_fop = env->fpop;
    v->x87_rip = env->fpip;
    v->x87_dp = env->fpdp;
    v->x87_cs = env->fpcs;
    v->x87_ds = env->fpds;
    v->mxcsr = env->mxcsr;
    for (i = 0; i < 16; i++) {
        memcpy(v->fpreg_xmm + 16 * i, &env->xmm_regs[i], 16);
    }
}

/* QEMU's order of the registers is the encoding's: rax rcx rdx rbx rsp rbp rsi rdi r8... */
static void load_registers(CPUX86State *env, const struct veil_vmsa *v)
{
    const uint64_t in_order[16] = {v->rax, v->rcx, v->rdx, v->rbx, v->rsp, v->rbp, v->rsi, v->rdi,
                                   v->r8,  v->r9,  v->r10, v->r11, v->r12, v->r13, v->r14, v->r15};

    memcpy(env->regs, in_order, sizeof(in_order));
    env->eip = v->rip;
    env->cc_src = v->rflags & CC_FLAGS;
    env->cc_op = CC_OP_EFLAGS;
    env->df = v->rflags & DF_MASK ? -1 : 1;
    env->eflags = (v->rflags & ~(uint64_t)(CC_FLAGS | DF_MASK)) | 2;
}

static void save_registers(const CPUX86State *env, struct veil_vmsa *v)
{
    const target_ulong *r = env->regs;

    v->rax = r[0];
    v->rcx = r[1];
    v->rdx = r[2];
    v->rbx = r[3];
    v->rsp = r[4];
    v->rbp = r[5];
    v->rsi = r[6];
    v->rdi = r[7];
    v->r8 = r[8];
    v->r9 = r[9];
    v->r10 = r[10];
    v->r11 = r[11];
    v->r12 = r[12];
    v->r13 = r[13];
    v->r14 = r[14];
    v->r15 = r[15];
}

static void load_segments(CPUX86State *env, const struct veil_vmsa *v)
{
    load_segment(&env->segs[R_ES], &v->es);
    load_segment(&env->segs[R_CS], &v->cs);
    load_segment(&env->segs[R_SS], &v->ss);
    load_segment(&env->segs[R_DS], &v->ds);
    load_segment(&env->segs[R_FS], &v->fs);
    load_segment(&env->segs[R_GS], &v->gs);
    load_segment(&env->ldt, &v->ldtr);
    load_segment(&env->tr, &v->tr);
    load_segment(&env->gdt, &v->gdtr);
    load_segment(&env->idt, &v->idtr);
}

static void save_segments(const CPUX86State *env, struct veil_vmsa *v)
{
    save_segment(&v->es, &env->segs[R_ES]);
    save_segment(&v->cs, &env->segs[R_CS]);
    save_segment(&v->ss, &env->segs[R_SS]);
    save_segment(&v->ds, &env->segs[R_DS]);
    save_segment(&v->fs, &env->segs[R_FS]);
    save_segment(&v->gs, &env->segs[R_GS]);
    save_segment(&v->ldtr, &env->ldt);
    save_segment(&v->tr, &env->tr);
    save_segment(&v->gdtr, &env->gdt);
    save_segment(&v->idtr, &env->idt);
}

/* Control, debug and model-specific registers. */
static void load_system_registers(CPUX86State *env, const struct veil_vmsa *v)
{
    env->cr[0] = v->cr0;
    env->cr[2] = v->cr2;
    env->cr[3] = v->cr3;
    env->cr[4] = v->cr4;
    env->efer = veil_guest_efer(v);
    env->dr[6] = v->dr6;
    env->dr[7] = v->dr7;
    env->star = v->star;
    env->lstar = v->lstar;
    env->cstar = v->cstar;
    env->fmask = v->sfmask;
    env->kernelgsbase = v->kernel_gs_base;
    env->sysenter_cs = v->sysenter_cs;
    env->sysenter_esp = v->sysenter_esp;
    env->sysenter_eip = v->sysenter_eip;
    env->pat = v->g_pat;
    env->pkru = v->pkru;
    env->tsc_aux = v->tsc_aux;
    env->xcr0 = v->xcr0;
    env->xss = v->xss;
    env->spec_ctrl = v->spec_ctrl;
}

static void save_system_registers(const CPUX86State *env, struct veil_vmsa *v)
{
    v->cr0 = env->cr[0];
    v->cr2 = env->cr[2];
    v->cr3 = env->cr[3];
    v->cr4 = env->cr[4];
    v->efer = env->efer | MSR_EFER_SVME;
    v->dr6 = env->dr[6];
    v->dr7 = env->dr[7];
    v->star = env->star;
    v->lstar = env->lstar;
    v->cstar = env->cstar;
    v->sfmask = env->fmask;
    v->kernel_gs_base = env->kernelgsbase;
    v->sysenter_cs = env->sysenter_cs;
    v->sysenter_esp = env->sysenter_esp;
    v->sysenter_eip = env->sysenter_eip;
    v->g_pat = env->pat;
    v->pkru = env->pkru;
    v->tsc_aux = env->tsc_aux;
    v->xcr0 = env->xcr0;
    v->xss = env->xss;
    v->spec_ctrl = env->spec_ctrl;
}

/*
 * The VMSA's CPL is authoritative (SS.DPL says the same but after SYSCALL from odd selectors), but for the modes that
 * have one level (APM vol. 3, VMRUN): else a kernel could have code that no supervisor may execute run in real mode.
 */
static unsigned level(const struct veil_vmsa *v)
{
    if (!(v->cr0 & CR0_PE_MASK)) {
        return 0;
    }
    return v->rflags & VM_MASK && !(v->efer & MSR_EFER_LMA) ? 3 : v->cpl & 3;
}

/* What QEMU derives from registers, and the VMCB's part. */
static void load_hidden_state(struct veil_engine *e, const struct veil_vmsa *v)
{
    CPUX86State *env = e->env;

    e->v_intr = e->alternate ? v->vintr_ctrl : e->vmcb->v_intr;
    env->hflags = HF_GUEST_MASK;
    if (env->cr[4] & CR4_SMAP_MASK) {
        env->hflags |= HF_SMAP_MASK;
    }
    if (e->alternate ? e->v_intr & VEIL_V_INT_SHADOW : e->vmcb->interrupt_shadow & 1) {
        env->hflags |= HF_INHIBIT_IRQ_MASK;
    }
    x86_update_hflags(env);
    /* These come from RFLAGS, at each block; copied in here, they would hold until the next VMRUN: TF in the handler of
     * #DB, an IOPL for programs that have lost it. */
    env->hflags &= ~(HF_TF_MASK | HF_IOPL_MASK | HF_VM_MASK);
    env->hflags = (env->hflags & ~HF_CPL_MASK) | level(v);
    env->hflags2 |= HF2_GIF_MASK | HF2_VINTR_MASK; /* CR8 is V_TPR */
    env->v_tpr = e->v_intr & 0xf;
    env->hflags2 &= ~HF2_NMI_MASK;
    if ((e->v_intr & VEIL_V_NMI_ENABLE) && (e->v_intr & VEIL_V_NMI_MASK)) {
        env->hflags2 |= HF2_NMI_MASK;
    }
    env->old_exception = -1;
    env->exception_is_int = 0;
    e->delivering.pending = false;
    e->cs->exception_index = -1;
    e->cs->interrupt_request = 0;
    e->cs->exit_request = 0;
    e->cs->halted = 0;
}

void veil_context_load(struct veil_engine *e)
{
    CPUX86State *env = e->env;
    const struct veil_vmsa *v = e->vmsa;

    load_registers(env, v);
    load_segments(env, v);
    load_system_registers(env, v);
    load_fpu(env, v);
    load_hidden_state(e, v);
    veil_debug_enter(e);
    veil_space_enter(e);
    veil_debug_follow(e);
    veil_follow_rights(e); /* an event that comes with VMRUN is delivered before the loop looks */
}

/* What keeps interrupts out, where it came from. */
static void save_interrupts(struct veil_engine *e, struct veil_vmsa *v)
{
    const CPUX86State *env = e->env;
    bool shadow = env->hflags & HF_INHIBIT_IRQ_MASK;

    e->v_intr = (e->v_intr & ~0xffULL) | env->v_tpr;
    if (e->v_intr & VEIL_V_NMI_ENABLE) {
        e->v_intr &= ~VEIL_V_NMI_MASK;
        e->v_intr |= env->hflags2 & HF2_NMI_MASK ? VEIL_V_NMI_MASK : 0;
    }
    e->vmcb->interrupt_shadow = env->eflags & IF_MASK ? 2 : 0;
    if (e->alternate) {
        v->vintr_ctrl = (e->v_intr & ~VEIL_V_INT_SHADOW) | (shadow ? VEIL_V_INT_SHADOW : 0);
    } else {
        e->vmcb->v_intr = e->v_intr;
        e->vmcb->interrupt_shadow |= shadow;
    }
}

void veil_context_save(struct veil_engine *e)
{
    CPUX86State *env = e->env;
    struct veil_vmsa *v = e->vmsa;

    veil_space_leave(e);
    save_registers(env, v);
    v->rip = env->eip;
    v->rflags = cpu_compute_eflags(env) | 2;
    save_segments(env, v);
    v->cpl = env->hflags & HF_CPL_MASK;
    save_system_registers(env, v);
    veil_debug_leave(e);
    save_fpu(env, v);
    save_interrupts(e, v);
    v->exit_info_1 = e->exit_info_1;
    v->exit_info_2 = e->exit_info_2;
    v->exit_int_info = e->vmcb->exit_int_info;
    v->nrip = e->vmcb->nrip;
    v->guest_exit_code = e->exit_code;
}
