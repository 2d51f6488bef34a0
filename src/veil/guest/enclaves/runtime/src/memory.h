/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Numbers of mmap(2) and its like. */
#ifndef RUNTIME_MEMORY_H
#define RUNTIME_MEMORY_H

enum {
	PROT_READ = 1,
	PROT_WRITE = 2,
	PROT_EXEC = 4,
	PROT_ALL = 7,
	MAP_SHARED = 1,
	MAP_PRIVATE = 2,
	MAP_SHARED_VALIDATE = 3,
	MAP_TYPE = 15,
	MAP_FIXED = 0x10,
	MAP_ANONYMOUS = 0x20,
	MAP_32BIT = 0x40,
	MAP_FIXED_NOREPLACE = 0x100000,
	MREMAP_MAYMOVE = 1,
	MREMAP_FIXED = 2,
	MADV_DONTNEED = 4,
};

#endif
