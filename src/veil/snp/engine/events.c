/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Events: what is injected (EVENTINJ) or on offer, what the guest raises, #VC, how they are delivered, and what is left
 * of one whose delivery an exit cut off (EXITINTINFO).
 */
#include "events.h"
#include "debug_registers.h"
#include "exits.h"

#include "exec/exec-all.h"

#define EXCEPTIONS 32

/* The bit of a selector error code that says that the event which met the fault came from outside of the processor. */
#define ERROR_EXTERNAL 1

static bool is_contributory(int vector)
{
    return vector == EXCP00_DIVZ || (vector >= EXCP0A_TSS && vector <= EXCP0D_GPF) || vector == VEIL_VECTOR_VC;
}

static bool is_delivering_exception(const struct veil_engine *e)
{
    return e->delivering.pending && e->delivering.type == SVM_EVTINJ_TYPE_EXEPT >> 8;
}

static bool is_delivering_external(const struct veil_engine *e)
{
    return e->delivering.pending &&
           (e->delivering.type == SVM_EVTINJ_TYPE_INTR >> 8 || e->delivering.type == SVM_EVTINJ_TYPE_NMI >> 8);
}

/* With alternate injection (APM vol. 2, 15.36.16) EVENTINJ is the VMSA's. */
static uint64_t injection_of(const struct veil_vmsa *vmsa, const struct veil_vmcb *vmcb)
{
    return vmsa->sev_features & VEIL_SEV_ALTERNATE_INJECTION ? vmsa->event_inj : vmcb->event_inj;
}

/*
 * Which EVENTINJ VMRUN takes: types that there are, and vectors of exceptions for exceptions (APM vol. 2, 15.20). With
 * restricted injection (15.36.16) #HV and nothing else; V_IRQ does not count (run.c).
 */
bool veil_may_inject(const struct veil_vmsa *vmsa, const struct veil_vmcb *vmcb)
{
    const uint32_t hv = VEIL_VECTOR_HV | SVM_EVTINJ_TYPE_EXEPT | (uint32_t)SVM_EVTINJ_VALID;
    uint64_t injection = injection_of(vmsa, vmcb);
    uint8_t vector = injection;

    if (!(injection & (uint32_t)SVM_EVTINJ_VALID)) {
        return true;
    }
    if (vmsa->sev_features & VEIL_SEV_RESTRICTED_INJECTION) {
        return (uint32_t)injection == hv;
    }
    switch (injection & SVM_EVTINJ_TYPE_MASK) {
    case SVM_EVTINJ_TYPE_INTR:
    case SVM_EVTINJ_TYPE_NMI:
    case SVM_EVTINJ_TYPE_SOFT:
        return true;
    case SVM_EVTINJ_TYPE_EXEPT:
        return vector < EXCEPTIONS && vector != EXCP02_NMI;
    default:
        return false;
    }
}

/* NMIs that come until the next IRET wait. */
static void begin_nmi(struct veil_engine *e)
{
    e->delivering = (struct veil_event){.pending = true, .vector = EXCP02_NMI, .type = SVM_EVTINJ_TYPE_NMI >> 8};
    if (e->v_intr & VEIL_V_NMI_ENABLE) {
        e->env->hflags2 |= HF2_NMI_MASK;
    }
}

bool veil_take_offered(struct veil_engine *e)
{
    CPUX86State *env = e->env;

    if (e->restricted || (env->hflags & HF_INHIBIT_IRQ_MASK)) {
        return false;
    }
    if (veil_offers_nmi(e->v_intr) && !(env->hflags2 & HF2_NMI_MASK)) {
        e->v_intr &= ~VEIL_V_NMI;
        begin_nmi(e);
        return true;
    }
    if (veil_offers_irq(e->v_intr) && (env->eflags & IF_MASK) && veil_irq_passes(e->v_intr, env->v_tpr)) {
        e->delivering = (struct veil_event){.pending = true, .vector = veil_offered_vector(e->v_intr)};
        e->v_intr &= ~VEIL_V_IRQ;
        return true;
    }
    return false;
}

/* Event of EVENTINJ (APM vol. 2, 15.20). Types: 0 interrupt, 2 NMI, 3 exception, 4 software interrupt. */
void veil_take_injection(struct veil_engine *e)
{
    uint64_t injection = injection_of(e->vmsa, e->vmcb);

    e->vmcb->event_inj = 0;
    if (e->alternate) {
        e->vmsa->event_inj = 0;
    }
    if (!(injection & (uint32_t)SVM_EVTINJ_VALID)) {
        return;
    }
    if ((injection >> 8 & 7) == SVM_EVTINJ_TYPE_NMI >> 8) { /* whatever its vector */
        begin_nmi(e);
        return;
    }
    e->delivering = (struct veil_event){
        .pending = true,
        .vector = injection & 0xff,
        .type = (injection >> 8) & 7,
        .has_error_code = (injection & SVM_EVTINJ_VALID_ERR) != 0,
        .error_code = injection >> 32,
        .next_rip = e->alternate ? e->vmsa->nrip : e->vmcb->nrip,
    };
}

/*
 * Behind #DB the instruction is over, which does not raise it again. With alternate injection an interrupt that was
 * taken is not on offer any more, and there is no host to give it back.
 */
bool veil_may_wait(const struct veil_engine *e)
{
    return e->delivering.vector != EXCP01_DB && !(e->alternate && is_delivering_external(e));
}

/* EXITINTINFO. (svm.h's SVM_EVTINJ_VALID is a negative int: or-ed in here, it would fill the error code with ones.) */
uint64_t veil_exit_interruption(const struct veil_event *event)
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

/*
 * #VC is taken as a contributory fault: met in the delivery of another one it is a double fault. From memory, not
 * checked against the text of APM vol. 2 (docs/fidelity.md).
 */
void veil_raise_vc(struct veil_engine *e, uint64_t error_code, uintptr_t retaddr)
{
    int first = is_delivering_exception(e) ? e->delivering.vector : -1;

    if (retaddr) {
        cpu_restore_state(e->cs, retaddr, true);
    }
    e->env->exception_is_int = 0;
    if (first == EXCP08_DBLE) {
        e->delivering.pending = false;
        veil_exit(e, VEIL_EXIT_SHUTDOWN, 0, 0, 0);
    }
    if (first == EXCP0E_PAGE || (first >= 0 && is_contributory(first))) {
        e->env->error_code = 0;
        e->cs->exception_index = EXCP08_DBLE;
    } else {
        e->counters.vc++;
        e->env->error_code = error_code;
        e->cs->exception_index = VEIL_VECTOR_VC;
    }
    cpu_loop_exit(e->cs);
}

/* The loop delivers it without looking for an instruction of SNP's at RIP. */
void veil_raise_undefined(struct veil_engine *e)
{
    e->delivering = (struct veil_event){.pending = true, .vector = EXCP06_ILLOP, .type = SVM_EVTINJ_TYPE_EXEPT >> 8};
    e->cs->exception_index = EXCP_INTERRUPT;
    cpu_loop_exit(e->cs);
}

/* May not return: a fault on the way comes back through the loop's sigsetjmp. */
void veil_deliver_event(struct veil_engine *e)
{
    CPUX86State *env = e->env;
    struct veil_event *event = &e->delivering;

    /* Nested SVM's own bookkeeping of injected events would write to a VMCB that is not there. */
    e->counters.events++;
    env->hflags &= ~HF_GUEST_MASK;
    env->old_exception = -1;
    if (is_delivering_exception(e) &&
        (is_contributory(event->vector) || event->vector == EXCP0E_PAGE || event->vector == EXCP08_DBLE)) {
        /* QEMU does not know #VC as contributory: let it think of #GP. */
        env->old_exception = event->vector == VEIL_VECTOR_VC ? EXCP0D_GPF : event->vector;
    }
    if (event->type == SVM_EVTINJ_TYPE_INTR >> 8 || event->type == SVM_EVTINJ_TYPE_NMI >> 8) {
        do_interrupt_x86_hardirq(env, event->vector, 1);
    } else {
        e->cs->exception_index = event->vector;
        env->error_code = event->error_code;
        env->exception_is_int = event->type == SVM_EVTINJ_TYPE_SOFT >> 8;
        env->exception_next_eip = event->next_rip;
        x86_cpu_do_interrupt(e->cs);
    }
    env->old_exception = -1;
    env->hflags = (env->hflags & ~HF_INHIBIT_IRQ_MASK) | HF_GUEST_MASK;
    e->cs->exception_index = -1;
    event->pending = false;
}

/* What made generated code come back, or was raised outside of it, becomes the event to deliver. */
void veil_take_exception(struct veil_engine *e)
{
    CPUX86State *env = e->env;
    int vector = e->cs->exception_index;
    /* APM vol. 2, 8.4.1: #TS, #NP, #SS and #GP have a selector error code. */
    bool external = is_delivering_external(e) && vector >= EXCP0A_TSS && vector <= EXCP0D_GPF;

    e->cs->exception_index = -1;
    veil_debug_exception(e, vector, env->exception_is_int);
    e->delivering = (struct veil_event){
        .pending = true,
        .vector = vector,
        .type = (env->exception_is_int ? SVM_EVTINJ_TYPE_SOFT : SVM_EVTINJ_TYPE_EXEPT) >> 8,
        .has_error_code =
            !env->exception_is_int && (vector == EXCP08_DBLE || (vector >= EXCP0A_TSS && vector <= EXCP0E_PAGE) ||
                                       vector == EXCP11_ALGN || vector == VEIL_VECTOR_VC),
        .error_code = env->error_code | (external ? ERROR_EXTERNAL : 0),
        .next_rip = env->exception_next_eip,
    };
    env->exception_is_int = 0;
}
