/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A debugger's stops. Breakpoints are part of the translation: a block that comes to one ends in front of it.
 * Watchpoints mark the entries of their pages in the soft TLB, so that accesses to these take QEMU's slow path. What
 * single steps execute meets neither: that is how a stop is left behind.
 */
#include "debug.h"
#include "spaces.h"

#include "exec/exec-all.h"

void __wrap_cpu_check_watchpoint_x86_64(CPUState *cs, vaddr addr, vaddr length, MemTxAttrs attrs, int flags,
                                        uintptr_t retaddr);

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
    veil_spaces_forget(e); /* entries get their flags when they are made */
}

uint32_t veil_engine_debug_stop(struct veil_engine *e, uint64_t *address)
{
    uint32_t stop = e->debug_stop;

    e->debug_stop = VEIL_STOP_NONE;
    *address = e->debug_address;
    return stop;
}

/* Do [a, a + a_length) and [b, b + b_length) meet? No sum is made, for ranges may reach the end of all addresses. */
static bool meet(uint64_t a, uint64_t a_length, uint64_t b, uint64_t b_length)
{
    return a - b < b_length || b - a < a_length;
}

struct veil_watched veil_watched_page(const struct veil_engine *e, uint64_t vaddr)
{
    struct veil_watched watched = {0, 0};
    uint32_t i;

    for (i = 0; i < e->watchpoint_count; i++) {
        const struct veil_watchpoint *w = &e->watchpoints[i];

        if (meet(vaddr & TARGET_PAGE_MASK, TARGET_PAGE_SIZE, w->address, w->length)) {
            watched.read |= w->kinds & VEIL_WATCH_READ ? TLB_WATCHPOINT : 0;
            watched.write |= w->kinds & VEIL_WATCH_WRITE ? TLB_WATCHPOINT : 0;
        }
    }
    return watched;
}

/* QEMU's slow path asks before it makes an access to a marked page; Unicorn's own function is empty. */
void __wrap_cpu_check_watchpoint_x86_64(CPUState *cs, vaddr addr, vaddr length, MemTxAttrs attrs, int flags,
                                        uintptr_t retaddr)
{
    struct veil_engine *e = veil_of(cs->env_ptr);
    uint32_t kinds = flags & BP_MEM_WRITE ? VEIL_WATCH_WRITE : VEIL_WATCH_READ, i;

    if (cs->singlestep_enabled || !length) { /* of a store in one page nothing is in the second */
        return;
    }
    for (i = 0; i < e->watchpoint_count; i++) {
        const struct veil_watchpoint *w = &e->watchpoints[i];

        if ((w->kinds & kinds) && meet(addr, length, w->address, w->length)) {
            if (retaddr) {
                cpu_restore_state(cs, retaddr, true);
            }
            e->debug_stop = VEIL_STOP_WATCHPOINT;
            e->debug_address = w->address;
            cs->exception_index = EXCP_DEBUG;
            cpu_loop_exit(cs);
        }
    }
}
