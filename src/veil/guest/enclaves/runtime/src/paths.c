/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Paths, by the manifest's rules. A link outside may lead anywhere: what is passed through is not trusted anyway.
 */
#include "files.h"
#include "handlers.h"

static char directory[LONGEST_PATH];
static u64 directory_length;
static struct lock directory_lock;
static const struct config_rule *rules;

void paths_start(void)
{
	rules = config_at(CONFIG->rules);
	memcpy(directory, config_at(CONFIG->directory), CONFIG->directory_length);
	directory_length = CONFIG->directory_length;
}

static u64 drop_last(const char *path, u64 length)
{
	while (length > 1 && path[length - 1] != '/')
		length--;
	return length > 1 ? length - 1 : length;
}

/* A path that ends so is a folder's. */
static bool names_folder(const char *path, u64 length)
{
	if (length > 1 && path[length - 1] == '.')
		length--;
	return path[length - 1] == '/';
}

/* `to` is absolute, without "." and ".." and double slashes. `path` may be in `to`. */
s64 resolve_path(struct thread *self, s32 folder, const char *path, u64 length, char *to, u64 space)
{
	static char work[LONGEST_PATH];
	static struct lock work_lock;
	struct open_file *file = NULL;
	const char *base = directory;
	u64 at = directory_length, next = 0;
	s64 result = -ENAMETOOLONG;
	bool slash;

	if (!length)
		return -ENOENT;
	slash = names_folder(path, length);
	if (path[0] != '/' && folder != AT_FDCWD) {
		file = use(self, folder);
		if (!file || !file->path_length) {
			release(self, file);
			return file ? -ENOTDIR : -EBADF;
		}
		base = file->path;
		at = file->path_length;
	}
	lock(self, &work_lock);
	if (path[0] == '/') {
		work[0] = '/';
		at = 1;
	} else {
		memcpy(work, base, at);
	}
	while (next < length) {
		u64 start = next, size;

		while (next < length && path[next] != '/')
			next++;
		size = next - start;
		next++;
		if (!size || (size == 1 && path[start] == '.'))
			continue;
		if (size == 2 && path[start] == '.' && path[start + 1] == '.') {
			at = drop_last(work, at);
			continue;
		}
		if (at + size + 2 > LONGEST_PATH || at + size + 2 > space)
			goto out;
		if (work[at - 1] != '/')
			work[at++] = '/';
		memcpy(work + at, path + start, size);
		at += size;
	}
	slash = slash && at > 1;
	if (at + (slash ? 2 : 1) > space)
		goto out;
	memcpy(to, work, at);
	result = (s64)at;
	if (slash) {
		/* Whether it is a folder outside the kernel knows; these are files, whatever it says. */
		if (trusted_file(to, at) || is_secret(to, at))
			result = -ENOTDIR;
		to[at++] = '/';
	}
	to[at] = 0;
out:
	unlock(&work_lock);
	release(self, file);
	return result;
}

char *put_path(struct thread *self, const char *path, u64 length)
{
	char *shared;

	length = length_outside(path, length);
	shared = take_buffer(self, length + 1);
	if (!shared)
		return NULL;
	memcpy(shared, path, length);
	shared[length] = 0;
	return shared;
}

s64 path_from(struct thread *self, s32 folder, u64 from, char *to)
{
	s64 length = copy_string_in(to, from, LONGEST_PATH);

	return length < 0 ? length : resolve_path(self, folder, to, (u64)length, to, LONGEST_PATH);
}

/* The longest that fits, for the manifest's later rules may be about a part of an earlier one's tree. */
const struct config_rule *rule_of(const char *path, u64 length)
{
	const struct config_rule *found = NULL;

	for (u32 i = 0; i < CONFIG->rule_count; i++) {
		const struct config_rule *rule = &rules[i];
		const char *start = config_at(rule->path);

		if (rule->length > length || memcmp(start, path, rule->length))
			continue;
		if (rule->length < length &&
		    !(rule->tree && (path[rule->length] == '/' || start[rule->length - 1] == '/')))
			continue;
		if (!found || rule->length >= found->length)
			found = rule;
	}
	return found;
}

/* On the way to what a rule names. */
bool is_folder_of_rule(const char *path, u64 length)
{
	for (u32 i = 0; i < CONFIG->rule_count; i++) {
		const char *start = config_at(rules[i].path);

		if (rules[i].length > length && !memcmp(start, path, length) && (length == 1 || start[length] == '/'))
			return true;
	}
	return is_trusted_folder(path, length);
}

s64 path_allowed(const char *path, u64 length, bool change)
{
	const struct config_rule *rule = rule_of(path, length);

	if (trusted_file(path, length))
		return change ? -EACCES : 0;
	if (!rule)
		return change ? -EACCES : is_folder_of_rule(path, length) ? 0 : -ENOENT;
	if (change && rule->kind != RULE_PASS && rule->kind != RULE_SEALED)
		return -EACCES;
	return 0;
}

HANDLER(do_getcwd)
{
	if (a[1] < directory_length + 1)
		return -ERANGE;
	if (copy_out(a[0], directory, directory_length) || clear_out(a[0] + directory_length, 1))
		return -EFAULT;
	return (s64)directory_length + 1;
}

static s64 change_directory(struct thread *self, const char *path, u64 length)
{
	s64 result = require_folder(self, path, length);

	if (result < 0)
		return result;
	lock(self, &directory_lock);
	memcpy(directory, path, length);
	directory_length = length;
	unlock(&directory_lock);
	return 0;
}

HANDLER(do_chdir)
{
	char path[LONGEST_PATH];
	s64 length = path_from(self, AT_FDCWD, a[0], path);

	return length < 0 ? length : change_directory(self, path, (u64)length);
}

HANDLER(do_fchdir)
{
	struct open_file *file = use(self, (s32)a[0]);
	s64 result;

	if (!file)
		return -EBADF;
	result = file->path_length ? change_directory(self, file->path, file->path_length) : -ENOTDIR;
	release(self, file);
	return result;
}
