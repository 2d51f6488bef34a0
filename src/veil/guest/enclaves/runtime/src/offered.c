/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Signals from outside: those that the manifest names, of timers that the program has set itself, and of
 * programs that it has started. When they come is the
 * kernel's choice; that others do not come is not.
 */
#include "children.h"
#include "handlers.h"
#include "machine.h"
#include "runtime.h"
#include "structures.h"
#include "timers.h"

#define NR_ALARM 37
#define NR_SETITIMER 38
#define TIMERS 3

/* By signal: a timer of the program's is set; and it goes on after it has come once. */
static u64 set_timers, periodic;

void interrupt_thread(struct thread *self, struct thread *other)
{
	if (READ_ONCE(other->in_wait))
		give_word(self, other);
	else
		ask_window(self, VEIL_WINDOW_INTERRUPT, other->slot, 0);
}

u64 offer_signals(struct thread *self, u64 offered)
{
	u64 of_timers = offered & __atomic_load_n(&set_timers, __ATOMIC_SEQ_CST);
	u64 allowed = CONFIG->flags & FLAG_SIGNALS_OUTSIDE ? CONFIG->signals : 0, own;

	__atomic_and_fetch(&set_timers, ~(of_timers & ~periodic), __ATOMIC_SEQ_CST);
	if (has_children())
		allowed |= SIGNAL_BIT(SIGCHLD);
	offered = (offered & allowed) | of_timers;
	own = timers_come(self, offered);
	if (own)
		signal_process(self, own);
	return offered;
}

/* Before the kernel has it set: the signal may come at once. */
void note_timer(s32 number, bool set, bool goes_on)
{
	u64 bit = SIGNAL_BIT(number);

	if (goes_on)
		__atomic_or_fetch(&periodic, bit, __ATOMIC_SEQ_CST);
	else
		__atomic_and_fetch(&periodic, ~bit, __ATOMIC_SEQ_CST);
	if (set)
		__atomic_or_fetch(&set_timers, bit, __ATOMIC_SEQ_CST);
	else
		__atomic_and_fetch(&set_timers, ~bit, __ATOMIC_SEQ_CST);
}

HANDLER(do_alarm)
{
	s64 result;

	note_timer(SIGALRM, (u32)a[0], false);
	result = outside(self, NR_ALARM, (u32)a[0], 0, 0, 0, 0, 0);
	if (result > 0xffffffff)
		attacked(self, "alarm is answered by %x", (u64)result);
	return result;
}

HANDLER(do_setitimer)
{
	static const s32 numbers[TIMERS] = { SIGALRM, SIGVTALRM, SIGPROF };
	struct timer_value *new = take_buffer(self, sizeof(*new)), *old = take_buffer(self, sizeof(*old));
	struct timer_value value = { 0 };
	s64 result;

	if (a[0] >= TIMERS)
		return -EINVAL;
	if (a[1] && copy_in(&value, a[1], sizeof(value)))
		return -EFAULT;
	if (!is_microseconds(value.first) || !is_microseconds(value.interval))
		return -EINVAL;
	*new = value;
	memset(old, 0, sizeof(*old));
	note_timer(numbers[a[0]], value.first[0] || value.first[1], value.interval[0] || value.interval[1]);
	result = outside_done(self, NR_SETITIMER, a[0], (u64)new, (u64)old, 0, 0, 0);
	if (result || !a[2])
		return result;
	memcpy(&value, old, sizeof(value));
	if (!is_timer_in_microseconds(&value))
		attacked(self, "setitimer is answered by values that it cannot have");
	return copy_out(a[2], &value, sizeof(value));
}
