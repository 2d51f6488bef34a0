/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Descriptors, and paths by the manifest's rules. */
#include "files.h"
#include "handlers.h"

#define NR_CLOSE 3

static struct open_file *descriptors[DESCRIPTORS];
static struct lock files_lock;
static char directory[LONGEST_PATH];
static u64 directory_length;
static const struct config_rule *rules;

void files_start(void)
{
	struct thread *self = thread_of(0);

	for (s32 fd = 0; fd < 3; fd++)
		descriptors[fd] = new_file(self, FILE_OUTSIDE, NULL, 0);
	rules = config_at(CONFIG->rules);
	memcpy(directory, config_at(CONFIG->directory), CONFIG->directory_length);
	directory_length = CONFIG->directory_length;
}

struct open_file *new_file(struct thread *self, u32 kind, const char *path, u64 length)
{
	struct open_file *file = heap_take(self, sizeof(*file) + length + 1);

	if (!file)
		return NULL;
	file->kind = kind;
	file->users = 1;
	file->access = 2;
	file->path_length = (u32)length;
	if (path)
		memcpy(file->path, path, length);
	return file;
}

bool is_open(s32 fd)
{
	return fd >= 0 && fd < DESCRIPTORS && READ_ONCE(descriptors[fd]);
}

struct open_file *use(struct thread *self, s32 fd)
{
	struct open_file *file = NULL;

	if (fd < 0 || fd >= DESCRIPTORS)
		return NULL;
	lock(self, &files_lock);
	file = descriptors[fd];
	if (file)
		file->users++;
	unlock(&files_lock);
	return file;
}

void release(struct thread *self, struct open_file *file)
{
	bool last;

	if (!file)
		return;
	lock(self, &files_lock);
	last = !--file->users;
	unlock(&files_lock);
	if (!last)
		return;
	forget_watched(self, file);
	heap_give(self, file);
}

s64 new_descriptor(struct thread *self, s32 fd, struct open_file *file)
{
	bool taken;

	if (fd >= DESCRIPTORS || fd < 0) {
		outside(self, NR_CLOSE, (u64)(u32)fd, 0, 0, 0, 0, 0);
		release(self, file);
		return -EMFILE;
	}
	file = file ?: new_file(self, FILE_OUTSIDE, NULL, 0);
	if (!file) {
		outside(self, NR_CLOSE, (u64)(u32)fd, 0, 0, 0, 0, 0);
		return -ENOMEM;
	}
	lock(self, &files_lock);
	taken = descriptors[fd];
	if (!taken)
		descriptors[fd] = file;
	unlock(&files_lock);
	/* Two files of the program's by one number: what it writes to one would go to the other. */
	if (taken)
		attacked(self, "the kernel gives descriptor %d, which is open", (u64)fd);
	return fd;
}

static struct open_file *take_descriptor(struct thread *self, s32 fd, struct open_file *instead)
{
	struct open_file *file;

	lock(self, &files_lock);
	file = descriptors[fd];
	descriptors[fd] = instead;
	unlock(&files_lock);
	return file;
}

HANDLER(do_close)
{
	s32 fd = (s32)a[0];

	if (!is_open(fd))
		return -EBADF;
	/* First here: once the kernel has closed it, another thread may be given the number. */
	release(self, take_descriptor(self, fd, NULL));
	outside(self, NR_CLOSE, (u64)fd, 0, 0, 0, 0, 0);
	return 0;
}

HANDLER(do_dup)
{
	struct open_file *file = use(self, (s32)a[0]);
	s64 fd;

	if (!file)
		return -EBADF;
	fd = outside(self, 32, a[0], 0, 0, 0, 0, 0);
	if (fd >= 0)
		return new_descriptor(self, (s32)least((u64)fd, DESCRIPTORS), file);
	release(self, file);
	return fd;
}

HANDLER(do_dup2)
{
	bool third = self->regs.rax == 292;
	s32 from = (s32)a[0], to = (s32)a[1];
	struct open_file *file;
	s64 result;

	if (to < 0 || to >= DESCRIPTORS || !is_open(from))
		return -EBADF;
	if (third && (from == to || a[2] & ~(u64)O_CLOEXEC))
		return -EINVAL;
	if (from == to)
		return to;
	file = use(self, from);
	if (!file)
		return -EBADF;
	result = outside(self, 292, (u64)from, (u64)to, third ? a[2] : 0, 0, 0, 0);
	if (result < 0) {
		release(self, file);
		return result;
	}
	if (result != to)
		attacked(self, "dup3 to %d is answered by %x", (u64)to, (u64)result);
	release(self, take_descriptor(self, to, file));
	return to;
}

s64 duplicate(struct thread *self, s32 fd, u64 command, u64 least_number)
{
	struct open_file *file = use(self, fd);
	s64 result;

	if (!file)
		return -EBADF;
	result = outside(self, 72, (u64)fd, command, least_number, 0, 0, 0);
	if (result >= 0)
		return new_descriptor(self, (s32)least((u64)result, DESCRIPTORS), file);
	release(self, file);
	return result;
}

/* Paths. A link outside may lead anywhere: what is passed through is not trusted anyway. */

static u64 drop_last(const char *path, u64 length)
{
	while (length > 1 && path[length - 1] != '/')
		length--;
	return length > 1 ? length - 1 : length;
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

	if (!length)
		return -ENOENT;
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
	memcpy(to, work, at);
	to[at] = 0;
	result = (s64)at;
out:
	unlock(&work_lock);
	release(self, file);
	return result;
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
	s64 result = path_allowed(path, length, false);

	if (result < 0)
		return result;
	lock(self, &files_lock);
	memcpy(directory, path, length);
	directory_length = length;
	unlock(&files_lock);
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
