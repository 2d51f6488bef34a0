// SPDX-License-Identifier: GPL-2.0
/*
 * Modules that come and go. The notifier is the last of all, so that what others patch of a module's text when it comes is
 * patched, and what they do when it goes is done.
 */
#include <linux/async.h>
#include <linux/limits.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/slab.h>

#include "kci.h"

struct admitted {
	struct list_head list;
	const struct module *module;
	u32 number;
};

static LIST_HEAD(modules);
static DEFINE_MUTEX(lock);
static atomic64_t admitted_count, refused_count, gone_count;

static int refuse(const struct module *module, int error)
{
	atomic64_inc(&refused_count);
	pr_err("veil: module %s is not admitted: %s (%d)\n", module->name,
	       error == -EPERM ? "VeilS-KCI refuses it" : "VeilS-KCI cannot be asked", error);
	return error;
}

int veil_kci_admit(struct module *module, const struct veil_kci_file *file)
{
	struct admitted *made = kmalloc(sizeof(*made), GFP_KERNEL);
	int error = -ENOMEM;

	if (made)
		error = veil_kci_ask_admission(module, file, &made->number);
	if (error) {
		kfree(made);
		return refuse(module, error);
	}
	made->module = module;
	mutex_lock(&lock);
	list_add(&made->list, &modules);
	mutex_unlock(&lock);
	atomic64_inc(&admitted_count);
	return 0;
}

static struct admitted *find(const struct module *module)
{
	struct admitted *found;

	list_for_each_entry(found, &modules, list) if (found->module == module) return found;
	return NULL;
}

static int coming(struct module *module)
{
	const struct veil_kci_file *file = veil_kci_file_of_load();

	return notifier_from_errno(file ? veil_kci_admit(module, file) : refuse(module, -ENODATA));
}

static void live(const struct module *module)
{
	struct admitted *found;

	/* What the init function has started may still execute its memory. load_module() waits for that too, but later. */
	if (!module->async_probe_requested)
		async_synchronize_full();
	mutex_lock(&lock);
	found = find(module);
	mutex_unlock(&lock);
	if (found)
		veil_kci_say_live(found->number);
}

/* Also for one that never got live. */
static void going(const struct module *module)
{
	struct admitted *found;

	mutex_lock(&lock);
	found = find(module);
	if (found)
		list_del(&found->list);
	mutex_unlock(&lock);
	if (!found)
		return;
	veil_kci_say_gone(found->number);
	atomic64_inc(&gone_count);
	kfree(found);
}

static int on_state(struct notifier_block *notifier, unsigned long state, void *data)
{
	switch (state) {
	case MODULE_STATE_COMING:
		return coming(data);
	case MODULE_STATE_LIVE:
		live(data);
		break;
	case MODULE_STATE_GOING:
		going(data);
		break;
	}
	return NOTIFY_DONE;
}

static struct notifier_block notifier = { .notifier_call = on_state, .priority = INT_MIN };

int veil_kci_modules_begin(void)
{
	return register_module_notifier(&notifier);
}

void veil_kci_modules_end(void)
{
	struct admitted *found, *next;

	unregister_module_notifier(&notifier);
	list_for_each_entry_safe(found, next, &modules, list) kfree(found);
}

int veil_kci_modules_state(char *text, size_t size)
{
	return scnprintf(text, size, " admitted %lld refused %lld gone %lld", atomic64_read(&admitted_count),
			 atomic64_read(&refused_count), atomic64_read(&gone_count));
}
