/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Instructions that C has no words for. */
#ifndef RUNTIME_MACHINE_H
#define RUNTIME_MACHINE_H

#include "base.h"

struct thread;

static inline u64 read_tsc(void)
{
	u32 low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (u64)high << 32 | low;
}

static inline bool random_word(u64 *word)
{
	bool good;

	__asm__ volatile("rdrand %0" : "=r"(*word), "=@ccc"(good));
	return good;
}

static inline void set_fs_base(u64 base)
{
	__asm__ volatile("wrfsbase %0" : : "r"(base));
}

static inline u64 fs_base(void)
{
	u64 base;

	__asm__ volatile("rdfsbase %0" : "=r"(base));
	return base;
}

static inline void set_gs_base(u64 base)
{
	__asm__ volatile("wrgsbase %0" : : "r"(base));
}

static inline u64 gs_base(void)
{
	u64 base;

	__asm__ volatile("rdgsbase %0" : "=r"(base));
	return base;
}

/* a * b / c, whose result has 64 bits */
static inline u64 scale(u64 a, u64 b, u64 c)
{
	u64 rest;

	__asm__("mulq %2\n\tdivq %3" : "+a"(a), "=&d"(rest) : "r"(b), "r"(c) : "cc");
	return a;
}

static inline void pause_a_moment(void)
{
	__asm__ volatile("pause");
}

static inline void order_writes(void)
{
	__asm__ volatile("" : : : "memory");
}

/* The program's x87, MMX and SSE registers; the runtime itself uses none. FP_BYTES, aligned to 16. */
void fp_save(struct thread *, void *to);
void fp_restore(struct thread *, const void *from);
u16 fp_status(struct thread *, u32 *mxcsr, u16 *control);

#endif
