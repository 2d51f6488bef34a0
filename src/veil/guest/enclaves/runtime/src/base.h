/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Types and small things that every module needs. */
#ifndef RUNTIME_BASE_H
#define RUNTIME_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Everything is in one program: no table of addresses is needed. */
#if !__STDC_HOSTED__
#pragma GCC visibility push(hidden)
#endif

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;

#define PAGE ((u64)4096)
#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

/* Between a check and a use the compiler must not read untrusted memory again. */
#define READ_ONCE(place) (*(const volatile __typeof__(place) *)&(place))
#define WRITE_ONCE(place, value) (*(volatile __typeof__(place) *)&(place) = (value))

static inline u64 least(u64 a, u64 b)
{
	return a < b ? a : b;
}

static inline u64 most(u64 a, u64 b)
{
	return a > b ? a : b;
}

static inline u64 page_down(u64 address)
{
	return address & ~(PAGE - 1);
}

static inline u64 page_up(u64 address)
{
	return (address + PAGE - 1) & ~(PAGE - 1);
}

/* Errors of Linux, as system calls return them. */
enum {
	EPERM = 1,
	ENOENT = 2,
	ESRCH = 3,
	EINTR = 4,
	EIO = 5,
	E2BIG = 7,
	EBADF = 9,
	ECHILD = 10,
	EAGAIN = 11,
	ENOMEM = 12,
	EACCES = 13,
	EFAULT = 14,
	EBUSY = 16,
	EEXIST = 17,
	EXDEV = 18,
	ENODEV = 19,
	ENOTDIR = 20,
	EISDIR = 21,
	EINVAL = 22,
	EMFILE = 24,
	ENOTTY = 25,
	ENOSPC = 28,
	EROFS = 30,
	EPIPE = 32,
	ERANGE = 34,
	ENAMETOOLONG = 36,
	ENOSYS = 38,
	ENOTEMPTY = 39,
	ELOOP = 40,
	EMSGSIZE = 90,
	ENOPROTOOPT = 92,
	EOPNOTSUPP = 95,
	ETIMEDOUT = 110,
	LAST_ERROR = 133,
	/* never seen by a program: the call is to be made again, or ends by EINTR */
	ERESTART = 512,
};

#endif
