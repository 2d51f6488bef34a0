/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef VEIL_CONTROL_REGISTERS_H
#define VEIL_CONTROL_REGISTERS_H

#include "core.h"

void veil_check_efer(CPUX86State *env, uint64_t value, uintptr_t retaddr);
/* May the guest write this value to an MSR of its VMSA? */
bool veil_msr_takes(uint32_t msr, uint64_t value);

/* Is a VMSA's combination of control registers, EFER, DR6, DR7 and code segment one that VMRUN takes (APM vol. 2,
 * 15.5.1)? */
bool veil_are_consistent(const struct veil_engine *e, const struct veil_vmsa *v);

#endif
