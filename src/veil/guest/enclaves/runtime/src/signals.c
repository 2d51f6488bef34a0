/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Signals: their handlers, masks and frames are in here. The kernel delivers none; what the process outside may offer is
 * in offered.c. A signal comes when an event of the program's ends: a system call, or a fault that is none, by which a
 * program is interrupted that makes no system call.
 */
#include "children.h"
#include "limits.h"
#include "machine.h"
#include "runtime.h"
#include "signal_numbers.h"
#include "timers.h"

#define SECOND 1000000000
#define RED_ZONE 128
#define UC_SIGCONTEXT_SS 2
#define UC_STRICT_RESTORE_SS 4
#define FLAG_TF 0x100
#define FLAG_DF 0x400
/* CF, PF, AF, ZF, SF, TF, DF, OF, AC, ID: what a program may change */
#define FLAGS_FREE 0x240dd5
#define MXCSR_BITS 0xffff
/* Where FXSAVE has the control words, and what they are at first */
#define FCW_AT 0
#define MXCSR_AT 24
#define FIRST_FCW 0x37f
#define FIRST_MXCSR 0x1f80

struct action {
	u64 handler, flags, restorer, mask;
};

/* struct sigcontext, ucontext and rt_sigframe of x86-64 (arch/x86/include/uapi/asm/sigcontext.h) */
struct context {
	u64 r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, rflags;
	u16 cs, gs, fs, ss;
	u64 error, vector, old_mask, cr2, fp, reserved[8];
};

struct user_context {
	u64 flags, link;
	u64 stack;
	u32 stack_flags, pad;
	u64 stack_size;
	struct context machine;
	u64 mask;
};

struct signal_information {
	s32 number, error, code, pad;
	u64 fields[14];
};

struct signal_frame {
	u64 restorer;
	struct user_context user;
	struct signal_information information;
};

struct alternate {
	u64 place;
	u32 flags, pad;
	u64 size;
};

static struct action actions[SIGNALS + 1];
static struct lock actions_lock;
u64 process_pending;

bool is_ignored(s32 number)
{
	return actions[number].handler == SIG_IGN;
}

static bool ignored(s32 number)
{
	u64 handler = actions[number].handler;

	return handler == SIG_IGN ||
	       (handler == SIG_DFL &&
		(number == SIGCHLD || number == SIGURG || number == SIGWINCH || number == SIGCONT ||
		 number == SIGTSTP || number == SIGTTIN || number == SIGTTOU));
}

static u64 waiting(const struct thread *self)
{
	return (self->pending | process_pending) & ~self->mask;
}

bool signal_waits(const struct thread *self)
{
	u64 signals = waiting(self);

	for (s32 number = 1; signals; number++, signals >>= 1)
		if (signals & 1 && !ignored(number))
			return true;
	return false;
}

void signal_process(struct thread *self, u64 signals)
{
	__atomic_or_fetch(&process_pending, signals, __ATOMIC_SEQ_CST);
	/* All that could take one look, for one of them may block it by then. */
	for (u32 slot = 0; signals & self->mask && slot < CONFIG->slots; slot++) {
		struct thread *other = thread_of(slot);

		if (other != self && other->state == THREAD_RUNS)
			interrupt_thread(self, other);
	}
}

s64 signal_self(struct thread *self, struct thread *target, s32 number, s32 code)
{
	if (number < 0 || number > SIGNALS)
		return -EINVAL;
	if (!number)
		return 0;
	target->signal_codes[number] = code;
	__atomic_or_fetch(&target->pending, SIGNAL_BIT(number), __ATOMIC_SEQ_CST);
	if (target != self && (READ_ONCE(target->in_wait) || !(target->mask & SIGNAL_BIT(number))))
		interrupt_thread(self, target);
	return 0;
}

static _Noreturn void end_by(struct thread *self, s32 number)
{
	if (number == SIGSEGV || number == SIGILL || number == SIGBUS || number == SIGFPE)
		log_line(self, "the program ended by signal %d at %x, address %x", (u64)number, self->regs.rip,
			 self->fault_address);
	end_enclave(self, 128 + number, number);
}

static bool on_alternate(const struct thread *self, u64 rsp)
{
	return rsp > self->alternate_stack && rsp - self->alternate_stack <= self->alternate_size;
}

static void save(const struct thread *self, u64 mask, struct signal_frame *frame)
{
	const struct regs *from = &self->regs;
	struct context *to = &frame->user.machine;

	frame->user.flags = UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS;
	frame->user.stack = self->alternate_stack;
	frame->user.stack_size = self->alternate_size;
	frame->user.stack_flags = !self->alternate_size ? SS_DISABLE : on_alternate(self, from->rsp) ? SS_ONSTACK : 0;
	frame->user.mask = mask;
	*to = (struct context){
		.r8 = from->r8,
		.r9 = from->r9,
		.r10 = from->r10,
		.r11 = from->r11,
		.r12 = from->r12,
		.r13 = from->r13,
		.r14 = from->r14,
		.r15 = from->r15,
		.rdi = from->rdi,
		.rsi = from->rsi,
		.rbp = from->rbp,
		.rbx = from->rbx,
		.rdx = from->rdx,
		.rax = from->rax,
		.rcx = from->rcx,
		.rsp = from->rsp,
		.rip = from->rip,
		.rflags = from->rflags,
		.cs = VEIL_ENC_CODE_SELECTOR,
		.ss = VEIL_ENC_DATA_SELECTOR,
		.error = from->error,
		.vector = from->vector,
		.old_mask = mask,
		.cr2 = self->fault_address,
	};
}

/* Handlers begin so, as by Linux: with rounding to nearest, and room on the x87 stack that the program may have filled. */
static void clear_fp(struct thread *self, u8 fp[FP_BYTES])
{
	const u32 mxcsr = FIRST_MXCSR;
	const u16 control = FIRST_FCW;

	memset(fp, 0, FP_BYTES);
	memcpy(fp + FCW_AT, &control, sizeof(control));
	memcpy(fp + MXCSR_AT, &mxcsr, sizeof(mxcsr));
	fp_restore(self, fp);
}

static void run_handler(struct thread *self, s32 number, s32 code, const struct action *action)
{
	struct regs *regs = &self->regs;
	u8 fp[FP_BYTES] __attribute__((aligned(16)));
	struct signal_frame frame;
	u64 mask = self->mask_kept ? self->mask_before : self->mask, top = regs->rsp - RED_ZONE, place, fp_place;

	if (action->flags & SA_ONSTACK && self->alternate_size && !on_alternate(self, regs->rsp))
		top = self->alternate_stack + self->alternate_size;
	fp_place = (top - FP_BYTES) & ~(u64)63;
	place = ((fp_place - sizeof(frame)) & ~(u64)15) - 8;
	memset(&frame, 0, sizeof(frame));
	save(self, mask, &frame);
	self->mask_kept = false;
	frame.restorer = action->restorer;
	frame.user.machine.fp = fp_place;
	frame.information.number = number;
	frame.information.code = code;
	if (code > 0 && code != SI_KERNEL)
		frame.information.fields[0] = self->fault_address;
	else if (code == SI_TIMER)
		frame.information.fields[1] = timer_value(number);
	else
		frame.information.fields[0] = (u32)process_number(self);
	fp_save(self, fp);
	if (!(action->flags & SA_RESTORER) || copy_out(fp_place, fp, FP_BYTES) ||
	    copy_out(place, &frame, sizeof(frame)))
		end_by(self, SIGSEGV);
	clear_fp(self, fp);
	self->mask |= action->mask;
	if (!(action->flags & SA_NODEFER))
		self->mask |= SIGNAL_BIT(number);
	self->mask &= ~(SIGNAL_BIT(SIGKILL) | SIGNAL_BIT(SIGSTOP));
	regs->rdi = (u64)number;
	regs->rsi = place + offsetof(struct signal_frame, information);
	regs->rdx = place + offsetof(struct signal_frame, user);
	regs->rax = 0;
	regs->rsp = place;
	regs->rip = action->handler;
	regs->rflags &= ~(u64)(FLAG_TF | FLAG_DF);
}

static struct action take_action(struct thread *self, s32 number)
{
	struct action action;

	lock(self, &actions_lock);
	action = actions[number];
	if (action.flags & SA_RESETHAND)
		actions[number].handler = SIG_DFL;
	unlock(&actions_lock);
	return action;
}

void fault(struct thread *self, s32 number, s32 code, u64 address)
{
	struct action action = take_action(self, number);

	self->fault_address = address;
	/* Whoever blocks or ignores a fault would only meet it again. */
	if (action.handler <= SIG_IGN || self->mask & SIGNAL_BIT(number))
		end_by(self, number);
	run_handler(self, number, code, &action);
}

/* The lowest signal that may be delivered, taken; 0: none. */
static s32 take_signal(struct thread *self)
{
	for (;;) {
		u64 signals = waiting(self);
		s32 number;

		if (!signals)
			return 0;
		number = __builtin_ctzl(signals) + 1;
		if (self->pending & SIGNAL_BIT(number))
			__atomic_and_fetch(&self->pending, ~SIGNAL_BIT(number), __ATOMIC_SEQ_CST);
		else if (!(__atomic_fetch_and(&process_pending, ~SIGNAL_BIT(number), __ATOMIC_SEQ_CST) &
			   SIGNAL_BIT(number)))
			continue; /* another thread took it */
		if (!ignored(number))
			return number;
	}
}

/* How a signal that was taken has come. */
static s32 code_of(struct thread *self, s32 number)
{
	s32 code = self->signal_codes[number];

	self->signal_codes[number] = 0;
	if (!code && take_timer_code(number))
		code = SI_TIMER;
	return code;
}

/* `restart_call`: the number of the call that ended by -ERESTART, or -1. */
void deliver_signals(struct thread *self, s64 restart_call)
{
	s32 number;

	while (waiting(self) && (number = take_signal(self))) {
		struct action action = take_action(self, number);
		s32 code = code_of(self, number);

		if (action.handler == SIG_DFL)
			end_by(self, number);
		if (restart_call >= 0) {
			if (action.flags & SA_RESTART) {
				self->regs.rip -= 2;
				self->regs.rax = (u64)restart_call;
			} else {
				self->regs.rax = (u64)-EINTR;
			}
			restart_call = -1;
		}
		run_handler(self, number, code, &action);
	}
	if (restart_call >= 0) {
		self->regs.rip -= 2;
		self->regs.rax = (u64)restart_call;
	}
	if (self->mask_kept) {
		self->mask = self->mask_before;
		self->mask_kept = false;
	}
}

HANDLER(do_rt_sigreturn)
{
	struct user_context user;
	struct regs *to = &self->regs;
	const struct context *from = &user.machine;
	u8 fp[FP_BYTES] __attribute__((aligned(16)));
	u32 mxcsr;

	if (copy_in(&user, to->rsp, sizeof(user)))
		end_by(self, SIGSEGV);
	if (from->fp) {
		if (copy_in(fp, from->fp, FP_BYTES))
			end_by(self, SIGSEGV);
		/* A reserved bit would be a #GP of the runtime's. */
		memcpy(&mxcsr, fp + MXCSR_AT, sizeof(mxcsr));
		mxcsr &= MXCSR_BITS;
		memcpy(fp + MXCSR_AT, &mxcsr, sizeof(mxcsr));
		fp_restore(self, fp);
	}
	to->r8 = from->r8;
	to->r9 = from->r9;
	to->r10 = from->r10;
	to->r11 = from->r11;
	to->r12 = from->r12;
	to->r13 = from->r13;
	to->r14 = from->r14;
	to->r15 = from->r15;
	to->rdi = from->rdi;
	to->rsi = from->rsi;
	to->rbp = from->rbp;
	to->rbx = from->rbx;
	to->rdx = from->rdx;
	to->rax = from->rax;
	to->rcx = from->rcx;
	to->rsp = from->rsp;
	to->rip = from->rip;
	to->rflags = (to->rflags & ~(u64)FLAGS_FREE) | (from->rflags & FLAGS_FREE);
	self->mask = user.mask & ~(SIGNAL_BIT(SIGKILL) | SIGNAL_BIT(SIGSTOP));
	/* An address that is not canonical would be a fault of the runtime's own return. */
	if (!is_user(to->rip, 1))
		fault(self, SIGSEGV, SEGV_MAPERR, to->rip);
	return 0;
}

HANDLER(do_rt_sigaction)
{
	struct action new, old;
	s32 number = (s32)a[0];

	if (number < 1 || number > SIGNALS || a[3] != 8)
		return -EINVAL;
	if (a[1]) {
		if (number == SIGKILL || number == SIGSTOP)
			return -EINVAL;
		if (copy_in(&new, a[1], sizeof(new)))
			return -EFAULT;
	}
	lock(self, &actions_lock);
	old = actions[number];
	if (a[1])
		actions[number] = new;
	unlock(&actions_lock);
	return a[2] ? copy_out(a[2], &old, sizeof(old)) : 0;
}

HANDLER(do_rt_sigprocmask)
{
	u64 old = self->mask, set;

	if (a[3] != 8)
		return -EINVAL;
	if (a[1]) {
		if (copy_in(&set, a[1], sizeof(set)))
			return -EFAULT;
		if (a[0] == SIG_BLOCK)
			self->mask |= set;
		else if (a[0] == SIG_UNBLOCK)
			self->mask &= ~set;
		else if (a[0] == SIG_SETMASK)
			self->mask = set;
		else
			return -EINVAL;
		self->mask &= ~(SIGNAL_BIT(SIGKILL) | SIGNAL_BIT(SIGSTOP));
	}
	return a[2] ? copy_out(a[2], &old, sizeof(old)) : 0;
}

HANDLER(do_rt_sigpending)
{
	u64 set = (self->pending | process_pending) & self->mask;

	return copy_out(a[0], &set, least(a[1], sizeof(set)));
}

static s64 wait_for_signal(struct thread *self)
{
	s64 ignored_result;

	for (self->in_wait = true;; wait_for_word(self, NULL, &ignored_result)) {
		clear_word(self);
		if (signal_waits(self))
			break;
	}
	self->in_wait = false;
	return -EINTR;
}

HANDLER(do_rt_sigsuspend)
{
	u64 mask;

	if (a[1] != 8 || copy_in(&mask, a[0], sizeof(mask)))
		return a[1] != 8 ? -EINVAL : -EFAULT;
	self->mask_before = self->mask;
	self->mask_kept = true;
	self->mask = mask & ~(SIGNAL_BIT(SIGKILL) | SIGNAL_BIT(SIGSTOP));
	return wait_for_signal(self);
}

HANDLER(do_pause)
{
	return wait_for_signal(self);
}

HANDLER(do_rt_sigtimedwait)
{
	u64 set;
	s64 result;
	bool over;
	struct limit limit;
	struct signal_information information = { 0 };

	if (a[3] != 8 || copy_in(&set, a[0], sizeof(set)))
		return a[3] != 8 ? -EINVAL : -EFAULT;
	result = limit_from(self, &limit, a[2], PART_NANOSECOND);
	if (result)
		return result;
	over = !limit.forever && !limit.rest;
	self->in_wait = true;
	for (;;) {
		u64 found;

		clear_word(self);
		found = (self->pending | process_pending) & set;

		if (found) {
			information.number = __builtin_ctzl(found) + 1;
			__atomic_and_fetch(&self->pending, ~SIGNAL_BIT(information.number), __ATOMIC_SEQ_CST);
			__atomic_and_fetch(&process_pending, ~SIGNAL_BIT(information.number), __ATOMIC_SEQ_CST);
			break;
		}
		if (over || signal_waits(self))
			break;
		wait_for_word(self, limit.forever ? NULL : (const s64[2]){ limit.rest / SECOND, limit.rest % SECOND },
			      &result);
		result = 0;
		over = !limit_goes_on(self, &limit, 0, &result);
	}
	self->in_wait = false;
	if (!information.number)
		return over ? -EAGAIN : -EINTR;
	information.code = code_of(self, information.number);
	if (information.code == SI_TIMER)
		information.fields[1] = timer_value(information.number);
	if (a[1] && copy_out(a[1], &information, sizeof(information)))
		return -EFAULT;
	return information.number;
}

HANDLER(do_sigaltstack)
{
	struct alternate new, old = { self->alternate_stack, 0, 0, self->alternate_size };

	old.flags = !old.size ? SS_DISABLE : on_alternate(self, self->regs.rsp) ? SS_ONSTACK : 0;
	if (a[0]) {
		if (copy_in(&new, a[0], sizeof(new)))
			return -EFAULT;
		if (old.flags == SS_ONSTACK)
			return -EPERM;
		if (new.flags & SS_DISABLE) {
			self->alternate_size = self->alternate_stack = 0;
		} else {
			if (new.size < LEAST_STACK)
				return -ENOMEM;
			self->alternate_stack = new.place;
			self->alternate_size = new.size;
		}
	}
	return a[1] ? copy_out(a[1], &old, sizeof(old)) : 0;
}

static s64 send(struct thread *self, s32 number, s32 code, struct thread *target)
{
	return target ? signal_self(self, target, number, code) : -ESRCH;
}

HANDLER(do_tgkill)
{
	if ((s32)a[0] != process_number(self))
		return -ESRCH;
	return send(self, (s32)a[2], SI_TKILL, thread_by_number((s32)a[1]));
}

HANDLER(do_tkill)
{
	return send(self, (s32)a[1], SI_TKILL, thread_by_number((s32)a[0]));
}

HANDLER(do_kill)
{
	s32 process = (s32)a[0], number = (s32)a[1];

	if (number < 0 || number > SIGNALS)
		return -EINVAL;
	if (is_child(process))
		return outside_done(self, 62, a[0], a[1], 0, 0, 0, 0);
	if (process != process_number(self) && process != 0) {
		unsupported(self, "kill of another process", 62);
		return -EPERM;
	}
	if (number)
		signal_process(self, SIGNAL_BIT(number));
	return 0;
}
