/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The starter: an ordinary process that makes an enclave and does its system calls. Nothing in it is trusted. */
#ifndef VEIL_STARTER_H
#define VEIL_STARTER_H

#include <stddef.h>
#include <stdint.h>

#include "../../device.h"
#include "../../program_calls.h"

/* Exit status when the enclave could not be started, as of `veil run`. */
#define STARTER_FAILED 125

/* Parts of an image: a tar archive, mapped whole. */
struct image {
	const uint8_t *layout, *content;
	size_t layout_size, content_size;
};

_Noreturn void fail(const char *what, int error);
_Noreturn void refuse(const char *what);

/* image.c */
void open_image(const char *path, struct image *image);

/* make.c: gives the descriptor of /dev/veil-enclave; the windows are mapped. */
int make_enclave(const struct image *image, uint32_t *slots);

/* run.c: does what the enclave asks, until it ends the process */
void pass_arguments(char **arguments, char **environment);
_Noreturn void run_enclave(int device, uint32_t slots);

/* programs.c: the number of a child that did so many calls, the last of them execve or exit_group; or a negative error */
int64_t start_program(const struct veil_program_call *calls, uint64_t count);
/* This process's, as many as it can have: the runtime keeps some above those of its program. */
void allow_descriptors(void);

/* signals.c */
void take_signals(void);
/* Signals that this thread gets are offered to this slot. */
void offer_signals_to(uint32_t slot);
/* It has no slot any more. */
void take_no_signals(void);
void interrupt_slot(uint32_t slot);
/*
 * A system call as it stands, and its result as the kernel gives it: not by way of errno, which is the C library's.
 * ERESTARTSYS, negative: it was not begun, for a signal came before it, and with it `interrupt` was not 0.
 */
int64_t call_outside(uint64_t nr, const uint64_t *args, volatile uint32_t *interrupt);
_Noreturn void die_by(int signal);

static inline volatile struct veil_window_block *window_block(uint32_t slot)
{
	return (volatile struct veil_window_block *)(VEIL_ENC_WINDOW + (uint64_t)slot * VEIL_ENC_WINDOW_STRIDE);
}

#endif
