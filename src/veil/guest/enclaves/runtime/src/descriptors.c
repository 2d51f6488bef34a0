/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Descriptors: which are open, and on what. */
#include "files.h"
#include "handlers.h"

#define NR_CLOSE 3
#define LARGEST_DESCRIPTOR 0x7fffffff

static struct open_file *descriptors[DESCRIPTORS];
static struct lock files_lock;

void descriptors_start(void)
{
	struct thread *self = thread_of(0);

	for (s32 fd = 0; fd < 3; fd++)
		descriptors[fd] = new_file(self, FILE_OUTSIDE, NULL, 0);
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
	close_secret(self, file);
	close_sealed(self, file);
	heap_give(self, file);
}

s64 new_descriptor(struct thread *self, s64 fd, struct open_file *file)
{
	bool taken;

	if (fd < 0 || fd > LARGEST_DESCRIPTOR)
		attacked(self, "the kernel gives descriptor %x, which is none", (u64)fd);
	if (fd < 0 || fd >= DESCRIPTORS) {
		outside(self, NR_CLOSE, (u64)fd, 0, 0, 0, 0, 0);
		release(self, file);
		return -EMFILE;
	}
	file = file ?: new_file(self, FILE_OUTSIDE, NULL, 0);
	if (!file) {
		outside(self, NR_CLOSE, (u64)fd, 0, 0, 0, 0, 0);
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
		return new_descriptor(self, fd, file);
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
	if (result >= 0 && (u64)result < least_number)
		attacked(self, "a descriptor from %d on is asked for, and %d is given", least_number, (u64)result);
	if (result >= 0)
		return new_descriptor(self, result, file);
	release(self, file);
	return result;
}
