/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Secrets that an owner of the CVM sends to enclaves of this measurement: to the program they are files below /run/secrets.
 * There is nothing of them outside. What is in one comes from the service, in the mailbox, which nobody else can write; so
 * the kernel has no say about these paths, not even whether they are links.
 */
#include "files.h"
#include "handlers.h"

#define NR_CLOSE 3
#define NR_CLOCK_NANOSLEEP 230
#define CLOCK_MONOTONIC 1
#define FIRST_PAUSE 20000000 /* nanoseconds */
#define SECOND 1000000000
#define NUMBERS ((u64)1 << 32) /* of inodes: behind those of trusted files */

bool is_secret(const char *path, u64 length)
{
	const struct config_rule *rule = rule_of(path, length);

	return rule && rule->kind == RULE_SECRET;
}

u64 secret_number(const char *path, u64 length)
{
	const struct config_rule *rule = rule_of(path, length);

	/* Of what is no secret, but known in here as one is, the next. */
	return NUMBERS + (is_secret(path, length) ? (u64)(rule - (const struct config_rule *)config_at(CONFIG->rules))
						  : CONFIG->rule_count);
}

/* -EINTR if a signal comes. How long it takes is the kernel's to say: whoever is asked again says whether it is there. */
static s64 pause_for(struct thread *self, u64 nanoseconds)
{
	u32 used = self->buffer_used;
	u64 *time = take_buffer(self, 2 * sizeof(*time));
	s64 result;

	if (!time)
		return -ENOMEM;
	WRITE_ONCE(time[0], nanoseconds / SECOND);
	WRITE_ONCE(time[1], nanoseconds % SECOND);
	result = outside(self, NR_CLOCK_NANOSLEEP, CLOCK_MONOTONIC, 0, (u64)time, 0, 0, 0);
	self->buffer_used = used;
	return result == -EINTR || signal_waits(self) ? -EINTR : 0;
}

/* Its bytes, once it is there: how many, or a negative error. */
static s64 fetch(struct thread *self, const char *path, u64 length, bool waits, u8 *to)
{
	u64 start = length, pause = FIRST_PAUSE;
	bool told = false;

	while (path[start - 1] != '/')
		start--;
	for (;;) {
		s64 result = receive_secret(self, path + start, length - start, to, LONGEST_SECRET);

		if (result != -EAGAIN || !waits)
			return result;
		if (!told)
			log_line(self, "waits for the secret %s", path + start);
		told = true;
		result = pause_for(self, pause);
		if (result)
			return result;
		pause = least(2 * pause, SECOND);
	}
}

static void wipe(struct thread *self, u8 *data)
{
	if (data)
		memset(data, 0, LONGEST_SECRET);
	heap_give(self, data);
}

s64 secret_bytes(struct thread *self, const char *path, u64 length)
{
	u8 *data = heap_take(self, LONGEST_SECRET);
	s64 result = data ? fetch(self, path, length, true, data) : -ENOMEM;

	wipe(self, data);
	return result;
}

s64 open_inside(struct thread *self, const char *path, u64 length, u64 flags, u8 *data, u64 size)
{
	/* A number that no other file has, of a file that nobody reads. */
	s64 fd = open_outside(self, "/dev/null", 9, flags & O_CLOEXEC, 0);
	struct open_file *file = fd < 0 ? NULL : new_file(self, FILE_SECRET, path, length);

	if (!file) {
		wipe(self, data);
		if (fd >= 0)
			outside(self, NR_CLOSE, (u64)fd, 0, 0, 0, 0, 0);
		return fd < 0 ? fd : -ENOMEM;
	}
	file->access = 0;
	file->secret = data;
	file->secret_size = size;
	return new_descriptor(self, (s32)least((u64)fd, DESCRIPTORS), file);
}

s64 open_secret(struct thread *self, const char *path, u64 length, u64 flags)
{
	s64 size;
	u8 *data;

	if (flags & O_DIRECTORY)
		return -ENOTDIR;
	data = heap_take(self, LONGEST_SECRET);
	size = data ? fetch(self, path, length, !(flags & O_NONBLOCK), data) : -ENOMEM;
	if (size >= 0)
		return open_inside(self, path, length, flags, data, (u64)size);
	wipe(self, data);
	return size;
}

void close_secret(struct thread *self, struct open_file *file)
{
	wipe(self, file->secret);
}

/* As it was when it was opened, whatever was sent since. */
s64 read_secret(struct thread *self, struct open_file *file, u64 to, u64 bytes, u64 offset)
{
	bool placed = offset != ~(u64)0;
	u64 at;
	s64 result;

	lock(self, &file->lock);
	at = placed ? offset : file->offset;
	bytes = at < file->secret_size ? least(bytes, file->secret_size - at) : 0;
	result = copy_out(to, file->secret + at, bytes);
	if (!result && !placed)
		file->offset += bytes;
	unlock(&file->lock);
	return result ?: (s64)bytes;
}
