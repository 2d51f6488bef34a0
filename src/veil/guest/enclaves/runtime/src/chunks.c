/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Chunks of trusted files: the enclave holds the BLAKE2b of each. One is copied in whole, then checked, then used, so what
 * the kernel changes afterwards is not seen.
 */
#include "files.h"

#define NR_PREAD 17
#define NR_SCHED_YIELD 24
#define CACHED 4

static struct cached {
	const struct config_file *file;
	u64 chunk;
	u64 age;
	u32 users;
	u8 *data; /* begins with a page */
} cache[CACHED];
static u64 age;
/*
 * Of the users. A read copies to the program's memory, and a fault of that may need a chunk: there is always one that no read
 * has.
 */
static u32 readers;
static struct lock cache_lock;

/* Copied, then checked. */
static bool load(struct thread *self, s32 fd, const struct config_file *file, u64 chunk, u8 *to)
{
	const u64 wanted = least(CHUNK, file->size - chunk * CHUNK);
	const u8 *hash = (const u8 *)CONFIG + file->hashes + chunk * HASH_BYTES, *buffer = chunk_buffer(self);
	u8 digest[HASH_BYTES];

	for (u64 done = 0; done < wanted;) {
		s64 part = outside(self, NR_PREAD, (u64)fd, (u64)buffer, wanted - done, chunk * CHUNK + done, 0, 0);

		if (part > (s64)(wanted - done))
			attacked(self, "pread64 of %d bytes is answered by %d", wanted - done, (u64)part);
		if (part <= 0)
			return false;
		memcpy(to + done, buffer, (u64)part);
		done += (u64)part;
	}
	memset(to + wanted, 0, CHUNK - wanted);
	blake2b(to, wanted, digest);
	if (!memcmp(digest, hash, HASH_BYTES))
		return true;
	log_line(self, "the file %s is not the trusted one: its bytes from %d on are others", config_at(file->path),
		 chunk * CHUNK);
	return false;
}

/* Where a chunk is, or where it can be put; NULL: all are in use. The lock is held. */
static struct cached *place_of(const struct config_file *file, u64 chunk)
{
	struct cached *oldest = NULL;

	for (u32 i = 0; i < CACHED; i++) {
		if (cache[i].file == file && cache[i].chunk == chunk)
			return &cache[i];
		if (!cache[i].users && (!oldest || cache[i].age < oldest->age))
			oldest = &cache[i];
	}
	return oldest;
}

/* The lock is held, and is as long as it takes. */
static bool fill(struct thread *self, struct cached *place, s32 fd, const struct config_file *file, u64 chunk)
{
	if (place->file == file && place->chunk == chunk)
		return true;
	place->file = NULL;
	if (!place->data) {
		u8 *room = heap_take(self, CHUNK + PAGE);

		place->data = room ? (u8 *)page_up((u64)room) : NULL;
	}
	if (!place->data || !load(self, fd, file, chunk, place->data))
		return false;
	place->file = file;
	place->chunk = chunk;
	return true;
}

const u8 *take_chunk(struct thread *self, s32 fd, const struct config_file *file, u64 chunk, bool reads)
{
	struct cached *place = NULL;
	const u8 *data = NULL;

	for (;;) {
		lock(self, &cache_lock);
		if (!reads || readers < CACHED - 1)
			place = place_of(file, chunk);
		if (place)
			break;
		unlock(&cache_lock);
		outside(self, NR_SCHED_YIELD, 0, 0, 0, 0, 0, 0);
	}
	if (fill(self, place, fd, file, chunk)) {
		place->age = ++age;
		place->users++;
		readers += reads;
		data = place->data;
	}
	unlock(&cache_lock);
	return data;
}

void give_chunk(struct thread *self, const u8 *data, bool reads)
{
	lock(self, &cache_lock);
	for (u32 i = 0; i < CACHED; i++)
		cache[i].users -= cache[i].data == data;
	readers -= reads;
	unlock(&cache_lock);
}
