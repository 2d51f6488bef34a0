/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Signals that the process gets are offered to the program, which learns of them when a system call ends. */
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "starter.h"

#define SIGNALS 64
#define NOBODY UINT32_MAX

static _Thread_local volatile uint32_t my_slot = NOBODY;

static void on_signal(int signal)
{
	volatile struct veil_window_block *block;

	if (my_slot == NOBODY)
		return;
	block = window_block(my_slot);
	/* The program has not looked for the last one, and somebody wants it to end: so it does. */
	if (block->signal == (uint32_t)signal && (signal == SIGINT || signal == SIGTERM || signal == SIGQUIT))
		die_by(signal);
	block->signal = (uint32_t)signal;
}

void take_signals(void)
{
	struct sigaction action = { .sa_handler = on_signal };
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
