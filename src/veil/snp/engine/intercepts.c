/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What an SEV-ES guest does not do by itself. Non-automatic exits become #VC
 * with the SVM exit code as error code (56421, section 4.1 and APM vol. 2,
 * 15.35.5); HLT, PAUSE and shutdown are automatic exits. The intercepts are those
 * that KVM sets for SNP guests.
 *
 * Each __wrap_ function stands for QEMU's helper of that name; the linker sends
 * generated code here.
 */
#include "clock.h"
#include "control_registers.h"
#include "core.h"
#include "debug_registers.h"
#include "events.h"
#include "exits.h"

#include "exec/helper-proto.h"

#define MSR_DEBUGCTL 0x1d9
#define MSR_XSS 0xda0
#define MSR_GHCB 0xc0010130
#define MSR_SEV_STATUS 0xc0010131

#define FLAGS_KEPT_IN_EFLAGS (~(CC_O | CC_S | CC_Z | CC_A | CC_P | CC_C | DF_MASK))

void __wrap_cpu_svm_check_intercept_param_x86_64(CPUX86State *env, uint32_t type, uint64_t param, uintptr_t retaddr);
void __wrap_helper_svm_check_intercept_param_x86_64(CPUX86State *env, uint32_t type, uint64_t param);
void __wrap_cpu_vmexit_x86_64(CPUX86State *env, uint32_t exit_code, uint64_t exit_info_1, uintptr_t retaddr);
void __wrap_helper_outb_x86_64(CPUX86State *env, uint32_t port, uint32_t data);
void __wrap_helper_outw_x86_64(CPUX86State *env, uint32_t port, uint32_t data);
void __wrap_helper_outl_x86_64(CPUX86State *env, uint32_t port, uint32_t data);
target_ulong __wrap_helper_inb_x86_64(CPUX86State *env, uint32_t port);
target_ulong __wrap_helper_inw_x86_64(CPUX86State *env, uint32_t port);
target_ulong __wrap_helper_inl_x86_64(CPUX86State *env, uint32_t port);
void __real_helper_rdmsr_x86_64(CPUX86State *env);
void __wrap_helper_rdmsr_x86_64(CPUX86State *env);
void __real_helper_wrmsr_x86_64(CPUX86State *env);
void __wrap_helper_wrmsr_x86_64(CPUX86State *env);
void __wrap_helper_rdpmc_x86_64(CPUX86State *env);
void __wrap_helper_rdtsc_x86_64(CPUX86State *env);
void __wrap_helper_rdtscp_x86_64(CPUX86State *env);
void __wrap_helper_hlt_x86_64(CPUX86State *env, int next_eip_addend);
void __wrap_helper_pause_x86_64(CPUX86State *env, int next_eip_addend);
void __wrap_helper_syscall_x86_64(CPUX86State *env, int next_eip_addend);
void __wrap_helper_sysenter_x86_64(CPUX86State *env, int next_eip_addend);

static bool is_intercepted(const CPUX86State *env, uint32_t type)
{
    switch (type) {
    case SVM_EXIT_CPUID:
    case SVM_EXIT_INVD:
    case SVM_EXIT_WBINVD:
    case SVM_EXIT_MONITOR:
    case SVM_EXIT_MWAIT:
        return true;
    case SVM_EXIT_READ_DR0 + 7:
    case SVM_EXIT_WRITE_DR0 + 7: /* KVM lets guests with DebugSwap have it */
        return !veil_of((CPUX86State *)env)->debug_swap;
    default:
        return false;
    }
}

void __wrap_cpu_svm_check_intercept_param_x86_64(CPUX86State *env, uint32_t type, uint64_t param, uintptr_t retaddr)
{
    if ((env->hflags & HF_GUEST_MASK) && is_intercepted(env, type)) {
        veil_raise_vc(veil_of(env), type, retaddr);
    }
}

/* SGDT, SIDT, SLDT, STR and SMSW tell a program where the kernel is; MOV from CR0 is the kernel's alone anyway. */
static bool is_user_mode_prevented(const CPUX86State *env, uint32_t type)
{
    if (!(env->cr[4] & VEIL_CR4_UMIP) || !(env->hflags & HF_CPL_MASK)) {
        return false;
    }
    switch (type) {
    case SVM_EXIT_GDTR_READ:
    case SVM_EXIT_IDTR_READ:
    case SVM_EXIT_LDTR_READ:
    case SVM_EXIT_TR_READ:
    case SVM_EXIT_READ_CR0:
        return true;
    default:
        return false;
    }
}

void __wrap_helper_svm_check_intercept_param_x86_64(CPUX86State *env, uint32_t type, uint64_t param)
{
    if (is_user_mode_prevented(env, type)) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
    }
    if (is_intercepted(env, type)) {
        veil_raise_vc(veil_of(env), type, GETPC());
    }
}

/* QEMU calls this for a triple fault only: all else is decided above. */
void __wrap_cpu_vmexit_x86_64(CPUX86State *env, uint32_t exit_code, uint64_t exit_info_1, uintptr_t retaddr)
{
    veil_of(env)->delivering.pending = false;
    veil_exit(veil_of(env), exit_code, exit_info_1, 0, retaddr);
}

static void QEMU_NORETURN port_access(CPUX86State *env, uint32_t port, unsigned size, uintptr_t retaddr)
{
    struct veil_engine *e = veil_of(env);

    cpu_restore_state(e->cs, retaddr, true);
    if ((env->cr[0] & CR0_PE_MASK) &&
        ((env->hflags & HF_CPL_MASK) > ((env->eflags & IOPL_MASK) >> IOPL_SHIFT) || (env->eflags & VM_MASK))) {
        switch (size) {
        case 1:
            helper_check_iob(env, port & 0xffff);
            break;
        case 2:
            helper_check_iow(env, port & 0xffff);
            break;
        default:
            helper_check_iol(env, port & 0xffff);
            break;
        }
    }
    veil_raise_vc(e, SVM_EXIT_IOIO, 0);
}

void __wrap_helper_outb_x86_64(CPUX86State *env, uint32_t port, uint32_t data)
{
    port_access(env, port, 1, GETPC());
}

void __wrap_helper_outw_x86_64(CPUX86State *env, uint32_t port, uint32_t data)
{
    port_access(env, port, 2, GETPC());
}

void __wrap_helper_outl_x86_64(CPUX86State *env, uint32_t port, uint32_t data)
{
    port_access(env, port, 4, GETPC());
}

target_ulong __wrap_helper_inb_x86_64(CPUX86State *env, uint32_t port)
{
    port_access(env, port, 1, GETPC());
}

target_ulong __wrap_helper_inw_x86_64(CPUX86State *env, uint32_t port)
{
    port_access(env, port, 2, GETPC());
}

target_ulong __wrap_helper_inl_x86_64(CPUX86State *env, uint32_t port)
{
    port_access(env, port, 4, GETPC());
}

/* MSRs that live in the VMSA and that the host lets through. */
static bool is_passed_through(uint32_t msr)
{
    switch (msr) {
    case MSR_IA32_SYSENTER_CS:
    case MSR_IA32_SYSENTER_ESP:
    case MSR_IA32_SYSENTER_EIP:
    case MSR_PAT:
    case MSR_EFER:
    case MSR_STAR:
    case MSR_LSTAR:
    case MSR_CSTAR:
    case MSR_FMASK:
    case MSR_FSBASE:
    case MSR_GSBASE:
    case MSR_KERNELGSBASE:
    case MSR_TSC_AUX:
        return true;
    default:
        return false;
    }
}

void __wrap_helper_rdmsr_x86_64(CPUX86State *env)
{
    struct veil_engine *e = veil_of(env);
    uint32_t msr = env->regs[R_ECX];
    uint64_t value;

    switch (msr) {
    case MSR_GHCB:
        value = e->vmcb->ghcb_gpa;
        break;
    case MSR_SEV_STATUS:
        value = 3 | e->vmsa->sev_features << 2;
        break;
    case MSR_DEBUGCTL:
        value = e->vmsa->dbgctl;
        break;
    case MSR_XSS:
        value = env->xss;
        break;
    default:
        if (!is_passed_through(msr)) {
            veil_raise_vc(e, SVM_EXIT_MSR, GETPC());
        }
        __real_helper_rdmsr_x86_64(env);
        return;
    }
    env->regs[R_EAX] = (uint32_t)value;
    env->regs[R_EDX] = value >> 32;
}

void __wrap_helper_wrmsr_x86_64(CPUX86State *env)
{
    struct veil_engine *e = veil_of(env);
    uint32_t msr = env->regs[R_ECX];
    uint64_t value = (uint32_t)env->regs[R_EAX] | (uint64_t)env->regs[R_EDX] << 32;
    bool other_entries;

    switch (msr) {
    case MSR_GHCB:
        e->vmcb->ghcb_gpa = value;
        return;
    case MSR_DEBUGCTL:
        e->vmsa->dbgctl = value;
        return;
    case MSR_XSS:
        if (value) { /* the processor has no supervisor state to save */
            raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
        }
        env->xss = value;
        return;
    case MSR_EFER:
        veil_check_efer(env, value, GETPC());
        other_entries = (value ^ env->efer) & MSR_EFER_NXE;
        __real_helper_wrmsr_x86_64(env);
        if (other_entries) { /* bit 63 of page table entries has another meaning */
            tlb_flush(e->cs);
        }
        return;
    default:
        if (!is_passed_through(msr)) {
            veil_raise_vc(e, SVM_EXIT_MSR, GETPC());
        }
        if (!veil_msr_takes(msr, value)) {
            raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
        }
        __real_helper_wrmsr_x86_64(env);
    }
}

/* The privilege check comes before the intercept. */
void __wrap_helper_rdpmc_x86_64(CPUX86State *env)
{
    if (!(env->cr[4] & CR4_PCE_MASK) && (env->hflags & HF_CPL_MASK)) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
    }
    veil_raise_vc(veil_of(env), SVM_EXIT_RDPMC, GETPC());
}

static void load_tsc(CPUX86State *env, uintptr_t retaddr)
{
    uint64_t tsc;

    if ((env->cr[4] & CR4_TSD_MASK) && (env->hflags & HF_CPL_MASK)) {
        raise_exception_ra(env, EXCP0D_GPF, retaddr);
    }
    tsc = veil_engine_tsc(veil_of(env));
    env->regs[R_EAX] = (uint32_t)tsc;
    env->regs[R_EDX] = tsc >> 32;
}

void __wrap_helper_rdtsc_x86_64(CPUX86State *env)
{
    load_tsc(env, GETPC());
}

void __wrap_helper_rdtscp_x86_64(CPUX86State *env)
{
    load_tsc(env, GETPC());
    env->regs[R_ECX] = (uint32_t)env->tsc_aux;
}

/* Back to the loop, behind an instruction. */
static void QEMU_NORETURN finish(CPUX86State *env)
{
    struct veil_engine *e = veil_of(env);

    if (veil_debug_steps(e)) {
        veil_debug_take_single_step(e);
    } else if (e->cs->singlestep_enabled) {
        e->cs->exception_index = EXCP_DEBUG;
        cpu_loop_exit(e->cs);
    }
    cpu_loop_exit_noexc(e->cs);
}

void __wrap_helper_hlt_x86_64(CPUX86State *env, int next_eip_addend)
{
    struct veil_engine *e = veil_of(env);

    env->eip += next_eip_addend;
    env->hflags &= ~HF_INHIBIT_IRQ_MASK; /* the shadow of STI ends with the instruction after it, this one */
    if (veil_debug_steps(e)) {           /* the trap ends the halt at once */
        finish(env);
    }
    if (veil_offers(e->v_intr) && veil_take_offered(e)) {
        cpu_loop_exit_noexc(e->cs);
    }
    veil_exit(e, SVM_EXIT_HLT, 0, 0, 0);
}

void __wrap_helper_pause_x86_64(CPUX86State *env, int next_eip_addend)
{
    struct veil_engine *e = veil_of(env);

    env->eip += next_eip_addend;
    env->hflags &= ~HF_INHIBIT_IRQ_MASK;
    if (e->pause_limit && ++e->pauses >= e->pause_limit) {
        e->pauses = 0;
        veil_exit(e, SVM_EXIT_PAUSE, 0, 0, 0);
    }
    finish(env);
}

/* The flat segments of ring 0 that SYSCALL and SYSENTER enter, whatever the descriptor tables say. */
#define CALLED_CODE (DESC_P_MASK | DESC_S_MASK | DESC_CS_MASK | DESC_R_MASK | DESC_A_MASK | DESC_G_MASK | DESC_B_MASK)

static void enter_kernel(CPUX86State *env, uint32_t selector, uint32_t code)
{
    uint32_t stack = DESC_P_MASK | DESC_S_MASK | DESC_W_MASK | DESC_A_MASK | DESC_G_MASK | DESC_B_MASK;

    cpu_x86_load_seg_cache(env, R_CS, selector & 0xfffc, 0, 0xffffffff, code);
    cpu_x86_load_seg_cache(env, R_SS, (selector + 8) & 0xfffc, 0, 0xffffffff, stack);
}

/* SYSENTER as in APM vol. 3; Unicorn's own only calls a hook. In long mode the translator has raised #UD. */
void __wrap_helper_sysenter_x86_64(CPUX86State *env, int next_eip_addend)
{
    if (!(env->sysenter_cs & 0xfffc)) {
        raise_exception_err_ra(env, EXCP0D_GPF, 0, GETPC());
    }
    env->eflags &= ~(VM_MASK | IF_MASK | RF_MASK);
    enter_kernel(env, env->sysenter_cs & 0xffff, CALLED_CODE);
    env->regs[R_ESP] = (uint32_t)env->sysenter_esp;
    env->eip = (uint32_t)env->sysenter_eip;
}

/* SYSCALL as in APM vol. 3; Unicorn's own only calls a hook. */
void __wrap_helper_syscall_x86_64(CPUX86State *env, int next_eip_addend)
{
    uint32_t code = CALLED_CODE;
    target_ulong target;

    if (!(env->efer & MSR_EFER_SCE)) {
        veil_raise_undefined(veil_of(env)); /* an enclave's system call */
    }
    if (env->hflags & HF_LMA_MASK) {
        env->regs[R_ECX] = env->eip + next_eip_addend;
        env->regs[11] = cpu_compute_eflags(env) & ~RF_MASK;
        target = env->hflags & HF_CS64_MASK ? env->lstar : env->cstar;
        cpu_load_eflags(env, env->regs[11] & ~env->fmask, FLAGS_KEPT_IN_EFLAGS);
        code = (code & ~DESC_B_MASK) | DESC_L_MASK;
    } else {
        env->regs[R_ECX] = (uint32_t)(env->eip + next_eip_addend);
        cpu_load_eflags(env, cpu_compute_eflags(env) & ~(IF_MASK | RF_MASK | VM_MASK), FLAGS_KEPT_IN_EFLAGS);
        target = (uint32_t)env->star;
    }
    enter_kernel(env, (env->star >> 32) & 0xffff, code);
    env->eip = target;
}
