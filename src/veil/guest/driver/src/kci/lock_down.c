// SPDX-License-Identifier: GPL-2.0
/*
 * Lock-down, for which the measured init writes this driver's file to /dev/veil-kci, all in one write(): the driver was loaded
 * before it could see files, and is a module like any other to VeilS-KCI. Who writes later changes nothing: EALREADY.
 */
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/kernel.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/sizes.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#include "kci.h"

#define LARGEST_DRIVER SZ_4M

static DEFINE_MUTEX(lock);
static bool admitted, locked;

static int admit_driver(const char __user *from, size_t size)
{
	struct veil_kci_file file = { .length = size };
	int error = -EFAULT;

	if (!size || size > LARGEST_DRIVER)
		return -EINVAL;
	file.copy = vmalloc(size);
	if (!file.copy)
		return -ENOMEM;
	if (!copy_from_user(file.copy, from, size))
		error = veil_kci_admit(THIS_MODULE, &file);
	vfree(file.copy);
	return error;
}

static int lock_down(const char __user *from, size_t size)
{
	int error = 0;

	if (locked)
		return -EALREADY;
	if (!admitted)
		error = admit_driver(from, size);
	if (error)
		return error;
	admitted = true;
	error = veil_kci_ask_lock_down();
	if (error) {
		pr_err("veil: VeilS-KCI did not lock the kernel down (%d)\n", error);
		return error;
	}
	WRITE_ONCE(locked, true);
	pr_info("veil: VeilS-KCI has locked the kernel down\n");
	return 0;
}

static ssize_t lock_down_write(struct file *file, const char __user *from, size_t size, loff_t *at)
{
	int error;

	mutex_lock(&lock);
	error = lock_down(from, size);
	mutex_unlock(&lock);
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
