/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Time. The date is the kernel's word, asked for once; from there the processor's counter goes on, if the service told
 * its speed. So the kernel cannot turn time back while the enclave runs.
 */
#include "handlers.h"
#include "machine.h"

#define NANOSECONDS 1000000000
#define CLOCK_REALTIME 0
#define CLOCK_MONOTONIC 1
#define CLOCK_OF_PROCESS 2
#define CLOCK_OF_THREAD 3
#define CLOCK_BOOTTIME 7
#define TIMER_ABSTIME 1
#define LAST_SECOND ((s64)1 << 33) /* of any clock, here */

static struct lock clock_lock;
static bool known;
static u64 start_tsc;
static s64 start[2]; /* nanoseconds, by clock */
static s64 last[2];
static s64 used_by_process;

static u64 speed_khz(void)
{
	return ((const struct veil_enclave_info *)VEIL_ENC_INFO)->tsc_khz;
}

static bool is_time(const s64 time[2])
{
	return time[0] >= 0 && time[0] <= LAST_SECOND && time[1] >= 0 && time[1] < NANOSECONDS;
}

static s64 ask_clock(struct thread *self, u32 clock)
{
	u32 used = self->buffer_used;
	s64 *shared = take_buffer(self, 16), seconds, nanoseconds;

	if (!shared)
		return 0;
	shared[0] = shared[1] = 0;
	outside(self, 228, clock, (u64)shared, 0, 0, 0, 0);
	seconds = READ_ONCE(shared[0]);
	nanoseconds = READ_ONCE(shared[1]);
	self->buffer_used = used;
	if (!is_time((const s64[2]){ seconds, nanoseconds }))
		attacked(self, "clock %d says %x seconds", (u64)clock, (u64)seconds);
	return seconds * NANOSECONDS + nanoseconds;
}

static s64 read_clock(struct thread *self, u32 which)
{
	u64 khz = speed_khz();
	s64 value;

	lock(self, &clock_lock);
	if (khz && !known) {
		start[0] = ask_clock(self, CLOCK_REALTIME);
		start[1] = ask_clock(self, CLOCK_MONOTONIC);
		start_tsc = read_tsc();
		known = true;
	}
	if (khz)
		value = start[which] + (s64)scale(read_tsc() - start_tsc, 1000000, khz);
	else
		value = ask_clock(self, which ? CLOCK_MONOTONIC : CLOCK_REALTIME);
	/* It never goes back. */
	if (value < last[which])
		value = last[which];
	last[which] = value;
	unlock(&clock_lock);
	return value;
}

/* What of a processor was used is the kernel's word each time; but it does not go back. */
static s64 read_used(struct thread *self, u32 clock)
{
	s64 value = ask_clock(self, clock), *before = clock == CLOCK_OF_THREAD ? &self->used : &used_by_process;

	lock(self, &clock_lock);
	value = value < *before ? *before : value;
	*before = value;
	unlock(&clock_lock);
	return value;
}

s64 now(struct thread *self, u32 clock, s64 to[2])
{
	s64 value;

	switch (clock) {
	case CLOCK_REALTIME:
	case 5: /* CLOCK_REALTIME_COARSE, CLOCK_REALTIME_ALARM, CLOCK_TAI */
	case 8:
	case 11:
		value = read_clock(self, 0);
		break;
	case CLOCK_MONOTONIC:
	case 4: /* CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC_COARSE */
	case 6:
	case CLOCK_BOOTTIME:
	case 9: /* CLOCK_BOOTTIME_ALARM */
		value = read_clock(self, 1);
		break;
	case CLOCK_OF_PROCESS:
	case CLOCK_OF_THREAD:
		value = read_used(self, clock);
		break;
	default:
		value = ask_clock(self, clock);
	}
	to[0] = value / NANOSECONDS;
	to[1] = value % NANOSECONDS;
	return 0;
}

HANDLER(do_clock_gettime)
{
	s64 time[2];

	return (u32)a[0] > 11 && (s32)a[0] >= 0 ? -EINVAL : now(self, (u32)a[0], time) ?: copy_out(a[1], time, 16);
}

HANDLER(do_clock_getres)
{
	s64 time[2] = { 0, 1 };

	return (u32)a[0] > 11 && (s32)a[0] >= 0 ? -EINVAL : a[1] ? copy_out(a[1], time, 16) : 0;
}

HANDLER(do_gettimeofday)
{
	s64 time[2];
	s32 zone[2] = { 0, 0 };

	now(self, CLOCK_REALTIME, time);
	time[1] /= 1000;
	if (a[0] && copy_out(a[0], time, 16))
		return -EFAULT;
	return a[1] ? copy_out(a[1], zone, 8) : 0;
}

HANDLER(do_time)
{
	s64 time[2];

	now(self, CLOCK_REALTIME, time);
	return a[0] && copy_out(a[0], time, 8) ? -EFAULT : time[0];
}

static bool is_own(u64 clock)
{
	return clock == CLOCK_REALTIME || clock == CLOCK_MONOTONIC || clock == CLOCK_BOOTTIME;
}

/* Nanoseconds by a clock of this enclave's; 0 by another one. */
static s64 read_own(struct thread *self, u64 clock)
{
	s64 time[2] = { 0 };

	if (is_own(clock))
		now(self, (u32)clock, time);
	return time[0] * NANOSECONDS + time[1];
}

/* When a sleep ends. */
static s64 end_of(struct thread *self, u64 clock, u64 flags, const s64 time[2])
{
	s64 end = time[0] * NANOSECONDS + time[1];

	if (!(flags & TIMER_ABSTIME) && __builtin_add_overflow(end, read_own(self, clock), &end))
		return INT64_MAX;
	return end;
}

/*
 * A program that waits before it goes on, so that nobody has it try too often, has waited then: a kernel that says so too early
 * is asked for the rest, by the clock that the program reads.
 */
static s64 sleep(struct thread *self, u64 clock, u64 flags, u64 place, u64 rest)
{
	s64 *shared = take_buffer(self, 16), *left = take_buffer(self, 16), own[2], end, early;
	const bool absolute = flags & TIMER_ABSTIME;

	if (copy_in(own, place, 16))
		return -EFAULT;
	if (own[0] < 0 || own[1] < 0 || own[1] >= NANOSECONDS)
		return -EINVAL;
	own[0] = (s64)least((u64)own[0], LAST_SECOND);
	end = end_of(self, clock, flags, own);
	do {
		s64 result;

		memcpy(shared, own, 16);
		/* All of it, if a signal is there before it begins. */
		memcpy(left, own, 16);
		result = outside_done(self, 230, clock, flags, (u64)shared, (u64)left, 0, 0);
		if (result && result != -EINTR)
			return result;
		if (!result) {
			early = is_own(clock) ? end - read_own(self, clock) : 0;
			if (early <= 0)
				return 0;
			own[0] = early / NANOSECONDS;
			own[1] = early % NANOSECONDS;
			flags &= ~(u64)TIMER_ABSTIME;
		} else if (!(flags & TIMER_ABSTIME)) {
			memcpy(own, left, sizeof(own));
			if (!is_time(own))
				attacked(self, "%x seconds of a sleep are left", (u64)own[0]);
		}
	} while (!signal_waits(self));
	return rest && !absolute ? copy_out(rest, own, 16) ?: -EINTR : -EINTR;
}

HANDLER(do_nanosleep)
{
	return sleep(self, CLOCK_MONOTONIC, 0, a[0], a[1]);
}

HANDLER(do_clock_nanosleep)
{
	return sleep(self, a[0], a[1], a[2], a[3]);
}
