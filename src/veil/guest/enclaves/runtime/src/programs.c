/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Programs outside, which the manifest names: vfork() and execve(), as posix_spawn() and Python's subprocess call them.
 *
 * Between the two a thread is the child, as in Linux, where its parent waits: child_calls.c. What it did then is done by a
 * child of the process outside before that starts the program. Then, or when the child ends, the thread is the parent again.
 */
#include "child.h"
#include "children.h"
#include "files.h"
#include "handlers.h"
#include "machine.h"

#define MOST_CALLS (MOST_NOTES + SIGNALS + 2)
#define MOST_STRINGS 4096
#define MOST_TOLD 16
#define LARGEST_PROCESS (1 << 22)

s64 become_child(struct thread *self, u64 nr, u64 stack)
{
	u8 fp[CHILD_FP_BYTES] __attribute__((aligned(16)));
	struct child *child;

	if (!CONFIG->started_count) {
		unsupported(self, "the manifest names no program that it may start", nr);
		return -ENOSYS;
	}
	if (self->child)
		return -EAGAIN;
	child = heap_take(self, sizeof(*child));
	if (!child)
		return -ENOMEM;
	child->parent = self->regs;
	fp_save(self, fp);
	memcpy(child->fp, fp, sizeof(fp));
	child->parent_mask = child->mask = self->mask;
	for (s32 fd = 0; fd < DESCRIPTORS; fd++)
		child->origin[fd] = is_open(fd) ? (s16)fd : CHILD_CLOSED;
	/* What is sent to the parent waits for it. */
	self->mask = ~(u64)0;
	self->child = child;
	if (stack)
		self->regs.rsp = stack;
	return 0;
}

/* What vfork() returns there. */
static s64 parent_again(struct thread *self, s64 result)
{
	u8 fp[CHILD_FP_BYTES] __attribute__((aligned(16)));
	struct child *child = self->child;

	memcpy(fp, child->fp, sizeof(fp));
	fp_restore(self, fp);
	self->regs = child->parent;
	self->mask = child->parent_mask;
	self->child = NULL;
	heap_give(self, child);
	return result;
}

s64 child_path(struct thread *self, u64 from, char path[LONGEST_PATH])
{
	struct child *child = self->child;
	char given[LONGEST_PATH];
	u64 at = 0;
	s64 length = copy_string_in(given, from, LONGEST_PATH);

	if (length < 0)
		return length;
	if (given[0] != '/' && length) {
		while (child->directory[at])
			at++;
		if (at + 1 + (u64)length >= LONGEST_PATH)
			return -ENAMETOOLONG;
		memcpy(path, child->directory, at);
		if (at)
			path[at++] = '/';
	}
	memcpy(path + at, given, (u64)length);
	return resolve_path(self, AT_FDCWD, path, at + (u64)length, path, true);
}

struct list {
	struct veil_program_call *calls; /* in the window: written, never read */
	u64 count;
};

static void put(struct list *list, struct veil_program_call call)
{
	if (list->count < MOST_CALLS)
		list->calls[list->count++] = call;
}

static s64 ask_for(struct thread *self, const struct list *list)
{
	s64 result = ask_window(self, VEIL_WINDOW_PROGRAM, (u64)list->calls, list->count);

	if (result == -ERESTART)
		return -EAGAIN;
	if (result < 0)
		return result;
	if (!result || result > LARGEST_PROCESS || result == process_number(self) || is_child((s32)result))
		attacked(self, "the process of a program is said to be %x", (u64)result);
	add_child(self, (s32)result);
	return parent_again(self, result);
}

static void put_notes(struct thread *self, struct list *list, const char *texts)
{
	const struct child *child = self->child;

	for (u32 i = 0; i < child->notes; i++) {
		struct veil_program_call call = child->note[i].call;

		if (child->note[i].has_text)
			call.args[child->note[i].text_at] += (u64)texts;
		put(list, call);
	}
}

static bool ignores(struct thread *self, s32 number)
{
	const struct child *child = self->child;

	return child->set & SIGNAL_BIT(number) ? (child->ignored & SIGNAL_BIT(number)) != 0 : is_ignored(number);
}

static void put_signals(struct thread *self, struct list *list, u64 *shared)
{
	/* shared: an action that ignores, then the mask */
	shared[0] = SIG_IGN;
	shared[1] = shared[2] = shared[3] = 0;
	shared[4] = self->child->mask;
	for (s32 number = 1; number <= SIGNALS; number++)
		if (ignores(self, number))
			put(list, (struct veil_program_call){
					  .nr = NR_SIGACTION, .args = { (u64)number, (u64)shared, 0, 8 }, .to = -1 });
	put(list, (struct veil_program_call){
			  .nr = NR_SIGPROCMASK, .args = { SIG_SETMASK, (u64)(shared + 4), 0, 8 }, .to = -1 });
}

/* A list of strings, with its end. */
static s64 put_strings(struct thread *self, u64 from, u64 *to)
{
	u64 count = 0, pointer = 1, *places;

	while (from && pointer) {
		if (count > MOST_STRINGS)
			return -E2BIG;
		if (copy_in(&pointer, from + 8 * count, 8))
			return -EFAULT;
		count += pointer != 0;
	}
	places = take_buffer(self, 8 * (count + 1));
	if (!places)
		return -E2BIG;
	for (u64 i = 0; i < count; i++) {
		u64 used = self->buffer_used, space = buffer_left(self);
		char *text = take_buffer(self, space);
		s64 length;

		if (copy_in(&pointer, from + 8 * i, 8))
			return -EFAULT;
		length = copy_string_in(text, pointer, space);
		if (length < 0)
			return length == -ENAMETOOLONG ? -E2BIG : length;
		self->buffer_used = (u32)(used + (((u64)length + 1 + 15) & ~(u64)15));
		places[i] = (u64)text;
	}
	places[count] = 0;
	*to = (u64)places;
	return 0;
}

static bool is_named(const char *path, u64 length)
{
	const char *name = config_at(CONFIG->started);

	for (u32 i = 0; i < CONFIG->started_count; i++) {
		u64 size = 0;

		while (name[size])
			size++;
		if (size == length && !memcmp(name, path, length))
			return true;
		name += size + 1;
	}
	return false;
}

s64 start_program(struct thread *self, const u64 *a)
{
	struct child *child = self->child;
	char path[LONGEST_PATH];
	s64 length = child_path(self, a[0], path), result;
	struct list list = { take_buffer(self, MOST_CALLS * sizeof(*list.calls)), 0 };
	char *texts = take_buffer(self, MOST_TEXTS), *shared_path = take_buffer(self, LONGEST_PATH);
	u64 *signals = take_buffer(self, 5 * 8), arguments = 0, variables = 0;
	static u32 told;

	if (length < 0)
		return length;
	if (path[length])
		return -ENOTDIR;
	if (!is_named(path, (u64)length)) {
		if (__atomic_fetch_add(&told, 1, __ATOMIC_RELAXED) < MOST_TOLD)
			log_line(self, "%s is not started: the manifest does not name it", path);
		return -EACCES;
	}
	if (!has_room_for_child())
		return -EAGAIN;
	memcpy(texts, child->texts, child->text_bytes);
	memcpy(shared_path, path, (u64)length + 1);
	put_notes(self, &list, texts);
	put_signals(self, &list, signals);
	result = put_strings(self, a[1], &arguments) ?: put_strings(self, a[2], &variables);
	if (result)
		return result;
	put(&list, (struct veil_program_call){
			   .nr = NR_EXECVE, .args = { (u64)shared_path, arguments, variables }, .to = -1 });
	return ask_for(self, &list);
}

s64 end_child(struct thread *self, u64 status)
{
	struct list list = { take_buffer(self, sizeof(*list.calls)), 0 };
	s64 result;

	put(&list, (struct veil_program_call){ .nr = NR_EXIT_GROUP, .args = { (u32)status }, .to = -1 });
	result = has_room_for_child() ? ask_for(self, &list) : -EAGAIN;
	/* Such a child has not been. */
	return self->child ? parent_again(self, result) : result;
}
