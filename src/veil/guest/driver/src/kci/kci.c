// SPDX-License-Identifier: GPL-2.0
/*
 * VeilS-KCI in the kernel: its parts, and its line in /dev/veil. There
 *	locked		1 from lock-down on, 0 before
 *	admitted	modules that VeilS-KCI admitted, this driver among them
 *	refused		modules that it refused, or that it could not be asked about
 *	gone		admitted ones that are unloaded, or whose init function failed
 *	kept		pages of modules that VeilS-KCI did not give back, so that nobody gets them any more
 *	waited_host	requests that the host did not run it for, and that were made again
 *
 * The driver protects nothing here: a module that VeilS-KCI was not asked about has no right to execute. It asks, and
 * tells of pages that go back to the kernel before they do.
 */
#include <linux/errno.h>
#include <linux/kernel.h>
#include <linux/kernel_read_file.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/sizes.h>
#include <linux/vmalloc.h>

#include "../veil.h"
#include "kci.h"

#define LARGEST_DRIVER SZ_4M

static char *own_file;
module_param_named(kci, own_file, charp, 0444);
MODULE_PARM_DESC(kci, "where this driver's file is: VeilS-KCI is in the image, and its policy is not off");

/*
 * The driver is a module like any other to VeilS-KCI, but was loaded before it could see files. It is in its init function
 * here, so all of its memory is there.
 */
static int admit_driver(void)
{
	struct veil_kci_file file = {};
	ssize_t length = kernel_read_file_from_path(own_file, 0, &file.copy, LARGEST_DRIVER, NULL, READING_MODULE);
	int error;

	if (length < 0) {
		pr_err("veil: cannot read the driver's file %s (%zd)\n", own_file, length);
		return length;
	}
	file.length = length;
	error = veil_kci_admit(THIS_MODULE, &file);
	vfree(file.copy);
	return error;
}

/* Modules can come and go once their files are seen, and the kernel be locked down once they can. */
static const struct veil_part parts[] = {
	{ "files", veil_kci_files_begin, veil_kci_files_end },
	{ "modules", veil_kci_modules_begin, veil_kci_modules_end, veil_kci_modules_state },
	{ "new_code", veil_kci_new_code_begin, veil_kci_new_code_end },
	{ "processors", veil_kci_processors_begin, veil_kci_processors_end },
	{ "driver", admit_driver },
	{ "ask", NULL, NULL, veil_kci_ask_state },
	{ "lock_down", veil_kci_lock_down_begin, veil_kci_lock_down_end, veil_kci_lock_down_state },
};

int veil_kci_begin(void)
{
	int error = own_file ? veil_parts_begin(parts, ARRAY_SIZE(parts)) : 0;

	/*
	 * The driver stays for good: it cannot tell that its own pages go back to the kernel and then leave them, and a
	 * load that it watches returns through it.
	 */
	if (own_file && !error)
		__module_get(THIS_MODULE);
	return error;
}

void veil_kci_end(void)
{
	if (!own_file)
		return;
	veil_parts_end(parts, ARRAY_SIZE(parts));
}

int veil_kci_state(char *text, size_t size)
{
	int length = 0;
	size_t i;

	for (i = 0; own_file && i < ARRAY_SIZE(parts); i++)
		if (parts[i].state)
			length += parts[i].state(text + length, size - length);
	return length;
}
