// SPDX-License-Identifier: GPL-2.0
/*
 * A kernel that was taken over, while it runs on: what its attacker does to the driver and its records. Which attack is
 * a parameter; addresses of the driver's own variables are given by whoever inserts this, from /proc/kallsyms.
 */
#include <linux/audit.h>
#include <linux/completion.h>
#include <linux/cpu.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/timer.h>
#include <linux/workqueue.h>

static char *attack = "";
module_param(attack, charp, 0);
static unsigned int count = 1;
module_param(count, uint, 0);
static char *text = "";
module_param(text, charp, 0);
static ulong heart;
module_param(heart, ulong, 0);
static ulong ticker;
module_param(ticker, ulong, 0);

#define MOST_TASKS 128

static struct task_struct *tasks[MOST_TASKS];
static atomic_t running;
static DECLARE_COMPLETION(done);

/* No attack yet: what the audit system would record. */
static void records(const char *who)
{
	unsigned int i;

	for (i = 0; i < count; i++)
		audit_log(NULL, GFP_KERNEL, AUDIT_KERNEL, "%s %s=%u", text, who, i);
}

/* The records of one system call, with or without their end. */
static void group(unsigned int number, bool whole)
{
	audit_log(NULL, GFP_KERNEL, AUDIT_SYSCALL, "%s group=%u", text, number);
	audit_log(NULL, GFP_KERNEL, AUDIT_CWD, "%s cwd=%u", text, number);
	if (whole)
		audit_log(NULL, GFP_KERNEL, AUDIT_EOE, "%s", text);
}

static void leave(void)
{
	if (atomic_dec_and_test(&running))
		complete(&done);
}

static int unfinished_thread(void *number)
{
	group((unsigned long)number, false);
	leave();
	/* The task stays, so that its collection does. */
	while (!kthread_should_stop())
		schedule_timeout_interruptible(HZ);
	return 0;
}

static int recording_thread(void *number)
{
	char who[16];

	snprintf(who, sizeof(who), "cpu%lu", (unsigned long)number);
	records(who);
	leave();
	return 0;
}

/* More tasks than the driver has collections for, each in the middle of a system call's records. */
static void fill_collections(void)
{
	unsigned long i;

	count = min_t(unsigned int, count, MOST_TASKS);
	atomic_set(&running, count);
	for (i = 0; i < count; i++)
		tasks[i] = kthread_run(unfinished_thread, (void *)i, "unfinished/%lu", i);
	wait_for_completion(&done);
	group(1000, true);
	group(1001, true);
}

/* As when the audit system finds no room for a call's last record, or a rule excludes it. */
static void lost_end(void)
{
	unsigned int i;

	for (i = 0; i < count; i++)
		group(i, i + 1 == count);
}

static void on_all_cpus(void)
{
	struct task_struct *task;
	unsigned int cpu;

	atomic_set(&running, num_online_cpus());
	for_each_online_cpu(cpu)
	{
		task = kthread_create(recording_thread, (void *)(unsigned long)cpu, "recording/%u", cpu);
		kthread_bind(task, cpu);
		wake_up_process(task);
	}
	wait_for_completion(&done);
}

/*
 * The call that ftrace put at a function's beginning becomes a NOP again: what kernel code that has write protection off
 * can do, behind the back of ftrace.
 */
static int unhook(u8 *function)
{
	static const u8 nop[] = { 0x0f, 0x1f, 0x44, 0x00, 0x00 };
	/* Behind the mark of an indirect branch's target, if there is one. */
	u8 *site = function[0] == 0xe8 ? function : function + 4;
	unsigned long cr0, flags;

	if (site[0] != 0xe8)
		return -ENOENT;
	local_irq_save(flags);
	asm volatile("mov %%cr0, %0" : "=r"(cr0));
	asm volatile("mov %0, %%cr0" : : "r"(cr0 & ~X86_CR0_WP) : "memory");
	memcpy(site, nop, sizeof(nop));
	asm volatile("mov %0, %%cr0" : : "r"(cr0) : "memory");
	local_irq_restore(flags);
	return 0;
}

static int __init hostile_init(void)
{
	if (!strcmp(attack, "records"))
		records("n");
	else if (!strcmp(attack, "unhook"))
		return unhook((u8 *)audit_log_end);
	else if (!strcmp(attack, "stop_heart"))
		cancel_delayed_work_sync((struct delayed_work *)heart);
	else if (!strcmp(attack, "stop_ticker"))
		timer_delete_sync((struct timer_list *)ticker);
	else if (!strcmp(attack, "start_heart"))
		schedule_delayed_work((struct delayed_work *)heart, 0);
	else if (!strcmp(attack, "fill_collections"))
		fill_collections();
	else if (!strcmp(attack, "lost_end"))
		lost_end();
	else if (!strcmp(attack, "on_all_cpus"))
		on_all_cpus();
	else
		return -EINVAL;
	return 0;
}
module_init(hostile_init);

static void __exit hostile_exit(void)
{
	unsigned int i;

	for (i = 0; i < MOST_TASKS; i++)
		if (tasks[i])
			kthread_stop(tasks[i]);
}
module_exit(hostile_exit);

MODULE_DESCRIPTION("What a compromised kernel does");
MODULE_LICENSE("GPL");
