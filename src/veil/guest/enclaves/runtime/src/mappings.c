/* SPDX-License-Identifier: GPL-2.0-or-later */
/* mmap and its like: what programs ask of their memory. What becomes of it is in memory.c. */
#include "files.h"
#include "handlers.h"
#include "memory.h"

HANDLER(do_mmap)
{
	u32 flags = (u32)a[3], type = flags & MAP_TYPE;
	const struct config_file *trusted;
	struct open_file *file;
	s32 fd = (s32)a[4];
	bool bad, foreign;

	if (type != MAP_SHARED && type != MAP_PRIVATE && type != MAP_SHARED_VALIDATE)
		return -EINVAL;
	if (flags & MAP_ANONYMOUS)
		return memory_map(self, a[0], a[1], (u32)a[2], flags, -1, 0);
	file = use(self, fd);
	if (!file)
		return -EBADF;
	/* A copy that nobody writes back would lose what is written. */
	bad = type != MAP_PRIVATE && a[2] & PROT_WRITE;
	trusted = file->kind == FILE_TRUSTED ? file->trusted : NULL;
	/* A library, say, that LD_PRELOAD names: whoever chooses its content would have the enclave. */
	foreign = file->kind == FILE_OUTSIDE && a[2] & PROT_EXEC;
	if (foreign)
		log_line(self, "%s is not executed: it is no trusted file", file->path_length ? file->path : "a file");
	release(self, file);
	if (foreign)
		return -EPERM;
	if (bad) {
		unsupported(self, "a shared map of a file that is written", 9);
		return -ENODEV;
	}
	if (trusted)
		return memory_map_trusted(self, a[0], a[1], (u32)a[2], flags, fd, a[5], trusted);
	return memory_map(self, a[0], a[1], (u32)a[2], flags, fd, a[5]);
}

HANDLER(do_munmap)
{
	return memory_unmap(self, a[0], a[1]);
}

HANDLER(do_mprotect)
{
	return memory_protect(self, a[0], a[1], (u32)a[2]);
}

HANDLER(do_mremap)
{
	return memory_move(self, a[0], a[1], a[2], (u32)a[3], a[4]);
}

HANDLER(do_madvise)
{
	return memory_advise(self, a[0], a[1], (u32)a[2]);
}

HANDLER(do_msync)
{
	return a[0] % PAGE ? -EINVAL : 0;
}

HANDLER(do_brk)
{
	return memory_brk(self, a[0]);
}
