/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Trusted files: the enclave holds the SHA-256 of each of their chunks. A chunk is copied in whole, then checked, then
 * used, so what the kernel changes afterwards is not seen. What they are besides (size, number) is known in here too.
 */
#include "files.h"
#include "handlers.h"

#define NR_PREAD 17
#define NR_CLOSE 3
#define CACHED 4

static struct {
	const struct config_file *file;
	u64 chunk;
	u64 age;
	u8 *data;
} cache[CACHED];
static u64 age;
static struct lock cache_lock;

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
	return (u64)(file - (const struct config_file *)config_at(CONFIG->files)) + 2;
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

static u64 chunk_bytes(const struct config_file *file, u64 chunk)
{
	return least(CHUNK, file->size - chunk * CHUNK);
}

/* Copied, then checked: 0 or -EIO. */
static s64 load(struct thread *self, s32 fd, const struct config_file *file, u64 chunk, u8 *to)
{
	u64 wanted = chunk_bytes(file, chunk), done = 0;
	u8 digest[HASH_BYTES];
	const u8 *hash = (const u8 *)CONFIG + file->hashes + chunk * HASH_BYTES;

	while (done < wanted) {
		u32 used = self->buffer_used;
		void *buffer = take_buffer(self, wanted - done);
		s64 part;

		if (!buffer)
			return -EIO;
		part = outside(self, NR_PREAD, (u64)fd, (u64)buffer, wanted - done, chunk * CHUNK + done, 0, 0);
		if (part > (s64)(wanted - done))
			attacked(self, "pread64 of %d bytes is answered by %d", wanted - done, (u64)part);
		if (part > 0)
			memcpy(to + done, buffer, (u64)part);
		self->buffer_used = used;
		if (part <= 0)
			return -EIO;
		done += (u64)part;
	}
	sha256(to, wanted, digest);
	if (!memcmp(digest, hash, HASH_BYTES))
		return 0;
	log_line(self, "the file %s is not the trusted one: its bytes from %d on are others", config_at(file->path),
		 chunk * CHUNK);
	return -EIO;
}

/* The lock is held, and is as long as the data are used. */
static u8 *find_chunk(struct thread *self, s32 fd, const struct config_file *file, u64 chunk)
{
	u32 oldest = 0;

	for (u32 i = 0; i < CACHED; i++) {
		if (cache[i].file == file && cache[i].chunk == chunk) {
			cache[i].age = ++age;
			return cache[i].data;
		}
		if (cache[i].age < cache[oldest].age)
			oldest = i;
	}
	if (!cache[oldest].data)
		cache[oldest].data = heap_take(self, CHUNK);
	cache[oldest].file = NULL;
	if (!cache[oldest].data || load(self, fd, file, chunk, cache[oldest].data))
		return NULL;
	cache[oldest].file = file;
	cache[oldest].chunk = chunk;
	cache[oldest].age = ++age;
	return cache[oldest].data;
}

s64 read_trusted(struct thread *self, s32 fd, const struct config_file *file, u64 offset, u64 to, u64 bytes)
{
	u64 done = 0;
	s64 result = 0;

	if (offset >= file->size)
		return 0;
	bytes = least(bytes, file->size - offset);
	lock(self, &cache_lock);
	while (done < bytes && !result) {
		u64 chunk = (offset + done) / CHUNK, at = (offset + done) % CHUNK;
		u64 part = least(bytes - done, chunk_bytes(file, chunk) - at);
		const u8 *data = find_chunk(self, fd, file, chunk);

		if (!data)
			result = -EIO;
		else
			result = copy_out(to + done, data + at, part);
		if (!result)
			done += part;
	}
	unlock(&cache_lock);
	return done ? (s64)done : result;
}
