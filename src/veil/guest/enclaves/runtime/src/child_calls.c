/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a thread does between vfork() and a program's start. To its descriptors, signals and directory it concerns the
 * program to come alone: it is noted, as system calls, which programs.c hands over.
 */
#include "child.h"
#include "children.h"
#include "files.h"
#include "handlers.h"
#include "machine.h"

#define NR_CLOSE 3
#define NR_IOCTL 16
#define NR_FCNTL 72
#define NR_CHDIR 80
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
	return fd < DESCRIPTORS && child->origin[fd] != CHILD_CLOSED;
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
		child->origin[fd] = CHILD_CLOSED;
	return noted(child, NR_CLOSE_RANGE, first, last, flags);
}

/* A file for the program to come; this one opens it itself if it is more than what the kernel has there. */
static s64 open_file(struct thread *self, u64 name, u64 flags, u64 mode)
{
	struct child *child = self->child;
	char path[LONGEST_PATH];
	s64 length = child_path(self, name, path), result;
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
	child->origin[fd] = CHILD_OPENS;
	return (s64)fd;
}

static s64 change_directory(struct thread *self, u64 name)
{
	struct child *child = self->child;
	char path[LONGEST_PATH];
	s64 length = child_path(self, name, path), result;

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

static s64 of_parent(struct thread *self, call_handler handler, const u64 *a)
{
	u64 own[6];
	s32 fd = a[0] < DESCRIPTORS ? self->child->origin[a[0]] : CHILD_CLOSED;

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
			child->origin[a[0]] = CHILD_CLOSED;
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
		return start_program(self, a);
	case 60:
	case NR_EXIT_GROUP:
		return end_child(self, a[0]);
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
