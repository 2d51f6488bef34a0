/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Timers that the program has set outside, and the signals by which they tell of themselves. */
#ifndef RUNTIME_TIMERS_H
#define RUNTIME_TIMERS_H

#include "runtime.h"
#include "signal_numbers.h"

/* struct itimerval, struct itimerspec */
struct timer_value {
	s64 interval[2], first[2];
};

/* offered.c: a signal of a timer's may come, once or again and again. Said before the kernel has it set. */
void note_timer(s32 number, bool set, bool goes_on);
/* timers.c: signals of timers that have come; those that are left are the program's own. */
u64 timers_come(struct thread *, u64 offered);
/* What the last timer of a signal has to say; and whether one for the process is a timer's: then it is so once. */
u64 timer_value(s32 number);
bool take_timer_code(s32 number);

#endif
