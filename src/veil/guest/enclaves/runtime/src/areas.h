/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The map of the program's address space: areas in ascending order, apart from each other. The caller holds the lock. */
#ifndef RUNTIME_AREAS_H
#define RUNTIME_AREAS_H

#include "runtime.h"

struct area {
	u64 start, end;
	u32 prot;
	bool resident; /* every page of it is mapped; else none is, and each will have what `source` has, or be zero */
	bool file;     /* a copy of a file's content */
	/* If nobody could write it yet: which trusted file's content it is, and the address that the file's first byte
	   would have. */
	const struct config_file *source;
	u64 origin;
};

/* The first area that ends after the address; the count of areas if there is none. */
u32 area_after(u64 address);
struct area *area_number(u32 number);
/* Split where needed, so that areas begin and end at the bounds. False: no memory for more areas. */
bool area_cut(struct thread *, u64 start, u64 end);
bool area_add(struct thread *, struct area);
/* Forget areas between bounds at which area_cut was done. */
void area_remove(u64 start, u64 end);
/* Join equal neighbours around a range. */
void area_join(u64 start, u64 end);
/* Whether nothing is there. */
bool area_free(u64 start, u64 end);
/* The lowest free place of so many bytes in a range; 0: none. */
u64 area_find(u64 bytes, u64 from, u64 to);

#endif
