/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Events on their way into the guest: veil_engine.delivering. */
#ifndef VEIL_EVENTS_H
#define VEIL_EVENTS_H

#include "core.h"

/* Of EVENTINJ, the VMCB's or the VMSA's, whichever it is that counts. */
bool veil_may_inject(const struct veil_vmsa *vmsa, const struct veil_vmcb *vmcb);
void veil_take_injection(struct veil_engine *e);
/* Can the event that is to be delivered be delivered after the next VMRUN as well? */
bool veil_may_wait(const struct veil_engine *e);
/* V_NMI or V_IRQ, if the guest can be interrupted now. */
bool veil_take_offered(struct veil_engine *e);
/* EXITINTINFO of an exit that finds this event. */
uint64_t veil_exit_interruption(const struct veil_event *event);

/* `retaddr` as for veil_exit(). */
void QEMU_NORETURN veil_raise_vc(struct veil_engine *e, uint64_t error_code, uintptr_t retaddr);

/* #UD, of an instruction before which the translator has stored RIP and the flags. */
void QEMU_NORETURN veil_raise_undefined(struct veil_engine *e);

void veil_take_exception(struct veil_engine *e);
void veil_deliver_event(struct veil_engine *e);

#endif
