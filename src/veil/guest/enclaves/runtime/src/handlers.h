/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The handlers that calls.def names, and what their modules need of each other. */
#ifndef RUNTIME_HANDLERS_H
#define RUNTIME_HANDLERS_H

#include "runtime.h"
#include "signal_numbers.h"

#define CALL(nr, name, group, result, ...)
#define OWN(nr, name, group, handler, ...) HANDLER(handler);
#include "calls.def"
#undef CALL
#undef OWN

struct open_file;
struct epoll_entry;

/* descriptors.c */
s64 duplicate(struct thread *, s32 fd, u64 command, u64 least_number);
/* pipes.c: two descriptors that came from outside, copied to own[]; 0 or a negative error */
s64 new_pair(struct thread *, const s32 *shared, s32 own[2]);
/* file_status.c */
bool is_regular(struct thread *, s32 fd);
/* poll.c */
void forget_watched(struct thread *, struct open_file *);
/* opening.c: what the kernel has there; its descriptor is the kernel's claim */
s64 open_outside(struct thread *, const char *path, u64 length, u64 flags, u64 mode);
/* The same descriptor as a file of the program's, of a kind; or the error. */
s64 opened(struct thread *, s64 fd, u32 kind, const char *path, u64 length, u64 flags);
/* sealed_files.c */
s64 open_sealed(struct thread *, const char *path, u64 length, u64 flags, u64 mode);
s64 read_sealed(struct thread *, struct open_file *, s32 fd, u64 to, u64 bytes, u64 offset);
s64 write_sealed(struct thread *, struct open_file *, s32 fd, u64 from, u64 bytes, u64 offset);
u64 sealed_size(const struct open_file *);
void close_sealed(struct thread *, struct open_file *);
s64 truncate_sealed(struct thread *, struct open_file *, s32 fd, u64 size);
/* A file, or a folder with all that is below it, has another path from now on; or none. */
void sealed_moved(struct thread *, const char *from, u64 from_length, const char *to, u64 to_length);
void sealed_removed(struct thread *, const char *path, u64 length);
/* There is a symbolic link at this path. */
void sealed_link_made(struct thread *, const char *path, u64 length);
/* The size of what is kept in it, if the path is a sealed file's; -ENOENT if it was removed, whatever the kernel has there. */
s64 sealed_status(struct thread *, const char *path, u64 length, s64 *size);

#endif
