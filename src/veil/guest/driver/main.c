// SPDX-License-Identifier: GPL-2.0
/* The driver for Veil's protected services in an unmodified kernel; /dev/veil tells its state. */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/uaccess.h>

#include "veil.h"

static ssize_t state_read(struct file *file, char __user *to, size_t size, loff_t *at)
{
	char text[256];

	return simple_read_from_buffer(to, size, at, text, veil_log_state(text, sizeof(text)));
}

static const struct file_operations state_operations = {
	.owner = THIS_MODULE,
	.read = state_read,
};

static struct miscdevice state_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "veil",
	.fops = &state_operations,
	.mode = 0444,
};

static int __init veil_init(void)
{
	int error = veil_call_init();

	if (error)
		return error;
	error = veil_log_init();
	if (error)
		goto no_log;
	error = misc_register(&state_device);
	if (!error)
		return 0;
	veil_log_exit();
no_log:
	veil_call_exit();
	return error;
}
module_init(veil_init);

static void __exit veil_exit(void)
{
	misc_deregister(&state_device);
	veil_log_exit();
	veil_call_exit();
}
module_exit(veil_exit);

MODULE_DESCRIPTION("Protected services of Veil");
MODULE_LICENSE("GPL");
