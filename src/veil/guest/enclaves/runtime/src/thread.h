/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a slot knows of its thread: the first page of the slot's area, which the slot's stacks share their alignment with. */
#ifndef RUNTIME_THREAD_H
#define RUNTIME_THREAD_H

#include "../../abi.h"
#include "answers.h"
#include "base.h"

#ifdef __SANITIZE_ADDRESS__
/* Its allocator has the window's place. */
#undef VEIL_ENC_WINDOW
#define VEIL_ENC_WINDOW 0x6f0000000000
#endif

#define FP_BYTES 512 /* as FXSAVE has them */

/* As entry.S stores them; `vector` and `error` are the event's, the rest is the program's. */
struct regs {
	u64 r15, r14, r13, r12, r11, r10, r9, r8;
	u64 rbp, rdi, rsi, rdx, rcx, rbx, rax;
	u64 vector, error;
	u64 rip, cs, rflags, rsp, ss;
};

enum thread_state {
	THREAD_FREE,
	THREAD_READY, /* prepared by clone(); the slot has not been entered for it */
	THREAD_RUNS,
	THREAD_ENDS, /* who waits for it may know already; its slot is free in a moment */
};

struct thread {
	struct regs regs; /* first: entry.S, with the next two */
	u64 pending;	  /* signals of this thread alone: signals.c */
	/* By system call: what it answers each time, and 1; or 0. Not its number's last word: whoever changes it clears it. */
	u32 answers[ANSWERED_CALLS];
	u32 slot;
	u32 state;
	s32 tid;
	u32 buffer_used;			      /* of the window, by the call that goes on */
	u64 fs_base;				      /* for a new thread, if it is not 0 */
	u64 gs_base;				      /* for a new thread, as the next */
	u8 fp[FP_BYTES] __attribute__((aligned(16))); /* its maker's: the slot has those of the one before */
	u64 clear_tid;				      /* address that exit writes 0 to */

	/* signals.c */
	u64 mask;
	u64 mask_before; /* of sigsuspend and the like, to restore */
	bool mask_kept;
	bool in_wait; /* the thread waits outside, for a wake word */
	bool offered; /* window.c: signals are being taken from outside */
	u64 alternate_stack, alternate_size;
	s32 signal_codes[65];
	u64 fault_address;
	bool forgets; /* events.c: the next fault is on purpose */
	bool faulted; /* there was one since the program was left */
	bool moves;   /* moving.c: it copies pages, and has the lock of the map */

	s64 used; /* clock.c: nanoseconds of a processor, as was told last */

	struct child *child; /* programs.c: NULL, or what the thread is between vfork() and a program's start */

	/* futex.c */
	struct thread *next_waiter;
	u64 futex; /* address waited for, 0: none */
	u32 futex_bits;
	bool woken;
};

_Static_assert(offsetof(struct thread, pending) == 0xb0 && offsetof(struct thread, answers) == 0xb8,
	       "as entry.S has it");
_Static_assert(sizeof(struct thread) <= PAGE, "a slot's control page holds its thread");

static inline struct thread *thread_of(u32 slot)
{
	return (struct thread *)(VEIL_ENC_THREADS + (u64)slot * VEIL_ENC_THREAD_STRIDE);
}

#endif
