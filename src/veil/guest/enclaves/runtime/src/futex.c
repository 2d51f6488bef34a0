/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Futexes. Who waits for what is known in here alone; the kernel only puts the thread to sleep, on a word of the window
 * that means nothing. If it wakes a thread that nobody woke, the thread goes to sleep again.
 */
#include "handlers.h"
#include "machine.h"

#define WAIT 0
#define WAKE 1
#define REQUEUE 3
#define COMPARE_REQUEUE 4
#define WAKE_OPERATION 5
#define WAIT_BITS 9
#define WAKE_BITS 10
#define COMMAND 0x7f
#define REAL_TIME 0x100
#define ALL_BITS 0xffffffff
#define NANOSECONDS 1000000000
#define QUEUES 64

static struct thread *queues[QUEUES];
static struct lock futex_lock;

static struct thread **queue_of(u64 address)
{
	return &queues[(address >> 2) % QUEUES];
}

static void add(struct thread *self)
{
	struct thread **link = queue_of(self->futex);

	/* First come, first woken. */
	while (*link)
		link = &(*link)->next_waiter;
	self->next_waiter = NULL;
	*link = self;
}

static bool drop(struct thread *self)
{
	struct thread **link = queue_of(self->futex);

	while (*link && *link != self)
		link = &(*link)->next_waiter;
	if (!*link)
		return false;
	*link = self->next_waiter;
	return true;
}

u32 futex_wake(struct thread *self, u64 address, u32 count, u32 bits)
{
	struct thread *woken[VEIL_ENC_MAX_SLOTS], **link;
	u32 done = 0;

	lock(self, &futex_lock);
	link = queue_of(address);
	while (*link && done < count && done < LENGTH(woken)) {
		struct thread *thread = *link;

		if (thread->futex != address || !(thread->futex_bits & bits)) {
			link = &thread->next_waiter;
			continue;
		}
		*link = thread->next_waiter;
		woken[done++] = thread;
		WRITE_ONCE(thread->woken, true);
	}
	unlock(&futex_lock);
	for (u32 i = 0; i < done; i++)
		give_word(self, woken[i]);
	return done;
}

/* Nanoseconds until then; `deadline`: as of clock_gettime. */
static s64 rest_of(struct thread *self, u32 clock, s64 deadline)
{
	s64 time[2];

	now(self, clock, time);
	return deadline - (time[0] * NANOSECONDS + time[1]);
}

static s64 wait_until(struct thread *self, bool timed, u32 clock, s64 deadline)
{
	s64 result = 0;

	self->in_wait = true;
	while (!READ_ONCE(self->woken)) {
		s64 rest = timed ? rest_of(self, clock, deadline) : 0;
		s64 time[2] = { rest / NANOSECONDS, rest % NANOSECONDS };

		if (timed && rest <= 0) {
			result = -ETIMEDOUT;
			break;
		}
		if (signal_waits(self)) {
			result = -EINTR;
			break;
		}
		wait_for_word(self, timed ? time : NULL, &result);
		/* An interrupted sleep without a signal of ours: the word may be wrong, so it is set right. */
		if (!READ_ONCE(self->woken))
			clear_word(self);
	}
	self->in_wait = false;
	return READ_ONCE(self->woken) ? 0 : result;
}

static s64 wait(struct thread *self, const u64 *a, u32 bits, bool absolute, u32 clock)
{
	s64 time[2] = { 0 }, deadline = 0, result;
	u32 found;

	if (!bits || a[0] % 4)
		return -EINVAL;
	if (a[3]) {
		if (copy_in(time, a[3], sizeof(time)))
			return -EFAULT;
		if (time[0] < 0 || time[1] < 0 || time[1] >= NANOSECONDS)
			return -EINVAL;
		time[0] = (s64)least((u64)time[0], (u64)1 << 32);
		deadline = time[0] * NANOSECONDS + time[1];
		if (!absolute)
			deadline -= rest_of(self, clock, 0);
	}
	/* It gets its page here, for a fault has no place under the lock. */
	if (copy_in(&found, a[0], sizeof(found)))
		return -EFAULT;
	lock(self, &futex_lock);
	if (copy_in(&found, a[0], sizeof(found)) || found != (u32)a[2]) {
		unlock(&futex_lock);
		return -EAGAIN;
	}
	self->futex = a[0];
	self->futex_bits = bits;
	self->woken = false;
	clear_word(self);
	add(self);
	unlock(&futex_lock);
	result = wait_until(self, a[3], clock, deadline);
	lock(self, &futex_lock);
	if (!drop(self))
		result = 0; /* woken just now */
	self->futex = 0;
	unlock(&futex_lock);
	return result;
}

static s64 requeue(struct thread *self, const u64 *a, bool compare)
{
	u32 done, moved = 0, found, limit = (u32)a[3];
	struct thread **link, *thread;

	if (compare && (copy_in(&found, a[0], sizeof(found)) || found != (u32)a[5]))
		return -EAGAIN;
	done = futex_wake(self, a[0], (u32)a[2], ALL_BITS);
	lock(self, &futex_lock);
	link = queue_of(a[0]);
	while (*link && moved < limit) {
		thread = *link;
		if (thread->futex != a[0]) {
			link = &thread->next_waiter;
			continue;
		}
		*link = thread->next_waiter;
		thread->futex = a[4];
		add(thread);
		moved++;
		if (queue_of(a[4]) == queue_of(a[0]))
			link = queue_of(a[0]);
	}
	unlock(&futex_lock);
	return done + moved;
}

static u32 changed(u32 operation, u32 old, u32 argument)
{
	switch (operation) {
	case 0:
		return argument;
	case 1:
		return old + argument;
	case 2:
		return old | argument;
	case 3:
		return old & ~argument;
	default:
		return old ^ argument;
	}
}

static bool compares(u32 comparison, s32 old, s32 argument)
{
	switch (comparison) {
	case 0:
		return old == argument;
	case 1:
		return old != argument;
	case 2:
		return old < argument;
	case 3:
		return old <= argument;
	case 4:
		return old > argument;
	default:
		return old >= argument;
	}
}

static s64 wake_operation(struct thread *self, const u64 *a)
{
	u32 code = (u32)a[5], old, found, argument = code >> 12 & 0xfff;
	s64 done;

	if (code >> 31)
		argument = 1u << (argument & 31);
	if (!is_user(a[4], 4) || a[4] % 4 || copy_in(&old, a[4], sizeof(old)))
		return -EFAULT;
	for (;;) {
		if (!swap_user((u32 *)a[4], old, changed(code >> 28 & 7, old, argument), &found))
			return -EFAULT;
		if (found == old)
			break;
		old = found;
	}
	done = futex_wake(self, a[0], (u32)a[2], ALL_BITS);
	if (compares(code >> 24 & 15, (s32)old, (s32)(code << 20) >> 20))
		done += futex_wake(self, a[4], (u32)a[3], ALL_BITS);
	return done;
}

HANDLER(do_futex)
{
	u32 clock = a[1] & REAL_TIME ? 0 : 1;

	switch (a[1] & COMMAND) {
	case WAIT:
		return wait(self, a, ALL_BITS, false, 1);
	case WAIT_BITS:
		return wait(self, a, (u32)a[5], true, clock);
	case WAKE:
		return futex_wake(self, a[0], (u32)a[2], ALL_BITS);
	case WAKE_BITS:
		return a[5] ? (s64)futex_wake(self, a[0], (u32)a[2], (u32)a[5]) : -EINVAL;
	case REQUEUE:
	case COMPARE_REQUEUE:
		return requeue(self, a, (a[1] & COMMAND) == COMPARE_REQUEUE);
	case WAKE_OPERATION:
		return wake_operation(self, a);
	default:
		unsupported(self, "an operation that is not known", 202);
		return -ENOSYS;
	}
}
