// SPDX-License-Identifier: GPL-2.0
/* Parts begin in the order of their table, and end in the opposite one. */
#include "veil.h"

int veil_parts_begin(const struct veil_part *parts, int count)
{
	int i, error = 0;

	for (i = 0; i < count; i++) {
		if (parts[i].begin)
			error = parts[i].begin();
		if (error) {
			veil_parts_end(parts, i);
			return error;
		}
	}
	return 0;
}

void veil_parts_end(const struct veil_part *parts, int count)
{
	while (count--)
		if (parts[count].end)
			parts[count].end();
}
