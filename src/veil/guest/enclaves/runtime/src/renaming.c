/* SPDX-License-Identifier: GPL-2.0-or-later */
/* rename, unlink and their like: files outside get other paths, or none, and the sealed ones that are known with them. */
#include "calls.h"
#include "files.h"
#include "handlers.h"

#define AT_REMOVEDIR 0x200
#define AT_SYMLINK_FOLLOW 0x400

static s64 unlink_at(struct thread *self, s32 folder, u64 name, u64 flags)
{
	static const struct call call = { .result = ZERO, .arguments = { AT, WRITE_NAME, V } };
	const u64 a[6] = { (u64)folder, name, flags };
	char path[LONGEST_PATH];
	s64 length = copy_string_in(path, name, LONGEST_PATH), result;
	bool above = length > 0 && ends_above(path, (u64)length);

	if (length >= 0)
		length = resolve_path(self, folder, path, (u64)length, path, false);
	if (length < 0)
		return length;
	/* It goes out as a folder's own name; this one has something in it, from where the program has come. */
	if (above && flags & AT_REMOVEDIR)
		return -ENOTEMPTY;
	result = call_outside(self, 263, &call, a);
	if (!result && !(flags & AT_REMOVEDIR))
		sealed_removed(self, path, (u64)length);
	return result;
}

static s64 rename_at(struct thread *self, s32 folder, u64 name, s32 new_folder, u64 new_name, u64 flags)
{
	static const struct call call = { .result = ZERO, .arguments = { AT, WRITE_NAME, AT, WRITE_NAME, V } };
	const u64 a[6] = { (u64)folder, name, (u64)new_folder, new_name, flags };
	char from[LONGEST_PATH], to[LONGEST_PATH];
	s64 from_length = name_from(self, folder, name, from), to_length = name_from(self, new_folder, new_name, to);
	const struct config_rule *old, *new;
	s64 result;

	if (from_length < 0 || to_length < 0)
		return from_length < 0 ? from_length : to_length;
	old = rule_of(from, (u64)from_length);
	new = rule_of(to, (u64)to_length);
	/* A sealed file would be read as one that is not, or the other way round. */
	if (old && new && (old->kind == RULE_SEALED) != (new->kind == RULE_SEALED))
		return -EXDEV;
	/* With all that is sealed below it: by its new path it would not be. */
	if (!(new && new->kind == RULE_SEALED) && is_above_sealed(from, (u64)from_length))
		return -EXDEV;
	/* To exchange two files is not supported. */
	if (flags & ~(u64)1)
		return -EINVAL;
	result = call_outside(self, 316, &call, a);
	if (!result)
		sealed_moved(self, from, (u64)from_length, to, (u64)to_length);
	return result;
}

/* What is known of a file goes by its path: by another one it would be another file, which is not known. */
static s64 link_at(struct thread *self, const u64 *a)
{
	static const struct call call = { .result = ZERO, .arguments = { AT, WRITE_NAME, AT, WRITE_NAME, V } };

	for (u32 i = 0; i < 4; i += 2) {
		char path[LONGEST_PATH];
		/* By /proc/self/fd/N the kernel would give the file itself another name. */
		bool follows = !i && a[4] & AT_SYMLINK_FOLLOW;
		s64 length = follows ? path_from(self, (s32)a[i], a[i + 1], path)
				     : name_from(self, (s32)a[i], a[i + 1], path);
		const struct config_rule *rule;

		if (length < 0)
			return length;
		rule = rule_of(path, (u64)length);
		if (rule && rule->kind == RULE_SEALED)
			return -EPERM;
	}
	return call_outside(self, 265, &call, a);
}

HANDLER(do_link)
{
	return link_at(self, (const u64[6]){ (u64)AT_FDCWD, a[0], (u64)AT_FDCWD, a[1] });
}

HANDLER(do_linkat)
{
	return link_at(self, a);
}

static s64 symlink_at(struct thread *self, u64 text, s32 folder, u64 name)
{
	static const struct call call = { .result = ZERO, .arguments = { STRING, AT, WRITE_NAME } };
	const u64 a[6] = { text, (u64)folder, name };
	char path[LONGEST_PATH];
	s64 length = name_from(self, folder, name, path), result;

	if (length < 0)
		return length;
	result = call_outside(self, 266, &call, a);
	if (!result)
		sealed_link_made(self, path, (u64)length);
	return result;
}

HANDLER(do_symlink)
{
	return symlink_at(self, a[0], AT_FDCWD, a[1]);
}

HANDLER(do_symlinkat)
{
	return symlink_at(self, a[0], (s32)a[1], a[2]);
}

HANDLER(do_truncate)
{
	static const struct call call = { .result = ZERO, .arguments = { WRITE_PATH, V } };
	char path[LONGEST_PATH];
	s64 length = path_from(self, AT_FDCWD, a[0], path), fd, result;
	const struct config_rule *rule;

	if (length < 0)
		return length;
	rule = rule_of(path, (u64)length);
	if (!rule || rule->kind != RULE_SEALED)
		return call_outside(self, 76, &call, a);
	/* Of the outside file it would cut off what the program did not mean. */
	fd = do_open(self, (const u64[6]){ a[0], 2 });
	if (fd < 0)
		return fd;
	result = do_ftruncate(self, (const u64[6]){ (u64)fd, a[1] });
	do_close(self, (const u64[6]){ (u64)fd });
	return result;
}

HANDLER(do_unlink)
{
	return unlink_at(self, AT_FDCWD, a[0], 0);
}

HANDLER(do_rmdir)
{
	return unlink_at(self, AT_FDCWD, a[0], AT_REMOVEDIR);
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
