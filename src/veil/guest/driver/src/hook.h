/* SPDX-License-Identifier: GPL-2.0 */
/* Hooks at the beginning of kernel functions. */
#ifndef VEIL_HOOK_H
#define VEIL_HOOK_H

#include <linux/ftrace.h>
#include <linux/types.h>

/* A function of ours that runs before a function of the kernel. */
struct veil_hook {
	const char *function;
	/* What the function's call means to the service, in a word. */
	const char *event;
	bool wanted;
	/* The kernel may have no such function: then there is no hook. */
	bool optional;
	bool active;
	/* Where the function's call to ftrace is, once it is hooked. */
	unsigned long address;
	struct ftrace_ops ops;
};

/* Those of the hooks that are wanted; all or none. 0 or an error. */
int veil_hook(struct veil_hook *hooks, int count);
void veil_unhook(struct veil_hook *hooks, int count);

#endif
