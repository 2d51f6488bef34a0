/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Open files, and what the manifest says of paths. Descriptors have the numbers that the process outside gives them. */
#ifndef RUNTIME_FILES_H
#define RUNTIME_FILES_H

#include "runtime.h"

#define DESCRIPTORS 1000
#define AT_FDCWD -100
#define LONGEST_PATH 4096
#define O_ACCMODE 3
#define O_CREAT 0x40
#define O_TRUNC 0x200
#define O_APPEND 0x400
#define O_NONBLOCK 0x800
#define O_DIRECTORY 0x10000
#define O_NOFOLLOW 0x20000
#define O_CLOEXEC 0x80000
#define O_PATH 0x200000

enum file_kind {
	FILE_OUTSIDE,
	FILE_TRUSTED,
	FILE_SEALED,
	FILE_RANDOM,
	FILE_SECRET,
};

/* What descriptors share after dup(). `offset`: of kinds that the runtime reads itself. */
struct open_file {
	u32 kind;
	u32 users;
	u32 access; /* O_RDONLY, O_WRONLY, O_RDWR */
	u32 flags;
	u16 family;	/* sockets.c: of all addresses of this socket, or 0 */
	bool says_from; /* whatever comes by it has an address */
	u64 offset;
	const struct config_file *trusted;
	struct sealed_file *sealed;
	u8 *secret; /* of LONGEST_SECRET bytes */
	u64 secret_size;
	/* poll.c: what an epoll set watches, and the next set; whether one has watched this file */
	struct epoll_entry *watched;
	struct open_file *next_set;
	u32 waiters; /* threads that wait for this set */
	bool was_watched;
	u32 path_length;
	struct lock lock;
	char path[];
};

bool is_open(s32 fd);
/* One use more of an open file, or NULL; each has its end in release(). */
struct open_file *use(struct thread *, s32 fd);
void release(struct thread *, struct open_file *);
/* A descriptor that came from outside: the number, or a negative error. `file`: NULL for one that is just outside's. */
s64 new_descriptor(struct thread *, s64 fd, struct open_file *file);
struct open_file *new_file(struct thread *, u32 kind, const char *path, u64 length);

/* 0; -ENOENT to read, -EACCES to change what the manifest does not name. */
s64 path_allowed(const char *path, u64 length, bool change);
bool is_folder_of_rule(const char *path, u64 length);
/* Some of what is below it is sealed, by a rule of its own. */
bool is_above_sealed(const char *path, u64 length);
/* file_status.c: 0, or why a path that the manifest allows or does not is no folder */
s64 require_folder(struct thread *, const char *path, u64 length);
/* Of an open file, as the kernel says. */
bool is_folder(struct thread *, s32 fd);
/* By which the kernel tells an open file from others; zeros if it does not. */
void number_of_file(struct thread *, s32 fd, u64 *device, u64 *number);
/* resolve_path() of what the program has there: what a link at its end leads to, or the link itself, as a name. */
s64 path_from(struct thread *, s32 folder, u64 from, char *to);
s64 name_from(struct thread *, s32 folder, u64 from, char *to);
/* With ".." as its last part. */
bool ends_above(const char *path, u64 length);
/* Of a path of resolve_path(): with its end, which tells the kernel that nothing but a folder is meant. */
static inline u64 length_outside(const char *path, u64 length)
{
	if (path[length] != '/')
		return length;
	return length + (path[length + 1] == '.' ? 2 : 1);
}
/* Such a path in the window; NULL: there is no room. */
char *put_path(struct thread *, const char *path, u64 length);

/* sockets.c: the family with which a socket was made, if its addresses have it; 0: nothing is known */
u16 socket_family(struct thread *, s32 fd);

/* chunks.c: CHUNK bytes from the start of a page, zeros behind the file's end; NULL: it cannot be read, or is another one.
   Each has its end in give_chunk(). `reads`: to be copied to memory of the program's. */
const u8 *take_chunk(struct thread *, s32 fd, const struct config_file *, u64 chunk, bool reads);
void give_chunk(struct thread *, const u8 *data, bool reads);

/* trusted_files.c */
const struct config_file *trusted_file(const char *path, u64 length);
bool is_trusted_folder(const char *path, u64 length);
s64 open_trusted(struct thread *, const struct config_file *, const char *path, u32 flags);
s64 read_trusted(struct thread *, s32 fd, const struct config_file *, u64 offset, u64 to, u64 bytes);
u64 trusted_number(const struct config_file *);
/* So that it can be read when the program has closed it. False: the process outside has no more descriptors. */
bool keep_trusted(struct thread *, s32 fd, const struct config_file *);
s32 kept_descriptor(const struct config_file *);

/* secrets.c: what a secret's file is asked for waits until an owner has sent it */
bool is_secret(const char *path, u64 length);
u64 secret_number(const char *path, u64 length);
s64 secret_bytes(struct thread *, const char *path, u64 length);
s64 open_secret(struct thread *, const char *path, u64 length, u64 flags);
/* A file whose content is `data`, which is the file's from now on: a block of LONGEST_SECRET bytes or more. */
s64 open_inside(struct thread *, const char *path, u64 length, u64 flags, u8 *data, u64 size);
/* maps.c */
s64 open_map(struct thread *, const char *path, u64 length, u64 flags);
s64 read_secret(struct thread *, struct open_file *, u64 to, u64 bytes, u64 offset);
void close_secret(struct thread *, struct open_file *);

/* blake2b.c */
void blake2b(const u8 *data, u64 bytes, u8 digest[HASH_BYTES]);

#endif
