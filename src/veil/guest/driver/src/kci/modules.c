// SPDX-License-Identifier: GPL-2.0
/*
 * Modules that come and go. The notifier is the last of all, so that what others patch of a module's text when it comes is
 * patched, and what they do when it goes is done.
 */
#include <linux/async.h>
#include <linux/limits.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "kci.h"

struct admitted {
	struct list_head list;
	const struct module *module;
	u32 number;
};

static LIST_HEAD(modules);
static DEFINE_MUTEX(modules_lock);
static atomic64_t admitted_count, refused_count, gone_count, kept_count;

static int refuse(const struct module *module, int error)
{
	atomic64_inc(&refused_count);
	pr_err("veil: module %s is not admitted: %s (%d)\n", module->name,
	       error == -EPERM ? "VeilS-KCI refuses it" : "VeilS-KCI cannot be asked", error);
	return error;
}

/* Each page has one user more, for good: the allocator that gets it back from the module loader gives it to nobody. */
static void keep_pages(const struct module_memory *memory)
{
	size_t at;

	for (at = 0; at < memory->size; at += PAGE_SIZE) {
		get_page(vmalloc_to_page(memory->base + at));
		atomic64_inc(&kept_count);
	}
}

/* What a service that has failed may have taken. */
static void keep_checked(const struct module *module)
{
	static const enum mod_mem_type types[] = { MOD_TEXT, MOD_RODATA, MOD_INIT_TEXT, MOD_INIT_RODATA };
	size_t i;

	for (i = 0; i < ARRAY_SIZE(types); i++)
		keep_pages(&module->mem[types[i]]);
}

int veil_kci_admit(struct module *module, const struct veil_kci_file *file)
{
	struct admitted *made = kmalloc(sizeof(*made), GFP_KERNEL);
	int error = -ENOMEM;

	if (made)
		error = veil_kci_ask_admission(module, file, &made->number);
	if (error) {
		kfree(made);
		if (error == -EIO)
			keep_checked(module);
		return refuse(module, error);
	}
	made->module = module;
	mutex_lock(&modules_lock);
	list_add(&made->list, &modules);
	mutex_unlock(&modules_lock);
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

/*
 * What VeilS-KCI does not give back nobody can write: whoever got such a page next would be taken for an attacker. A request
 * that the host had refused half way goes on where it ended when it is made again.
 */
static void take_leave(const struct module *module, int (*say)(u32), u32 number, const enum mod_mem_type *types,
		       size_t count)
{
	int error = say(number);

	if (error)
		error = say(number);
	if (!error)
		return;
	pr_err("veil: VeilS-KCI does not give pages of module %s back (%d): they are used no more\n", module->name,
	       error);
	while (count--)
		keep_pages(&module->mem[types[count]]);
}

static void live(const struct module *module)
{
	static const enum mod_mem_type types[] = { MOD_INIT_TEXT, MOD_INIT_RODATA };
	struct admitted *found;

	/* What the init function has started may still execute its memory. load_module() waits for that too, but later. */
	if (!module->async_probe_requested)
		async_synchronize_full();
	mutex_lock(&modules_lock);
	found = find(module);
	mutex_unlock(&modules_lock);
	if (found)
		take_leave(module, veil_kci_say_live, found->number, types, ARRAY_SIZE(types));
}

/* Also for one that never got live. */
static void going(const struct module *module)
{
	static const enum mod_mem_type types[] = { MOD_TEXT, MOD_RODATA, MOD_RO_AFTER_INIT, MOD_INIT_TEXT,
						   MOD_INIT_RODATA };
	struct admitted *found;

	mutex_lock(&modules_lock);
	found = find(module);
	if (found)
		list_del(&found->list);
	mutex_unlock(&modules_lock);
	if (!found)
		return;
	take_leave(module, veil_kci_say_gone, found->number, types, ARRAY_SIZE(types));
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
	return scnprintf(text, size, " admitted %lld refused %lld gone %lld kept %lld", atomic64_read(&admitted_count),
			 atomic64_read(&refused_count), atomic64_read(&gone_count), atomic64_read(&kept_count));
}
