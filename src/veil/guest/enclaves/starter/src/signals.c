/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Signals that the process gets are offered to the program: in the window, where its runtime finds them when the system call
 * ends, or when the driver has it interrupted.
 */
#define _GNU_SOURCE /* names of registers */
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "starter.h"

#define SIGNALS 64
/* Of the process's own, to a thread of it: its program has something to look for. No manifest names it. */
#define INTERRUPT 64
#define NOBODY UINT32_MAX

static _Thread_local volatile uint32_t my_slot = NOBODY;
/* By slot; 0: nobody. */
static volatile pid_t threads[VEIL_ENC_MAX_SLOTS];

/*
 * A signal that comes after the look at `interrupt` and before the system call would be heard of when that ends, which may
 * be never. So whoever is interrupted between these labels has not begun. 512: ERESTARTSYS.
 */
extern const char call_begin[], call_end[], call_not_begun[];
__asm__(".pushsection .text\n"
	".globl call_outside\n"
	".type call_outside, @function\n"
	"call_outside:\n"
	"	movq %rdi, %rax\n"
	"	movq %rsi, %r11\n"
	"	movq %rdx, %rcx\n"
	"	movq (%r11), %rdi\n"
	"	movq 8(%r11), %rsi\n"
	"	movq 16(%r11), %rdx\n"
	"	movq 24(%r11), %r10\n"
	"	movq 32(%r11), %r8\n"
	"	movq 40(%r11), %r9\n"
	"call_begin:\n"
	"	cmpl $0, (%rcx)\n"
	"	jne call_not_begun\n"
	"	syscall\n"
	"call_end:\n"
	"	ret\n"
	"call_not_begun:\n"
	"	movq $-512, %rax\n"
	"	ret\n"
	".size call_outside, . - call_outside\n"
	".popsection\n");

static void on_signal(int signal, siginfo_t *information, void *context)
{
	greg_t *rip = &((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
	volatile struct veil_window_block *block;
	uint64_t bit = (uint64_t)1 << (signal - 1), before;

	(void)information;
	if (my_slot == NOBODY)
		return;
	block = window_block(my_slot);
	if (signal != INTERRUPT) {
		before = __atomic_fetch_or(&block->signals, bit, __ATOMIC_SEQ_CST);
		/* The program has not looked for the last one, and somebody wants it to end: so it does. */
		if (before & bit && (signal == SIGINT || signal == SIGTERM || signal == SIGQUIT))
			die_by(signal);
	}
	__atomic_store_n(&block->interrupt, 1, __ATOMIC_SEQ_CST);
	if (*rip >= (greg_t)call_begin && *rip < (greg_t)call_end)
		*rip = (greg_t)call_not_begun;
}

void take_signals(void)
{
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO };
	int signal;

	/* No SA_RESTART: a system call that waits is to end, so that the program hears of it. */
	for (signal = 1; signal <= SIGNALS; signal++) {
		switch (signal) {
		case SIGKILL:
		case SIGSTOP:
		case SIGTSTP:
		case SIGTTIN:
		case SIGTTOU:
		case SIGCONT:
		case SIGSEGV:
		case SIGBUS:
		case SIGILL:
		case SIGFPE:
		case SIGTRAP:
		case SIGABRT:
		case SIGSYS:
			continue;
		default:
			sigaction(signal, &action, NULL);
		}
	}
}

void offer_signals_to(uint32_t slot)
{
	my_slot = slot;
	threads[slot] = (pid_t)syscall(SYS_gettid);
}

/* The kernel then gives those of the process to another thread. */
void take_no_signals(void)
{
	pid_t own = (pid_t)syscall(SYS_gettid);
	sigset_t all;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	/* The slot may have its next thread already. */
	__atomic_compare_exchange_n(&threads[my_slot], &own, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	my_slot = NOBODY;
}

void interrupt_slot(uint32_t slot)
{
	pid_t thread = threads[slot];

	window_block(slot)->interrupt = 1;
	/* It may have ended meanwhile; then nobody is interrupted, or somebody for nothing. */
	if (thread)
		syscall(SYS_tgkill, getpid(), thread, INTERRUPT);
}

void die_by(int signal)
{
	struct sigaction action = { .sa_handler = SIG_DFL };
	sigset_t set;

	sigaction(signal, &action, NULL);
	sigemptyset(&set);
	sigaddset(&set, signal);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	kill(getpid(), signal);
	_exit(128 + signal);
}
