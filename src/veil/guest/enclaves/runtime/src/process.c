/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is the process's: its limits, its name, and where FS and GS point. */
#include "files.h"
#include "handlers.h"
#include "machine.h"

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
#define UNAME_FIELD 65
#define UNAME_BYTES (6 * UNAME_FIELD)
#define MOST_IDENTITY 0xffffffff

static char name[NAME_BYTES];

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

HANDLER(do_uname)
{
	u8 *shared = take_buffer(self, UNAME_BYTES), own[UNAME_BYTES];
	s64 result = outside_done(self, 63, (u64)shared, 0, 0, 0, 0, 0);

	if (result)
		return result;
	memcpy(own, shared, sizeof(own));
	for (u32 i = UNAME_FIELD; i <= UNAME_BYTES; i += UNAME_FIELD)
		if (own[i - 1])
			attacked(self, "a string of uname does not end");
	return copy_out(a[0], own, sizeof(own));
}

/* getuid and the like: the same until this thread changes it. */
HANDLER(do_identity)
{
	u64 nr = self->regs.rax;
	s64 result = outside(self, nr, 0, 0, 0, 0, 0, 0);

	if (result > MOST_IDENTITY)
		attacked(self, "%s is answered by %x", call_name((u32)nr), (u64)result);
	remember(self, nr, result);
	return result;
}

HANDLER(do_set_identity)
{
	static const u8 numbers[] = { 102, 104, 107, 108 };

	for (u32 i = 0; i < LENGTH(numbers); i++)
		self->answers[numbers[i]] = 0;
	return outside_done(self, self->regs.rax, a[0], 0, 0, 0, 0, 0);
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
