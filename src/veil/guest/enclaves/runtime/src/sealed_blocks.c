/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A sealed file outside is a head and blocks of 4 KiB, each with a nonce and a tag of its own. The enclave keeps the tag
 * of each block, so that no earlier block comes back while it runs; the head has a hash of all tags, so that blocks of
 * two states do not mix from one run to the next.
 */
#include "files.h"
#include "sealed_blocks.h"

#define NR_PREAD 17
#define NR_PWRITE 18
#define MAGIC 0x315245444c414553 /* "SEALDER1" */
#define MOST_BLOCKS 32767	 /* 128 MiB: its tags are as much as one block of the runtime's memory holds */
#define FEW_BLOCKS 15
#define LABEL "sealed files"

struct head {
	u8 nonce[SEAL_NONCE];
	u8 tag[SEAL_TAG];
	u8 pad[4];
	/* what follows is sealed */
	u64 magic, size;
	u8 identity[16];
	u8 tags[HASH_BYTES]; /* BLAKE2b of all blocks' tags */
};

/* What a block or a head is bound to. */
struct bound {
	u8 identity[16];
	u64 number;
};

struct sealed_block sealed_work;
struct lock sealed_work_lock;
static u8 key[SEAL_KEY];
static bool has_key;

#define HEAD_SEALED (sizeof(struct head) - offsetof(struct head, magic))

u64 sealed_blocks(u64 size)
{
	return (size + SEALED_BLOCK - 1) / SEALED_BLOCK;
}

u64 sealed_place(u64 block)
{
	return sizeof(struct head) + block * sizeof(struct sealed_block);
}

u64 sealed_guess(s64 size)
{
	if (size <= (s64)sizeof(struct head))
		return 0;
	return ((u64)size - sizeof(struct head)) / sizeof(struct sealed_block) * SEALED_BLOCK;
}

bool sealed_has_key(struct thread *self)
{
	has_key = has_key || derive_key(self, LABEL, sizeof(LABEL) - 1, key);
	return has_key;
}

/* All, or a negative error. */
static s64 transfer(struct thread *self, u64 nr, s32 fd, void *own, u64 bytes, u64 offset)
{
	u32 used = self->buffer_used;
	void *shared = take_buffer(self, bytes);
	u64 done = 0;
	s64 result = -EIO;

	if (!shared)
		return -EIO;
	if (nr == NR_PWRITE)
		memcpy(shared, own, bytes);
	while (done < bytes) {
		s64 part = outside(self, nr, (u64)fd, (u64)shared + done, bytes - done, offset + done, 0, 0);

		if (part > (s64)(bytes - done))
			attacked(self, "%d bytes of a sealed file are answered by %d", bytes - done, (u64)part);
		if (part <= 0) {
			result = part ?: -EIO;
			break;
		}
		done += (u64)part;
	}
	if (nr == NR_PREAD)
		memcpy(own, shared, done);
	self->buffer_used = used;
	return done == bytes ? 0 : result;
}

bool sealed_room(struct thread *self, struct sealed_file *file, u64 blocks)
{
	u64 space = file->space ?: FEW_BLOCKS;
	u8(*bigger)[SEAL_TAG];

	if (blocks > MOST_BLOCKS)
		return false;
	/* With the head of a block of the runtime's memory a power of two. */
	while (space < blocks)
		space = 2 * space + 1;
	if (space == file->space)
		return true;
	bigger = heap_take(self, space * SEAL_TAG);
	if (!bigger)
		return false;
	if (file->space)
		memcpy(bigger, file->tags, file->space * SEAL_TAG);
	heap_give(self, file->tags);
	file->tags = bigger;
	file->space = space;
	return true;
}

static void hash_tags(const struct sealed_file *file, u8 digest[HASH_BYTES])
{
	blake2b(file->space ? (const u8 *)file->tags : (const u8 *)"", sealed_blocks(file->size) * SEAL_TAG, digest);
}

s64 sealed_write_head(struct thread *self, const struct sealed_file *file, s32 fd)
{
	struct head head = { .magic = MAGIC, .size = file->size };
	struct bound bound = { .number = ~(u64)0 };

	memcpy(head.identity, file->identity, sizeof(head.identity));
	hash_tags(file, head.tags);
	random_bytes(self, head.nonce, SEAL_NONCE);
	seal(key, head.nonce, (u8 *)&bound, sizeof(bound), (u8 *)&head.magic, HEAD_SEALED, head.tag);
	return transfer(self, NR_PWRITE, fd, &head, sizeof(head), 0);
}

s64 sealed_read_block(struct thread *self, struct sealed_file *file, s32 fd, u64 number)
{
	struct bound bound = { .number = number };

	memcpy(bound.identity, file->identity, sizeof(bound.identity));
	if (transfer(self, NR_PREAD, fd, &sealed_work, sizeof(sealed_work), sealed_place(number)))
		return -EIO;
	if (memcmp(sealed_work.tag, file->tags[number], SEAL_TAG) ||
	    !unseal(key, sealed_work.nonce, (u8 *)&bound, sizeof(bound), sealed_work.data, SEALED_BLOCK,
		    sealed_work.tag)) {
		log_line(self, "the sealed file %s is not as this enclave wrote it: block %d", file->path, number);
		return -EIO;
	}
	return 0;
}

s64 sealed_write_block(struct thread *self, struct sealed_file *file, s32 fd, u64 number)
{
	struct bound bound = { .number = number };
	s64 result;

	memcpy(bound.identity, file->identity, sizeof(bound.identity));
	random_bytes(self, sealed_work.nonce, SEAL_NONCE);
	seal(key, sealed_work.nonce, (u8 *)&bound, sizeof(bound), sealed_work.data, SEALED_BLOCK, sealed_work.tag);
	result = transfer(self, NR_PWRITE, fd, &sealed_work, sizeof(sealed_work), sealed_place(number));
	/* What was not written, on a full disk say, is as it was. */
	if (!result)
		memcpy(file->tags[number], sealed_work.tag, SEAL_TAG);
	return result;
}

s64 sealed_load(struct thread *self, struct sealed_file *file, s32 fd)
{
	struct head head;
	struct bound bound = { .number = ~(u64)0 };
	u8 digest[HASH_BYTES];

	if (transfer(self, NR_PREAD, fd, &head, sizeof(head), 0) ||
	    !unseal(key, head.nonce, (u8 *)&bound, sizeof(bound), (u8 *)&head.magic, HEAD_SEALED, head.tag) ||
	    head.magic != MAGIC || !sealed_room(self, file, sealed_blocks(head.size)))
		goto bad;
	file->size = head.size;
	memcpy(file->identity, head.identity, sizeof(file->identity));
	for (u64 i = 0; i < sealed_blocks(file->size); i++)
		if (transfer(self, NR_PREAD, fd, file->tags[i], SEAL_TAG,
			     sealed_place(i) + offsetof(struct sealed_block, tag)))
			goto bad;
	hash_tags(file, digest);
	if (!memcmp(digest, head.tags, HASH_BYTES))
		return 0;
bad:
	log_line(self, "the sealed file %s is not one that this enclave wrote", file->path);
	return -EIO;
}
