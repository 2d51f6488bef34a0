// SPDX-License-Identifier: GPL-2.0
/*
 * Code that Linux would make at run time, in memory that a locked-down kernel does not execute. Whoever asks for a place for it
 * gets none, as if memory were short, and goes on without, long before a lock is held or text is patched:
 *	the function tracer, and hooks of modules		use ftrace_caller in the kernel's text in place of a trampoline
 *	kprobes at the beginning of functions			are such hooks
 *	kprobes elsewhere					are refused (ENOMEM)
 *	BPF programs						are interpreted
 *	BPF trampolines (fentry, fexit, struct_ops, LSM)	are refused (ENOMEM)
 *
 * Nothing is protected by this. A kernel that makes such code anyway is stopped when it patches a call to it into text, or
 * executes it, but where that hits the task that did so, it may hold locks of the kernel's.
 */
#include <linux/execmem.h>

#include "../hook.h"
#include "kci.h"

static void on_place(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *regs);
static void on_memory(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *regs);

/* A kernel that lacks one of these functions makes its code elsewhere: then it is as if there were no hook. */
static struct veil_hook hooks[] = {
	{
		.function = "execmem_alloc",
		.wanted = true,
		.optional = true,
		.ops = { .func = on_memory, .flags = FTRACE_OPS_FL_IPMODIFY },
	},
	/* These two may have room in memory that they got before lock-down. */
	{
		.function = "__get_insn_slot",
		.wanted = true,
		.optional = true,
		.ops = { .func = on_place, .flags = FTRACE_OPS_FL_IPMODIFY },
	},
	{
		.function = "bpf_prog_pack_alloc",
		.wanted = true,
		.optional = true,
		.ops = { .func = on_place, .flags = FTRACE_OPS_FL_IPMODIFY },
	},
};

/* In place of a function that returns an address. */
static void *no_place(void)
{
	return NULL;
}

static void on_place(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *regs)
{
	if (veil_kci_is_locked())
		ftrace_regs_set_instruction_pointer(regs, (unsigned long)no_place);
}

/* Its first argument says what the memory is for. Modules get theirs. */
static void on_memory(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *regs)
{
	if (ftrace_regs_get_argument(regs, 0) == EXECMEM_FTRACE)
		on_place(ip, parent, ops, regs);
}

int veil_kci_new_code_begin(void)
{
	return veil_hook(hooks, ARRAY_SIZE(hooks));
}

void veil_kci_new_code_end(void)
{
	veil_unhook(hooks, ARRAY_SIZE(hooks));
}
