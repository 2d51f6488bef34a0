// SPDX-License-Identifier: GPL-2.0
/*
 * VeilS-LOG: every audit record is handed to the service before the kernel queues it, rate limits it or gives it to
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
#include <linux/nmi.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/task.h>
#include <linux/skbuff.h>
#include <linux/spinlock.h>
#include <linux/timer.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>

#include "veil.h"

#define COLLECTIONS (1 << 6)
/* A task's collection is one of a fixed number; if others have them all, its records are handed over one by one. */
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
static u32 rules_wanted;
static atomic64_t handed, events, refused, unanswered, dropped_alone, ticks;
static bool single;
module_param_named(log_single, single, bool, 0644);
MODULE_PARM_DESC(log_single, "hand over each audit record by itself");
static unsigned int heartbeat = 1000;
module_param_named(log_heartbeat, heartbeat, uint, 0444);
MODULE_PARM_DESC(log_heartbeat, "milliseconds between two signs of life; 0 for none");

/*
 * Hand over `length` bytes of records. While the log is full, or the host does not run the services, whoever made them
 * waits here: that is what the policy "halt" means. (With "drop" the service never says that it is full.)
 */
static void hand_over(u16 call, const void *head, u32 head_length, const void *data, u32 length)
{
	for (;;) {
		unsigned long flags;
		struct veil_block *block = veil_block_get(&flags);
		enum veil_status status = VEIL_NO_ANSWER;

		if (block) {
			memcpy(block->body, head, head_length);
			memcpy(block->body + head_length, data, length);
			status = veil_ask(block, VEIL_LOG_SERVICE, call, head_length + length);
			if (call == VEIL_LOG_HEARTBEAT && status == VEIL_OK && block->length == sizeof(rules_wanted))
				memcpy(&rules_wanted, block->body, sizeof(rules_wanted));
		}
		veil_block_put(flags);
		if (status == VEIL_OK) {
			atomic64_inc(&events);
			return;
		}
		if (status != VEIL_FULL && status != VEIL_NO_ANSWER) {
			/* Waiting would not help: a mistake, and it is counted. */
			atomic64_inc(&dropped_alone);
			return;
		}
		atomic64_inc(status == VEIL_FULL ? &refused : &unanswered);
		touch_softlockup_watchdog();
		cpu_relax();
	}
}

void veil_log_keep(u16 call, const void *records, u32 length)
{
	hand_over(call, records, length, NULL, 0);
}

static struct collection *collection_of(struct task_struct *task)
{
	unsigned int start = hash_ptr(task, 6), i;

	for (i = 0; i < PLACES; i++) {
		struct collection *found = &collections[(start + i) % COLLECTIONS];

		if (READ_ONCE(found->owner) == task)
			return found;
	}
	return NULL;
}

static struct collection *new_collection(struct task_struct *task)
{
	unsigned int start = hash_ptr(task, 6), i;

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

	if (mine->length)
		hand_over(VEIL_LOG_RECORDS, mine->data, mine->length, NULL, 0);
	smp_store_release(&mine->owner, NULL);
	put_task_struct(owner);
}

/* Tasks that ended in the middle of an event: nobody else hands over what there is of it. */
static void finish_the_dead(void)
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
	if (into->length + sizeof(*head) + head->length > COLLECTION_SIZE) {
		hand_over(VEIL_LOG_RECORDS, into->data, into->length, NULL, 0);
		into->length = 0;
	}
	if (sizeof(*head) + head->length > COLLECTION_SIZE) {
		hand_over(VEIL_LOG_RECORDS, head, sizeof(*head), text, head->length);
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
	atomic64_inc(&handed);
	if (in_task() && !READ_ONCE(single)) {
		mine = collection_of(current);
		if (head.type == AUDIT_SYSCALL && mine) {
			/* The event before had no EOE: what is there of it goes first. */
			hand_over(VEIL_LOG_RECORDS, mine->data, mine->length, NULL, 0);
			mine->length = 0;
		} else if (head.type == AUDIT_SYSCALL) {
			mine = new_collection(current);
		}
	}
	if (!mine) {
		hand_over(VEIL_LOG_RECORDS, &head, sizeof(head), text, head.length);
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

static void on_tick(struct timer_list *timer);
static DEFINE_TIMER(ticker, on_tick);

/* What the kernel can say of having been run: a machine that stood still for a minute has missed that minute's ticks. */
static void on_tick(struct timer_list *timer)
{
	atomic64_inc(&ticks);
	mod_timer(timer, jiffies + msecs_to_jiffies(VEIL_TICK_MS));
}

static void beat(struct work_struct *work);
static DECLARE_DELAYED_WORK(heart, beat);

/* Silence is visible: who reads the log sees when the last sign of life came. */
static void beat(struct work_struct *work)
{
	struct veil_heartbeat mine = {
		.version = VEIL_HEARTBEAT_VERSION,
		.audit = audit_enabled,
		.rules = veil_rules_loaded(),
		.ticks = atomic64_read(&ticks),
	};

	hand_over(VEIL_LOG_HEARTBEAT, &mine, sizeof(mine), NULL, 0);
	finish_the_dead();
	veil_rules_wanted(rules_wanted);
	schedule_delayed_work(&heart, msecs_to_jiffies(heartbeat));
}

int veil_log_init(void)
{
	int error;

	collections = vzalloc(COLLECTIONS * sizeof(*collections));
	if (!collections)
		return -ENOMEM;
	error = veil_hook(&record_hook, 1);
	if (error) {
		vfree(collections);
		return error;
	}
	if (heartbeat) {
		mod_timer(&ticker, jiffies + msecs_to_jiffies(VEIL_TICK_MS));
		schedule_delayed_work(&heart, 0);
	}
	return 0;
}

void veil_log_exit(void)
{
	unsigned int i;

	cancel_delayed_work_sync(&heart);
	timer_shutdown_sync(&ticker);
	veil_unhook(&record_hook, 1);
	for (i = 0; i < COLLECTIONS; i++)
		if (collections[i].owner)
			finish(&collections[i]);
	vfree(collections);
}

int veil_log_state(char *text, size_t size)
{
	return scnprintf(
		text, size,
		"log records %lld calls %lld waited_full %lld waited_host %lld lost %lld intents %llu ticks %lld\n",
		atomic64_read(&handed), atomic64_read(&events), atomic64_read(&refused), atomic64_read(&unanswered),
		atomic64_read(&dropped_alone), veil_intent_count(), atomic64_read(&ticks));
}
