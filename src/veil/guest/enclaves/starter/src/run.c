/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A thread for each slot that runs: enters it, does what it asks for, enters it again. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "starter.h"

#define PAGE 4096
#define STACK (64 * 1024)

static int device;
static uint32_t slot_count;

static _Noreturn void too_big(void)
{
	fprintf(stderr,
		"veil-enclave: arguments and environment: %s (at most %d arguments, %d variables, and %d KiB of both, "
		"in half "
		"of the stack)\n",
		strerror(E2BIG), VEIL_ENC_MOST_STRINGS, VEIL_ENC_MOST_STRINGS, VEIL_ENC_MOST_TEXT / 1024);
	_exit(STARTER_FAILED);
}

static size_t put_texts(char *to, size_t used, char **texts, uint32_t *count)
{
	for (; *texts; texts++, (*count)++) {
		size_t length = strlen(*texts) + 1;

		if (length > VEIL_ENC_MOST_TEXT - used)
			too_big();
		memcpy(to + used, *texts, length);
		used += length;
	}
	return used;
}

void pass_arguments(char **arguments, char **environment)
{
	struct veil_start_block *start = (struct veil_start_block *)(VEIL_ENC_WINDOW + PAGE);
	size_t used;

	start->magic = VEIL_ENC_START_MAGIC;
	used = put_texts((char *)(start + 1), 0, arguments, &start->arguments);
	start->bytes = (uint32_t)put_texts((char *)(start + 1), used, environment, &start->environment);
}

static void *run_slot(void *argument);

static int64_t spawn(uint64_t slot)
{
	pthread_attr_t attributes;
	pthread_t thread;
	int error;

	if (slot >= slot_count)
		return -EINVAL;
	window_block((uint32_t)slot)->state = VEIL_WINDOW_IDLE;
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attributes, STACK);
	error = pthread_create(&thread, &attributes, run_slot, (void *)(uintptr_t)slot);
	pthread_attr_destroy(&attributes);
	return -error;
}

/* Wherever the thread of that slot is: in a system call that waits, or in the enclave. */
static int64_t interrupt(uint64_t slot)
{
	if (slot >= slot_count)
		return -EINVAL;
	interrupt_slot((uint32_t)slot);
	return 0;
}

static void answer(volatile struct veil_window_block *block, int64_t result)
{
	block->result = result;
	__atomic_thread_fence(__ATOMIC_RELEASE);
	block->state = VEIL_WINDOW_IDLE;
}

static void *run_slot(void *argument)
{
	const uint32_t slot = (uint32_t)(uintptr_t)argument;
	volatile struct veil_window_block *block = window_block(slot);
	uint64_t args[6];
	size_t at;

	offer_signals_to(slot);
	for (;;) {
		struct veil_enclave_enter enter = { .slot = slot };

		if (ioctl(device, VEIL_ENCLAVE_ENTER, &enter)) {
			/* EBUSY: the thread that ended in this slot is still on its way out. */
			if (errno == EINTR || errno == EBUSY)
				continue;
			if (errno == EIO)
				fprintf(stderr, "veil-enclave: slot %u does not run any more: the host answers %#llx\n",
					slot, (unsigned long long)enter.answer);
			else
				fail("the enclave cannot go on", errno);
			_exit(STARTER_FAILED);
		}
		for (at = 0; at < 6; at++)
			args[at] = block->args[at];
		switch (enter.state) {
		case VEIL_WINDOW_SYSCALL:
			answer(block, call_outside(block->nr, args, &block->interrupt));
			break;
		case VEIL_WINDOW_SPAWN:
			answer(block, spawn(args[0]));
			break;
		case VEIL_WINDOW_INTERRUPT:
			answer(block, interrupt(args[0]));
			break;
		case VEIL_WINDOW_PROGRAM:
			answer(block, start_program((const struct veil_program_call *)args[0], args[1]));
			break;
		case VEIL_WINDOW_THREAD_EXIT:
			take_no_signals();
			if (slot)
				return NULL;
			/* The first thread is the process, which goes on until the program ends. */
			for (;;)
				pause();
		case VEIL_WINDOW_EXIT:
			if (args[2] == VEIL_END_TOO_BIG)
				too_big();
			if (args[2] == VEIL_END_RUNTIME)
				refuse("the enclave has ended itself; the protected log says why (veil logs)");
			if (args[1] && args[1] < NSIG)
				die_by((int)args[1]);
			_exit((int)args[0] & 0xff);
		default:
			refuse("the enclave asks for something that there is not");
		}
	}
}

void run_enclave(int opened, uint32_t slots)
{
	device = opened;
	slot_count = slots;
	run_slot(NULL);
	_exit(STARTER_FAILED);
}
