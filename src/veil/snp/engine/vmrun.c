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
    const uint64_t injections = VEIL_SEV_RESTRICTED_INJECTION | VEIL_SEV_ALTERNATE_INJECTION;
    const struct veil_vmsa *vmsa;

    if ((gpa & ~TARGET_PAGE_MASK) || !veil_is_ram(e, gpa) || !veil_rmp_is_vmsa(e->rmp, gpa)) {
        return false;
    }
    vmsa = (const struct veil_vmsa *)(e->ram + gpa);
    return vmsa->vmpl < VEIL_RMP_VMPLS && (vmsa->sev_features & VEIL_SEV_SNP_ACTIVE) &&
           !(vmsa->sev_features & ~VEIL_SEV_SUPPORTED) && (~vmsa->sev_features & injections) &&
           veil_are_consistent(e, vmsa);
}

/* The exit with which VMRUN refuses the context; 0: it is run. */
static uint64_t refusal(struct veil_engine *e, const struct veil_vmcb *vmcb)
{
    const struct veil_vmsa *vmsa = (const struct veil_vmsa *)(e->ram + vmcb->vmsa_pa);

    if (!is_runnable(e, vmcb->vmsa_pa) || !veil_may_inject(vmsa, vmcb)) {
        return VEIL_EXIT_INVALID;
    }
    if ((vmsa->sev_features & VEIL_SEV_ALTERNATE_INJECTION) && (vmsa->vintr_ctrl & VEIL_V_BUSY)) {
        return VEIL_EXIT_BUSY;
    }
    return 0;
}

/*
 * Alternate injection: an event of which an exit has cut off the delivery is for a more privileged level to give back,
 * and without that the context must not go on, or the host could keep events out. In front of a delivery it is as if
 * VMRUN had not begun it.
 */
static void keep_event(struct veil_engine *e)
{
    uint64_t event = e->vmcb->exit_int_info;

    if (!(event & (uint32_t)SVM_EVTINJ_VALID)) {
        return;
    }
    if (e->exit_code == VEIL_EXIT_INTR) {
        e->vmsa->event_inj = event;
        e->vmcb->exit_int_info = 0;
    } else {
        e->v_intr |= VEIL_V_BUSY;
    }
}

void veil_engine_vmrun(struct veil_engine *e, struct veil_vmcb *vmcb, uint64_t deadline_ns)
{
    uint64_t gpa = vmcb->vmsa_pa, refused = refusal(e, vmcb);

    vmcb->exit_int_info = 0;
    if (refused) {
        vmcb->exit_code = refused;
        vmcb->exit_info_1 = vmcb->exit_info_2 = 0;
        return;
    }
    e->counters.vmruns++;
    e->debug_stop = VEIL_STOP_NONE;
    e->vmcb = vmcb;
    e->vmsa = (struct veil_vmsa *)(e->ram + gpa);
    e->vmpl = e->vmsa->vmpl;
    e->restricted = e->vmsa->sev_features & VEIL_SEV_RESTRICTED_INJECTION;
    e->alternate = e->vmsa->sev_features & VEIL_SEV_ALTERNATE_INJECTION;
    e->rmp->vmsa_in_use = gpa;
    veil_context_load(e);
    veil_take_injection(e);
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
    if (e->alternate) {
        keep_event(e);
    }
    veil_context_save(e);
    e->rmp->vmsa_in_use = VEIL_RMP_NO_VMSA;
}
