/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "limits.h"
#include "runtime.h"

#define CLOCK_MONOTONIC 1
#define SECOND 1000000000
#define MILLISECOND 1000000
#define LAST_SECOND ((s64)1 << 32)

static s64 monotonic(struct thread *self)
{
	s64 time[2];

	now(self, CLOCK_MONOTONIC, time);
	return time[0] * SECOND + time[1];
}

/* Who does not wait needs no clock. */
static void start(struct thread *self, struct limit *limit, s64 time)
{
	limit->rest = time;
	limit->end = time ? monotonic(self) + time : 0;
}

void limit_milliseconds(struct thread *self, struct limit *limit, s32 time)
{
	*limit = (struct limit){ .forever = time < 0, .part = MILLISECOND };
	if (time >= 0)
		start(self, limit, (s64)time * MILLISECOND);
}

s64 limit_from(struct thread *self, struct limit *limit, u64 from, s64 part)
{
	s64 time[2];

	*limit = (struct limit){ .forever = !from, .part = part, .shared = take_buffer(self, sizeof(time)) };
	if (!limit->shared)
		return -ENOMEM;
	if (!from)
		return 0;
	if (copy_in(time, from, sizeof(time)))
		return -EFAULT;
	if (part == PART_MICROSECOND && time[1] >= 0) {
		/* select() takes more of them than a second has. */
		s64 seconds = time[1] / (SECOND / part);

		time[1] %= SECOND / part;
		if (__builtin_add_overflow(time[0], seconds, &time[0]))
			return -EINVAL;
	}
	if (time[0] < 0 || time[1] < 0 || time[1] >= SECOND / part)
		return -EINVAL;
	start(self, limit, (s64)least((u64)time[0], LAST_SECOND) * SECOND + time[1] * part);
	return 0;
}

u64 limit_rest(const struct limit *limit)
{
	/* Never less than is left: it would be asked for again. */
	s64 rest = (limit->rest + limit->part - 1) / limit->part;

	if (!limit->shared)
		return limit->forever ? ~(u64)0 : (u64)rest;
	if (limit->forever)
		return 0;
	WRITE_ONCE(limit->shared[0], rest / (SECOND / limit->part));
	WRITE_ONCE(limit->shared[1], rest % (SECOND / limit->part));
	return (u64)limit->shared;
}

bool limit_goes_on(struct thread *self, struct limit *limit, s64 found, s64 *result)
{
	if (found || (*result < 0 && (*result != -EINTR || signal_waits(self))))
		return false;
	/* Nothing that is the program's, or a signal that is not. */
	*result = 0;
	if (limit->forever)
		return true;
	limit->rest = limit->end ? limit->end - monotonic(self) : 0;
	return limit->rest > 0;
}
