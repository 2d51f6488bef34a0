/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Threads: each has a slot, whose context the service made. The process outside makes a thread that enters it. */
#include "children.h"
#include "handlers.h"
#include "machine.h"

#define CLONE_VM 0x100
#define CLONE_FILES 0x400
#define CLONE_SIGHAND 0x800
#define CLONE_VFORK 0x4000
#define CLONE_OF_PROGRAM (CLONE_VM | CLONE_VFORK)
#define CLONE_PARENT_SETTID 0x100000
#define CLONE_THREAD 0x10000
#define CLONE_SETTLS 0x80000
#define CLONE_CHILD_CLEARTID 0x200000
#define CLONE_CHILD_SETTID 0x1000000
#define CLONE_NEEDED (CLONE_VM | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD)
#define ALL_BITS 0xffffffff

struct lock threads_lock;
static s32 process;
static u32 next_slot = 1;

s32 process_number(struct thread *self)
{
	if (!process) {
		s64 number = outside(self, 39, 0, 0, 0, 0, 0, 0);

		if (number <= 0 || number > 1 << 22)
			attacked(self, "getpid is answered by %x", (u64)number);
		process = (s32)number;
		thread_of(0)->tid = process;
	}
	return process;
}

/* Numbers of our own: a kernel cannot make two threads look like one. */
static s32 number_of(struct thread *self, u32 slot)
{
	return process_number(self) + (s32)slot;
}

struct thread *thread_by_number(s32 number)
{
	for (u32 slot = 0; slot < CONFIG->slots; slot++) {
		struct thread *thread = thread_of(slot);

		if (thread->state != THREAD_FREE && thread->tid == number)
			return thread;
	}
	return NULL;
}

u32 threads_count(void)
{
	u32 count = 0;

	for (u32 slot = 0; slot < CONFIG->slots; slot++)
		count += thread_of(slot)->state != THREAD_FREE;
	return count;
}

/* A free slot, the one that has been free for longest; NULL: none, and none that ends. It is taken then. */
static struct thread *take_slot(struct thread *self)
{
	struct thread *found = NULL;
	bool ends = true;

	while (!found && ends) {
		ends = false;
		lock(self, &threads_lock);
		for (u32 i = 0; i < CONFIG->slots && !found; i++) {
			u32 slot = (next_slot + i) % (u32)CONFIG->slots;

			ends |= thread_of(slot)->state == THREAD_ENDS;
			if (thread_of(slot)->state == THREAD_FREE) {
				found = thread_of(slot);
				found->state = THREAD_RUNS;
				next_slot = slot + 1;
			}
		}
		unlock(&threads_lock);
		if (!found && ends)
			outside(self, 24, 0, 0, 0, 0, 0, 0);
	}
	return found;
}

HANDLER(do_clone)
{
	u64 flags = a[0];
	struct thread *thread;
	u32 slot;
	s32 number;
	s64 result;

	if ((flags & (CLONE_OF_PROGRAM | CLONE_THREAD)) == CLONE_OF_PROGRAM)
		return become_child(self, 56, a[1]);
	if ((flags & CLONE_NEEDED) != CLONE_NEEDED || !a[1])
		return do_fork(self, a);
	thread = take_slot(self);
	if (!thread) {
		unsupported(self, "as many threads as the manifest allows are there", 56);
		return -EAGAIN;
	}
	slot = (u32)(((u64)thread - VEIL_ENC_THREADS) / VEIL_ENC_THREAD_STRIDE);
	number = number_of(self, slot);
	memset(&thread->regs, 0, sizeof(thread->regs));
	thread->regs = self->regs;
	thread->regs.rax = 0;
	thread->regs.rsp = a[1];
	thread->slot = slot;
	thread->tid = number;
	thread->fs_base = flags & CLONE_SETTLS ? a[4] : fs_base();
	thread->gs_base = gs_base();
	fp_save(self, thread->fp);
	thread->clear_tid = flags & CLONE_CHILD_CLEARTID ? a[3] : 0;
	thread->mask = self->mask;
	thread->pending = 0;
	memset(thread->answers, 0, sizeof(thread->answers));
	thread->alternate_stack = thread->alternate_size = 0;
	thread->mask_kept = thread->in_wait = thread->woken = thread->offered = false;
	thread->futex = 0;
	thread->used = 0;
	if ((flags & CLONE_PARENT_SETTID && copy_out(a[2], &number, sizeof(number))) ||
	    (flags & CLONE_CHILD_SETTID && copy_out(a[3], &number, sizeof(number)))) {
		thread->state = THREAD_FREE;
		return -EFAULT;
	}
	__atomic_store_n(&thread->state, THREAD_READY, __ATOMIC_RELEASE);
	result = ask_window(self, VEIL_WINDOW_SPAWN, slot, 0);
	if (result < 0) {
		u32 ready = THREAD_READY;

		/* Unless it runs all the same. */
		if (__atomic_compare_exchange_n(&thread->state, &ready, THREAD_FREE, false, __ATOMIC_SEQ_CST,
						__ATOMIC_SEQ_CST))
			return -EAGAIN;
	}
	return number;
}

HANDLER(do_fork)
{
	unsupported(self, "an enclave cannot fork", self->regs.rax == 56 ? 56 : 57);
	return -ENOSYS;
}

HANDLER(do_vfork)
{
	return become_child(self, 58, 0);
}

HANDLER(do_execve)
{
	unsupported(self, "an enclave runs one program", 59);
	return -ENOSYS;
}

void thread_exit(struct thread *self, s32 status)
{
	bool last;

	/* Whoever joins this thread may make another one before this slot is free. */
	self->state = THREAD_ENDS;
	if (self->clear_tid) {
		u32 zero = 0;

		if (!copy_out(self->clear_tid, &zero, sizeof(zero)))
			futex_wake(self, self->clear_tid, 1, ALL_BITS);
	}
	lock(self, &threads_lock);
	last = threads_count() == 1;
	if (!last)
		__atomic_store_n(&self->state, THREAD_FREE, __ATOMIC_RELEASE);
	unlock(&threads_lock);
	if (last)
		end_enclave(self, status, 0);
	run_on_fresh_stack(self, end_thread);
}

HANDLER(do_exit)
{
	thread_exit(self, (s32)a[0]);
}

HANDLER(do_exit_group)
{
	end_enclave(self, (s32)a[0], 0);
}

HANDLER(do_getpid)
{
	s32 number = process_number(self);

	remember(self, 39, number);
	return number;
}

HANDLER(do_gettid)
{
	s32 number = number_of(self, self->slot);

	remember(self, 186, number);
	return number;
}

HANDLER(do_set_tid_address)
{
	self->clear_tid = a[0];
	return number_of(self, self->slot);
}

HANDLER(do_getcpu)
{
	u32 zero = 0;

	if ((a[0] && copy_out(a[0], &zero, 4)) || (a[1] && copy_out(a[1], &zero, 4)))
		return -EFAULT;
	return 0;
}

/* As many processors as threads can be of use, which is how programs use the number. */
HANDLER(do_sched_getaffinity)
{
	u64 processors = 3;

	if (a[1] < 8)
		return -EINVAL;
	return copy_out(a[2], &processors, 8) ?: 8;
}

/* Nothing is ordered for other threads but by their own next return to the runtime, which is not enough. */
HANDLER(do_membarrier)
{
	return a[0] ? -EINVAL : 0;
}
