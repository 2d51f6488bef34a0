/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A program that the enclave starts: an ordinary child of this process, which does the enclave's calls before it is one. */
#define _GNU_SOURCE /* clone */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "starter.h"

#define STACK (64 * 1024)
#define FAILED 127

struct attempt {
	const struct veil_program_call *calls;
	uint64_t count;
	volatile int error;
};

static struct rlimit descriptors;

/* The runtime keeps some above those that its program can have. A program outside has as many as it would have had. */
void allow_descriptors(void)
{
	struct rlimit more;

	if (getrlimit(RLIMIT_NOFILE, &descriptors))
		return;
	more = descriptors;
	more.rlim_cur = more.rlim_max;
	setrlimit(RLIMIT_NOFILE, &more);
}

/* Handlers are this process's, and so is what they write to. */
static void take_none(void)
{
	struct sigaction own, default_one = { .sa_handler = SIG_DFL };
	int signal;

	for (signal = 1; signal < NSIG; signal++)
		if (!sigaction(signal, NULL, &own) && own.sa_handler != SIG_IGN)
			sigaction(signal, &default_one, NULL);
}

/* In the memory of its parent, which waits until this one has another or ends. */
static int child(void *argument)
{
	struct attempt *attempt = argument;
	uint64_t at;

	take_none();
	setrlimit(RLIMIT_NOFILE, &descriptors);
	for (at = 0; at < attempt->count; at++) {
		const struct veil_program_call *call = &attempt->calls[at];
		long result = syscall((long)call->nr, call->args[0], call->args[1], call->args[2], call->args[3]);

		/* Another thread of the program may have closed it. */
		if (result < 0 && call->nr == SYS_close)
			continue;
		if (result >= 0 && call->to >= 0 && result != call->to) {
			int moved = dup3((int)result, (int)call->to, call->args[2] & O_CLOEXEC);

			close((int)result);
			result = moved;
		}
		if (result < 0) {
			attempt->error = errno;
			break;
		}
	}
	_exit(FAILED);
}

int64_t start_program(const struct veil_program_call *calls, uint64_t count)
{
	struct attempt attempt = { calls, count, 0 };
	char *stack = malloc(STACK);
	sigset_t all, before;
	int process, error;

	if (!stack)
		return -ENOMEM;
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &before);
	process = clone(child, stack + STACK, CLONE_VM | CLONE_VFORK | SIGCHLD, &attempt);
	error = errno;
	sigprocmask(SIG_SETMASK, &before, NULL);
	free(stack);
	if (process < 0)
		return -error;
	if (!attempt.error)
		return process;
	while (waitpid(process, NULL, 0) < 0 && errno == EINTR)
		;
	return -attempt.error;
}
