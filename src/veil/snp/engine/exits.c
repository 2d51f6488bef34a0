/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Leaving generated code: an exit to the host.
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
