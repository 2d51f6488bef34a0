// SPDX-License-Identifier: GPL-2.0
/*
 * Lock-down: the measured init writes to /dev/veil-kci when it has loaded its modules. Anybody who writes later changes
 * nothing (EALREADY).
 */
#include <linux/fs.h>
#include <linux/kernel.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>

#include "kci.h"

static DEFINE_MUTEX(asking);
static bool locked;

static int lock_down(void)
{
	int error;

	if (locked)
		return -EALREADY;
	error = veil_kci_ask_lock_down();
	if (error) {
		pr_err("veil: VeilS-KCI did not lock the kernel down (%d)\n", error);
		return error;
	}
	WRITE_ONCE(locked, true);
	pr_info("veil: VeilS-KCI has locked the kernel down\n");
	return 0;
}

bool veil_kci_is_locked(void)
{
	return READ_ONCE(locked);
}

static ssize_t lock_down_write(struct file *file, const char __user *from, size_t size, loff_t *at)
{
	int error;

	mutex_lock(&asking);
	error = lock_down();
	mutex_unlock(&asking);
	return error ? error : size;
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.write = lock_down_write,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "veil-kci",
	.fops = &operations,
	.mode = 0200,
};

int veil_kci_lock_down_begin(void)
{
	return misc_register(&device);
}

void veil_kci_lock_down_end(void)
{
	misc_deregister(&device);
}

int veil_kci_lock_down_state(char *text, size_t size)
{
	return scnprintf(text, size, " locked %d", READ_ONCE(locked));
}
