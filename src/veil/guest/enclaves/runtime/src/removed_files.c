/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Paths by which a program has had a sealed file in this run, and has none any more: it was removed, or has another path. What
 * the kernel has there all the same is an older state of it. The lock of the known files is held.
 */
#include "files.h"
#include "sealed_blocks.h"

struct removed {
	struct removed *next;
	u64 length;
	char path[];
};

static struct removed *removed;

bool sealed_was_removed(const char *path, u64 length)
{
	for (const struct removed *at = removed; at; at = at->next)
		if (at->length == length && !memcmp(at->path, path, length))
			return true;
	return false;
}

void sealed_note_removed(struct thread *self, const char *path, u64 length)
{
	struct removed *more;

	if (sealed_was_removed(path, length))
		return;
	more = heap_take(self, sizeof(*more) + length);
	if (!more)
		attacked(self, "no memory to remember that the sealed file %s was removed", path);
	more->length = length;
	memcpy(more->path, path, length);
	more->next = removed;
	removed = more;
}

void sealed_forget_removed(struct thread *self, const char *path, u64 length)
{
	struct removed **link = &removed;

	while (*link) {
		struct removed *at = *link;

		if (at->length < length || memcmp(at->path, path, length) ||
		    (at->length > length && at->path[length] != '/')) {
			link = &at->next;
			continue;
		}
		*link = at->next;
		heap_give(self, at);
	}
}
