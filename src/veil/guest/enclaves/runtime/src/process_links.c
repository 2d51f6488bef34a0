/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Names in /proc and /dev by which a process reaches what it has already: its descriptors, its directory, its program, all that
 * there is below its root. The kernel follows each to the file itself, past all that the manifest says of paths: a sealed file
 * would be opened as one outside, and what is written would go out in the clear. So where they lead is known in here.
 */
#include "process_links.h"
#include "directory.h"
#include "files.h"
#include "runtime.h"

#define NO_NUMBER (~(u64)0)
#define MOST_DIGITS 9

enum name_kind { NO_NAME, DESCRIPTOR_NAME, ROOT_NAME, DIRECTORY_NAME, PROGRAM_NAME, MAPPED_NAME, MAP_NAME };

struct name {
	enum name_kind kind;
	u64 process; /* or a thread; 0: by a name that is the process's own */
	u64 descriptor;
};

/* What is left of a path. */
struct rest {
	const char *at, *end;
};

static bool take(struct rest *rest, const char *text)
{
	const char *at = rest->at;

	for (; *text; text++)
		if (at == rest->end || *at++ != *text)
			return false;
	if (at < rest->end && *at != '/')
		return false;
	rest->at = at;
	return true;
}

/* "/" and a number, as Linux writes it; NO_NUMBER for one that nothing has. */
static bool take_number(struct rest *rest, u64 *number)
{
	const char *at = rest->at;
	u64 value = 0, digits;

	if (at == rest->end || *at++ != '/')
		return false;
	for (digits = 0; at < rest->end && *at >= '0' && *at <= '9'; at++, digits++)
		value = digits < MOST_DIGITS ? value * 10 + (u64)(*at - '0') : NO_NUMBER;
	if (!digits || (at < rest->end && *at != '/'))
		return false;
	*number = digits > MOST_DIGITS || (digits > 1 && rest->at[1] == '0') ? NO_NUMBER : value;
	rest->at = at;
	return true;
}

/* /proc/self and its like, with task/TID behind it or not. */
static bool take_process(struct rest *rest, struct name *name)
{
	u64 thread;

	if (!take(rest, "/proc"))
		return false;
	if (!take(rest, "/self") && !take(rest, "/thread-self") && !take_number(rest, &name->process))
		return false;
	return !take(rest, "/task") || take_number(rest, &thread);
}

static enum name_kind kind_in_process(struct rest *rest, struct name *name)
{
	if (take(rest, "/fd"))
		return take_number(rest, &name->descriptor) ? DESCRIPTOR_NAME : NO_NAME;
	if (take(rest, "/map_files"))
		return rest->at < rest->end ? MAPPED_NAME : NO_NAME;
	if (take(rest, "/maps"))
		return MAP_NAME;
	if (take(rest, "/root"))
		return ROOT_NAME;
	if (take(rest, "/cwd"))
		return DIRECTORY_NAME;
	return take(rest, "/exe") ? PROGRAM_NAME : NO_NAME;
}

static struct name name_of(const char *path, u64 length)
{
	static const char *const streams[] = { "/dev/stdin", "/dev/stdout", "/dev/stderr" };
	struct rest rest = { path, path + length };
	struct name name = { 0 };

	for (u64 i = 0; i < LENGTH(streams); i++)
		if (take(&rest, streams[i]))
			name = (struct name){ DESCRIPTOR_NAME, 0, i };
	if (take(&rest, "/dev/fd") && take_number(&rest, &name.descriptor))
		name.kind = DESCRIPTOR_NAME;
	else if (!name.kind && take_process(&rest, &name))
		name.kind = kind_in_process(&rest, &name);
	/* What is behind a link is another path, which begins where it leads. */
	if (rest.at < rest.end && name.kind != MAPPED_NAME)
		name.kind = NO_NAME;
	return name;
}

static bool is_own(struct thread *self, u64 process)
{
	if (!process)
		return true;
	return process != NO_NUMBER && ((s32)process == process_number(self) || thread_by_number((s32)process));
}

static s64 lead_to(const char *path, u64 length, char *to)
{
	memcpy(to, path, length);
	return (s64)length;
}

/* Under the path by which it was opened. */
static s64 path_of_descriptor(struct thread *self, u64 number, char *to)
{
	struct open_file *file = number < DESCRIPTORS ? use(self, (s32)number) : NULL;
	s64 length;

	if (!file)
		return -ENOENT;
	length = lead_to(file->path, file->path_length, to);
	release(self, file);
	return length;
}

s64 process_link(struct thread *self, const char *path, u64 length, char *to)
{
	struct name name = name_of(path, length);

	if (name.kind == NO_NAME || name.kind == MAP_NAME)
		return 0;
	/* What another one has open, the kernel alone knows; and what is mapped it finds by no path. */
	if (!is_own(self, name.process) || name.kind == MAPPED_NAME)
		return -EACCES;
	switch (name.kind) {
	case DESCRIPTOR_NAME:
		return path_of_descriptor(self, name.descriptor, to);
	case DIRECTORY_NAME:
		return current_directory(self, to);
	case PROGRAM_NAME:
		return lead_to(config_at(CONFIG->program), CONFIG->program_length, to);
	default:
		return lead_to("/", 1, to);
	}
}

bool names_descriptor(const char *path, u64 length)
{
	return name_of(path, length).kind == DESCRIPTOR_NAME;
}

bool names_own_map(struct thread *self, const char *path, u64 length)
{
	struct name name = name_of(path, length);

	return name.kind == MAP_NAME && is_own(self, name.process);
}
