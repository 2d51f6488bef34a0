/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A thread between vfork() and a program's start: programs.c makes and ends it, child_calls.c notes what it does. */
#ifndef RUNTIME_CHILD_H
#define RUNTIME_CHILD_H

#include "../../program_calls.h"
#include "files.h"
#include "runtime.h"

#define NR_SIGACTION 13
#define NR_SIGPROCMASK 14
#define NR_EXECVE 59
#define NR_EXIT_GROUP 231

#define MOST_NOTES 128
#define MOST_TEXTS 8192
#define CHILD_FP_BYTES 512

/* Of a descriptor. */
#define CHILD_CLOSED -1
#define CHILD_OPENS -2 /* opened by the child: not there yet */

struct note {
	struct veil_program_call call;
	bool has_text; /* args[text_at] is an offset in `texts` */
	u8 text_at;
};

struct child {
	struct regs parent;
	u8 fp[CHILD_FP_BYTES];
	u64 parent_mask;
	u64 mask;
	u64 set, ignored;	 /* signals whose actions the child has set; of these the ones that it ignores */
	s16 origin[DESCRIPTORS]; /* the parent's descriptor of the same file, or one of the above */
	u32 notes, text_bytes;
	struct note note[MOST_NOTES];
	char texts[MOST_TEXTS];
	char directory[LONGEST_PATH]; /* "": the parent's */
};

/* programs.c. A path from the directory that the child has chosen; its length or a negative error. */
s64 child_path(struct thread *, u64 from, char path[LONGEST_PATH]);
/* execve() and exit() of the child; the thread is its parent again unless they fail. */
s64 start_program(struct thread *, const u64 *a);
s64 end_child(struct thread *, u64 status);

#endif
