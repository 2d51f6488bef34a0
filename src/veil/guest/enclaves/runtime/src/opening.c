/* SPDX-License-Identifier: GPL-2.0-or-later */
/* open and its like: which kind of file a path is, by the manifest. */
#include "files.h"
#include "handlers.h"
#include "process_links.h"

#define NR_CLOSE 3
#define NR_OPENAT 257

static bool is_path(const char *path, u64 length, const char *name)
{
	u64 size = 0;

	while (name[size])
		size++;
	return size == length && !memcmp(path, name, size);
}

static bool is_random(const char *path, u64 length)
{
	return is_path(path, length, "/dev/urandom") || is_path(path, length, "/dev/random");
}

s64 open_outside(struct thread *self, const char *path, u64 length, u64 flags, u64 mode)
{
	char *buffer = put_path(self, path, length);

	if (!buffer)
		return -ENOMEM;
	return outside(self, NR_OPENAT, (u64)(s64)AT_FDCWD, (u64)buffer, flags, mode, 0, 0);
}

s64 opened(struct thread *self, s64 fd, u32 kind, const char *path, u64 length, u64 flags)
{
	struct open_file *file;

	if (fd < 0)
		return fd;
	file = new_file(self, kind, path, length);
	if (!file) {
		outside(self, NR_CLOSE, (u64)fd, 0, 0, 0, 0, 0);
		return -ENOMEM;
	}
	file->access = flags & O_ACCMODE;
	file->flags = (u32)flags;
	return new_descriptor(self, fd, file);
}

/* A number that no other file has, without a file that anybody believes. */
static s64 open_random(struct thread *self, const char *path, u64 length, u64 flags)
{
	s64 fd = open_outside(self, "/dev/null", 9, 2 | (flags & O_CLOEXEC), 0);

	return opened(self, fd, FILE_RANDOM, path, length, 2);
}

static s64 open_path(struct thread *self, const char *path, u64 length, u64 flags, u64 mode)
{
	const struct config_file *trusted = trusted_file(path, length);
	bool change = (flags & O_ACCMODE) || flags & (O_CREAT | O_TRUNC);
	const struct config_rule *rule;
	s64 result;

	if (trusted)
		return flags & O_DIRECTORY ? -ENOTDIR : open_trusted(self, trusted, path, (u32)flags);
	if (is_random(path, length))
		return path[length] ? -ENOTDIR : open_random(self, path, length, flags);
	if (names_own_map(self, path, length) && !(flags & (O_DIRECTORY | O_PATH)))
		return change ? -EACCES : open_map(self, path, length, flags);
	result = path_allowed(path, length, change && !(flags & O_PATH));
	if (result)
		return result;
	rule = rule_of(path, length);
	if (!rule && !(flags & (O_DIRECTORY | O_PATH)))
		return -EISDIR;
	if (rule && rule->kind == RULE_SECRET)
		return open_secret(self, path, length, flags);
	if (rule && rule->kind == RULE_SEALED) {
		/* The folder itself is none of the files below it. */
		if (!(rule->tree && rule->length == length) && !(flags & (O_DIRECTORY | O_PATH)))
			return open_sealed(self, path, length, flags, mode);
		/* What was written there, as to a file without a name (O_TMPFILE), would go out in the clear. */
		if (change && !(flags & O_PATH))
			return flags & O_DIRECTORY ? -EOPNOTSUPP : -EISDIR;
	}
	/* By the name of a descriptor it has none of its own: that will be another file's. */
	return opened(self, open_outside(self, path, length, flags, mode), FILE_OUTSIDE, path,
		      names_descriptor(path, length) ? 0 : length, flags);
}

static s64 open_at(struct thread *self, s32 folder, u64 name, u64 flags, u64 mode)
{
	char path[LONGEST_PATH], followed[LONGEST_PATH];
	s64 length = copy_string_in(path, name, LONGEST_PATH), link;

	if (length >= 0)
		length = resolve_path(self, folder, path, (u64)length, path, !(flags & O_NOFOLLOW));
	if (length < 0)
		return length;
	/* Not the kernel's to refuse: it would open what the link leads to. */
	link = flags & O_NOFOLLOW && !(flags & O_PATH) ? process_link(self, path, (u64)length, followed) : 0;
	if (link)
		return link < 0 ? link : -ELOOP;
	return open_path(self, path, (u64)length, flags, mode);
}

HANDLER(do_open)
{
	return open_at(self, AT_FDCWD, a[0], a[1], a[2]);
}

HANDLER(do_openat)
{
	return open_at(self, (s32)a[0], a[1], a[2], a[3]);
}
