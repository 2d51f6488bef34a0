// SPDX-License-Identifier: GPL-2.0
/*
 * A processor that comes up begins in the real-mode trampoline, which a locked-down kernel does not execute: it would stop
 * there, in a mode without exceptions that could be delivered, and the machine with it. So the kernel hears before it starts
 * one that it cannot come.
 */
#include <linux/cpuhotplug.h>
#include <linux/errno.h>
#include <linux/printk.h>

#include "kci.h"

static int state;

static int on_coming(unsigned int cpu)
{
	if (!veil_kci_is_locked())
		return 0;
	pr_warn("veil: CPU %u stays offline: the kernel is locked down\n", cpu);
	return -EPERM;
}

int veil_kci_processors_begin(void)
{
	state = cpuhp_setup_state_nocalls(CPUHP_BP_PREPARE_DYN, "veil/kci:locked", on_coming, NULL);
	return state < 0 ? state : 0;
}

void veil_kci_processors_end(void)
{
	cpuhp_remove_state_nocalls(state);
}
