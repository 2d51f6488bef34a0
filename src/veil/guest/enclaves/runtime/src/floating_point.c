/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The program's floating-point state lies in the registers while the runtime works, for that uses none of them. */
#include "machine.h"
#include "runtime.h"

void fp_save(struct thread *self, void *to)
{
	(void)self;
	__asm__ volatile("fxsave64 (%0)" : : "r"(to) : "memory");
}

void fp_restore(struct thread *self, const void *from)
{
	(void)self;
	__asm__ volatile("fxrstor64 (%0)" : : "r"(from) : "memory");
}

u16 fp_status(struct thread *self, u32 *mxcsr, u16 *control)
{
	u16 status;

	(void)self;
	__asm__ volatile("fnstsw %0" : "=a"(status));
	__asm__ volatile("fnstcw %0" : "=m"(*control));
	__asm__ volatile("stmxcsr %0" : "=m"(*mxcsr));
	return status;
}
