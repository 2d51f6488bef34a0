/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Processes of programs that were started outside: which there are, and how they end, which is the kernel's claim. */
#include "children.h"
#include "handlers.h"
#include "structures.h"

#define MOST_CHILDREN 256
#define NR_WAIT4 61
#define NR_WAITID 247
#define WNOHANG 1
#define WUNTRACED 2
#define WCONTINUED 8
#define WNOWAIT 0x1000000
#define USAGE_BYTES LARGEST_STRUCTURE
#define P_PID 1
#define CONTINUED 0xffff
#define CLD_EXITED 1
#define CLD_DUMPED 3
#define CLD_CONTINUED 6

static s32 children[MOST_CHILDREN];
static bool was_there;
static struct lock children_lock;

/* siginfo_t of SIGCHLD */
struct child_information {
	s32 number, error, code, pad, process;
	u32 user;
	s32 status, rest[25];
};

_Static_assert(sizeof(struct child_information) == 128, "as waitid() writes it");

static s32 *find(s32 number)
{
	for (u32 i = 0; i < MOST_CHILDREN; i++)
		if (READ_ONCE(children[i]) == number)
			return &children[i];
	return NULL;
}

bool is_child(s32 number)
{
	return number > 0 && find(number);
}

bool has_room_for_child(void)
{
	return find(0);
}

void add_child(struct thread *self, s32 number)
{
	s32 *place;

	lock(self, &children_lock);
	place = find(0);
	if (place)
		*place = number;
	was_there = true;
	unlock(&children_lock);
}

bool has_children(void)
{
	return READ_ONCE(was_there);
}

static bool is_any(void)
{
	for (u32 i = 0; i < MOST_CHILDREN; i++)
		if (READ_ONCE(children[i]))
			return true;
	return false;
}

/* It has ended, and is told of once. */
static void forget(struct thread *self, s32 number)
{
	s32 *place;

	lock(self, &children_lock);
	place = find(number);
	if (place)
		*place = 0;
	unlock(&children_lock);
	if (!place)
		attacked(self, "process %d is said to have ended twice", (u64)number);
}

/* Has it ended? */
static bool has_ended(struct thread *self, u32 status, u64 options)
{
	u32 signal = status & 0x7f;

	if (!signal && !(status & ~(u32)0xff00))
		return true;
	if (signal && signal != 0x7f && status <= 0xff)
		return true;
	if (options & WUNTRACED && signal == 0x7f && status <= 0xffff && status & 0xff00 && !(status & 0x80))
		return false;
	if (options & WCONTINUED && status == CONTINUED)
		return false;
	attacked(self, "a process has the status %x", (u64)status);
}

static void check_usage(struct thread *self, const void *usage)
{
	if (!is_usage(usage))
		attacked(self, "what a process has used cannot be");
}

HANDLER(do_wait4)
{
	u32 *status = take_buffer(self, 4), own_status;
	u8 *usage = take_buffer(self, USAGE_BYTES), own_usage[USAGE_BYTES] __attribute__((aligned(8)));
	s64 result;

	if (!is_any() || ((s32)a[0] > 0 && !is_child((s32)a[0])))
		return -ECHILD;
	*status = 0;
	memset(usage, 0, USAGE_BYTES);
	result = outside(self, NR_WAIT4, a[0], (u64)status, a[2], a[3] ? (u64)usage : 0, 0, 0);
	if (result < 0)
		return result;
	own_status = READ_ONCE(*status);
	memcpy(own_usage, usage, USAGE_BYTES);
	if (!result && a[2] & WNOHANG)
		return 0;
	if (result > 0x7fffffff || !is_child((s32)result) || ((s32)a[0] > 0 && result != (s32)a[0]))
		attacked(self, "wait4 is answered by %x, which is no process that was waited for", (u64)result);
	check_usage(self, own_usage);
	if (has_ended(self, own_status, a[2]))
		forget(self, (s32)result);
	if ((a[1] && copy_out(a[1], &own_status, 4)) || (a[3] && copy_out(a[3], own_usage, USAGE_BYTES)))
		return -EFAULT;
	return result;
}

HANDLER(do_waitid)
{
	struct child_information *shared = take_buffer(self, sizeof(*shared)), given, own = { 0 };
	u8 *usage = take_buffer(self, USAGE_BYTES), own_usage[USAGE_BYTES] __attribute__((aligned(8)));
	s64 result;

	if (!is_any() || (a[0] == P_PID && !is_child((s32)a[1])))
		return -ECHILD;
	memset(shared, 0, sizeof(*shared));
	memset(usage, 0, USAGE_BYTES);
	result = outside_done(self, NR_WAITID, a[0], a[1], (u64)shared, a[3], a[4] ? (u64)usage : 0, 0);
	if (result < 0)
		return result;
	memcpy(&given, shared, sizeof(given));
	memcpy(own_usage, usage, USAGE_BYTES);
	check_usage(self, own_usage);
	if (given.process || !(a[3] & WNOHANG)) {
		if (!is_child(given.process) || (a[0] == P_PID && given.process != (s32)a[1]) ||
		    given.code < CLD_EXITED || given.code > CLD_CONTINUED)
			attacked(self, "waitid is answered by process %x, which was not waited for",
				 (u64)given.process);
		if (given.code == CLD_EXITED ? given.status & ~0xff : given.status <= 0 || given.status > SIGNALS)
			attacked(self, "a process has the status %x", (u64)(u32)given.status);
		own.number = SIGCHLD;
		own.code = given.code;
		own.process = given.process;
		own.user = given.user;
		own.status = given.status;
		if (given.code <= CLD_DUMPED && !(a[3] & WNOWAIT))
			forget(self, given.process);
	}
	if ((a[2] && copy_out(a[2], &own, sizeof(own))) || (a[4] && copy_out(a[4], own_usage, USAGE_BYTES)))
		return -EFAULT;
	return 0;
}
