/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Watched accesses: the entries of their pages in the soft TLB are marked, so that accesses to these take QEMU's slow
 * path, which asks here. A debugger's watchpoints stop the machine in front of the access, and the guest does not see
 * it; the guest's own data breakpoints are traps, which come behind the instruction.
 */
#include "watch.h"

#include "exec/exec-all.h"
#include "tcg/tcg.h"

void __wrap_cpu_check_watchpoint_x86_64(CPUState *cs, vaddr addr, vaddr length, MemTxAttrs attrs, int flags,
                                        uintptr_t retaddr);

void veil_watch_changed(struct veil_engine *e)
{
    e->watching = e->watchpoint_count || e->breakpoints.reads || e->breakpoints.writes;
}

/* Do [a, a + a_length) and [b, b + b_length) meet? No sum is made, for ranges may reach the end of all addresses. */
static bool meet(uint64_t a, uint64_t a_length, uint64_t b, uint64_t b_length)
{
    return a - b < b_length || b - a < a_length;
}

/* DR6's bits of the data breakpoints of these kinds that the range meets. */
static uint32_t find_hits(const struct veil_breakpoints *b, uint8_t kinds, uint64_t vaddr, uint64_t length)
{
    uint32_t hits = 0;
    int i;

    for (i = 0; i < VEIL_DEBUG_REGISTERS; i++) {
        if ((kinds & 1 << i) && meet(vaddr, length, b->address[i], b->length[i])) {
            hits |= 1 << i;
        }
    }
    return hits;
}

struct veil_watched veil_watched_page(const struct veil_engine *e, uint64_t vaddr)
{
    const struct veil_breakpoints *b = &e->breakpoints;
    struct veil_watched watched = {0, 0};
    uint64_t page = vaddr & TARGET_PAGE_MASK;
    uint32_t i;

    for (i = 0; i < e->watchpoint_count; i++) {
        const struct veil_watchpoint *w = &e->watchpoints[i];

        if (meet(page, TARGET_PAGE_SIZE, w->address, w->length)) {
            watched.read |= w->kinds & VEIL_WATCH_READ ? TLB_WATCHPOINT : 0;
            watched.write |= w->kinds & VEIL_WATCH_WRITE ? TLB_WATCHPOINT : 0;
        }
    }
    watched.read |= find_hits(b, b->reads, page, TARGET_PAGE_SIZE) ? TLB_WATCHPOINT : 0;
    watched.write |= find_hits(b, b->writes, page, TARGET_PAGE_SIZE) ? TLB_WATCHPOINT : 0;
    return watched;
}

/* Of the block that the access is in, no other instruction follows. */
static bool is_alone(struct veil_engine *e, uintptr_t retaddr)
{
    TranslationBlock *tb = tcg_tb_lookup(e->uc->tcg_ctx, retaddr);

    return !tb || tb->icount == 1;
}

/*
 * The trap is due behind this instruction. If its block goes on, the instruction begins again, as a block of its own;
 * nothing of it has happened that would not happen in the same way once more. Without `retaddr` it is an event's
 * delivery, or a helper that stored where it is.
 */
static void hit(struct veil_engine *e, uint32_t hits, uintptr_t retaddr)
{
    if (e->delivering.pending && e->delivering.vector == EXCP01_DB) {
        return; /* Else #DB's own frame raises #DB, without end. Processors with DebugSwap ignore it, too. */
    }
    if (retaddr && !is_alone(e, retaddr)) {
        cpu_restore_state(e->cs, retaddr, true);
        e->cs->cflags_next_tb = curr_cflags() | 1;
        cpu_loop_exit_noexc(e->cs);
    }
    e->data_hits |= hits;
    atomic_set(&e->cs->icount_decr_ptr->u16.high, -1); /* back to the loop before the next block */
}

/* QEMU's slow path asks before it makes an access to a marked page; Unicorn's own function is empty. */
void __wrap_cpu_check_watchpoint_x86_64(CPUState *cs, vaddr addr, vaddr length, MemTxAttrs attrs, int flags,
                                        uintptr_t retaddr)
{
    struct veil_engine *e = veil_of(cs->env_ptr);
    const struct veil_breakpoints *b = &e->breakpoints;
    bool write = flags & BP_MEM_WRITE;
    uint32_t hits, i;

    if (!length) { /* of a store in one page nothing is in the second */
        return;
    }
    for (i = 0; i < e->watchpoint_count && !cs->singlestep_enabled; i++) {
        const struct veil_watchpoint *w = &e->watchpoints[i];

        if ((w->kinds & (write ? VEIL_WATCH_WRITE : VEIL_WATCH_READ)) && meet(addr, length, w->address, w->length)) {
            if (retaddr) {
                cpu_restore_state(cs, retaddr, true);
            }
            e->debug_stop = VEIL_STOP_WATCHPOINT;
            e->debug_address = w->address;
            cs->exception_index = EXCP_DEBUG;
            cpu_loop_exit(cs);
        }
    }
    hits = find_hits(b, write ? b->writes : b->reads, addr, length);
    if (hits) {
        hit(e, hits, retaddr);
    }
}
