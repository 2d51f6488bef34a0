// SPDX-License-Identifier: GPL-2.0
/* How an enclave runs: domain switches, until it wants something of its process. */
#include <linux/atomic.h>
#include <linux/irqflags.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>

#include "../call.h"
#include "../pages.h"
#include "enc.h"

static atomic64_t entries;

u64 veil_enclave_entries(void)
{
	return atomic64_read(&entries);
}

/* What SERVE answers if the request has to wait: for a page that the kernel has, or for pages of the kernel's own. */
struct wanted {
	u64 address;
	u64 pages;
};

static int donate_more(struct veil_enclave *enclave, u64 count)
{
	int error;

	mutex_lock(&enclave->lock);
	error = veil_enclave_donate(enclave, count);
	mutex_unlock(&enclave->lock);
	return error;
}

static int serve(struct veil_enclave *enclave, u32 slot)
{
	u32 body[] = { enclave->number, slot };

	for (;;) {
		struct wanted wanted;
		size_t length;
		int error = veil_enclave_ask(VEIL_ENCLAVE_CALL_SERVE, NULL, body, sizeof(body), &wanted, sizeof(wanted),
					     &length);

		if (error || !length)
			return error;
		if (length == sizeof(wanted))
			error = donate_more(enclave, wanted.pages);
		else
			error = veil_enclave_return(enclave, slot, wanted.address);
		if (!error && fatal_signal_pending(current))
			error = -EINTR;
		if (error)
			return error;
		cond_resched();
	}
}

/*
 * The process has a signal for a program that may never make a system call. Asked before each entry until the runtime has
 * been seen to run: another thread may have had the page brought back first.
 */
static int interrupt(struct veil_enclave *enclave, u32 slot)
{
	u32 body[] = { enclave->number, slot };

	return veil_enclave_ask(VEIL_ENCLAVE_CALL_INTERRUPT, NULL, body, sizeof(body), NULL, 0, NULL);
}

static int run(struct veil_enclave *enclave, struct veil_enclave_enter *enter)
{
	struct veil_enclave_slot *slot = &enclave->slots[enter->slot];
	struct veil_window_block *block = veil_enclave_page(slot->window, 0);

	for (;;) {
		enter->state = READ_ONCE(block->state);
		if (enter->state == VEIL_WINDOW_SERVICE) {
			int error = serve(enclave, enter->slot);

			if (error)
				return error;
			WRITE_ONCE(block->state, VEIL_WINDOW_IDLE);
		} else if (enter->state != VEIL_WINDOW_IDLE) {
			return 0;
		} else if (READ_ONCE(block->interrupt)) {
			int error = interrupt(enclave, enter->slot);

			if (error)
				return error;
		}
		if (signal_pending(current))
			return -EINTR;
		cond_resched();
		atomic64_inc(&entries);
		enter->answer = veil_run_context(slot->context);
		if (enter->answer != VEIL_RAN_CONTEXT)
			return -EIO;
	}
}

int veil_enclave_enter(struct veil_enclave *enclave, struct veil_enclave_enter *enter)
{
	struct veil_enclave_slot *slot;
	int error;

	if (!smp_load_acquire(&enclave->finished) || enter->slot >= enclave->slot_count)
		return -EINVAL;
	slot = &enclave->slots[enter->slot];
	if (!mutex_trylock(&slot->lock))
		return -EBUSY;
	error = run(enclave, enter);
	mutex_unlock(&slot->lock);
	return error;
}
