/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The way out: the window, which this enclave's process and the kernel write as they like at any time. What is in it
 * is read once, and is a claim.
 */
#include "machine.h"
#include "runtime.h"

#define STATUS_ENDED 125
#define BUFFER_AT PAGE
#define WAKE_WORD 0x80
#define NR_FCNTL 72
#define F_SETLKW 7
#define F_OFD_SETLKW 38
#define NR_FUTEX 202
#define NR_SLEEP 230
/* Private: by its address. The other kind of futex is found by its page, and the window's have no place in a file. */
#define FUTEX_WAIT 128
#define FUTEX_WAKE 129

static u8 *window_of(u32 slot)
{
	return (u8 *)(VEIL_ENC_WINDOW + (u64)slot * VEIL_ENC_WINDOW_STRIDE);
}

struct veil_window_block *block_of(u32 slot)
{
	return (struct veil_window_block *)window_of(slot);
}

u64 buffer_left(const struct thread *self)
{
	return VEIL_ENC_WINDOW_STRIDE - CHUNK - BUFFER_AT - self->buffer_used;
}

void *chunk_buffer(struct thread *self)
{
	return window_of(self->slot) + VEIL_ENC_WINDOW_STRIDE - CHUNK;
}

void *take_buffer(struct thread *self, u64 bytes)
{
	void *place = window_of(self->slot) + BUFFER_AT + self->buffer_used;

	if (bytes > buffer_left(self))
		return NULL;
	self->buffer_used += (u32)least((bytes + 15) & ~(u64)15, buffer_left(self));
	return place;
}

/* Until somebody says that the request is served. An interrupt ends a VMGEXIT as well, and then it is not. */
static void leave_with(struct thread *self, u32 state)
{
	struct veil_window_block *block = block_of(self->slot);

	order_writes();
	WRITE_ONCE(block->state, state);
	do
		leave(self);
	while (READ_ONCE(block->state) != VEIL_WINDOW_IDLE);
}

/*
 * When the result has been taken: to tell another thread is a request of its own. In that one nobody looks, or a kernel with
 * a signal each time would have the stack grow; it is looked for afterwards. But the request is not begun as long as it
 * counts as interrupted.
 */
static void look_for_signals(struct thread *self)
{
	struct veil_window_block *block = block_of(self->slot);
	u64 taken;

	if (!READ_ONCE(block->interrupt))
		return;
	__atomic_store_n(&block->interrupt, 0, __ATOMIC_SEQ_CST);
	if (self->offered)
		return;
	self->offered = true;
	do {
		taken = offer_signals(self, READ_ONCE(block->signals));
		/* What is not taken stays, so that the process knows of it. */
		__atomic_and_fetch(&block->signals, ~taken, __ATOMIC_SEQ_CST);
	} while (taken);
	self->offered = false;
}

static s64 result_of(struct thread *self, const struct veil_window_block *block)
{
	s64 result = READ_ONCE(block->result);

	if (result >= 0)
		return result;
	if (result >= -LAST_ERROR)
		return result;
	/* ERESTARTSYS: not begun. The others are the kernel's own. */
	if (result == -ERESTART)
		return result;
	if (result < -ERESTART && result >= -516)
		return -EINTR;
	attacked(self, "a system call is answered by %x, which no system call is", (u64)result);
}

s64 ask_window(struct thread *self, u32 state, u64 a0, u64 a1)
{
	struct veil_window_block *block = block_of(self->slot);
	s64 result;

	WRITE_ONCE(block->args[0], a0);
	WRITE_ONCE(block->args[1], a1);
	leave_with(self, state);
	result = state == VEIL_WINDOW_SERVICE ? 0 : result_of(self, block);
	look_for_signals(self);
	return result;
}

/*
 * Calls that wait, and end by EINTR when a signal comes; all others are done before one is looked for. Among these are reads
 * and writes at an offset, which are of files: whoever has one read for a map or a seal knows no EINTR.
 */
static bool can_wait(u64 nr, u64 a1)
{
	switch (nr) {
	case 0 ... 1:	/* read, write */
	case 7:		/* poll */
	case 23:	/* select */
	case 61:	/* wait4 */
	case 42 ... 47: /* sockets */
	case 73:	/* flock */
	case NR_SLEEP:
	case 232:	  /* epoll_wait */
	case 247:	  /* waitid */
	case 257:	  /* openat, of a FIFO */
	case 270 ... 271: /* pselect, ppoll */
	case 288:	  /* accept4 */
		return true;
	case NR_FCNTL:
		return a1 == F_SETLKW || a1 == F_OFD_SETLKW;
	case NR_FUTEX:
		return a1 == FUTEX_WAIT;
	default:
		return false;
	}
}

/* Of these their caller knows how much of their time is left. */
static bool has_time(u64 nr)
{
	switch (nr) {
	case 7:
	case 23:
	case NR_FUTEX:
	case NR_SLEEP:
	case 232:
	case 270 ... 271:
		return true;
	default:
		return false;
	}
}

/*
 * A signal that the program does not get (it is blocked, ignored, not allowed) must not end a call of its: Linux would not
 * have begun it again either for a program that it interrupts.
 */
s64 outside(struct thread *self, u64 nr, u64 a0, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5)
{
	struct veil_window_block *block = block_of(self->slot);
	const u64 args[6] = { a0, a1, a2, a3, a4, a5 };
	const bool waits = can_wait(nr, a1);

	for (;;) {
		s64 result;

		/* It came during this call of the program's, by another request: nothing more would end the wait. */
		if (waits && signal_waits(self))
			return -EINTR;
		WRITE_ONCE(block->nr, nr);
		for (u32 i = 0; i < 6; i++)
			WRITE_ONCE(block->args[i], args[i]);
		leave_with(self, VEIL_WINDOW_SYSCALL);
		result = result_of(self, block);
		look_for_signals(self);
		if (result != -EINTR && result != -ERESTART)
			return result;
		/* Those that do not wait may have done something before. */
		if (result == -EINTR && (!waits || has_time(nr)))
			return result;
	}
}

s64 outside_done(struct thread *self, u64 nr, u64 a0, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5)
{
	s64 result = outside(self, nr, a0, a1, a2, a3, a4, a5);

	if (result > 0)
		attacked(self, "%s is answered by %x, which it cannot be", call_name((u32)nr), (u64)result);
	return result;
}

static _Noreturn void end_with(struct thread *self, int status, int signal, enum veil_end_reason reason)
{
	struct veil_window_block *block = block_of(self->slot);

	for (;;) {
		WRITE_ONCE(block->args[0], (u64)status & 0xff);
		WRITE_ONCE(block->args[1], (u64)signal);
		WRITE_ONCE(block->args[2], (u64)reason);
		order_writes();
		WRITE_ONCE(block->state, VEIL_WINDOW_EXIT);
		leave(self);
	}
}

void end_enclave(struct thread *self, int status, int signal)
{
	end_with(self, status, signal, VEIL_END_PROGRAM);
}

void end_because(struct thread *self, enum veil_end_reason reason)
{
	end_with(self, STATUS_ENDED, 0, reason);
}

/* Returns when the slot is entered for another thread. */
static void wait_for_work(struct thread *self)
{
	struct veil_window_block *block = block_of(self->slot);

	while (__atomic_load_n(&self->state, __ATOMIC_ACQUIRE) != THREAD_READY) {
		WRITE_ONCE(block->state, VEIL_WINDOW_THREAD_EXIT);
		leave(self);
	}
	WRITE_ONCE(block->state, VEIL_WINDOW_IDLE);
}

void end_thread(struct thread *self)
{
	wait_for_work(self);
	/* Of the slot's last thread, or 0, which no fault of this one's is. */
	forget_fault_address(self);
	self->state = THREAD_RUNS;
	if (self->fs_base)
		set_fs_base(self->fs_base);
	set_gs_base(self->gs_base);
	fp_restore(self, self->fp);
	resume(self);
}

/* The word in the window only spares leaving again and again: whether it was given is known in here. */
void wait_for_word(struct thread *self, const s64 *timeout, s64 *result)
{
	u32 *word = (u32 *)(window_of(self->slot) + WAKE_WORD);
	s64 *time = NULL;

	if (timeout) {
		time = (s64 *)(window_of(self->slot) + WAKE_WORD + 16);
		time[0] = timeout[0];
		time[1] = timeout[1];
	}
	*result = outside(self, NR_FUTEX, (u64)word, FUTEX_WAIT, 0, (u64)time, 0, 0);
}

void clear_word(struct thread *self)
{
	WRITE_ONCE(*(u32 *)(window_of(self->slot) + WAKE_WORD), 0);
}

void give_word(struct thread *self, struct thread *other)
{
	u32 *word = (u32 *)(window_of(other->slot) + WAKE_WORD);

	WRITE_ONCE(*word, 1);
	outside(self, NR_FUTEX, (u64)word, FUTEX_WAKE, 1, 0, 0, 0);
}
