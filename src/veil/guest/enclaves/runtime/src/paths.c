/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Paths, by the manifest's rules. A link outside may lead anywhere: what is passed through is not trusted anyway.
 */
#include "directory.h"
#include "files.h"
#include "handlers.h"
#include "process_links.h"

#define MOST_LINKS 8

static const struct config_rule *rules;

void paths_start(void)
{
	rules = config_at(CONFIG->rules);
	directory_start();
}

static u64 drop_last(const char *path, u64 length)
{
	while (length > 1 && path[length - 1] != '/')
		length--;
	return length > 1 ? length - 1 : length;
}

/* How a path ends: by a name; by a slash; by "." or "..", by which nothing is made or removed. */
enum path_end { NAME_END, SLASH_END, DOTS_END };

/* The last part, without slashes behind it. */
static u64 last_part(const char *path, u64 length, u64 *end)
{
	u64 start;

	while (length && path[length - 1] == '/')
		length--;
	for (start = length; start && path[start - 1] != '/'; start--)
		;
	*end = length;
	return start;
}

bool ends_above(const char *path, u64 length)
{
	u64 end, start = last_part(path, length, &end);

	return end - start == 2 && path[start] == '.' && path[start + 1] == '.';
}

static enum path_end end_of(const char *path, u64 length)
{
	u64 end, start = last_part(path, length, &end);

	if (ends_above(path, length) || (end - start == 1 && path[start] == '.'))
		return DOTS_END;
	return end < length ? SLASH_END : NAME_END;
}

/* `work` is what was resolved so far: where it leads, if it is a name of what this process has already. */
static s64 follow(struct thread *self, char *work, u64 length)
{
	static char to[LONGEST_PATH];

	for (u32 i = 0; i < MOST_LINKS; i++) {
		s64 found = process_link(self, work, length, to);

		if (found <= 0)
			return found ?: (s64)length;
		memcpy(work, to, (u64)found);
		length = (u64)found;
	}
	return -ELOOP;
}

static s64 ended(char *to, u64 length, enum path_end end)
{
	s64 result = (s64)length;

	if (end != NAME_END && length > 1) {
		/* Whether it is a folder outside the kernel knows; these are files, whatever it says. */
		if (trusted_file(to, length) || is_secret(to, length))
			result = -ENOTDIR;
		to[length++] = '/';
		if (end == DOTS_END)
			to[length++] = '.';
	}
	to[length] = 0;
	return result;
}

/*
 * `to` is absolute, without "." and ".." and double slashes; behind it stands how it ends, "/" or "/.", if it is a folder that
 * is meant. `path` may be in `to`. `follows`: the last part may be a link, and what it leads to is meant.
 */
s64 resolve_path(struct thread *self, s32 folder, const char *path, u64 length, char *to, bool follows)
{
	static char work[LONGEST_PATH];
	static struct lock work_lock;
	struct open_file *file = NULL;
	u64 at = 1, next = 0, above = 0;
	s64 result = -ENAMETOOLONG;
	enum path_end end;

	if (!length)
		return -ENOENT;
	end = end_of(path, length);
	if (path[0] != '/' && folder != AT_FDCWD) {
		file = use(self, folder);
		if (!file || !file->path_length) {
			release(self, file);
			return file ? -ENOTDIR : -EBADF;
		}
	}
	lock(self, &work_lock);
	work[0] = '/';
	if (path[0] != '/') {
		at = file ? file->path_length : (u64)current_directory(self, work);
		if (file)
			memcpy(work, file->path, at);
		/* It may be a link itself, which was opened without being followed. */
		result = follow(self, work, at);
		if (result < 0)
			goto out;
		at = (u64)result;
		result = -ENAMETOOLONG;
	}
	while (next < length) {
		u64 start = next, size;

		while (next < length && path[next] != '/')
			next++;
		size = next - start;
		next++;
		if (!size || (size == 1 && path[start] == '.'))
			continue;
		above = 0;
		if (size == 2 && path[start] == '.' && path[start + 1] == '.') {
			above = at;
			at = drop_last(work, at);
			continue;
		}
		if (at + size + 3 > LONGEST_PATH)
			goto out;
		if (work[at - 1] != '/')
			work[at++] = '/';
		memcpy(work + at, path + start, size);
		at += size;
		if (!follows && next > length)
			continue;
		result = follow(self, work, at);
		if (result < 0)
			goto out;
		at = (u64)result;
		result = -ENAMETOOLONG;
	}
	if (at + 3 > LONGEST_PATH)
		goto out;
	memcpy(to, work, most(at, above));
	result = 0;
out:
	unlock(&work_lock);
	release(self, file);
	if (!result && above > at) {
		/* Of what is no folder there is nothing above. */
		to[above] = 0;
		result = require_folder(self, to, above);
	}
	return result ?: ended(to, at, end);
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

	return length < 0 ? length : resolve_path(self, folder, to, (u64)length, to, true);
}

s64 name_from(struct thread *self, s32 folder, u64 from, char *to)
{
	s64 length = copy_string_in(to, from, LONGEST_PATH);

	return length < 0 ? length : resolve_path(self, folder, to, (u64)length, to, false);
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

/* A folder on the way to what is named here. */
static bool is_above(u32 named, u64 named_length, const char *path, u64 length)
{
	const char *start = config_at(named);

	return named_length > length && !memcmp(start, path, length) && (length == 1 || start[length] == '/');
}

/* To what a rule names, or to the program itself, beside which some look for their files. */
bool is_folder_of_rule(const char *path, u64 length)
{
	for (u32 i = 0; i < CONFIG->rule_count; i++)
		if (is_above(rules[i].path, rules[i].length, path, length))
			return true;
	return is_above(CONFIG->program, CONFIG->program_length, path, length) || is_trusted_folder(path, length);
}

bool is_above_sealed(const char *path, u64 length)
{
	for (u32 i = 0; i < CONFIG->rule_count; i++)
		if (rules[i].kind == RULE_SEALED && is_above(rules[i].path, rules[i].length, path, length))
			return true;
	return false;
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
	char directory[LONGEST_PATH];
	u64 length = (u64)current_directory(self, directory);

	if (a[1] < length + 1)
		return -ERANGE;
	directory[length] = 0;
	return copy_out(a[0], directory, length + 1) ?: (s64)length + 1;
}

static s64 change_directory(struct thread *self, const char *path, u64 length)
{
	s64 result = require_folder(self, path, length);

	if (!result)
		set_directory(self, path, length);
	return result;
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
