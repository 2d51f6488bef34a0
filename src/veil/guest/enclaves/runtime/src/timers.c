/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * timer_create and its like. Outside each timer has a signal of its own, which no manifest names: what comes is of this
 * timer, or of nobody. In here it is the program's signal, for its process or for one of its threads.
 */
#include "timers.h"
#include "handlers.h"
#include "structures.h"

#define NR_CREATE 222
#define NR_SETTIME 223
#define NR_GETTIME 224
#define NR_GETOVERRUN 225
#define NR_DELETE 226
#define MOST_TIMERS 8
#define FIRST_SIGNAL 48
#define TIMER_SIGNALS ((((u64)1 << MOST_TIMERS) - 1) * SIGNAL_BIT(FIRST_SIGNAL))
#define LAST_CLOCK 11
#define NANOSECONDS 1000000000

enum notify { NOTIFY_SIGNAL = 0, NOTIFY_NONE = 1, NOTIFY_THREAD = 4 };

/* struct sigevent */
struct event {
	u64 value;
	s32 number, notify, thread, rest[11];
};

_Static_assert(sizeof(struct event) == 64, "Linux's structure");

static struct timer {
	bool used;
	s32 outside; /* its number there */
	struct event event;
} timers[MOST_TIMERS];
static struct lock timers_lock;
/* By signal: what the last timer of it has to say; and that the process has one of a timer's. */
static u64 values[SIGNALS + 1];
static u64 of_process;

u64 timer_value(s32 number)
{
	return READ_ONCE(values[number]);
}

bool take_timer_code(s32 number)
{
	return __atomic_fetch_and(&of_process, ~SIGNAL_BIT(number), __ATOMIC_SEQ_CST) & SIGNAL_BIT(number);
}

static bool find(struct thread *self, u64 number, struct timer *to)
{
	*to = (struct timer){ 0 };
	if (number >= MOST_TIMERS)
		return false;
	lock(self, &timers_lock);
	*to = timers[number];
	unlock(&timers_lock);
	return to->used;
}

static void come(struct thread *self, const struct event *event)
{
	struct thread *target = event->notify == NOTIFY_THREAD ? thread_by_number(event->thread) : NULL;

	if (event->notify == NOTIFY_NONE)
		return;
	WRITE_ONCE(values[event->number], event->value);
	if (target) {
		signal_self(self, target, event->number, SI_TIMER);
	} else if (event->notify == NOTIFY_SIGNAL) {
		__atomic_or_fetch(&of_process, SIGNAL_BIT(event->number), __ATOMIC_SEQ_CST);
		signal_process(self, SIGNAL_BIT(event->number));
	}
}

u64 timers_come(struct thread *self, u64 offered)
{
	for (u64 i = 0; i < MOST_TIMERS; i++) {
		struct timer timer;

		if (offered & SIGNAL_BIT(FIRST_SIGNAL + i) && find(self, i, &timer))
			come(self, &timer.event);
	}
	return offered & ~TIMER_SIGNALS;
}

static bool may_be(const struct event *event)
{
	if (event->notify == NOTIFY_NONE)
		return true;
	if (event->number < 1 || event->number > SIGNALS)
		return false;
	return event->notify == NOTIFY_SIGNAL || (event->notify == NOTIFY_THREAD && thread_by_number(event->thread));
}

/* Its number in here, or MOST_TIMERS. */
static u64 reserve(struct thread *self, const struct event *event)
{
	u64 i = 0;

	lock(self, &timers_lock);
	while (i < MOST_TIMERS && timers[i].used)
		i++;
	if (i < MOST_TIMERS)
		timers[i] = (struct timer){ true, -1, *event };
	unlock(&timers_lock);
	return i;
}

static void forget(struct thread *self, u64 number)
{
	note_timer(FIRST_SIGNAL + (s32)number, false, false);
	lock(self, &timers_lock);
	timers[number].used = false;
	unlock(&timers_lock);
}

static s64 create_outside(struct thread *self, u64 clock, u64 number, s32 notify)
{
	struct event *shared = take_buffer(self, sizeof(*shared));
	s32 *place = take_buffer(self, sizeof(*place)), given;
	s64 result;

	*shared = (struct event){
		0, FIRST_SIGNAL + (s32)number, notify == NOTIFY_NONE ? NOTIFY_NONE : NOTIFY_SIGNAL, 0, { 0 }
	};
	*place = -1;
	result = outside_done(self, NR_CREATE, clock, (u64)shared, (u64)place, 0, 0, 0);
	if (result)
		return result;
	/* Whatever it is: nobody but the kernel is told it. */
	given = READ_ONCE(*place);
	lock(self, &timers_lock);
	timers[number].outside = given;
	unlock(&timers_lock);
	return 0;
}

HANDLER(do_timer_create)
{
	struct event event = { .number = SIGALRM };
	s32 number;
	s64 result;

	if (a[1] && copy_in(&event, a[1], sizeof(event)))
		return -EFAULT;
	/* A thread's or a process's own clock has a number that is another outside. */
	if ((u32)a[0] > LAST_CLOCK || !may_be(&event))
		return -EINVAL;
	number = (s32)reserve(self, &event);
	if (number == MOST_TIMERS) {
		unsupported(self, "more timers than there can be", NR_CREATE);
		return -EAGAIN;
	}
	if (!a[1])
		timers[number].event.value = (u64)number;
	result = create_outside(self, (u32)a[0], (u64)number, event.notify);
	if (!result && copy_out(a[2], &number, sizeof(number))) {
		outside(self, NR_DELETE, (u64)timers[number].outside, 0, 0, 0, 0, 0);
		result = -EFAULT;
	}
	if (result)
		forget(self, (u64)number);
	return result;
}

static bool is_time(const s64 time[2])
{
	return time[0] >= 0 && time[1] >= 0 && time[1] < NANOSECONDS;
}

static s64 give_rest(struct thread *self, const struct timer_value *shared, u64 to)
{
	struct timer_value value;

	memcpy(&value, shared, sizeof(value));
	if (!is_timer_in_nanoseconds(&value))
		attacked(self, "the rest of a timer cannot be");
	return copy_out(to, &value, sizeof(value));
}

HANDLER(do_timer_settime)
{
	struct timer_value *new = take_buffer(self, sizeof(*new)), *old = take_buffer(self, sizeof(*old)), value;
	struct timer timer;
	s64 result;

	if (!a[2] || !find(self, (u32)a[0], &timer))
		return -EINVAL;
	if (copy_in(&value, a[2], sizeof(value)))
		return -EFAULT;
	if (!is_time(value.first) || !is_time(value.interval))
		return -EINVAL;
	*new = value;
	memset(old, 0, sizeof(*old));
	note_timer(FIRST_SIGNAL + (s32)a[0], value.first[0] || value.first[1], value.interval[0] || value.interval[1]);
	result = outside_done(self, NR_SETTIME, (u64)timer.outside, (u32)a[1], (u64)new, (u64)old, 0, 0);
	return result || !a[3] ? result : give_rest(self, old, a[3]);
}

HANDLER(do_timer_gettime)
{
	struct timer_value *shared = take_buffer(self, sizeof(*shared));
	struct timer timer;
	s64 result;

	if (!find(self, (u32)a[0], &timer))
		return -EINVAL;
	memset(shared, 0, sizeof(*shared));
	result = outside_done(self, NR_GETTIME, (u64)timer.outside, (u64)shared, 0, 0, 0, 0);
	return result ?: give_rest(self, shared, a[1]);
}

HANDLER(do_timer_getoverrun)
{
	struct timer timer;
	s64 result;

	if (!find(self, (u32)a[0], &timer))
		return -EINVAL;
	result = outside(self, NR_GETOVERRUN, (u64)timer.outside, 0, 0, 0, 0, 0);
	if (result > 0x7fffffff)
		attacked(self, "timer_getoverrun is answered by %x", (u64)result);
	return result;
}

HANDLER(do_timer_delete)
{
	struct timer timer;
	s64 result;

	if (!find(self, (u32)a[0], &timer))
		return -EINVAL;
	result = outside_done(self, NR_DELETE, (u64)timer.outside, 0, 0, 0, 0, 0);
	if (!result)
		forget(self, (u32)a[0]);
	return result;
}
