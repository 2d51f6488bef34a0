/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Sealed files: outside there is only what this enclave's measurement has the key of. Which files there are, by their
 * paths, and what programs do with them. The kernel can still give back a whole file as it was before this run, and keep
 * it from being written. It cannot bring back one that this run has removed: a journal, say, by which a program would undo
 * what it has done.
 */
#include "files.h"
#include "handlers.h"
#include "sealed_blocks.h"

#define NR_FTRUNCATE 77

static struct sealed_file *known;
static struct lock known_lock;
/* The files that were made in this run: the first half of their identities, and how many there are. */
static u64 run, made;

static bool is_sealed(const char *path, u64 length)
{
	const struct config_rule *rule = rule_of(path, length);

	return rule && rule->kind == RULE_SEALED;
}

static struct sealed_file *find(const char *path, u64 length)
{
	for (struct sealed_file *file = known; file; file = file->next)
		if (file->path_length == length && !memcmp(file->path, path, length))
			return file;
	return NULL;
}

static void drop(struct thread *self, struct sealed_file *file)
{
	struct sealed_file **link = &known;

	while (*link != file)
		link = &(*link)->next;
	*link = file->next;
	if (file->same && !--file->same->users && !file->same->path_length)
		drop(self, file->same);
	heap_give(self, file->tags);
	heap_give(self, file->path);
	heap_give(self, file);
}

/* Files that are open still use it: it stays until the last is closed. */
static void forget(struct thread *self, struct sealed_file *file)
{
	if (!file)
		return;
	file->path_length = 0;
	if (!file->users)
		drop(self, file);
}

static void let_go(struct thread *self, struct sealed_file *file)
{
	lock(self, &known_lock);
	if (!--file->users && !file->path_length)
		drop(self, file);
	unlock(&known_lock);
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
	if (!made++)
		random_bytes(self, &run, sizeof(run));
	memcpy(file->identity, &run, sizeof(run));
	memcpy(file->identity + sizeof(run), &made, sizeof(made));
	file->next = known;
	known = file;
	return file;
}

static bool is_in_state(struct thread *self, struct sealed_file *file, const struct sealed_file *state)
{
	bool equal;

	lock(self, &file->lock);
	equal = file->size == state->size &&
		(!file->size || !memcmp(file->tags, state->tags, sealed_blocks(file->size) * SEAL_TAG));
	unlock(&file->lock);
	return equal;
}

/*
 * What was loaded by a new name can be a file that is known by another one: there is a link to it, or the kernel says so.
 * What the enclave knows of it counts, by whatever name; and a file that this run has made and removed has none.
 */
static s64 meet_again(struct thread *self, struct sealed_file *file, struct sealed_file **to)
{
	struct sealed_file *other = known;

	while (other &&
	       (other == file || other->same || memcmp(other->identity, file->identity, sizeof(file->identity))))
		other = other->next;
	if (!other && memcmp(file->identity, &run, sizeof(run)))
		return 0;
	if (!other || !is_in_state(self, other, file)) {
		log_line(self, "the sealed file %s is an older one that this enclave has changed or removed",
			 file->path);
		return -EIO;
	}
	/* Else somebody has copied it: each goes its way from here. */
	if (other->device == file->device && other->number == file->number) {
		heap_give(self, file->tags);
		file->tags = NULL;
		file->same = other;
		other->users++;
		*to = other;
	}
	return 0;
}

/* `empty`: it begins anew, and is not read. `emptied`: the program wants that. A file that is given has one user more. */
static s64 prepare(struct thread *self, const char *path, u64 length, s32 fd, bool empty, bool emptied,
		   struct sealed_file **to)
{
	struct sealed_file *found = find(path, length), *file = found && found->same ? found->same : found;
	bool is_new = !file;
	s64 result = 0;

	if (file && file->size && empty && !emptied) {
		log_line(self, "the sealed file %s is empty, and this enclave did not make it so", file->path);
		return -EIO;
	}
	if (!sealed_has_key(self))
		return -EIO;
	file = file ?: add(self, path, length);
	if (!file)
		return -ENOMEM;
	lock(self, &file->lock);
	if (is_new)
		number_of_file(self, fd, &file->device, &file->number);
	if (empty) {
		file->size = 0;
		result = sealed_write_head(self, file, fd);
	} else if (is_new) {
		result = sealed_load(self, file, fd);
	}
	unlock(&file->lock);
	found = file;
	if (!result && is_new && !empty)
		result = meet_again(self, found, &file);
	/* Of one that was known it stays known that it is empty: what it was before must not come back. */
	if (result && is_new)
		forget(self, found);
	if (result)
		return result;
	sealed_forget_removed(self, path, length);
	file->users++;
	*to = file;
	return 0;
}

static bool is_empty(struct thread *self, s32 fd)
{
	return outside(self, 8, (u64)fd, 0, 2, 0, 0, 0) == 0;
}

s64 open_sealed(struct thread *self, const char *path, u64 length, u64 flags, u64 mode)
{
	/* Whoever makes one or empties it has its head written, if only to read it. */
	bool writes = flags & (O_ACCMODE | O_CREAT | O_TRUNC);
	struct sealed_file *sealed = NULL;
	struct open_file *file;
	s64 fd, result;
	bool empty;

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
	empty = writes && (flags & O_TRUNC || is_empty(self, (s32)fd));
	if (!empty && sealed_was_removed(path, length)) {
		log_line(self, "the sealed file %s is there again, which this enclave has removed", path);
		result = flags & O_CREAT ? -EIO : -ENOENT;
	} else if (!writes && !find(path, length) && is_folder(self, (s32)fd)) {
		/* To be synchronized, say. If it is none nothing is read of it all the same. */
		result = 0;
	} else {
		result = prepare(self, path, length, (s32)fd, empty, flags & O_TRUNC, &sealed);
	}
	unlock(&known_lock);
	if (result) {
		do_close(self, (const u64[6]){ (u64)fd });
		return result;
	}
	file = use(self, (s32)fd);
	if (!file) {
		if (sealed)
			let_go(self, sealed);
		return -EBADF;
	}
	file->sealed = sealed;
	release(self, file);
	return fd;
}

void close_sealed(struct thread *self, struct open_file *file)
{
	if (file->sealed)
		let_go(self, file->sealed);
}

s64 read_sealed(struct thread *self, struct open_file *open, s32 fd, u64 to, u64 bytes, u64 offset)
{
	struct sealed_file *file = open->sealed;
	bool placed = offset != ~(u64)0;
	u64 at = placed ? offset : open->offset, done = 0;
	s64 result = 0;

	if (!file)
		return -EISDIR;
	lock(self, &file->lock);
	bytes = at < file->size ? least(bytes, file->size - at) : 0;
	while (done < bytes && !result) {
		u64 start = (at + done) % SEALED_BLOCK, part = least(bytes - done, SEALED_BLOCK - start);

		lock(self, &sealed_work_lock);
		result = sealed_read_block(self, file, fd, (at + done) / SEALED_BLOCK);
		result = result ?: copy_out(to + done, sealed_work.data + start, part);
		unlock(&sealed_work_lock);
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
	u64 old = sealed_blocks(file->size);
	s64 result = 0;

	if (size <= file->size)
		return 0;
	if (!sealed_room(self, file, sealed_blocks(size)))
		return -ENOSPC;
	for (u64 i = old; i < sealed_blocks(size) && !result; i++) {
		memset(sealed_work.data, 0, SEALED_BLOCK);
		result = sealed_write_block(self, file, fd, i);
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
	s64 result, head;

	if (!file || !(open->access & O_ACCMODE))
		return file ? -EBADF : -EIO;
	lock(self, &file->lock);
	at = placed ? offset : open->flags & O_APPEND ? file->size : open->offset;
	lock(self, &sealed_work_lock);
	result = at + bytes < at ? -ENOSPC : extend(self, file, fd, at + bytes);
	while (done < bytes && !result) {
		u64 start = (at + done) % SEALED_BLOCK, part = least(bytes - done, SEALED_BLOCK - start);

		result = part < SEALED_BLOCK ? sealed_read_block(self, file, fd, (at + done) / SEALED_BLOCK) : 0;
		result = result ?: copy_in(sealed_work.data + start, from + done, part);
		result = result ?: sealed_write_block(self, file, fd, (at + done) / SEALED_BLOCK);
		done += result ? 0 : part;
	}
	unlock(&sealed_work_lock);
	if (!placed && done)
		open->offset = at + done;
	/* The head each time, whatever part was done: a program that is ended leaves a file that fits together. */
	head = sealed_write_head(self, file, fd);
	unlock(&file->lock);
	return done && !head ? (s64)done : result ?: head;
}

u64 sealed_size(const struct open_file *open)
{
	return open->sealed ? open->sealed->size : 0;
}

s64 truncate_sealed(struct thread *self, struct open_file *open, s32 fd, u64 size)
{
	struct sealed_file *file = open->sealed;
	s64 result = 0;

	if (!file || !(open->access & O_ACCMODE))
		return file ? -EINVAL : -EIO;
	lock(self, &file->lock);
	lock(self, &sealed_work_lock);
	if (size > file->size) {
		result = extend(self, file, fd, size);
	} else if (size < file->size) {
		/* What is behind the end is zero when the file grows again. */
		if (size % SEALED_BLOCK) {
			result = sealed_read_block(self, file, fd, size / SEALED_BLOCK);
			memset(sealed_work.data + size % SEALED_BLOCK, 0, SEALED_BLOCK - size % SEALED_BLOCK);
			result = result ?: sealed_write_block(self, file, fd, size / SEALED_BLOCK);
		}
		file->size = result ? file->size : size;
		if (!result)
			outside(self, NR_FTRUNCATE, (u64)fd, sealed_place(sealed_blocks(size)), 0, 0, 0, 0);
	}
	unlock(&sealed_work_lock);
	result = result ?: sealed_write_head(self, file, fd);
	unlock(&file->lock);
	return result;
}

s64 sealed_status(struct thread *self, const char *path, u64 length, s64 *size)
{
	struct sealed_file *file;
	bool removed;

	if (!is_sealed(path, length))
		return 0;
	lock(self, &known_lock);
	removed = sealed_was_removed(path, length);
	file = find(path, length);
	file = file && file->same ? file->same : file;
	/* Of one that was not opened yet only the kernel knows something. */
	*size = file ? (s64)file->size : (s64)sealed_guess(*size);
	unlock(&known_lock);
	return removed ? -ENOENT : 0;
}

static bool rename_known(struct thread *self, struct sealed_file *file, const char *to, u64 to_length, u64 from_length)
{
	u64 rest = file->path_length - from_length, length = to_length + rest;
	char *path = heap_take(self, length + 1), *before = file->path;
	u64 before_length = file->path_length;

	if (!path)
		return false;
	memcpy(path, to, to_length);
	memcpy(path + to_length, before + from_length, rest);
	forget(self, find(path, length));
	/* Whoever reads the file may tell of its path. */
	lock(self, &file->lock);
	file->path = path;
	file->path_length = (u32)length;
	unlock(&file->lock);
	sealed_note_removed(self, before, before_length);
	heap_give(self, before);
	return true;
}

/* A file, or a folder with all that is below it, has another path from now on: what is known of each goes with it. */
void sealed_moved(struct thread *self, const char *from, u64 from_length, const char *to, u64 to_length)
{
	if (!is_sealed(from, from_length) || (from_length == to_length && !memcmp(from, to, to_length)))
		return;
	lock(self, &known_lock);
	forget(self, find(to, to_length));
	sealed_forget_removed(self, to, to_length);
	for (struct sealed_file *file = known; file; file = file->next) {
		if (file->path_length < from_length || memcmp(file->path, from, from_length))
			continue;
		if (file->path_length > from_length && file->path[from_length] != '/')
			continue;
		if (!rename_known(self, file, to, to_length, from_length))
			attacked(self, "no memory to remember where the sealed file %s is", file->path);
	}
	/* It may be one that was not opened in this run. */
	sealed_note_removed(self, from, from_length);
	unlock(&known_lock);
}

void sealed_removed(struct thread *self, const char *path, u64 length)
{
	if (!is_sealed(path, length))
		return;
	lock(self, &known_lock);
	forget(self, find(path, length));
	sealed_note_removed(self, path, length);
	unlock(&known_lock);
}

void sealed_link_made(struct thread *self, const char *path, u64 length)
{
	lock(self, &known_lock);
	sealed_forget_removed(self, path, length);
	unlock(&known_lock);
}
