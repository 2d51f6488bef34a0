// SPDX-License-Identifier: GPL-2.0
/*
 * Hooks at the beginning of kernel functions (ftrace).
 *
 * Functions are found by kprobes that are never armed: ftrace itself looks a name up by comparing it with each of the
 * kernel's functions, which takes as long as a good part of the boot.
 *
 * For hooks of a module ftrace would make a trampoline each, in a page of its own: code that is in no file, and that a
 * locked-down kernel does not run. It makes none where a hook names one. These name ftrace_caller, the trampoline in
 * the kernel's own text; that goes through all hooks of the kernel to find those of the function, with preemption off.
 */
#include <linux/ftrace.h>
#include <linux/kprobes.h>
#include <linux/slab.h>

#include "hook.h"

#define TRAMPOLINE "ftrace_caller"

/* ENDBR64, and what the kernel writes in its place where no pointer leads (arch/x86/include/asm/ibt.h). */
#define ENDBR 0xfa1e0ff3
#define SEALED_ENDBR 0x001f0f66

/* A kprobe at the beginning of a function stands behind its ENDBR. */
static unsigned long beginning(const struct kprobe *found)
{
	const u32 *before = (const u32 *)found->addr - 1;

	return (unsigned long)(*before == ENDBR || *before == SEALED_ENDBR ? before : (const u32 *)found->addr);
}

static int hook(struct veil_hook *what, const struct kprobe *found, const struct kprobe *trampoline)
{
	int error;

	what->address = (unsigned long)found->addr;
	what->ops.trampoline = beginning(trampoline);
	error = ftrace_set_filter_ip(&what->ops, what->address, 0, 1);
	if (!error)
		error = register_ftrace_function(&what->ops);
	if (error) {
		ftrace_free_filter(&what->ops);
		return error;
	}
	what->active = true;
	return 0;
}

/*
 * Finds the wanted functions, and the trampoline behind them, all at once: to give a kprobe up takes a grace period, whether
 * it is one or many.
 */
static int find(struct veil_hook *hooks, int count, struct kprobe *places, struct kprobe **found)
{
	int number = 0, error = 0, i;

	for (i = 0; i <= count && !error; i++) {
		if (i < count && !hooks[i].wanted)
			continue;
		places[i].symbol_name = i < count ? hooks[i].function : TRAMPOLINE;
		places[i].flags = KPROBE_FLAG_DISABLED;
		error = register_kprobe(&places[i]);
		if (!error) {
			found[number++] = &places[i];
		} else if (i == count && places[i].addr) {
			error = 0; /* no place for a probe, but it is known where it is */
		} else if (i < count && hooks[i].optional) {
			hooks[i].wanted = false;
			error = 0;
		} else {
			pr_err("veil: cannot find %s (%d)\n", places[i].symbol_name, error);
		}
	}
	unregister_kprobes(found, number);
	return error;
}

int veil_hook(struct veil_hook *hooks, int count)
{
	struct kprobe *places = kcalloc(count + 1, sizeof(*places), GFP_KERNEL);
	struct kprobe **found = kcalloc(count + 1, sizeof(*found), GFP_KERNEL);
	int error = places && found ? find(hooks, count, places, found) : -ENOMEM, i;

	for (i = 0; i < count && !error; i++) {
		if (!hooks[i].wanted)
			continue;
		error = hook(&hooks[i], &places[i], &places[count]);
		if (error && hooks[i].optional)
			error = 0;
		if (error)
			pr_err("veil: cannot hook %s (%d)\n", hooks[i].function, error);
	}
	if (error)
		veil_unhook(hooks, count);
	kfree(found);
	kfree(places);
	return error;
}

void veil_unhook(struct veil_hook *hooks, int count)
{
	int i;

	for (i = 0; i < count; i++) {
		if (!hooks[i].active)
			continue;
		unregister_ftrace_function(&hooks[i].ops);
		ftrace_free_filter(&hooks[i].ops);
		hooks[i].active = false;
	}
}
