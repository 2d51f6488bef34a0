/* SPDX-License-Identifier: GPL-2.0-or-later */
/* rename, unlink and their like: files outside get other paths, or none, and the sealed ones that are known with them. */
#include "calls.h"
#include "files.h"
#include "handlers.h"

static s64 unlink_at(struct thread *self, s32 folder, u64 name, u64 flags)
{
	static const struct call call = { .result = ZERO, .arguments = { AT, WRITE_PATH, V } };
	const u64 a[6] = { (u64)folder, name, flags };
	char path[LONGEST_PATH];
	s64 length = path_from(self, folder, name, path), result;

	if (length < 0)
		return length;
	result = call_outside(self, 263, &call, a);
	if (!result)
		sealed_removed(self, path, (u64)length);
	return result;
}

static s64 rename_at(struct thread *self, s32 folder, u64 name, s32 new_folder, u64 new_name, u64 flags)
{
	static const struct call call = { .result = ZERO, .arguments = { AT, WRITE_PATH, AT, WRITE_PATH, V } };
	const u64 a[6] = { (u64)folder, name, (u64)new_folder, new_name, flags };
	char from[LONGEST_PATH], to[LONGEST_PATH];
	s64 from_length = path_from(self, folder, name, from), to_length = path_from(self, new_folder, new_name, to);
	const struct config_rule *old, *new;
	s64 result;

	if (from_length < 0 || to_length < 0)
		return from_length < 0 ? from_length : to_length;
	old = rule_of(from, (u64)from_length);
	new = rule_of(to, (u64)to_length);
	/* A sealed file would be read as one that is not, or the other way round. */
	if (old && new && (old->kind == RULE_SEALED) != (new->kind == RULE_SEALED))
		return -EXDEV;
	/* To exchange two files is not supported. */
	if (flags & ~(u64)1)
		return -EINVAL;
	result = call_outside(self, 316, &call, a);
	if (!result)
		sealed_moved(self, from, (u64)from_length, to, (u64)to_length);
	return result;
}

HANDLER(do_unlink)
{
	return unlink_at(self, AT_FDCWD, a[0], 0);
}

HANDLER(do_unlinkat)
{
	return unlink_at(self, (s32)a[0], a[1], a[2]);
}

HANDLER(do_rename)
{
	return rename_at(self, AT_FDCWD, a[0], AT_FDCWD, a[1], 0);
}

HANDLER(do_renameat)
{
	return rename_at(self, (s32)a[0], a[1], (s32)a[2], a[3], self->regs.rax == 316 ? a[4] : 0);
}
