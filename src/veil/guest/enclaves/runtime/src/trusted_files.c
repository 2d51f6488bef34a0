/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Trusted files: their content comes in chunks (chunks.c); what they are besides (size, number) is known in here too. */
#include "files.h"
#include "handlers.h"

#define NR_CLOSE 3
#define NR_FCNTL 72
#define F_DUPFD_CLOEXEC 1030
#define LARGEST_DESCRIPTOR 0x7fffffff
#define FIRST_NUMBER 2

static s32 compare(const char *a, u64 a_length, const char *b, u64 b_length)
{
	s32 order = memcmp(a, b, least(a_length, b_length));

	return order ? order : a_length < b_length ? -1 : a_length > b_length;
}

/* The first that is not before the path. */
static u32 search(const char *path, u64 length)
{
	const struct config_file *files = config_at(CONFIG->files);
	u32 low = 0, high = CONFIG->file_count;

	while (low < high) {
		u32 middle = (low + high) / 2;

		if (compare(config_at(files[middle].path), files[middle].length, path, length) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

const struct config_file *trusted_file(const char *path, u64 length)
{
	const struct config_file *files = config_at(CONFIG->files);
	u32 at = search(path, length);

	if (at == CONFIG->file_count || compare(config_at(files[at].path), files[at].length, path, length))
		return NULL;
	return &files[at];
}

bool is_trusted_folder(const char *path, u64 length)
{
	const struct config_file *files = config_at(CONFIG->files);
	char folder[LONGEST_PATH];
	u32 at;

	if (length + 2 > sizeof(folder))
		return false;
	memcpy(folder, path, length);
	if (folder[length - 1] != '/')
		folder[length++] = '/';
	at = search(folder, length);
	return at < CONFIG->file_count && files[at].length > length &&
	       !memcmp(config_at(files[at].path), folder, length);
}

u64 trusted_number(const struct config_file *file)
{
	return (u64)(file - (const struct config_file *)config_at(CONFIG->files)) + FIRST_NUMBER;
}

s64 open_trusted(struct thread *self, const struct config_file *trusted, const char *path, u32 flags)
{
	struct open_file *file;
	s64 fd;

	if ((flags & O_ACCMODE) || flags & O_TRUNC)
		return -EACCES;
	fd = open_outside(self, path, trusted->length, flags & O_CLOEXEC, 0);
	if (fd < 0)
		return fd;
	file = new_file(self, FILE_TRUSTED, path, trusted->length);
	if (!file) {
		outside(self, NR_CLOSE, (u64)fd, 0, 0, 0, 0, 0);
		return -ENOMEM;
	}
	file->trusted = trusted;
	file->access = 0;
	return new_descriptor(self, fd, file);
}

/*
 * By number: a descriptor of the process's outside, above all of the program's, by which maps are read when the program has
 * closed its own. The numbers are as many as the files; 0: there is none.
 */
static s32 *kept;
static struct lock kept_lock;

bool keep_trusted(struct thread *self, s32 fd, const struct config_file *file)
{
	const u64 number = trusted_number(file) - FIRST_NUMBER;
	s64 result = 0;

	lock(self, &kept_lock);
	if (!kept)
		kept = heap_take(self, CONFIG->file_count * sizeof(*kept));
	if (kept && !kept[number]) {
		result = outside(self, NR_FCNTL, (u64)fd, F_DUPFD_CLOEXEC, DESCRIPTORS, 0, 0, 0);
		if (result >= 0 && (result < DESCRIPTORS || result > LARGEST_DESCRIPTOR))
			attacked(self, "fcntl is answered by descriptor %x", (u64)result);
		if (result > 0)
			kept[number] = (s32)result;
	}
	result = kept ? kept[number] : 0;
	unlock(&kept_lock);
	return result;
}

s32 kept_descriptor(const struct config_file *file)
{
	return kept[trusted_number(file) - FIRST_NUMBER];
}

s64 read_trusted(struct thread *self, s32 fd, const struct config_file *file, u64 offset, u64 to, u64 bytes)
{
	u64 done = 0;
	s64 result = 0;

	if (offset >= file->size)
		return 0;
	bytes = least(bytes, file->size - offset);
	while (done < bytes && !result) {
		u64 at = (offset + done) % CHUNK, part = least(bytes - done, CHUNK - at);
		const u8 *data = take_chunk(self, fd, file, (offset + done) / CHUNK, true);

		if (!data) {
			result = -EIO;
			break;
		}
		result = copy_out(to + done, data + at, part);
		give_chunk(self, data, true);
		if (!result)
			done += part;
	}
	return done ? (s64)done : result;
}
