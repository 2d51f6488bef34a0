/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * VMRUN: from a VMCB to the context that its VMSA holds, and back with the exit.
 */
#include "clock.h"
#include "context.h"
#include "control_registers.h"
#include "events.h"
#include "run.h"

/* VMRUN's checks of the VMSA (APM vol. 2, 15.5.1 and 15.36.12). */
static bool is_runnable(struct veil_engine *e, uint64_t gpa)
{
    const struct veil_vmsa *vmsa;

    if ((gpa & ~TARGET_PAGE_MASK) || !veil_is_ram(e, gpa) || !veil_rmp_is_vmsa(e->rmp, gpa)) {
        return false;
    }
    vmsa = (const struct veil_vmsa *)(e->ram + gpa);
    return vmsa->vmpl < VEIL_RMP_VMPLS && (vmsa->sev_features & VEIL_SEV_SNP_ACTIVE) &&
           !(vmsa->sev_features & ~VEIL_SEV_SUPPORTED) && veil_are_consistent(e, vmsa);
}

void veil_engine_vmrun(struct veil_engine *e, struct veil_vmcb *vmcb, uint64_t deadline_ns)
{
    uint64_t gpa = vmcb->vmsa_pa;

    vmcb->exit_int_info = 0;
    if (!is_runnable(e, gpa) || !veil_may_inject((const struct veil_vmsa *)(e->ram + gpa), vmcb->event_inj)) {
        vmcb->exit_code = VEIL_EXIT_INVALID;
        vmcb->exit_info_1 = vmcb->exit_info_2 = 0;
        return;
    }
    e->counters.vmruns++;
    e->debug_stop = VEIL_STOP_NONE;
    e->vmcb = vmcb;
    e->vmsa = (struct veil_vmsa *)(e->ram + gpa);
    e->vmpl = e->vmsa->vmpl;
    e->restricted = e->vmsa->sev_features & VEIL_SEV_RESTRICTED_INJECTION;
    e->rmp->vmsa_in_use = gpa;
    veil_context_load(e);
    veil_take_injection(e, vmcb);
    e->deadline_ns = deadline_ns;
    veil_ticker_resume(e);
    if (deadline_ns && veil_monotonic_ns() >= deadline_ns) {
        atomic_set(&e->cs->icount_decr_ptr->u16.high, -1);
    }

    veil_run(e);

    e->running = false;
    vmcb->exit_code = e->exit_code;
    vmcb->exit_info_1 = e->exit_info_1;
    vmcb->exit_info_2 = e->exit_info_2;
    vmcb->exit_int_info = veil_exit_interruption(&e->delivering);
    vmcb->nrip = e->delivering.pending ? e->delivering.next_rip : e->env->eip;
    if (e->delivering.pending) {
        e->counters.redelivered++;
        e->delivering.pending = false;
    }
    vmcb->interrupt_shadow = (e->env->hflags & HF_INHIBIT_IRQ_MASK ? 1 : 0) | (e->env->eflags & IF_MASK ? 2 : 0);
    veil_context_save(e);
    e->rmp->vmsa_in_use = VEIL_RMP_NO_VMSA;
}
