/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reading, writing and where in a file that happens. */
#include "files.h"
#include "handlers.h"

#define NR_READ 0
#define NR_WRITE 1
#define NR_LSEEK 8
#define NR_PREAD 17
#define NR_PWRITE 18
#define NR_SENDFILE 40
#define MOST_VECTORS 1024
#define FEW_VECTORS 16
#define LONGEST 0x7ffff000
#define SEEK_SET 0
#define SEEK_CUR 1
#define SEEK_END 2
#define SEEK_HOLE 4
#define NO_OFFSET (~(u64)0)

struct vector {
	u64 base, length;
};

/* Once. Bytes read, checked to be no more than asked for. */
static s64 read_once(struct thread *self, s32 fd, u64 to, u64 bytes, u64 offset)
{
	u32 used = self->buffer_used;
	u64 part = least(bytes, buffer_left(self));
	void *buffer = take_buffer(self, part);
	s64 result = outside(self, offset == NO_OFFSET ? NR_READ : NR_PREAD, (u64)fd, (u64)buffer, part, offset, 0, 0);

	self->buffer_used = used;
	if (result > (s64)part)
		attacked(self, "a read of %d bytes is answered by %d", part, (u64)result);
	if (result > 0 && copy_out(to, buffer, (u64)result))
		return -EFAULT;
	return result;
}

static s64 write_once(struct thread *self, s32 fd, u64 from, u64 bytes, u64 offset)
{
	u32 used = self->buffer_used;
	u64 part = least(bytes, buffer_left(self));
	void *buffer = take_buffer(self, part);
	s64 result = -EFAULT;

	if (!copy_in(buffer, from, part))
		result = outside(self, offset == NO_OFFSET ? NR_WRITE : NR_PWRITE, (u64)fd, (u64)buffer, part, offset,
				 0, 0);
	self->buffer_used = used;
	if (result > (s64)part)
		attacked(self, "a write of %d bytes is answered by %d", part, (u64)result);
	return result;
}

/* More than the window holds: in parts, as long as each is done whole. */
static s64 in_parts(struct thread *self, s64 (*once)(struct thread *, s32, u64, u64, u64), s32 fd, u64 place, u64 bytes,
		    u64 offset)
{
	u64 done = 0;

	do {
		u64 room = buffer_left(self);
		s64 result = once(self, fd, place + done, bytes - done, offset == NO_OFFSET ? offset : offset + done);

		if (result < 0)
			return done ? (s64)done : result;
		done += (u64)result;
		if ((u64)result < room)
			break;
	} while (done < bytes);
	return (s64)done;
}

static s64 read_from(struct thread *self, struct open_file *file, s32 fd, u64 to, u64 bytes, u64 offset)
{
	u8 random[64];
	s64 result;

	if ((file->access & O_ACCMODE) == 1)
		return -EBADF;
	bytes = least(bytes, LONGEST);
	switch (file->kind) {
	case FILE_TRUSTED:
		if (offset != NO_OFFSET)
			return read_trusted(self, fd, file->trusted, offset, to, bytes);
		lock(self, &file->lock);
		result = read_trusted(self, fd, file->trusted, file->offset, to, bytes);
		if (result > 0)
			file->offset += (u64)result;
		unlock(&file->lock);
		return result;
	case FILE_SEALED:
		return read_sealed(self, file, fd, to, bytes, offset);
	case FILE_SECRET:
		return read_secret(self, file, to, bytes, offset);
	case FILE_RANDOM:
		for (u64 done = 0; done < bytes; done += sizeof(random)) {
			u64 part = least(sizeof(random), bytes - done);

			random_bytes(self, random, part);
			if (copy_out(to + done, random, part))
				return -EFAULT;
		}
		return (s64)bytes;
	default:
		if (!bytes || !is_user(to, bytes))
			return bytes ? -EFAULT : 0;
		/* A pipe or a socket has what it has: to ask again could wait. */
		if (bytes <= buffer_left(self) || !is_regular(self, fd))
			return read_once(self, fd, to, bytes, offset);
		return in_parts(self, read_once, fd, to, bytes, offset);
	}
}

static s64 write_to(struct thread *self, struct open_file *file, s32 fd, u64 from, u64 bytes, u64 offset)
{
	bytes = least(bytes, LONGEST);
	switch (file->kind) {
	case FILE_TRUSTED:
	case FILE_SECRET:
		return -EBADF;
	case FILE_SEALED:
		return write_sealed(self, file, fd, from, bytes, offset);
	case FILE_RANDOM:
		return (s64)bytes;
	default:
		return in_parts(self, write_once, fd, from, bytes, offset);
	}
}

typedef s64 (*transfer)(struct thread *, struct open_file *, s32, u64, u64, u64);

static s64 one(struct thread *self, transfer way, const u64 *a, u64 offset)
{
	struct open_file *file = use(self, (s32)a[0]);
	s64 result;

	if (!file)
		return -EBADF;
	result = way(self, file, (s32)a[0], a[1], a[2], offset);
	release(self, file);
	if (way == write_to && result == -EPIPE)
		signal_self(self, self, SIGPIPE, SI_USER);
	return result;
}

static s64 many(struct thread *self, transfer way, const u64 *a, u64 offset)
{
	struct open_file *file = use(self, (s32)a[0]);
	s64 result = 0;
	u64 done = 0;

	if (!file)
		return -EBADF;
	if (a[2] > MOST_VECTORS)
		result = -EINVAL;
	for (u64 i = 0; i < a[2] && result >= 0; i++) {
		struct vector vector;

		result = copy_in(&vector, a[1] + i * sizeof(vector), sizeof(vector));
		if (!result && (s64)vector.length < 0)
			result = -EINVAL;
		if (result < 0 || !vector.length)
			continue;
		result = way(self, file, (s32)a[0], vector.base, vector.length,
			     offset == NO_OFFSET ? offset : offset + done);
		if (result > 0)
			done += (u64)result;
		if (result < (s64)vector.length)
			break;
	}
	release(self, file);
	if (way == write_to && result == -EPIPE)
		signal_self(self, self, SIGPIPE, SI_USER);
	return done ? (s64)done : result;
}

/* Room in the window for small vectors together, and what they are; NULL: they are no such. */
static u8 *take_vectors(struct thread *self, const u64 *a, struct vector vectors[FEW_VECTORS], u64 *total)
{
	*total = 0;
	if (a[2] > FEW_VECTORS || !is_open((s32)a[0]) || copy_in(vectors, a[1], a[2] * sizeof(*vectors)))
		return NULL;
	for (u64 i = 0; i < a[2]; i++) {
		if (vectors[i].length > buffer_left(self))
			return NULL;
		*total += vectors[i].length;
	}
	return *total <= buffer_left(self) ? take_buffer(self, *total) : NULL;
}

/* Small vectors come in together: a packet fills all of them, and a pipe is not waited for once something is there. */
static s64 scattered(struct thread *self, const u64 *a, u64 offset)
{
	struct vector vectors[FEW_VECTORS];
	u64 total;
	u8 *buffer = take_vectors(self, a, vectors, &total);
	s64 result;

	if (!buffer)
		return -E2BIG;
	result = outside(self, offset == NO_OFFSET ? NR_READ : NR_PREAD, a[0], (u64)buffer, total, offset, 0, 0);
	if (result > (s64)total)
		attacked(self, "a read of %d bytes is answered by %d", total, (u64)result);
	for (u64 i = 0, at = 0; result > 0 && at < (u64)result; i++) {
		u64 part = least(vectors[i].length, (u64)result - at);

		if (copy_out(vectors[i].base, buffer + at, part))
			return -EFAULT;
		at += part;
	}
	return result;
}

/* Small vectors go out together: a packet stays one, and a line is written by one call. */
static s64 gathered(struct thread *self, const u64 *a, u64 offset)
{
	struct vector vectors[FEW_VECTORS];
	u64 total;
	u8 *buffer = take_vectors(self, a, vectors, &total);
	s64 result;

	if (!buffer)
		return -E2BIG;
	for (u64 i = 0, at = 0; i < a[2]; at += vectors[i++].length)
		if (copy_in(buffer + at, vectors[i].base, vectors[i].length))
			return -EFAULT;
	result = outside(self, offset == NO_OFFSET ? NR_WRITE : NR_PWRITE, a[0], (u64)buffer, total, offset, 0, 0);
	if (result > (s64)total)
		attacked(self, "a write of %d bytes is answered by %d", total, (u64)result);
	if (result == -EPIPE)
		signal_self(self, self, SIGPIPE, SI_USER);
	return result;
}

static bool is_outside(struct thread *self, s32 fd)
{
	struct open_file *file = use(self, fd);
	bool good = file && file->kind == FILE_OUTSIDE;

	release(self, file);
	return good;
}

HANDLER(do_read)
{
	return one(self, read_from, a, NO_OFFSET);
}

HANDLER(do_write)
{
	return one(self, write_to, a, NO_OFFSET);
}

HANDLER(do_pread)
{
	return (s64)a[3] < 0 ? -EINVAL : one(self, read_from, a, a[3]);
}

HANDLER(do_pwrite)
{
	return (s64)a[3] < 0 ? -EINVAL : one(self, write_to, a, a[3]);
}

HANDLER(do_readv)
{
	bool placed = self->regs.rax == 295;
	s64 result;

	if (placed && (s64)a[3] < 0)
		return -EINVAL;
	if (is_outside(self, (s32)a[0])) {
		result = scattered(self, a, placed ? a[3] : NO_OFFSET);
		if (result != -E2BIG)
			return result;
	}
	self->buffer_used = 0;
	return many(self, read_from, a, placed ? a[3] : NO_OFFSET);
}

HANDLER(do_writev)
{
	bool placed = self->regs.rax == 296;
	s64 result;

	if (placed && (s64)a[3] < 0)
		return -EINVAL;
	if (is_outside(self, (s32)a[0])) {
		result = gathered(self, a, placed ? a[3] : NO_OFFSET);
		if (result != -E2BIG)
			return result;
	}
	self->buffer_used = 0;
	return many(self, write_to, a, placed ? a[3] : NO_OFFSET);
}

s64 pread_file(struct thread *self, s32 fd, u64 to, u64 bytes, u64 offset)
{
	struct open_file *file = use(self, fd);
	s64 result;

	if (!file)
		return -EBADF;
	result = read_from(self, file, fd, to, bytes, offset);
	release(self, file);
	return result;
}

/* Of a kind that the runtime reads itself. */
static u64 size_inside(const struct open_file *file)
{
	if (file->kind == FILE_SECRET)
		return file->secret_size;
	return file->kind == FILE_TRUSTED ? file->trusted->size : sealed_size(file);
}

/* Where a file may be then. A device that knows no places answers 0, whatever it is asked. */
static bool is_place(struct thread *self, const u64 *a, s64 result)
{
	s64 asked = (s64)a[1];

	if (a[2] == SEEK_SET ? result == asked : result >= asked)
		return true;
	return !result && !is_regular(self, (s32)a[0]);
}

HANDLER(do_lseek)
{
	struct open_file *file = use(self, (s32)a[0]);
	s64 base, result;

	if (!file)
		return -EBADF;
	if (file->kind == FILE_OUTSIDE || file->kind == FILE_RANDOM) {
		release(self, file);
		if (a[2] > SEEK_HOLE)
			return -EINVAL;
		result = outside(self, NR_LSEEK, a[0], a[1], a[2], 0, 0, 0);
		if (result >= 0 && !is_place(self, a, result))
			attacked(self, "lseek is answered by %x, where the file cannot be", (u64)result);
		return result;
	}
	lock(self, &file->lock);
	base = a[2] == SEEK_SET ? 0 : a[2] == SEEK_CUR ? (s64)file->offset : (s64)size_inside(file);
	if (a[2] > SEEK_END || __builtin_add_overflow(base, (s64)a[1], &result) || result < 0)
		result = -EINVAL;
	else
		file->offset = (u64)result;
	unlock(&file->lock);
	release(self, file);
	return result;
}

/* What is not checked in here on its way from one file to another is the kernel's to bring there. */
static s64 send_outside(struct thread *self, const u64 *a)
{
	u64 count = least(a[3], LONGEST), offset = 0;
	u64 *shared = a[2] ? take_buffer(self, sizeof(offset)) : NULL;
	s64 result;

	if (a[2]) {
		if (copy_in(&offset, a[2], sizeof(offset)))
			return -EFAULT;
		*shared = offset;
	}
	result = outside(self, NR_SENDFILE, a[0], a[1], (u64)shared, count, 0, 0);
	if (result > (s64)count)
		attacked(self, "sendfile of %d bytes is answered by %d", count, (u64)result);
	if (result == -EPIPE)
		signal_self(self, self, SIGPIPE, SI_USER);
	if (result <= 0 || !a[2])
		return result;
	/* Not what the kernel wrote there: it follows from the result. */
	offset += (u64)result;
	return copy_out(a[2], &offset, sizeof(offset)) ?: result;
}

/* In parts, through the window: the kernel's own way from one file to another would pass by what is checked in here. */
HANDLER(do_sendfile)
{
	struct open_file *from = use(self, (s32)a[1]), *to = use(self, (s32)a[0]);
	u64 left = least(a[3], LONGEST), offset = NO_OFFSET, done = 0, place = 0;
	s64 result = 0;

	if (from && to && from->kind == FILE_OUTSIDE && to->kind == FILE_OUTSIDE) {
		result = send_outside(self, a);
		release(self, from);
		release(self, to);
		return result;
	}
	if (!from || !to)
		result = -EBADF;
	else if (a[2] && copy_in(&offset, a[2], sizeof(offset)))
		result = -EFAULT;
	if (!result) {
		result = memory_map(self, 0, 16 * PAGE, 3, 0x22, -1, 0);
		place = result > 0 ? (u64)result : 0;
	}
	while (place && left) {
		u64 sent = 0;
		s64 got = read_from(self, from, (s32)a[1], place, least(left, 16 * PAGE),
				    offset == NO_OFFSET ? offset : offset + done);

		result = got;
		if (got <= 0)
			break;
		while (sent < (u64)got) {
			result = write_to(self, to, (s32)a[0], place + sent, (u64)got - sent, NO_OFFSET);
			if (result <= 0)
				break;
			sent += (u64)result;
		}
		done += sent;
		left -= sent;
		if (sent < (u64)got) {
			/* What was read and not sent is read again the next time. */
			if (offset == NO_OFFSET)
				do_lseek(self, (const u64[6]){ a[1], sent - (u64)got, SEEK_CUR });
			break;
		}
	}
	if (place)
		memory_unmap(self, place, 16 * PAGE);
	if (a[2] && done) {
		offset += done;
		if (copy_out(a[2], &offset, sizeof(offset)))
			result = -EFAULT;
	}
	release(self, from);
	release(self, to);
	return done ? (s64)done : result;
}
