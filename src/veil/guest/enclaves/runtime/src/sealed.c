/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Sealed files: outside there is only what this enclave's measurement has the key of. A file is a head and blocks of 4
 * KiB, each with a nonce and a tag of its own. The enclave keeps the tag of each block, so that no earlier block comes
 * back while it runs; the head has a hash of all tags, so that blocks of two states do not mix from one run to the next.
 * The kernel can still give back a whole file as it was before this run, and keep it from being written.
 */
#include "calls.h"
#include "files.h"
#include "handlers.h"
#include "seal.h"

#define NR_PREAD 17
#define NR_PWRITE 18
#define NR_FTRUNCATE 77
#define BLOCK 4096
#define MAGIC 0x315245444c414553 /* "SEALDER1" */
#define MOST_BLOCKS 32768	 /* 128 MiB: its tags are as much as one block of the runtime's memory holds */
#define LABEL "sealed files"

struct head {
	u8 nonce[SEAL_NONCE];
	u8 tag[SEAL_TAG];
	u8 pad[4];
	/* what follows is sealed */
	u64 magic, size;
	u8 identity[16];
	u8 tags[HASH_BYTES]; /* SHA-256 of all blocks' tags */
};

struct outside_block {
	u8 nonce[SEAL_NONCE];
	u8 tag[SEAL_TAG];
	u8 pad[4];
	u8 data[BLOCK];
};

/* What a block or a head is bound to. */
struct bound {
	u8 identity[16];
	u64 number;
};

/* One for each file that is open or was, by its path: as long as the enclave runs, what it last was is known. */
struct sealed_file {
	struct sealed_file *next;
	u64 size;
	u64 space; /* of `tags`, in blocks */
	u8 (*tags)[SEAL_TAG];
	u8 identity[16];
	u32 path_length;
	struct lock lock;
	char *path;
};

static struct sealed_file *known;
static struct lock known_lock;
static u8 key[SEAL_KEY];
static bool has_key;
static struct outside_block work;
static struct lock work_lock;

#define HEAD_SEALED (sizeof(struct head) - offsetof(struct head, magic))

static u64 blocks_of(u64 size)
{
	return (size + BLOCK - 1) / BLOCK;
}

static u64 place_of(u64 block)
{
	return sizeof(struct head) + block * sizeof(struct outside_block);
}

/* All or nothing: 0 or a negative error. */
static s64 transfer(struct thread *self, u64 nr, s32 fd, void *own, u64 bytes, u64 offset)
{
	u32 used = self->buffer_used;
	void *shared = take_buffer(self, bytes);
	u64 done = 0;

	if (!shared)
		return -EIO;
	if (nr == NR_PWRITE)
		memcpy(shared, own, bytes);
	while (done < bytes) {
		s64 part = outside(self, nr, (u64)fd, (u64)shared + done, bytes - done, offset + done, 0, 0);

		if (part > (s64)(bytes - done))
			attacked(self, "%d bytes of a sealed file are answered by %d", bytes - done, (u64)part);
		if (part <= 0)
			break;
		done += (u64)part;
	}
	if (nr == NR_PREAD)
		memcpy(own, shared, done);
	self->buffer_used = used;
	return done == bytes ? 0 : -EIO;
}

static bool make_room(struct thread *self, struct sealed_file *file, u64 blocks)
{
	u64 space = file->space ?: 16;
	u8(*bigger)[SEAL_TAG];

	if (blocks > MOST_BLOCKS)
		return false;
	while (space < blocks)
		space *= 2;
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
	sha256(file->space ? (const u8 *)file->tags : (const u8 *)"", blocks_of(file->size) * SEAL_TAG, digest);
}

static s64 write_head(struct thread *self, const struct sealed_file *file, s32 fd)
{
	struct head head = { .magic = MAGIC, .size = file->size };
	struct bound bound = { .number = ~(u64)0 };

	memcpy(head.identity, file->identity, sizeof(head.identity));
	hash_tags(file, head.tags);
	random_bytes(self, head.nonce, SEAL_NONCE);
	seal(key, head.nonce, (u8 *)&bound, sizeof(bound), (u8 *)&head.magic, HEAD_SEALED, head.tag);
	return transfer(self, NR_PWRITE, fd, &head, sizeof(head), 0);
}

/* work_lock is held, for the whole of what is done with `work`. */
static s64 read_block(struct thread *self, struct sealed_file *file, s32 fd, u64 number)
{
	struct bound bound = { .number = number };

	memcpy(bound.identity, file->identity, sizeof(bound.identity));
	if (transfer(self, NR_PREAD, fd, &work, sizeof(work), place_of(number)))
		return -EIO;
	if (memcmp(work.tag, file->tags[number], SEAL_TAG) ||
	    !unseal(key, work.nonce, (u8 *)&bound, sizeof(bound), work.data, BLOCK, work.tag)) {
		log_line(self, "the sealed file %s is not as this enclave wrote it: block %d", file->path, number);
		return -EIO;
	}
	return 0;
}

static s64 write_block(struct thread *self, struct sealed_file *file, s32 fd, u64 number)
{
	struct bound bound = { .number = number };

	memcpy(bound.identity, file->identity, sizeof(bound.identity));
	random_bytes(self, work.nonce, SEAL_NONCE);
	seal(key, work.nonce, (u8 *)&bound, sizeof(bound), work.data, BLOCK, work.tag);
	memcpy(file->tags[number], work.tag, SEAL_TAG);
	return transfer(self, NR_PWRITE, fd, &work, sizeof(work), place_of(number));
}

/* The file as an earlier run left it: its tags are read, and compared with the head's hash of them. */
static s64 load(struct thread *self, struct sealed_file *file, s32 fd)
{
	struct head head;
	struct bound bound = { .number = ~(u64)0 };
	u8 digest[HASH_BYTES];

	if (transfer(self, NR_PREAD, fd, &head, sizeof(head), 0) ||
	    !unseal(key, head.nonce, (u8 *)&bound, sizeof(bound), (u8 *)&head.magic, HEAD_SEALED, head.tag) ||
	    head.magic != MAGIC || !make_room(self, file, blocks_of(head.size)))
		goto bad;
	file->size = head.size;
	memcpy(file->identity, head.identity, sizeof(file->identity));
	for (u64 i = 0; i < blocks_of(file->size); i++)
		if (transfer(self, NR_PREAD, fd, file->tags[i], SEAL_TAG,
			     place_of(i) + offsetof(struct outside_block, tag)))
			goto bad;
	hash_tags(file, digest);
	if (!memcmp(digest, head.tags, HASH_BYTES))
		return 0;
bad:
	log_line(self, "the sealed file %s is not one that this enclave wrote", file->path);
	return -EIO;
}

static struct sealed_file *find(const char *path, u64 length)
{
	for (struct sealed_file *file = known; file; file = file->next)
		if (file->path_length == length && !memcmp(file->path, path, length))
			return file;
	return NULL;
}

/* Files that are open still use it, so it stays where it is. */
static void forget(struct sealed_file *file)
{
	if (file)
		file->path_length = 0;
}

static struct sealed_file *add(struct thread *self, const char *path, u64 length)
{
	struct sealed_file *file = heap_take(self, sizeof(*file));
	char *name = heap_take(self, length + 1);

	if (!file || !name) {
		heap_give(self, file);
		heap_give(self, name);
		return NULL;
	}
	memcpy(name, path, length);
	file->path = name;
	file->path_length = (u32)length;
	random_bytes(self, file->identity, sizeof(file->identity));
	file->next = known;
	known = file;
	return file;
}

/* `empty`: it begins anew, and is not read. `emptied`: the program wants that. */
static s64 prepare(struct thread *self, const char *path, u64 length, s32 fd, bool empty, bool emptied,
		   struct sealed_file **to)
{
	struct sealed_file *file = find(path, length);
	bool is_new = !file;
	s64 result = 0;

	if (file && file->size && empty && !emptied) {
		log_line(self, "the sealed file %s is empty, and this enclave did not make it so", file->path);
		return -EIO;
	}
	has_key = has_key || derive_key(self, LABEL, sizeof(LABEL) - 1, key);
	if (!has_key)
		return -EIO;
	file = file ?: add(self, path, length);
	if (!file)
		return -ENOMEM;
	lock(self, &file->lock);
	if (empty) {
		file->size = 0;
		result = write_head(self, file, fd);
	} else if (is_new) {
		result = load(self, file, fd);
	}
	unlock(&file->lock);
	/* Of one that was known it stays known that it is empty: what it was before must not come back. */
	if (result && is_new)
		forget(file);
	*to = file;
	return result;
}

static bool is_empty(struct thread *self, s32 fd)
{
	return outside(self, 8, (u64)fd, 0, 2, 0, 0, 0) == 0;
}

s64 open_sealed(struct thread *self, const char *path, u64 length, u64 flags, u64 mode)
{
	bool writes = flags & O_ACCMODE;
	struct sealed_file *sealed;
	struct open_file *file;
	s64 fd, result;

	/* To write a part of a block is to read it; and what was written last has the last word on where. */
	fd = open_outside(self, path, length, (flags & ~(u64)(O_ACCMODE | O_APPEND)) | (writes ? 2 : 0), mode);
	fd = opened(self, fd, FILE_SEALED, path, length, flags);
	if (fd < 0)
		return fd;
	lock(self, &known_lock);
	/*
	 * A file that is new has no head yet; to a reader that is a file that was not sealed. Whether one that is to be
	 * emptied was so is not the kernel's to say: what it held would be behind what the program writes now.
	 */
	result = prepare(self, path, length, (s32)fd, writes && (flags & O_TRUNC || is_empty(self, (s32)fd)),
			 flags & O_TRUNC, &sealed);
	unlock(&known_lock);
	if (result) {
		do_close(self, (const u64[6]){ (u64)fd });
		return result;
	}
	file = use(self, (s32)fd);
	if (!file)
		return -EBADF;
	file->sealed = sealed;
	release(self, file);
	return fd;
}

s64 read_sealed(struct thread *self, struct open_file *open, s32 fd, u64 to, u64 bytes, u64 offset)
{
	struct sealed_file *file = open->sealed;
	bool placed = offset != ~(u64)0;
	u64 at = placed ? offset : open->offset, done = 0;
	s64 result = 0;

	if (!file)
		return -EIO;
	lock(self, &file->lock);
	bytes = at < file->size ? least(bytes, file->size - at) : 0;
	while (done < bytes && !result) {
		u64 start = (at + done) % BLOCK, part = least(bytes - done, BLOCK - start);

		lock(self, &work_lock);
		result = read_block(self, file, fd, (at + done) / BLOCK);
		result = result ?: copy_out(to + done, work.data + start, part);
		unlock(&work_lock);
		done += result ? 0 : part;
	}
	if (!placed)
		open->offset += done;
	unlock(&file->lock);
	return done ? (s64)done : result;
}

/* Blocks between the end so far and a new end: zeros. */
static s64 extend(struct thread *self, struct sealed_file *file, s32 fd, u64 size)
{
	u64 old = blocks_of(file->size);
	s64 result = 0;

	if (size <= file->size)
		return 0;
	if (!make_room(self, file, blocks_of(size)))
		return -ENOSPC;
	for (u64 i = old; i < blocks_of(size) && !result; i++) {
		memset(work.data, 0, BLOCK);
		result = write_block(self, file, fd, i);
	}
	if (!result)
		file->size = size;
	return result;
}

s64 write_sealed(struct thread *self, struct open_file *open, s32 fd, u64 from, u64 bytes, u64 offset)
{
	struct sealed_file *file = open->sealed;
	bool placed = offset != ~(u64)0;
	u64 at, done = 0;
	s64 result;

	if (!file || !(open->access & O_ACCMODE))
		return file ? -EBADF : -EIO;
	lock(self, &file->lock);
	at = placed ? offset : open->flags & O_APPEND ? file->size : open->offset;
	lock(self, &work_lock);
	result = at + bytes < at ? -ENOSPC : extend(self, file, fd, at + bytes);
	while (done < bytes && !result) {
		u64 start = (at + done) % BLOCK, part = least(bytes - done, BLOCK - start);

		result = part < BLOCK ? read_block(self, file, fd, (at + done) / BLOCK) : 0;
		result = result ?: copy_in(work.data + start, from + done, part);
		result = result ?: write_block(self, file, fd, (at + done) / BLOCK);
		done += result ? 0 : part;
	}
	unlock(&work_lock);
	if (!placed && done)
		open->offset = at + done;
	/* The head each time: a program that is ended leaves a file that fits together. */
	result = result ?: write_head(self, file, fd);
	unlock(&file->lock);
	return done ? (s64)done : result;
}

u64 sealed_size(const struct open_file *open)
{
	return open->sealed ? open->sealed->size : 0;
}

s64 truncate_sealed(struct thread *self, struct open_file *open, s32 fd, u64 size)
{
	struct sealed_file *file = open->sealed;
	s64 result = 0;

	if (!file)
		return -EIO;
	lock(self, &file->lock);
	lock(self, &work_lock);
	if (size > file->size) {
		result = extend(self, file, fd, size);
	} else if (size < file->size) {
		/* What is behind the end is zero when the file grows again. */
		if (size % BLOCK) {
			result = read_block(self, file, fd, size / BLOCK);
			memset(work.data + size % BLOCK, 0, BLOCK - size % BLOCK);
			result = result ?: write_block(self, file, fd, size / BLOCK);
		}
		file->size = result ? file->size : size;
		if (!result)
			outside(self, NR_FTRUNCATE, (u64)fd, place_of(blocks_of(size)), 0, 0, 0, 0);
	}
	unlock(&work_lock);
	result = result ?: write_head(self, file, fd);
	unlock(&file->lock);
	return result;
}

void sealed_status(struct thread *self, const char *path, u64 length, s64 *size)
{
	const struct config_rule *rule = rule_of(path, length);
	struct sealed_file *file;
	u64 blocks;

	if (!rule || rule->kind != RULE_SEALED)
		return;
	lock(self, &known_lock);
	file = find(path, length);
	/* Of one that was not opened yet only the kernel knows something: a guess, by its size. */
	blocks = *size > (s64)sizeof(struct head) ? ((u64)*size - sizeof(struct head)) / sizeof(struct outside_block)
						  : 0;
	*size = file ? (s64)file->size : (s64)(blocks * BLOCK);
	unlock(&known_lock);
}

static bool rename_known(struct thread *self, struct sealed_file *file, const char *to, u64 to_length, u64 from_length)
{
	u64 rest = file->path_length - from_length, length = to_length + rest;
	char *path = heap_take(self, length + 1), *before = file->path;
	struct sealed_file *there;

	if (!path)
		return false;
	memcpy(path, to, to_length);
	memcpy(path + to_length, before + from_length, rest);
	there = find(path, length);
	if (there != file)
		forget(there);
	/* Whoever reads the file may tell of its path. */
	lock(self, &file->lock);
	file->path = path;
	file->path_length = (u32)length;
	unlock(&file->lock);
	heap_give(self, before);
	return true;
}

/* A file, or a folder with all that is below it, has another path from now on: what is known of each goes with it. */
static void moved(struct thread *self, const char *from, u64 from_length, const char *to, u64 to_length)
{
	lock(self, &known_lock);
	if (from_length != to_length || memcmp(from, to, to_length))
		forget(find(to, to_length));
	for (struct sealed_file *file = known; file; file = file->next) {
		if (file->path_length < from_length || memcmp(file->path, from, from_length))
			continue;
		if (file->path_length > from_length && file->path[from_length] != '/')
			continue;
		if (!rename_known(self, file, to, to_length, from_length))
			forget(file);
	}
	unlock(&known_lock);
}

/* What is known of a file says nothing of the next one of this path. */
static void removed(struct thread *self, const char *path, u64 length)
{
	lock(self, &known_lock);
	forget(find(path, length));
	unlock(&known_lock);
}

static s64 unlink_at(struct thread *self, s32 folder, u64 name, u64 flags)
{
	static const struct call call = { .result = ZERO, .arguments = { AT, WRITE_PATH, V } };
	const u64 a[6] = { (u64)folder, name, flags };
	char path[LONGEST_PATH];
	s64 length = path_from(self, folder, name, path), result;

	if (length < 0)
		return length;
	result = call_outside(self, 263, &call, a);
	if (!result)
		removed(self, path, (u64)length);
	return result;
}

static s64 rename_at(struct thread *self, s32 folder, u64 name, s32 new_folder, u64 new_name, u64 flags)
{
	static const struct call call = { .result = ZERO, .arguments = { AT, WRITE_PATH, AT, WRITE_PATH, V } };
	const u64 a[6] = { (u64)folder, name, (u64)new_folder, new_name, flags };
	char from[LONGEST_PATH], to[LONGEST_PATH];
	s64 from_length = path_from(self, folder, name, from), to_length = path_from(self, new_folder, new_name, to);
	const struct config_rule *old, *new;
	s64 result;

	if (from_length < 0 || to_length < 0)
		return from_length < 0 ? from_length : to_length;
	old = rule_of(from, (u64)from_length);
	new = rule_of(to, (u64)to_length);
	/* A sealed file would be read as one that is not, or the other way round. */
	if (old && new && (old->kind == RULE_SEALED) != (new->kind == RULE_SEALED))
		return -EXDEV;
	/* To exchange two files is not supported. */
	if (flags & ~(u64)1)
		return -EINVAL;
	result = call_outside(self, 316, &call, a);
	if (!result)
		moved(self, from, (u64)from_length, to, (u64)to_length);
	return result;
}

HANDLER(do_unlink)
{
	return unlink_at(self, AT_FDCWD, a[0], 0);
}

HANDLER(do_unlinkat)
{
	return unlink_at(self, (s32)a[0], a[1], a[2]);
}

HANDLER(do_rename)
{
	return rename_at(self, AT_FDCWD, a[0], AT_FDCWD, a[1], 0);
}

HANDLER(do_renameat)
{
	return rename_at(self, (s32)a[0], a[1], (s32)a[2], a[3], self->regs.rax == 316 ? a[4] : 0);
}
