/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is done to descriptors: ioctl, fcntl, and the length of files. */
#include "files.h"
#include "handlers.h"
#include "structures.h"

#define F_DUPFD 0
#define F_DUPFD_CLOEXEC 1030
#define F_GETFD 1
#define F_SETFD 2
#define F_SETFL 4
#define F_SETOWN 8
#define F_GETLK 5
#define F_OFD_GETLK 36
#define F_UNLCK 2
#define LOCK_BYTES 32
#define FIONREAD 0x541b
#define TIOCGPGRP 0x540f
#define SIOCGIFINDEX 0x8933
#define SIOCGIFNAME 0x8910
#define MOST_BYTES 40
#define INTERFACE_NAME 16

/* Requests of ioctl that are known: what they read and write. */
static const struct {
	u32 request;
	u16 in, out;
} requests[] = {
	{ 0x5401, 0, 36 },				/* TCGETS */
	{ 0x5402, 36, 0 },				/* TCSETS */
	{ 0x5403, 36, 0 },				/* TCSETSW */
	{ 0x5404, 36, 0 },				/* TCSETSF */
	{ TIOCGPGRP, 0, 4 },	  { 0x5410, 4, 0 },	/* TIOCSPGRP */
	{ 0x5413, 0, 8 },				/* TIOCGWINSZ */
	{ 0x5414, 8, 0 },				/* TIOCSWINSZ */
	{ FIONREAD, 0, 4 },				/* what there is to read */
	{ 0x5421, 4, 0 },				/* FIONBIO */
	{ 0x5450, 0, 0 },				/* FIONCLEX */
	{ 0x5451, 0, 0 },				/* FIOCLEX */
	{ SIOCGIFNAME, 40, 40 },			/* of an interface's number; and its number */
	{ SIOCGIFINDEX, 40, 40 }, { 0x40045431, 4, 0 }, /* TIOCSPTLCK */
	{ 0x80045430, 0, 4 },				/* TIOCGPTN */
};

/* Counts and texts of which a program makes more than it shows. */
static void check_answer(struct thread *self, u32 request, const u8 *answer)
{
	s32 count;

	memcpy(&count, answer, sizeof(count));
	if (request == FIONREAD && count < 0)
		attacked(self, "%x bytes are said to be there to read", (u64)(u32)count);
	/* To minus that number a program sends signals: -1 would be all processes. */
	if (request == TIOCGPGRP && count < 0)
		attacked(self, "a terminal has the group %x", (u64)(u32)count);
	memcpy(&count, answer + INTERFACE_NAME, sizeof(count));
	if (request == SIOCGIFINDEX && count <= 0)
		attacked(self, "an interface has the number %x", (u64)(u32)count);
	if (request == SIOCGIFNAME && answer[INTERFACE_NAME - 1])
		attacked(self, "the name of an interface does not end");
}

HANDLER(do_ioctl)
{
	u8 own[MOST_BYTES];

	if (!is_open((s32)a[0]))
		return -EBADF;
	for (u32 i = 0; i < LENGTH(requests); i++) {
		u64 bytes = most(requests[i].in, requests[i].out);
		void *shared;
		s64 result;

		if (requests[i].request != (u32)a[1])
			continue;
		shared = take_buffer(self, bytes);
		memset(shared, 0, bytes);
		if (requests[i].in && copy_in(shared, a[2], requests[i].in))
			return -EFAULT;
		result = outside_done(self, 16, a[0], a[1], bytes ? (u64)shared : 0, 0, 0, 0);
		if (result || !requests[i].out)
			return result;
		memcpy(own, shared, requests[i].out);
		check_answer(self, requests[i].request, own);
		return copy_out(a[2], own, requests[i].out);
	}
	unsupported(self, "a request that is not known", 16);
	return -ENOTTY;
}

/* F_GETLK, F_SETLK, F_SETLKW and the same of open files. */
static s64 lock_file(struct thread *self, const u64 *a)
{
	u8 *shared = take_buffer(self, LOCK_BYTES), own[LOCK_BYTES] __attribute__((aligned(8)));
	u8 given[LOCK_BYTES] __attribute__((aligned(8)));
	s64 result;
	s16 type;

	if (copy_in(own, a[2], LOCK_BYTES))
		return -EFAULT;
	memcpy(shared, own, LOCK_BYTES);
	result = outside_done(self, 72, a[0], a[1], (u64)shared, 0, 0, 0);
	if (result || (a[1] != F_GETLK && a[1] != F_OFD_GETLK))
		return result;
	memcpy(given, shared, LOCK_BYTES);
	memcpy(&type, given, sizeof(type));
	if (type == F_UNLCK) /* nobody has one: all else is as the program asked */
		return copy_out(a[2], &type, sizeof(type));
	if (!is_file_lock(given))
		attacked(self, "a file is said to have a lock that cannot be");
	return copy_out(a[2], given, LOCK_BYTES);
}

/* Where a sealed file is written is said with each block of it: outside nothing is put at its end. */
static s64 set_flags(struct thread *self, const u64 *a)
{
	struct open_file *file = use(self, (s32)a[0]);
	u64 flags = a[2];
	s64 result;

	if (!file)
		return -EBADF;
	if (file->kind == FILE_SEALED)
		flags &= ~(u64)O_APPEND;
	result = outside_done(self, 72, a[0], a[1], flags, 0, 0, 0);
	if (!result)
		file->flags = (file->flags & ~(u32)O_APPEND) | (u32)(a[2] & O_APPEND);
	release(self, file);
	return result;
}

/* What is set is answered by 0, and FD_CLOEXEC is all that there is of flags of a descriptor. */
static s64 most_answer(u64 command)
{
	switch (command) {
	case F_SETFD:
	case F_SETOWN:
		return 0;
	case F_GETFD:
		return 1;
	default:
		return 0x7fffffff;
	}
}

HANDLER(do_fcntl)
{
	struct open_file *file;
	s64 result;

	if (!is_open((s32)a[0]))
		return -EBADF;
	switch (a[1]) {
	case F_DUPFD:
	case F_DUPFD_CLOEXEC:
		return a[2] >= DESCRIPTORS ? -EINVAL : duplicate(self, (s32)a[0], a[1], a[2]);
	case F_GETFD:
	case F_SETFD:
	case F_SETOWN:
	case 9: /* F_GETOWN, F_SETPIPE_SZ and F_GETPIPE_SZ, seals */
	case 1031:
	case 1032:
	case 1033:
	case 1034:
		result = outside(self, 72, a[0], a[1], a[2], 0, 0, 0);
		break;
	case F_SETFL:
		return set_flags(self, a);
	case 3: /* F_GETFL: of files of our own, how they were opened is not the kernel's to say */
		file = use(self, (s32)a[0]);
		result = outside(self, 72, a[0], a[1], 0, 0, 0, 0);
		if (result >= 0 && file && file->kind != FILE_OUTSIDE)
			result = (result & ~(s64)(O_ACCMODE | O_APPEND)) | file->access | (file->flags & O_APPEND);
		release(self, file);
		break;
	case F_GETLK ... 7:
	case F_OFD_GETLK ... 38:
		return lock_file(self, a);
	default:
		unsupported(self, "a command that is not known", 72);
		return -EINVAL;
	}
	if (result > most_answer(a[1]))
		attacked(self, "fcntl is answered by %x", (u64)result);
	return result;
}

HANDLER(do_ftruncate)
{
	struct open_file *file = use(self, (s32)a[0]);
	s64 result;

	if (!file)
		return -EBADF;
	if ((s64)a[1] < 0 || file->kind == FILE_TRUSTED || file->kind == FILE_SECRET)
		result = -EINVAL;
	else if (file->kind == FILE_SEALED)
		result = truncate_sealed(self, file, (s32)a[0], a[1]);
	else
		result = outside_done(self, 77, a[0], a[1], 0, 0, 0, 0);
	release(self, file);
	return result;
}

HANDLER(do_fallocate)
{
	struct open_file *file = use(self, (s32)a[0]);
	s64 result;

	if (!file)
		return -EBADF;
	result = file->kind == FILE_OUTSIDE ? outside_done(self, 285, a[0], a[1], a[2], a[3], 0, 0) : -EOPNOTSUPP;
	release(self, file);
	return result;
}
