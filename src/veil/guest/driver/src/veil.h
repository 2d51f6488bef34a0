/* SPDX-License-Identifier: GPL-2.0 */
/* What a part of the driver is. A service is one part; it may have parts of its own. */
#ifndef VEIL_H
#define VEIL_H

#include <linux/types.h>

struct veil_part {
	/* The first word of its line in /dev/veil; see main.c. */
	const char *name;
	/* NULL where there is nothing to do. `begin` gives 0 or an error, and has nothing to undo then. */
	int (*begin)(void);
	void (*end)(void);
	/* Writes "key number" pairs, each with a space before it; returns their length. No line without them. */
	int (*state)(char *text, size_t size);
};

/* All of the parts in their order, or none. */
int veil_parts_begin(const struct veil_part *parts, int count);
void veil_parts_end(const struct veil_part *parts, int count);

#endif
