/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How long a call may wait. The kernel is told what is left of it each time that it is asked; whether the time is over is known in
 * here.
 */
#ifndef RUNTIME_LIMITS_H
#define RUNTIME_LIMITS_H

#include "base.h"

struct thread;

struct limit {
	bool forever;
	s64 end, rest; /* by the monotonic clock; how much is left, in nanoseconds */
	s64 *shared;   /* a place in the window for the rest, or NULL: it is a number of milliseconds */
	s64 part;      /* nanoseconds of one of the second number there */
};

#define PART_NANOSECOND 1
#define PART_MICROSECOND 1000

/* Below 0: for ever. */
void limit_milliseconds(struct thread *, struct limit *, s32 time);
/* A struct timespec or timeval of the program's, 0: for ever. 0 or a negative error. */
s64 limit_from(struct thread *, struct limit *, u64 from, s64 part);
/* As the kernel is to be told. */
u64 limit_rest(const struct limit *);
/* Is the call to be made again? `found`: what it has found for the program. `result`: its answer, which may become 0. */
bool limit_goes_on(struct thread *, struct limit *, s64 found, s64 *result);

#endif
