/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How system calls' arguments and results are copied: the meaning of what calls.def says. */
#ifndef RUNTIME_CALLS_H
#define RUNTIME_CALLS_H

#include "runtime.h"
#include "structures.h"

enum argument_kind {
	NOTHING,
	VALUE,
	INTEGER,
	UNSIGNED,
	OPEN_FILE,
	FOLDER,
	PATH_TO_READ,
	PATH_TO_CHANGE,
	NAME_TO_CHANGE,
	TEXT,
	FIXED_IN,
	FIXED_OUT,
	FIXED_BOTH,
	COUNTED_IN,
	COUNTED_OUT,
	PARTIAL_IN,
	PARTIAL_OUT,
};

enum result_kind {
	ZERO,
	NUMBER,
	MODE,
	PRIORITY,
	DESCRIPTOR,
	BYTES,
	COUNT,
	ANY,
};

struct argument {
	u8 kind;
	u8 count_in; /* the argument that counts */
	u16 size;
	structure_check check; /* of what comes out, if there is one */
};

struct call {
	const char *name;
	call_handler handler; /* or what follows */
	u8 result;
	struct argument arguments[6];
};

#define ARGUMENTS 6
#define N { 0 }
#define V { .kind = VALUE }
#define I { .kind = INTEGER }
#define U { .kind = UNSIGNED }
#define FD { .kind = OPEN_FILE }
#define AT { .kind = FOLDER }
#define READ_PATH { .kind = PATH_TO_READ }
#define WRITE_PATH { .kind = PATH_TO_CHANGE }
#define WRITE_NAME { .kind = NAME_TO_CHANGE }
#define STRING { .kind = TEXT }
#define IN(n) { .kind = FIXED_IN, .size = n }
#define OUT(n) { .kind = FIXED_OUT, .size = n }
#define FILLED(c, n) { .kind = FIXED_OUT, .size = n, .check = c }
#define BOTH(n) { .kind = FIXED_BOTH, .size = n }
#define IN_N(i, n) { .kind = COUNTED_IN, .count_in = i, .size = n }
#define OUT_N(i, n) { .kind = COUNTED_OUT, .count_in = i, .size = n }
#define PART_IN(i) { .kind = PARTIAL_IN, .count_in = i, .size = 1 }
#define PART_OUT(i) { .kind = PARTIAL_OUT, .count_in = i, .size = 1 }

/* Do a call outside as described; -errno or the checked result. */
s64 call_outside(struct thread *, u64 nr, const struct call *, const u64 *a);

#endif
