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

static const struct {
	int (*begin)(void);
	void (*end)(void);
} parts[] = {
	{ veil_call_init, veil_call_exit },
	{ veil_rules_init, veil_rules_exit },
	{ veil_log_init, veil_log_exit },
	{ veil_intent_init, veil_intent_exit },
};

static void end_parts(int count)
{
	while (count--)
		parts[count].end();
}

static int __init veil_init(void)
{
	int i, error = 0;

	for (i = 0; i < (int)ARRAY_SIZE(parts) && !error; i++)
		error = parts[i].begin();
	if (error) {
		end_parts(i - 1);
		return error;
	}
	error = misc_register(&state_device);
	if (error)
		end_parts(ARRAY_SIZE(parts));
	return error;
}
module_init(veil_init);

static void __exit veil_exit(void)
{
	misc_deregister(&state_device);
	end_parts(ARRAY_SIZE(parts));
}
module_exit(veil_exit);

MODULE_DESCRIPTION("Protected services of Veil");
MODULE_LICENSE("GPL");
