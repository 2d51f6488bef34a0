// SPDX-License-Identifier: GPL-2.0
/*
 * Hooks at the beginning of kernel functions (ftrace).
 *
 * Functions are found by kprobes that are never armed: ftrace itself looks a name up by comparing it with each of the
 * kernel's functions, which takes as long as a good part of the boot.
 */
#include <linux/ftrace.h>
#include <linux/kprobes.h>

#include "veil.h"

static int hook(struct veil_hook *what, const struct kprobe *found)
{
	int error = ftrace_set_filter_ip(&what->ops, (unsigned long)found->addr, 0, 1);

	if (!error)
		error = register_ftrace_function(&what->ops);
	if (error) {
		ftrace_free_filter(&what->ops);
		return error;
	}
	what->active = true;
	return 0;
}

/* Those of the hooks that are wanted; all or none. */
int veil_hook(struct veil_hook *hooks, int count)
{
	struct kprobe places[VEIL_MAX_HOOKS] = {}, *found[VEIL_MAX_HOOKS];
	const char *function = "";
	int number = 0, error = 0, i;

	if (WARN_ON(count > VEIL_MAX_HOOKS))
		return -EINVAL;
	for (i = 0; i < count && !error; i++) {
		if (!hooks[i].wanted)
			continue;
		function = hooks[i].function;
		places[i].symbol_name = function;
		places[i].flags = KPROBE_FLAG_DISABLED;
		error = register_kprobe(&places[i]);
		if (!error)
			found[number++] = &places[i];
	}
	unregister_kprobes(found, number);
	for (i = 0; i < count && !error; i++) {
		if (!hooks[i].wanted)
			continue;
		function = hooks[i].function;
		error = hook(&hooks[i], &places[i]);
	}
	if (error) {
		pr_err("veil: cannot hook %s (%d)\n", function, error);
		veil_unhook(hooks, count);
	}
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
