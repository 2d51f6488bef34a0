/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What files are: stat, access, links, folders. Of trusted files the enclave knows it without the kernel. */
#include "files.h"
#include "handlers.h"
#include "process_links.h"

#define S_IFDIR 0040000
#define S_IFREG 0100000
#define S_IFMT 0170000
#define TRUSTED_DEVICE 0x5645
#define AT_SYMLINK_NOFOLLOW 0x100
#define AT_EMPTY_PATH 0x1000
#define BLOCK_SIZE 4096
#define STATX_BASIC 0x7ff
#define DIRECTORY_HEAD 19
#define LONGEST_NAME 255 /* programs have as much room for one */
#define NANOSECONDS 1000000000
#define X_OK 1
#define W_OK 2

/* struct stat of x86-64 */
struct status {
	u64 device, number, links;
	u32 mode, user, group, pad;
	u64 rdev;
	s64 size, block_size, blocks;
	u64 times[6];
	s64 unused[3];
};

/* struct statx */
struct extended {
	u32 mask, block_size;
	u64 attributes;
	u32 links, user, group;
	u16 mode, pad;
	u64 number, size, blocks, attributes_mask;
	struct {
		s64 seconds;
		u32 nanoseconds;
		s32 pad;
	} times[4];
	u32 rdev_major, rdev_minor, major, minor;
	u64 mount, spare[13];
};

_Static_assert(sizeof(struct status) == 144 && sizeof(struct extended) == 256, "Linux's structures");

static void describe_own(u64 number, u32 mode, u64 size, struct status *to)
{
	*to = (struct status){
		.device = TRUSTED_DEVICE,
		.number = number,
		.links = 1,
		.mode = S_IFREG | mode,
		.size = (s64)size,
		.block_size = BLOCK_SIZE,
		.blocks = (s64)((size + 511) / 512),
	};
}

static void describe_trusted(const struct config_file *file, struct status *to)
{
	describe_own(trusted_number(file), 0555, file->size, to);
}

static void describe_secret(const char *path, u64 length, u64 size, struct status *to)
{
	describe_own(secret_number(path, length), 0400, size, to);
}

static void describe_folder(struct status *to)
{
	*to = (struct status){ .device = TRUSTED_DEVICE,
			       .number = 1,
			       .links = 2,
			       .mode = S_IFDIR | 0755,
			       .size = BLOCK_SIZE,
			       .block_size = BLOCK_SIZE };
}

/* Values on which programs allocate memory or count must be ones that can be. */
static s64 check_status(struct thread *self, struct status *status)
{
	if (status->size < 0 || status->blocks < 0)
		attacked(self, "a file has %x bytes", (u64)status->size);
	for (u32 i = 1; i < LENGTH(status->times); i += 2)
		if (status->times[i] >= NANOSECONDS)
			attacked(self, "the time of a file has %d nanoseconds", status->times[i]);
	if (status->block_size < 512 || status->block_size > 1 << 20)
		status->block_size = BLOCK_SIZE;
	/* A file of the kernel's must not pass for a trusted one. */
	if (status->device == TRUSTED_DEVICE)
		status->device++;
	return 0;
}

static s64 ask_status(struct thread *self, s32 folder, const char *path, u64 length, u64 flags, struct status *to)
{
	char *name = put_path(self, path, length);
	struct status *buffer = take_buffer(self, sizeof(*buffer));
	s64 result;

	if (!name || !buffer)
		return -ENOMEM;
	memset(buffer, 0, sizeof(*buffer));
	result = outside_done(self, 262, (u64)(s64)folder, (u64)name, (u64)buffer, flags, 0, 0);
	if (result)
		return result;
	memcpy(to, buffer, sizeof(*to));
	return check_status(self, to);
}

/* Of an open file; zeros if the kernel does not say. */
static struct status status_outside(struct thread *self, s32 fd)
{
	u32 used = self->buffer_used;
	struct status status = { 0 };

	ask_status(self, fd, "", 0, AT_EMPTY_PATH, &status);
	self->buffer_used = used;
	return status;
}

bool is_regular(struct thread *self, s32 fd)
{
	return (status_outside(self, fd).mode & S_IFMT) == S_IFREG;
}

bool is_folder(struct thread *self, s32 fd)
{
	return (status_outside(self, fd).mode & S_IFMT) == S_IFDIR;
}

void number_of_file(struct thread *self, s32 fd, u64 *device, u64 *number)
{
	struct status status = status_outside(self, fd);

	*device = status.device;
	*number = status.number;
}

static s64 status_of_path(struct thread *self, const char *path, u64 length, u64 flags, struct status *to)
{
	const struct config_file *trusted = trusted_file(path, length);
	s64 result;

	if (trusted) {
		describe_trusted(trusted, to);
		return 0;
	}
	result = path_allowed(path, length, false);
	if (result)
		return result;
	if (!rule_of(path, length)) {
		describe_folder(to);
		return 0;
	}
	if (is_secret(path, length)) {
		result = secret_bytes(self, path, length);
		if (result >= 0)
			describe_secret(path, length, (u64)result, to);
		return result < 0 ? result : 0;
	}
	result = ask_status(self, AT_FDCWD, path, length, flags & ~(u64)AT_EMPTY_PATH, to);
	if (!result && (to->mode & S_IFMT) == S_IFREG)
		result = sealed_status(self, path, length, &to->size);
	return result;
}

s64 require_folder(struct thread *self, const char *path, u64 length)
{
	struct status status;
	s64 result = status_of_path(self, path, length, 0, &status);

	if (result)
		return result;
	return (status.mode & S_IFMT) == S_IFDIR ? 0 : -ENOTDIR;
}

static s64 status_of_open(struct thread *self, s32 fd, struct status *to)
{
	struct open_file *file = use(self, fd);
	s64 result = 0;

	if (!file)
		return -EBADF;
	if (file->kind == FILE_TRUSTED)
		describe_trusted(file->trusted, to);
	else if (file->kind == FILE_SECRET)
		describe_secret(file->path, file->path_length, file->secret_size, to);
	else
		result = ask_status(self, fd, "", 0, AT_EMPTY_PATH, to);
	if (!result && file->kind == FILE_SEALED)
		to->size = (s64)sealed_size(file);
	release(self, file);
	return result;
}

static s64 status_at(struct thread *self, s32 folder, u64 name, u64 flags, struct status *to)
{
	char path[LONGEST_PATH];
	s64 length = name ? copy_string_in(path, name, LONGEST_PATH) : 0;

	if (length < 0)
		return length;
	if (!length)
		return flags & AT_EMPTY_PATH && folder != AT_FDCWD ? status_of_open(self, folder, to) : -ENOENT;
	length = resolve_path(self, folder, path, (u64)length, path, !(flags & AT_SYMLINK_NOFOLLOW));
	return length < 0 ? length : status_of_path(self, path, (u64)length, flags, to);
}

HANDLER(do_stat)
{
	bool link = self->regs.rax == 6;
	struct status status;
	s64 result = status_at(self, AT_FDCWD, a[0], link ? AT_SYMLINK_NOFOLLOW : 0, &status);

	return result ? result : copy_out(a[1], &status, sizeof(status));
}

HANDLER(do_fstat)
{
	struct status status;
	s64 result = status_of_open(self, (s32)a[0], &status);

	return result ? result : copy_out(a[1], &status, sizeof(status));
}

HANDLER(do_newfstatat)
{
	struct status status;
	s64 result = status_at(self, (s32)a[0], a[1], a[3], &status);

	return result ? result : copy_out(a[2], &status, sizeof(status));
}

HANDLER(do_statx)
{
	struct status status;
	struct extended to = { 0 };
	s64 result = status_at(self, (s32)a[0], a[1], a[2] & 0x1900, &status);

	if (result)
		return result;
	to.mask = STATX_BASIC;
	to.block_size = (u32)status.block_size;
	to.links = (u32)status.links;
	to.user = status.user;
	to.group = status.group;
	to.mode = (u16)status.mode;
	to.number = status.number;
	to.size = (u64)status.size;
	to.blocks = (u64)status.blocks;
	for (u32 i = 0; i < 3; i++) {
		static const u8 order[] = { 0, 3, 2 }; /* atime, ctime, mtime of atime, mtime, ctime */
		u32 from = order[i] == 3 ? 2 : order[i] == 2 ? 1 : 0, at = order[i] == 3 ? 2 : order[i] == 2 ? 3 : 0;

		to.times[at].seconds = (s64)status.times[2 * from];
		to.times[at].nanoseconds = (u32)status.times[2 * from + 1];
	}
	to.rdev_major = (u32)(status.rdev >> 8 & 0xfff);
	to.rdev_minor = (u32)(status.rdev & 0xff);
	to.major = (u32)(status.device >> 8 & 0xfff);
	to.minor = (u32)(status.device & 0xff);
	return copy_out(a[4], &to, sizeof(to));
}

static s64 access_at(struct thread *self, s32 folder, u64 name, u64 mode)
{
	char path[LONGEST_PATH];
	s64 length = path_from(self, folder, name, path), result;
	const struct config_rule *rule;
	struct status status;
	char *buffer;

	if (length < 0)
		return length;
	result = path_allowed(path, (u64)length, mode & W_OK);
	if (result)
		return result;
	if (trusted_file(path, (u64)length) || !rule_of(path, (u64)length))
		return mode & W_OK ? -EACCES : 0;
	if (is_secret(path, (u64)length)) {
		result = mode & X_OK ? -EACCES : secret_bytes(self, path, (u64)length);
		return result < 0 ? result : 0;
	}
	rule = rule_of(path, (u64)length);
	/* One that was removed is not there, whatever the kernel says. */
	if (rule->kind == RULE_SEALED) {
		result = status_of_path(self, path, (u64)length, 0, &status);
		if (result)
			return result;
	}
	buffer = put_path(self, path, (u64)length);
	if (!buffer)
		return -ENOMEM;
	return outside_done(self, 21, (u64)buffer, mode, 0, 0, 0, 0);
}

HANDLER(do_access)
{
	return access_at(self, AT_FDCWD, a[0], a[1]);
}

HANDLER(do_faccessat)
{
	return access_at(self, (s32)a[0], a[1], a[2]);
}

static s64 link_at(struct thread *self, s32 folder, u64 name, u64 to, u64 bytes)
{
	char path[LONGEST_PATH], own[LONGEST_PATH];
	s64 length = name_from(self, folder, name, path), result;
	char *buffer, *text;

	if (length < 0)
		return length;
	if ((s64)bytes <= 0)
		return -EINVAL;
	result = process_link(self, path, (u64)length, own);
	if (result > 0) {
		bytes = least(bytes, (u64)result);
		return copy_out(to, own, bytes) ?: (s64)bytes;
	}
	if (result < 0)
		return result;
	result = path_allowed(path, (u64)length, false);
	if (result)
		return result;
	if (trusted_file(path, (u64)length) || !rule_of(path, (u64)length) || is_secret(path, (u64)length))
		return -EINVAL;
	bytes = least(bytes, LONGEST_PATH);
	buffer = put_path(self, path, (u64)length);
	text = take_buffer(self, bytes);
	if (!buffer || !text)
		return -ENOMEM;
	result = outside(self, 89, (u64)buffer, (u64)text, bytes, 0, 0, 0);
	/* An empty link there is not: what stands before its end would be before the program's buffer. */
	if (!result)
		return -EIO;
	if (result > (s64)bytes)
		attacked(self, "readlink of %d bytes is answered by %d", bytes, (u64)result);
	return result > 0 ? copy_out(to, text, (u64)result) ?: result : result;
}

HANDLER(do_readlink)
{
	return link_at(self, AT_FDCWD, a[0], a[1], a[2]);
}

HANDLER(do_readlinkat)
{
	return link_at(self, (s32)a[0], a[1], a[2], a[3]);
}

/* Each entry must lie in the answer, and its name end there. struct linux_dirent has its type last. */
static void check_entries(struct thread *self, const u8 *data, u64 bytes, bool wide)
{
	for (u64 at = 0; at < bytes;) {
		const u64 start = wide ? DIRECTORY_HEAD : DIRECTORY_HEAD - 1;
		u64 name = start;
		u16 length;

		if (bytes - at <= name)
			attacked(self, "an entry of a folder is cut short");
		memcpy(&length, data + at + 16, sizeof(length));
		if (length <= name || length > bytes - at)
			attacked(self, "an entry of a folder has %d bytes of %d", (u64)length, bytes - at);
		/* With a slash it would be a path, to where the program never looked. */
		while (name < length && data[at + name] && data[at + name] != '/')
			name++;
		/* Without one it would be the folder itself. */
		if (name == length || name == start || data[at + name] || name - start > LONGEST_NAME)
			attacked(self, "the name of a folder's entry is not valid");
		at += length;
	}
}

HANDLER(do_getdents)
{
	u64 bytes = least(a[2], 0x8000);
	u8 *buffer = take_buffer(self, bytes), *copy;
	s64 result;

	if (!is_open((s32)a[0]))
		return -EBADF;
	result = outside(self, self->regs.rax, a[0], (u64)buffer, bytes, 0, 0, 0);
	if (result <= 0)
		return result;
	if (result > (s64)bytes)
		attacked(self, "getdents of %d bytes is answered by %d", bytes, (u64)result);
	copy = heap_take(self, (u64)result);
	if (!copy)
		return -ENOMEM;
	memcpy(copy, buffer, (u64)result);
	check_entries(self, copy, (u64)result, self->regs.rax == 217);
	result = copy_out(a[1], copy, (u64)result) ?: result;
	heap_give(self, copy);
	return result;
}
