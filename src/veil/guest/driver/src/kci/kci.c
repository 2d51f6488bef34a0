// SPDX-License-Identifier: GPL-2.0
/*
 * VeilS-KCI in the kernel: its parts, and its line in /dev/veil. There
 *	locked		1 from lock-down on, 0 before
 *	admitted	modules that VeilS-KCI admitted, this driver among them
 *	refused		modules that it refused, or that it could not be asked about
 *	gone		admitted ones that are unloaded, or whose init function failed
 *	waited_host	requests that the host did not run it for, and that were made again
 *
 * The driver protects nothing here: a module that VeilS-KCI was not asked about has no right to execute. It asks, and
 * tells of pages that go back to the kernel before they do.
 */
#include <linux/errno.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/moduleparam.h>

#include "../veil.h"
#include "kci.h"

static bool wanted;
module_param_named(kci, wanted, bool, 0444);
MODULE_PARM_DESC(kci, "VeilS-KCI is in the image, and its policy is not off");

/* Modules can come and go once their files are seen, and the kernel be locked down once they can. */
static const struct veil_part parts[] = {
	{ "files", veil_kci_files_begin, veil_kci_files_end },
	{ "modules", veil_kci_modules_begin, veil_kci_modules_end, veil_kci_modules_state },
	{ "ask", NULL, NULL, veil_kci_ask_state },
	{ "lock_down", veil_kci_lock_down_begin, veil_kci_lock_down_end, veil_kci_lock_down_state },
};

int veil_kci_begin(void)
{
	int error = wanted ? veil_parts_begin(parts, ARRAY_SIZE(parts)) : 0;

	/*
	 * The driver stays for good: it cannot tell that its own pages go back to the kernel and then leave them, and a
	 * load that it watches returns through it.
	 */
	if (wanted && !error)
		__module_get(THIS_MODULE);
	return error;
}

void veil_kci_end(void)
{
	if (!wanted)
		return;
	veil_parts_end(parts, ARRAY_SIZE(parts));
}

int veil_kci_state(char *text, size_t size)
{
	int length = 0;
	size_t i;

	for (i = 0; wanted && i < ARRAY_SIZE(parts); i++)
		if (parts[i].state)
			length += parts[i].state(text + length, size - length);
	return length;
}
