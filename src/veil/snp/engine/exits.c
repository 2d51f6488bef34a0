/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Leaving generated code: an exit to the host, or #VC for the guest.
 */
#include "exits.h"

#include "exec/exec-all.h"

void veil_exit(struct veil_engine *e, uint64_t code, uint64_t exit_info_1, uint64_t exit_info_2, uintptr_t retaddr)
{
    if (retaddr) {
        cpu_restore_state(e->cs, retaddr, true);
    }
    e->exit_code = code;
    e->exit_info_1 = exit_info_1;
    e->exit_info_2 = exit_info_2;
    e->cs->exception_index = VEIL_EXCP_EXIT;
    cpu_loop_exit(e->cs);
}

bool veil_is_contributory(int vector)
{
    return vector == EXCP00_DIVZ || (vector >= EXCP0A_TSS && vector <= EXCP0D_GPF) || vector == VEIL_VECTOR_VC;
}

bool veil_is_delivering_exception(const struct veil_engine *e)
{
    return e->delivering.pending && e->delivering.type == SVM_EVTINJ_TYPE_EXEPT >> 8;
}

/*
 * #VC is taken as a contributory fault: met in the delivery of another one it is a double fault. From memory, not
 * checked against the text of APM vol. 2 (docs/fidelity.md).
 */
void veil_raise_vc(struct veil_engine *e, uint64_t error_code, uintptr_t retaddr)
{
    int first = veil_is_delivering_exception(e) ? e->delivering.vector : -1;

    if (retaddr) {
        cpu_restore_state(e->cs, retaddr, true);
    }
    e->env->exception_is_int = 0;
    if (first == EXCP08_DBLE) {
        e->delivering.pending = false;
        veil_exit(e, VEIL_EXIT_SHUTDOWN, 0, 0, 0);
    }
    if (first == EXCP0E_PAGE || (first >= 0 && veil_is_contributory(first))) {
        e->env->error_code = 0;
        e->cs->exception_index = EXCP08_DBLE;
    } else {
        e->counters.vc++;
        e->env->error_code = error_code;
        e->cs->exception_index = VEIL_VECTOR_VC;
    }
    cpu_loop_exit(e->cs);
}
