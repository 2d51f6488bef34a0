/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A program outside that an enclave starts, as runtime and starter speak of it. */
#ifndef VEIL_PROGRAM_CALLS_H
#define VEIL_PROGRAM_CALLS_H

#include <stdint.h>

/*
 * What the child of VEIL_WINDOW_PROGRAM does, in the window. The result of a call is to be the descriptor `to`, if that is
 * not negative.
 */
struct veil_program_call {
	uint64_t nr;
	uint64_t args[4];
	int64_t to;
};

#endif
