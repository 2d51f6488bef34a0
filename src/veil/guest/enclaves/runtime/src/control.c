/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is done to descriptors and to the process: pipes, ioctl, fcntl, limits, and calls that need no kernel. */
#include "calls.h"
#include "files.h"
#include "handlers.h"
#include "machine.h"
#include "memory.h"

#define F_DUPFD 0
#define F_DUPFD_CLOEXEC 1030
#define RLIMIT_STACK 3
#define RLIMIT_NOFILE 7
#define LIMITS 16
#define NO_LIMIT (~(u64)0)
#define ARCH_SET_GS 0x1001
#define ARCH_SET_FS 0x1002
#define ARCH_GET_FS 0x1003
#define ARCH_GET_GS 0x1004
#define PR_SET_NAME 15
#define PR_GET_NAME 16
#define PR_GET_DUMPABLE 3
#define PR_SET_DUMPABLE 4
#define PR_SET_NO_NEW_PRIVS 38
#define NAME_BYTES 16

static char name[NAME_BYTES];

s64 new_pair(struct thread *self, const s32 *shared, s32 own[2])
{
	s64 result = 0;

	for (u32 i = 0; i < 2; i++) {
		own[i] = READ_ONCE(shared[i]);
		if (new_descriptor(self, own[i], NULL) < 0)
			result = -EMFILE;
	}
	return result;
}

HANDLER(do_pipe)
{
	s32 *shared = take_buffer(self, 8), own[2];
	s64 result = outside_done(self, 293, (u64)shared, self->regs.rax == 293 ? a[1] : 0, 0, 0, 0, 0);

	if (result)
		return result;
	return new_pair(self, shared, own) ?: copy_out(a[0], own, sizeof(own));
}

/* Requests of ioctl that are known: what they read and write. */
static const struct {
	u32 request;
	u16 in, out;
} requests[] = {
	{ 0x5401, 0, 36 },					/* TCGETS */
	{ 0x5402, 36, 0 },					/* TCSETS, TCSETSW, TCSETSF */
	{ 0x5403, 36, 0 }, { 0x5404, 36, 0 }, { 0x540f, 0, 4 }, /* TIOCGPGRP */
	{ 0x5410, 4, 0 },					/* TIOCSPGRP */
	{ 0x5413, 0, 8 },					/* TIOCGWINSZ */
	{ 0x541b, 0, 4 },					/* FIONREAD */
	{ 0x5421, 4, 0 },					/* FIONBIO */
	{ 0x5450, 0, 0 },					/* FIONCLEX, FIOCLEX */
	{ 0x5451, 0, 0 },
};

HANDLER(do_ioctl)
{
	if (!is_open((s32)a[0]))
		return -EBADF;
	for (u32 i = 0; i < LENGTH(requests); i++) {
		u64 bytes = most(requests[i].in, requests[i].out);
		void *shared = take_buffer(self, bytes);
		s64 result;

		if (requests[i].request != (u32)a[1])
			continue;
		memset(shared, 0, bytes);
		if (requests[i].in && copy_in(shared, a[2], requests[i].in))
			return -EFAULT;
		result = outside_done(self, 16, a[0], a[1], bytes ? (u64)shared : 0, 0, 0, 0);
		if (!result && requests[i].out)
			result = copy_out(a[2], shared, requests[i].out);
		return result;
	}
	unsupported(self, "a request that is not known", 16);
	return -ENOTTY;
}

HANDLER(do_fcntl)
{
	struct open_file *file;
	void *shared;
	s64 result;

	if (!is_open((s32)a[0]))
		return -EBADF;
	switch (a[1]) {
	case F_DUPFD:
	case F_DUPFD_CLOEXEC:
		return a[2] >= DESCRIPTORS ? -EINVAL : duplicate(self, (s32)a[0], a[1], a[2]);
	case 1: /* F_GETFD, F_SETFD, F_SETFL, F_SETOWN, F_GETOWN, F_GETPIPE_SZ and F_SETPIPE_SZ, seals */
	case 2:
	case 4:
	case 8:
	case 9:
	case 1031:
	case 1032:
	case 1033:
	case 1034:
		result = outside(self, 72, a[0], a[1], a[2], 0, 0, 0);
		break;
	case 3: /* F_GETFL: of files of our own, how they were opened is not the kernel's to say */
		file = use(self, (s32)a[0]);
		result = outside(self, 72, a[0], a[1], 0, 0, 0, 0);
		if (result >= 0 && file && file->kind != FILE_OUTSIDE)
			result = (result & ~(s64)O_ACCMODE) | file->access;
		release(self, file);
		break;
	case 5: /* F_GETLK, F_SETLK, F_SETLKW and the same of open files */
	case 6:
	case 7:
	case 36:
	case 37:
	case 38:
		shared = take_buffer(self, 32);
		if (copy_in(shared, a[2], 32))
			return -EFAULT;
		result = outside(self, 72, a[0], a[1], (u64)shared, 0, 0, 0);
		if (!result && (a[1] == 5 || a[1] == 36))
			result = copy_out(a[2], shared, 32);
		break;
	default:
		unsupported(self, "a command that is not known", 72);
		return -EINVAL;
	}
	if (result > 0x7fffffff)
		attacked(self, "fcntl is answered by %x", (u64)result);
	return result;
}

HANDLER(do_ftruncate)
{
	struct open_file *file = use(self, (s32)a[0]);
	s64 result;

	if (!file)
		return -EBADF;
	if ((s64)a[1] < 0 || file->kind == FILE_TRUSTED)
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

static s64 limits(u64 which, u64 to)
{
	u64 limit[2] = { NO_LIMIT, NO_LIMIT };

	if (which >= LIMITS)
		return -EINVAL;
	if (which == RLIMIT_STACK)
		limit[0] = limit[1] = CONFIG->stack_bytes;
	else if (which == RLIMIT_NOFILE)
		limit[0] = limit[1] = DESCRIPTORS;
	else if (which == 4) /* RLIMIT_CORE */
		limit[0] = limit[1] = 0;
	return to ? copy_out(to, limit, sizeof(limit)) : 0;
}

HANDLER(do_getrlimit)
{
	return limits(a[0], a[1]);
}

/* Lower limits are taken note of by nobody; higher ones there are not. */
HANDLER(do_setrlimit)
{
	return a[0] < LIMITS ? 0 : -EINVAL;
}

HANDLER(do_prlimit)
{
	if (a[0] && (s32)a[0] != process_number(self))
		return -ESRCH;
	return limits(a[1], a[3]);
}

HANDLER(do_prctl)
{
	switch (a[0]) {
	case PR_SET_NAME:
		return copy_in(name, a[1], NAME_BYTES - 1);
	case PR_GET_NAME:
		return copy_out(a[1], name, NAME_BYTES);
	case PR_GET_DUMPABLE:
	case PR_SET_DUMPABLE:
	case PR_SET_NO_NEW_PRIVS:
	case 1: /* PR_SET_PDEATHSIG */
		return 0;
	default:
		return -EINVAL;
	}
}

HANDLER(do_arch_prctl)
{
	u64 base;

	switch (a[0]) {
	case ARCH_SET_FS:
	case ARCH_SET_GS:
		if (a[1] >= VEIL_ENC_TOP)
			return -EPERM;
		if (a[0] == ARCH_SET_FS)
			set_fs_base(a[1]);
		else
			set_gs_base(a[1]);
		return 0;
	case ARCH_GET_FS:
	case ARCH_GET_GS:
		base = a[0] == ARCH_GET_FS ? fs_base() : gs_base();
		return copy_out(a[1], &base, sizeof(base));
	default:
		return -EINVAL;
	}
}

HANDLER(do_getrandom)
{
	u8 bytes[64];
	u64 wanted = least(a[1], 0x1000000);

	for (u64 done = 0; done < wanted; done += sizeof(bytes)) {
		u64 part = least(sizeof(bytes), wanted - done);

		random_bytes(self, bytes, part);
		if (copy_out(a[0] + done, bytes, part))
			return -EFAULT;
	}
	return (s64)wanted;
}

HANDLER(do_not_there)
{
	return -ENOSYS;
}

/* Hints, and what has no meaning in here. */
HANDLER(do_accept_silently)
{
	return 0;
}

HANDLER(do_mmap)
{
	u32 flags = (u32)a[3], type = flags & MAP_TYPE;
	struct open_file *file;
	s32 fd = (s32)a[4];
	bool bad;

	if (type != MAP_SHARED && type != MAP_PRIVATE && type != MAP_SHARED_VALIDATE)
		return -EINVAL;
	if (flags & MAP_ANONYMOUS)
		return memory_map(self, a[0], a[1], (u32)a[2], flags, -1, 0);
	file = use(self, fd);
	if (!file)
		return -EBADF;
	/* A copy that nobody writes back would lose what is written. */
	bad = type != MAP_PRIVATE && a[2] & PROT_WRITE;
	release(self, file);
	if (bad) {
		unsupported(self, "a shared map of a file that is written", 9);
		return -ENODEV;
	}
	return memory_map(self, a[0], a[1], (u32)a[2], flags, fd, a[5]);
}

HANDLER(do_munmap)
{
	return memory_unmap(self, a[0], a[1]);
}

HANDLER(do_mprotect)
{
	return memory_protect(self, a[0], a[1], (u32)a[2]);
}

HANDLER(do_mremap)
{
	return memory_move(self, a[0], a[1], a[2], (u32)a[3], a[4]);
}

HANDLER(do_madvise)
{
	return memory_advise(self, a[0], a[1], (u32)a[2]);
}

HANDLER(do_msync)
{
	return a[0] % PAGE ? -EINVAL : 0;
}

HANDLER(do_brk)
{
	return memory_brk(self, a[0]);
}
