/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Programs outside, which the manifest names: vfork() and execve(), as posix_spawn() and Python's subprocess call them.
 *
 * Between the two a thread is the child, as in Linux, where its parent waits. What it does to its descriptors, signals and
 * directory concerns the program to come alone: it is noted, as system calls, and the process outside does them in a child
 * of its own before it starts the program. Then, or when the child ends, the thread is the parent again.
 */
#include "../../program_calls.h"
#include "children.h"
#include "files.h"
#include "handlers.h"
#include "machine.h"

#define NR_CLOSE 3
#define NR_SIGACTION 13
#define NR_SIGPROCMASK 14
#define NR_IOCTL 16
#define NR_EXECVE 59
#define NR_FCNTL 72
#define NR_CHDIR 80
#define NR_EXIT_GROUP 231
#define NR_OPENAT 257
#define NR_DUP3 292
#define NR_CLOSE_RANGE 436

#define F_DUPFD 0
#define F_GETFD 1
#define F_SETFD 2
#define F_DUPFD_CLOEXEC 1030
#define FIONCLEX 0x5450
#define FIOCLEX 0x5451
#define CLOSE_RANGE_CLOEXEC 4
#define USUAL_UMASK 022

#define MOST_NOTES 128
#define MOST_CALLS (MOST_NOTES + SIGNALS + 2)
#define MOST_TEXTS 8192
#define MOST_STRINGS 4096
#define MOST_TOLD 16
#define LARGEST_PROCESS (1 << 22)
#define FP_BYTES 512
#define CLOSED -1
#define NEW -2 /* opened by the child: not there yet */

struct note {
	struct veil_program_call call;
	bool has_text; /* args[text_at] is an offset in `texts` */
	u8 text_at;
};

struct child {
	struct regs parent;
	u8 fp[FP_BYTES];
	u64 parent_mask;
	u64 mask;
	u64 set, ignored;	 /* signals whose actions the child has set; of these the ones that it ignores */
	s16 origin[DESCRIPTORS]; /* the parent's descriptor of the same file */
	u32 notes, text_bytes;
	struct note note[MOST_NOTES];
	char texts[MOST_TEXTS];
	char directory[LONGEST_PATH]; /* "": the parent's */
};

s64 become_child(struct thread *self, u64 nr, u64 stack)
{
	u8 fp[FP_BYTES] __attribute__((aligned(16)));
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
		child->origin[fd] = is_open(fd) ? (s16)fd : CLOSED;
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
	u8 fp[FP_BYTES] __attribute__((aligned(16)));
	struct child *child = self->child;

	memcpy(fp, child->fp, sizeof(fp));
	fp_restore(self, fp);
	self->regs = child->parent;
	self->mask = child->parent_mask;
	self->child = NULL;
	heap_give(self, child);
	return result;
}

static struct note *note(struct child *child, u64 nr, u64 a0, u64 a1, u64 a2)
{
	struct note *note = child->notes < MOST_NOTES ? &child->note[child->notes++] : NULL;

	if (note)
		*note = (struct note){ .call = { .nr = nr, .args = { a0, a1, a2 }, .to = -1 } };
	return note;
}

static s64 noted(struct child *child, u64 nr, u64 a0, u64 a1, u64 a2)
{
	return note(child, nr, a0, a1, a2) ? 0 : -ENOMEM;
}

static bool add_text(struct child *child, struct note *note, u8 at, const char *text, u64 length)
{
	if (!note || length + 1 > MOST_TEXTS - child->text_bytes)
		return false;
	memcpy(child->texts + child->text_bytes, text, length);
	note->has_text = true;
	note->text_at = at;
	note->call.args[at] = child->text_bytes;
	child->text_bytes += (u32)length + 1;
	return true;
}

static bool has(const struct child *child, u64 fd)
{
	return fd < DESCRIPTORS && child->origin[fd] != CLOSED;
}

static s64 duplicate_to(struct child *child, u64 from, u64 to, u64 flags)
{
	s64 result;

	if (!has(child, from) || to >= DESCRIPTORS)
		return -EBADF;
	result = noted(child, NR_DUP3, from, to, flags);
	if (result)
		return result;
	child->origin[to] = child->origin[from];
	return (s64)to;
}

static u64 lowest_free(const struct child *child, u64 from)
{
	while (has(child, from))
		from++;
	return from;
}

static s64 fcntl(struct child *child, const u64 *a)
{
	if (!has(child, a[0]))
		return -EBADF;
	switch (a[1]) {
	case F_DUPFD:
	case F_DUPFD_CLOEXEC:
		return duplicate_to(child, a[0], lowest_free(child, a[2]), a[1] == F_DUPFD ? 0 : O_CLOEXEC);
	case F_GETFD: /* asked for to be changed and put back */
		return 0;
	case F_SETFD:
		return noted(child, NR_FCNTL, a[0], F_SETFD, a[2] & 1);
	default:
		return -EINVAL;
	}
}

static s64 close_range(struct child *child, u64 first, u64 last, u64 flags)
{
	if (first > last || flags & ~(u64)CLOSE_RANGE_CLOEXEC)
		return -EINVAL;
	for (u64 fd = first; !flags && fd <= last && fd < DESCRIPTORS; fd++)
		child->origin[fd] = CLOSED;
	return noted(child, NR_CLOSE_RANGE, first, last, flags);
}

/* From the directory that the child has chosen. */
static s64 path_of(struct thread *self, u64 from, char path[LONGEST_PATH])
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
	return resolve_path(self, AT_FDCWD, path, at + (u64)length, path, LONGEST_PATH);
}

/* A file for the program to come; this one opens it itself if it is more than what the kernel has there. */
static s64 open_file(struct thread *self, u64 name, u64 flags, u64 mode)
{
	struct child *child = self->child;
	char path[LONGEST_PATH];
	s64 length = path_of(self, name, path), result;
	bool change = (flags & O_ACCMODE) || flags & (O_CREAT | O_TRUNC);
	const struct config_rule *rule;
	u64 fd = lowest_free(child, 0);
	struct note *opens;

	if (length < 0)
		return length;
	result = path_allowed(path, (u64)length, change);
	if (result)
		return result;
	rule = rule_of(path, (u64)length);
	if (!rule || (rule->kind != RULE_READ && rule->kind != RULE_PASS))
		return -EACCES;
	if (fd >= DESCRIPTORS)
		return -EMFILE;
	opens = note(child, NR_OPENAT, (u64)(s64)AT_FDCWD, 0, flags);
	if (!add_text(child, opens, 1, path, length_outside(path, (u64)length)))
		return -ENOMEM;
	opens->call.args[3] = mode;
	opens->call.to = (s64)fd;
	child->origin[fd] = NEW;
	return (s64)fd;
}

static s64 change_directory(struct thread *self, u64 name)
{
	struct child *child = self->child;
	char path[LONGEST_PATH];
	s64 length = path_of(self, name, path), result;

	if (length < 0)
		return length;
	result = require_folder(self, path, (u64)length);
	if (result < 0)
		return result;
	if (!add_text(child, note(child, NR_CHDIR, 0, 0, 0), 0, path, (u64)length))
		return -ENOMEM;
	memcpy(child->directory, path, (u64)length);
	child->directory[length] = 0;
	return 0;
}

/* struct sigaction of the kernel: its handler first */
static s64 signal_action(struct thread *self, const u64 *a)
{
	struct child *child = self->child;
	const u64 ask[6] = { a[0], 0, a[2], a[3] };
	u64 new[4], old[4] = { 0 }, bit = a[0] - 1 < SIGNALS ? SIGNAL_BIT(a[0]) : 0;
	s64 result;

	if (a[1] && copy_in(new, a[1], sizeof(new)))
		return -EFAULT;
	result = do_rt_sigaction(self, ask);
	if (result)
		return result;
	if (a[2] && child->set & bit) {
		old[0] = child->ignored & bit ? SIG_IGN : SIG_DFL;
		if (copy_out(a[2], old, sizeof(old)))
			return -EFAULT;
	}
	if (!a[1])
		return 0;
	child->set |= bit;
	child->ignored = new[0] == SIG_IGN ? child->ignored | bit : child->ignored & ~bit;
	return 0;
}

static s64 signal_mask(struct thread *self, const u64 *a)
{
	s64 result;

	self->mask = self->child->mask;
	result = do_rt_sigprocmask(self, a);
	self->child->mask = self->mask;
	self->mask = ~(u64)0;
	return result;
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

static s64 start(struct thread *self, const u64 *a)
{
	struct child *child = self->child;
	char path[LONGEST_PATH];
	s64 length = path_of(self, a[0], path), result;
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

static s64 end(struct thread *self, u64 status)
{
	struct list list = { take_buffer(self, sizeof(*list.calls)), 0 };
	s64 result;

	put(&list, (struct veil_program_call){ .nr = NR_EXIT_GROUP, .args = { (u32)status }, .to = -1 });
	result = has_room_for_child() ? ask_for(self, &list) : -EAGAIN;
	/* Such a child has not been. */
	return self->child ? parent_again(self, result) : result;
}

static s64 of_parent(struct thread *self, call_handler handler, const u64 *a)
{
	u64 own[6];
	s32 fd = a[0] < DESCRIPTORS ? self->child->origin[a[0]] : CLOSED;

	if (fd < 0)
		return -EBADF;
	memcpy(own, a, sizeof(own));
	own[0] = (u64)fd;
	return handler(self, own);
}

bool child_may_call(u64 nr)
{
	switch (nr) {
	case 9 ... 12: /* memory */
	case 24 ... 25:
	case 28:
	case 39: /* getpid: the parent's, for the child's is not known yet */
	case 97: /* limits and identity */
	case 102:
	case 104:
	case 107:
	case 108:
	case 110:
	case 131:
	case 186:
	case 202:
	case 228:
	case 302:
	case 318:
		return true;
	default:
		return false;
	}
}

s64 child_call(struct thread *self, u64 nr, const u64 *a)
{
	struct child *child = self->child;
	s64 result;

	switch (nr) {
	case 0:
		return of_parent(self, do_read, a);
	case 1: /* Python's children tell their parents why they failed. */
		return of_parent(self, do_write, a);
	case 2:
		return open_file(self, a[0], a[1], a[2]);
	case NR_CLOSE:
		if (!has(child, a[0]))
			return -EBADF;
		result = noted(child, NR_CLOSE, a[0], 0, 0);
		if (!result)
			child->origin[a[0]] = CLOSED;
		return result;
	case NR_SIGACTION:
		return signal_action(self, a);
	case NR_SIGPROCMASK:
		return signal_mask(self, a);
	case NR_IOCTL:
		if (!has(child, a[0]))
			return -EBADF;
		return a[1] == FIOCLEX || a[1] == FIONCLEX ? noted(child, NR_IOCTL, a[0], a[1], 0) : -ENOTTY;
	case 32:
		return duplicate_to(child, a[0], lowest_free(child, 0), 0);
	case 33:
		return a[0] == a[1] && has(child, a[0]) ? (s64)a[0] : duplicate_to(child, a[0], a[1], 0);
	case NR_DUP3:
		if (a[0] == a[1] || a[2] & ~(u64)O_CLOEXEC)
			return -EINVAL;
		return duplicate_to(child, a[0], a[1], a[2]);
	case NR_EXECVE:
		return start(self, a);
	case 60:
	case NR_EXIT_GROUP:
		return end(self, a[0]);
	case NR_FCNTL:
		return fcntl(child, a);
	case NR_CHDIR:
		return change_directory(self, a[0]);
	case 95: /* umask */
		return noted(child, nr, a[0], 0, 0) ?: USUAL_UMASK;
	case 105: /* setuid, setgid, setpgid */
	case 106:
	case 109:
		return noted(child, nr, a[0], a[1], 0);
	case 112: /* setsid */
		return noted(child, nr, 0, 0, 0) ?: process_number(self);
	case NR_OPENAT:
		return (s32)a[0] == AT_FDCWD ? open_file(self, a[1], a[2], a[3]) : -EACCES;
	case NR_CLOSE_RANGE:
		return close_range(child, (u32)a[0], (u32)a[1], a[2]);
	default:
		unsupported(self, "not between vfork and a program's start", nr);
		return -ENOSYS;
	}
}
