/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What of a sealed file is outside, its head and its blocks: how they are written, and what is read of them. */
#ifndef RUNTIME_SEALED_BLOCKS_H
#define RUNTIME_SEALED_BLOCKS_H

#include "chacha20_poly1305.h"

#define SEALED_BLOCK 4096

struct sealed_block {
	u8 nonce[SEAL_NONCE];
	u8 tag[SEAL_TAG];
	u8 pad[4];
	u8 data[SEALED_BLOCK];
};

/* One for each file that is open or was, by its path: as long as the enclave runs, what it last was is known. */
struct sealed_file {
	struct sealed_file *next;
	u32 users; /* open files */
	u64 size;
	u64 space; /* of `tags`, in blocks */
	u8 (*tags)[SEAL_TAG];
	u8 identity[16];
	u32 path_length; /* 0: by no path any more, but open */
	struct lock lock;
	char *path;
	u64 device, number; /* as the kernel says: only to tell another name from a copy */
	/* This is only another name, and what is known is there, as one of its users; or NULL. */
	struct sealed_file *same;
};

/* The block that is read or written: its lock is held for the whole of what is done with it. */
extern struct sealed_block sealed_work;
extern struct lock sealed_work_lock;

/* False: the service gives no key. */
bool sealed_has_key(struct thread *);
/* How many blocks hold so many bytes, and where in the file one is. */
u64 sealed_blocks(u64 size);
u64 sealed_place(u64 block);
/* How many bytes a file may hold whose size outside is this. */
u64 sealed_guess(s64 size);
/* Room for the tags of so many blocks; false: there is none. */
bool sealed_room(struct thread *, struct sealed_file *, u64 blocks);
/* 0 or a negative error. The file's lock is held. */
s64 sealed_write_head(struct thread *, const struct sealed_file *, s32 fd);
s64 sealed_read_block(struct thread *, struct sealed_file *, s32 fd, u64 number);
s64 sealed_write_block(struct thread *, struct sealed_file *, s32 fd, u64 number);
/* The file as an earlier run left it: its tags are read, and compared with the head's hash of them. */
s64 sealed_load(struct thread *, struct sealed_file *, s32 fd);

/* removed_files.c */
bool sealed_was_removed(const char *path, u64 length);
void sealed_note_removed(struct thread *, const char *path, u64 length);
/* There may be one again; and what is below it, if it is a folder. */
void sealed_forget_removed(struct thread *, const char *path, u64 length);

#endif
