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
#define CLOCK_BOOTTIME 7
#define TIMER_ABSTIME 1
#define LAST_SECOND ((s64)1 << 33) /* of any clock, here */

static struct lock clock_lock;
static bool known;
static u64 start_tsc;
static s64 start[2]; /* nanoseconds, by clock */
static s64 last[2];

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

s64 now(struct thread *self, u32 clock, s64 to[2])
{
	s64 value;

	switch (clock) {
	case CLOCK_REALTIME:
	case 5: /* CLOCK_REALTIME_COARSE, CLOCK_TAI */
	case 11:
		value = read_clock(self, 0);
		break;
	case CLOCK_MONOTONIC:
	case 4: /* CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC_COARSE */
	case 6:
	case CLOCK_BOOTTIME:
		value = read_clock(self, 1);
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

static s64 sleep(struct thread *self, u64 clock, u64 flags, u64 place, u64 rest)
{
	s64 *shared = take_buffer(self, 16), *left = take_buffer(self, 16), own[2], result;

	if (copy_in(own, place, 16))
		return -EFAULT;
	if (own[0] < 0 || own[1] < 0 || own[1] >= NANOSECONDS)
		return -EINVAL;
	own[0] = (s64)least((u64)own[0], LAST_SECOND);
	do {
		memcpy(shared, own, 16);
		/* All of it, if a signal is there before it begins. */
		memcpy(left, own, 16);
		result = outside_done(self, 230, clock, flags, (u64)shared, (u64)left, 0, 0);
		if (result != -EINTR)
			return result;
		if (flags & TIMER_ABSTIME)
			continue;
		memcpy(own, left, sizeof(own));
		if (!is_time(own))
			attacked(self, "%x seconds of a sleep are left", (u64)own[0]);
	} while (!signal_waits(self));
	return rest && !(flags & TIMER_ABSTIME) ? copy_out(rest, own, 16) ?: result : result;
}

HANDLER(do_nanosleep)
{
	return sleep(self, CLOCK_MONOTONIC, 0, a[0], a[1]);
}

HANDLER(do_clock_nanosleep)
{
	return sleep(self, a[0], a[1], a[2], a[3]);
}
