/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * VMRUN: from a VMCB to the context that its VMSA holds, and back with the exit.
 */
#include "clock.h"
#include "context.h"
#include "core.h"
#include "run.h"

/* Consistency checks of VMRUN on the VMSA (APM vol. 2, 15.5.1 and 15.36.12). */
static bool is_runnable(struct veil_engine *e, uint64_t gpa)
{
    const struct veil_vmsa *vmsa;

    if ((gpa & ~TARGET_PAGE_MASK) || !veil_is_ram(e, gpa) || !veil_rmp_is_vmsa(e->rmp, gpa)) {
        return false;
    }
    vmsa = (const struct veil_vmsa *)(e->ram + gpa);
    return (vmsa->efer & MSR_EFER_SVME) && vmsa->vmpl < VEIL_RMP_VMPLS && (vmsa->sev_features & VEIL_SEV_SNP_ACTIVE);
}

/* Restricted injection (APM vol. 2, 15.36.16): EVENTINJ brings in #HV and nothing else; V_IRQ does not count (run.c).
 */
static bool may_inject(const struct veil_vmsa *vmsa, uint64_t injection)
{
    const uint32_t hv = VEIL_VECTOR_HV | SVM_EVTINJ_TYPE_EXEPT | (uint32_t)SVM_EVTINJ_VALID;

    return !(vmsa->sev_features & VEIL_SEV_RESTRICTED_INJECTION) || !(injection & (uint32_t)SVM_EVTINJ_VALID) ||
           (uint32_t)injection == hv;
}

/* Event of the VMCB's EVENTINJ (APM vol. 2, 15.20). Types: 0 interrupt, 2 NMI, 3 exception, 4 software interrupt. */
static void take_injection(struct veil_engine *e, struct veil_vmcb *vmcb)
{
    uint64_t injection = vmcb->event_inj;

    vmcb->event_inj = 0;
    if (!(injection & (uint32_t)SVM_EVTINJ_VALID)) {
        return;
    }
    e->delivering = (struct veil_event){
        .pending = true,
        .vector = injection & 0xff,
        .type = (injection >> 8) & 7,
        .has_error_code = (injection & SVM_EVTINJ_VALID_ERR) != 0,
        .error_code = injection >> 32,
        .next_rip = vmcb->nrip,
    };
}

/* EXITINTINFO. (svm.h's SVM_EVTINJ_VALID is a negative int: or-ed in here, it would fill the error code with ones.) */
static uint64_t exit_interruption(const struct veil_event *event)
{
    uint32_t low = event->vector | (uint32_t)event->type << 8 | (uint32_t)SVM_EVTINJ_VALID;

    if (!event->pending) {
        return 0;
    }
    if (event->has_error_code) {
        low |= SVM_EVTINJ_VALID_ERR;
    }
    return low | (uint64_t)event->error_code << 32;
}

void veil_engine_vmrun(struct veil_engine *e, struct veil_vmcb *vmcb, uint64_t deadline_ns)
{
    uint64_t gpa = vmcb->vmsa_pa;

    vmcb->exit_int_info = 0;
    if (!is_runnable(e, gpa) || !may_inject((const struct veil_vmsa *)(e->ram + gpa), vmcb->event_inj)) {
        vmcb->exit_code = VEIL_EXIT_INVALID;
        vmcb->exit_info_1 = vmcb->exit_info_2 = 0;
        return;
    }
    e->counters.vmruns++;
    e->vmcb = vmcb;
    e->vmsa = (struct veil_vmsa *)(e->ram + gpa);
    e->vmpl = e->vmsa->vmpl;
    e->restricted = e->vmsa->sev_features & VEIL_SEV_RESTRICTED_INJECTION;
    e->rmp->vmsa_in_use = gpa;
    veil_context_load(e);
    take_injection(e, vmcb);
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
    vmcb->exit_int_info = exit_interruption(&e->delivering);
    vmcb->nrip = e->delivering.pending ? e->delivering.next_rip : e->env->eip;
    if (e->delivering.pending) {
        e->counters.redelivered++;
        e->delivering.pending = false;
    }
    vmcb->interrupt_shadow = (e->env->hflags & HF_INHIBIT_IRQ_MASK ? 1 : 0) | (e->env->eflags & IF_MASK ? 2 : 0);
    veil_context_save(e);
    e->rmp->vmsa_in_use = VEIL_RMP_NO_VMSA;
}
