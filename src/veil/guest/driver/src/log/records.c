// SPDX-License-Identifier: GPL-2.0
/*
 * Every audit record is handed to the service before the kernel queues it, rate limits it or gives it to
 * netlink, and before the program that caused it goes on.
 *
 * The records of one system call are made together when it ends, the last one being EOE. They are collected, and handed
 * over with one domain switch at EOE; a record that belongs to no such group is handed over at once. A task makes all
 * records of its system call itself, but may change CPUs between two of them: collections belong to tasks.
 */
#include <linux/audit.h>
#include <linux/ftrace.h>
#include <linux/hash.h>
#include <linux/moduleparam.h>
#include <linux/netlink.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/task.h>
#include <linux/skbuff.h>
#include <linux/spinlock.h>
#include <linux/vmalloc.h>

#include "../call.h"
#include "../hook.h"
#include "log.h"

#define COLLECTION_BITS 6
#define COLLECTIONS (1 << COLLECTION_BITS)
/* A task's collection is one of this many; if other tasks have them all, its records are handed over one by one. */
#define PLACES 8
#define COLLECTION_SIZE 12288

struct collection {
	/* Held, or a later task at the same address would be taken for this one and go on with its records. */
	struct task_struct *owner;
	u32 length;
	u8 data[COLLECTION_SIZE];
};

/* kernel/audit.c keeps this to itself; the first member is all that is needed. */
struct audit_buffer_start {
	struct sk_buff *skb;
};

static struct collection *collections;
static atomic64_t records;
static bool single;
module_param_named(log_single, single, bool, 0644);
MODULE_PARM_DESC(log_single, "hand over each audit record by itself");

static void hand_over(const void *head, u32 head_length, const void *data, u32 data_length)
{
	struct veil_request request = {
		.call = VEIL_LOG_RECORDS,
		.head = head,
		.head_length = head_length,
		.data = data,
		.data_length = data_length,
	};

	veil_log_hand_over(&request);
}

/* Hands over what is collected, and starts again. */
static void flush(struct collection *mine)
{
	if (mine->length)
		hand_over(NULL, 0, mine->data, mine->length);
	mine->length = 0;
}

static struct collection *collection_of(struct task_struct *task)
{
	unsigned int start = hash_ptr(task, COLLECTION_BITS), i;

	for (i = 0; i < PLACES; i++) {
		struct collection *found = &collections[(start + i) % COLLECTIONS];

		if (READ_ONCE(found->owner) == task)
			return found;
	}
	return NULL;
}

static struct collection *new_collection(struct task_struct *task)
{
	unsigned int start = hash_ptr(task, COLLECTION_BITS), i;

	for (i = 0; i < PLACES; i++) {
		struct collection *found = &collections[(start + i) % COLLECTIONS];

		if (!READ_ONCE(found->owner) && !cmpxchg(&found->owner, NULL, task)) {
			get_task_struct(task);
			found->length = 0;
			return found;
		}
	}
	return NULL;
}

static void finish(struct collection *mine)
{
	struct task_struct *owner = mine->owner;

	flush(mine);
	smp_store_release(&mine->owner, NULL);
	put_task_struct(owner);
}

void veil_log_flush_dead_tasks(void)
{
	unsigned int i;

	for (i = 0; i < COLLECTIONS; i++) {
		struct task_struct *owner;
		bool dead;

		rcu_read_lock();
		owner = READ_ONCE(collections[i].owner);
		dead = owner && READ_ONCE(owner->exit_state);
		rcu_read_unlock();
		if (dead)
			finish(&collections[i]);
	}
}

static void collect(struct collection *into, const struct veil_record *head, const void *text)
{
	if (into->length + sizeof(*head) + head->length > COLLECTION_SIZE)
		flush(into);
	if (sizeof(*head) + head->length > COLLECTION_SIZE) {
		hand_over(head, sizeof(*head), text, head->length);
		return;
	}
	memcpy(into->data + into->length, head, sizeof(*head));
	memcpy(into->data + into->length + sizeof(*head), text, head->length);
	into->length += sizeof(*head) + head->length;
}

static void on_record(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *regs)
{
	struct audit_buffer_start *buffer = (void *)ftrace_regs_get_argument(regs, 0);
	struct collection *mine = NULL;
	struct nlmsghdr *message;
	struct veil_record head = {};
	const u8 *text;

	if (!buffer || !buffer->skb || buffer->skb->len < NLMSG_HDRLEN)
		return;
	message = nlmsg_hdr(buffer->skb);
	text = (const u8 *)message + NLMSG_HDRLEN;
	head.type = message->nlmsg_type;
	head.length = min_t(u32, buffer->skb->len - NLMSG_HDRLEN, VEIL_BODY_SIZE - sizeof(head));
	atomic64_inc(&records);
	if (in_task() && !READ_ONCE(single)) {
		mine = collection_of(current);
		if (head.type == AUDIT_SYSCALL && mine) {
			/* The event before had no EOE: what is there of it goes first. */
			flush(mine);
		} else if (head.type == AUDIT_SYSCALL) {
			mine = new_collection(current);
		}
	}
	if (!mine) {
		hand_over(&head, sizeof(head), text, head.length);
		return;
	}
	collect(mine, &head, text);
	if (head.type == AUDIT_EOE)
		finish(mine);
}

static struct veil_hook record_hook = {
	.function = "audit_log_end",
	.wanted = true,
	.ops = { .func = on_record, .flags = FTRACE_OPS_FL_RECURSION },
};

int veil_log_records_begin(void)
{
	int error;

	collections = vzalloc(COLLECTIONS * sizeof(*collections));
	if (!collections)
		return -ENOMEM;
	error = veil_hook(&record_hook, 1);
	if (error)
		vfree(collections);
	return error;
}

void veil_log_records_end(void)
{
	unsigned int i;

	veil_unhook(&record_hook, 1);
	for (i = 0; i < COLLECTIONS; i++)
		if (collections[i].owner)
			finish(&collections[i]);
	vfree(collections);
}

int veil_log_records_state(char *text, size_t size)
{
	return scnprintf(text, size, " records %lld", atomic64_read(&records));
}
