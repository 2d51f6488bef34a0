/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A debugger's stops, of which the guest sees nothing: no byte of its memory and no register of its changes.
 * Breakpoints are part of the translation: a block that comes to one ends in front of it. Watchpoints are watch.c's.
 * What single steps execute meets neither: that is how a stop is left behind.
 */
#include "spaces.h"
#include "watch.h"

#include "exec/exec-all.h"

void veil_engine_set_breakpoints(struct veil_engine *e, const uint64_t *addresses, uint32_t count)
{
    uint32_t i;

    cpu_breakpoint_remove_all(e->cs, BP_GDB);
    for (i = 0; i < count; i++) {
        cpu_breakpoint_insert(e->cs, addresses[i], BP_GDB, NULL);
    }
}

void veil_engine_set_watchpoints(struct veil_engine *e, const struct veil_watchpoint *watchpoints, uint32_t count)
{
    e->watchpoint_count = MIN(count, VEIL_MAX_WATCHPOINTS);
    memcpy(e->watchpoints, watchpoints, e->watchpoint_count * sizeof(*watchpoints));
    veil_watch_changed(e);
    veil_spaces_forget(e); /* entries get their flags when they are made */
}

uint32_t veil_engine_debug_stop(struct veil_engine *e, uint64_t *address)
{
    uint32_t stop = e->debug_stop;

    e->debug_stop = VEIL_STOP_NONE;
    *address = e->debug_address;
    return stop;
}
