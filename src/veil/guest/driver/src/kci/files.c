// SPDX-License-Identifier: GPL-2.0
/*
 * The files of modules, as load_module() is given them: not compressed, with their signature. Soon after it begins it writes
 * into its copy, so there is one of our own until the module is prepared.
 *
 * A copy takes memory, for which a hook of ftrace cannot wait. So the hook sends the caller to a function of ours, in the
 * way of livepatch, and that calls load_module().
 */
#include <linux/list.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/spinlock.h>
#include <linux/vmalloc.h>

#include "../hook.h"
#include "kci.h"
/* Made from the kernel's BTF: where members of a structure of its own are. */
#include "layout.h"

/* A load on its way, on the stack of its task. */
struct load {
	struct list_head list;
	const struct task_struct *task;
	struct veil_kci_file file;
};

static LIST_HEAD(loads);
static DEFINE_SPINLOCK(files_lock);

typedef int load_function(void *info, const char __user *arguments, int flags);

static void on_load(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *regs);

static struct veil_hook load_hook = {
	.function = "load_module",
	.wanted = true,
	.ops = { .func = on_load, .flags = FTRACE_OPS_FL_IPMODIFY },
};

/* Without a copy the load goes on, and the module is refused when it is prepared. */
static void copy_file(struct veil_kci_file *file, const void *info)
{
	const void *from = *(const void *const *)(info + LOAD_INFO_HDR);
	size_t length = *(const unsigned long *)(info + LOAD_INFO_LEN);

	file->copy = from && length ? vmalloc(length) : NULL;
	if (!file->copy)
		return;
	memcpy(file->copy, from, length);
	file->length = length;
}

static int watched_load(void *info, const char __user *arguments, int flags)
{
	/* Behind its ENDBR, if it has one: AMD's processors know no indirect branch tracking. */
	load_function *load_module = (load_function *)load_hook.address;
	struct load load = { .task = current };
	int result;

	copy_file(&load.file, info);
	spin_lock(&files_lock);
	list_add(&load.list, &loads);
	spin_unlock(&files_lock);
	result = load_module(info, arguments, flags);
	spin_lock(&files_lock);
	list_del(&load.list);
	spin_unlock(&files_lock);
	vfree(load.file.copy);
	return result;
}

static void on_load(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *regs)
{
	/* Not again, when it is watched_load() that calls. */
	if (!within_module(parent, THIS_MODULE))
		ftrace_regs_set_instruction_pointer(regs, (unsigned long)watched_load);
}

const struct veil_kci_file *veil_kci_file_of_load(void)
{
	const struct veil_kci_file *file = NULL;
	struct load *load;

	spin_lock(&files_lock);
	list_for_each_entry(load, &loads, list)
	{
		if (load->task == current && load->file.copy) {
			/* It stays: the task that would free it is this one. */
			file = &load->file;
			break;
		}
	}
	spin_unlock(&files_lock);
	return file;
}

int veil_kci_files_begin(void)
{
	return veil_hook(&load_hook, 1);
}

void veil_kci_files_end(void)
{
	veil_unhook(&load_hook, 1);
}
