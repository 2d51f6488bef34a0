// SPDX-License-Identifier: GPL-2.0
/*
 * The driver for Veil's protected services in an unmodified kernel.
 *
 * /dev/veil tells the state of the services: a line of text for each, its name first, then pairs of a key and a decimal
 * number, with one space between any two words:
 *
 *	log records 812 calls 95 waited_full 0 waited_host 0 lost 0 intents 17 ticks 366
 *
 * What a service's keys mean stands with its state function. Keys may be added; readers look for the ones they know.
 */
#include <linux/fs.h>
#include <linux/kernel.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "call.h"
#include "enc/enc.h"
#include "kci/kci.h"
#include "log/log.h"
#include "veil.h"

/* A new service is a folder and a line here. */
static const struct veil_part parts[] = {
	{ "call", veil_call_begin, veil_call_end },
	{ "log", veil_log_begin, veil_log_end, veil_log_state },
	{ "kci", veil_kci_begin, veil_kci_end, veil_kci_state },
	{ "enc", veil_enc_begin, veil_enc_end, veil_enc_state },
};

static ssize_t state_read(struct file *file, char __user *to, size_t size, loff_t *at)
{
	char *text = kmalloc(PAGE_SIZE, GFP_KERNEL);
	ssize_t result;
	size_t i;
	int length = 0, begin, said;

	if (!text)
		return -ENOMEM;
	for (i = 0; i < ARRAY_SIZE(parts); i++) {
		if (!parts[i].state)
			continue;
		begin = length;
		length += scnprintf(text + length, PAGE_SIZE - length, "%s", parts[i].name);
		said = parts[i].state(text + length, PAGE_SIZE - length);
		length += said;
		length += scnprintf(text + length, PAGE_SIZE - length, "\n");
		if (!said)
			length = begin; /* it has nothing to do here */
	}
	result = simple_read_from_buffer(to, size, at, text, length);
	kfree(text);
	return result;
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
	int error = veil_parts_begin(parts, ARRAY_SIZE(parts));

	if (error)
		return error;
	error = misc_register(&state_device);
	if (error)
		veil_parts_end(parts, ARRAY_SIZE(parts));
	return error;
}
module_init(veil_init);

static void __exit veil_exit(void)
{
	misc_deregister(&state_device);
	veil_parts_end(parts, ARRAY_SIZE(parts));
}
module_exit(veil_exit);

MODULE_DESCRIPTION("Protected services of Veil");
MODULE_LICENSE("GPL");
