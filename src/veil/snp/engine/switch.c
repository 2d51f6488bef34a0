/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Domain switches between a kernel (VMPL 3) and contexts of VMPL 2 without the host's Python. What is done here is the
 * host's work, by a policy that the host wrote: the answers are those of veil.host.host, and whatever is not plain goes
 * back to it. Each entry is a VMRUN with all of its checks.
 */
#include "core.h"
#include "rmp.h"

/* GHCB MSR protocol (56421, section 2.3): run VMPL 2 with a context in bits 63:40 (veil.formats.ghcb), and done. */
#define RUN_VMPL_2 0x200000016ULL
#define RUN_VMPL_DONE 0x17ULL
#define CONTEXT_SHIFT 40

/* Levels 0 and 1 may be Python's to run; the machine looks at the VMSA before it first enters one. */
static bool is_machine_code(struct veil_engine *e, const struct veil_vmcb *vmcb)
{
    uint64_t gpa = vmcb->vmsa_pa;

    return !(gpa & ~TARGET_PAGE_MASK) && veil_is_ram(e, gpa) && ((const struct veil_vmsa *)(e->ram + gpa))->vmpl > 1;
}

/* The context that this VCPU's kernel asks for; NULL if the host is to look at the request. */
static struct veil_vmcb *requested(const struct veil_switch_policy *policy, uint64_t request)
{
    const uint64_t *contexts = (const uint64_t *)(uintptr_t)policy->contexts;
    uint64_t page = request >> CONTEXT_SHIFT, gpa = page << TARGET_PAGE_BITS;
    uint32_t i;

    if ((request & ((1ULL << CONTEXT_SHIFT) - 1)) != RUN_VMPL_2 || page >= policy->pages) {
        return NULL;
    }
    for (i = 0; i < policy->held_count; i++) {
        if (policy->held[i] == gpa) { /* another VCPU is in the middle of it */
            return NULL;
        }
    }
    return (struct veil_vmcb *)(uintptr_t)contexts[page];
}

uint64_t veil_engine_run_switching(struct veil_engine *e, struct veil_vmcb *vmcb,
                                   const struct veil_switch_policy *policy, uint64_t deadline_ns)
{
    struct veil_vmcb *kernel = (struct veil_vmcb *)(uintptr_t)policy->kernel, *next;
    /* An interrupt is due, or was and the host has to be told that it was taken: it looks at each exit. */
    const bool plain = !veil_offers(kernel->v_intr);

    for (;;) {
        veil_engine_vmrun(e, vmcb, deadline_ns);
        if (vmcb->exit_code != VEIL_EXIT_VMGEXIT || !plain) {
            return vmcb->vmsa_pa;
        }
        if (vmcb == kernel) {
            next = requested(policy, kernel->ghcb_gpa);
        } else {
            next = kernel;
        }
        if (!next || !is_machine_code(e, next)) {
            return vmcb->vmsa_pa;
        }
        if (vmcb == kernel) {
            kernel->ghcb_gpa = RUN_VMPL_DONE;
        }
        vmcb = next;
        e->counters.switches++;
    }
}
