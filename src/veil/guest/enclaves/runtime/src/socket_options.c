/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Options of sockets: what an honest kernel answers. */
#include "files.h"
#include "handlers.h"
#include "structures.h"

#define LARGEST_OPTION 4096
#define SOL_SOCKET 1
#define SO_DOMAIN 39
#define IPPROTO_IP 0
#define IPPROTO_TCP 6
#define IPPROTO_IPV6 41
#define IPV6_ADDRFORM 1

/*
 * Options with a size: less comes only if the program has less room for it. Of others (TCP_INFO) it is the kernel's
 * version that decides.
 */
static const struct option {
	s16 level, first, last;
	u16 size;
	structure_check check;
} options[] = {
	{ SOL_SOCKET, 2, 2, 4, is_natural },	     /* SO_REUSEADDR */
	{ SOL_SOCKET, 3, 3, 4, is_natural },	     /* SO_TYPE */
	{ SOL_SOCKET, 4, 4, 4, is_error_number },    /* SO_ERROR */
	{ SOL_SOCKET, 5, 11, 4, is_natural },	     /* from SO_DONTROUTE to SO_NO_CHECK; SO_SNDBUF, SO_RCVBUF */
	{ SOL_SOCKET, 12, 12, 4, NULL },	     /* SO_PRIORITY */
	{ SOL_SOCKET, 13, 13, 8, is_natural },	     /* SO_LINGER */
	{ SOL_SOCKET, 15, 16, 4, is_natural },	     /* SO_REUSEPORT, SO_PASSCRED */
	{ SOL_SOCKET, 17, 17, 12, is_natural },	     /* SO_PEERCRED */
	{ SOL_SOCKET, 18, 19, 4, is_natural },	     /* SO_RCVLOWAT, SO_SNDLOWAT */
	{ SOL_SOCKET, 20, 21, 16, is_microseconds }, /* SO_RCVTIMEO, SO_SNDTIMEO */
	{ SOL_SOCKET, 29, 30, 4, is_natural },	     /* SO_TIMESTAMP, SO_ACCEPTCONN */
	{ SOL_SOCKET, 38, 39, 4, is_natural },	     /* SO_PROTOCOL, SO_DOMAIN */
	{ SOL_SOCKET, 66, 67, 16, is_microseconds }, /* the same with 64 bits everywhere */
	{ IPPROTO_TCP, 1, 7, 4, is_natural },	     /* from TCP_NODELAY to TCP_SYNCNT */
	{ IPPROTO_TCP, 8, 8, 4, NULL },		     /* TCP_LINGER2 */
	{ IPPROTO_TCP, 9, 10, 4, is_natural },	     /* TCP_DEFER_ACCEPT, TCP_WINDOW_CLAMP */
	{ IPPROTO_TCP, 12, 12, 4, is_natural },	     /* TCP_QUICKACK */
	{ IPPROTO_TCP, 18, 18, 4, is_natural },	     /* TCP_USER_TIMEOUT */
	{ IPPROTO_IP, 1, 2, 4, NULL },		     /* IP_TOS, IP_TTL */
	{ IPPROTO_IP, 10, 11, 4, is_natural },	     /* IP_MTU_DISCOVER, IP_RECVERR */
	{ IPPROTO_IP, 14, 14, 4, is_natural },	     /* IP_MTU */
	{ IPPROTO_IPV6, 16, 16, 4, NULL },	     /* IPV6_UNICAST_HOPS */
	{ IPPROTO_IPV6, 24, 26, 4, is_natural },     /* IPV6_MTU, IPV6_RECVERR, IPV6_V6ONLY */
};

/* The family is that of the socket's addresses: what a program takes them for. */
static bool is_family(const u8 *value, u16 expected)
{
	u32 family;

	memcpy(&family, value, sizeof(family));
	return !expected || family == expected;
}

static bool is_option(const u64 *a, const u8 *value, u32 given, u32 space, u16 family)
{
	for (u32 i = 0; i < LENGTH(options); i++) {
		const struct option *option = &options[i];

		if ((s32)a[1] != option->level || (s32)a[2] < option->first || (s32)a[2] > option->last)
			continue;
		if (space < option->size)
			return true; /* a part, which says nothing */
		if (option->level == SOL_SOCKET && a[2] == SO_DOMAIN && !is_family(value, family))
			return false;
		return given == option->size && (!option->check || option->check(value));
	}
	return true;
}

HANDLER(do_getsockopt)
{
	u32 space, given, *length = take_buffer(self, sizeof(*length));
	u8 *value = take_buffer(self, LARGEST_OPTION), own[LARGEST_OPTION] __attribute__((aligned(8)));
	s64 result;

	if (!is_open((s32)a[0]))
		return -EBADF;
	if (copy_in(&space, a[4], sizeof(space)))
		return -EFAULT;
	if ((s32)space < 0)
		return -EINVAL;
	space = (u32)least(space, LARGEST_OPTION);
	*length = space;
	memset(value, 0, space);
	result = outside_done(self, 55, a[0], a[1], a[2], (u64)value, (u64)length, 0);
	if (result)
		return result;
	given = READ_ONCE(*length);
	if (given > space)
		attacked(self, "getsockopt of %d bytes is answered by %d", (u64)space, (u64)given);
	memcpy(own, value, space);
	if (!is_option(a, own, given, space, socket_family(self, (s32)a[0])))
		attacked(self, "option %d of a socket is answered by what it cannot be", (u64)(u32)a[2]);
	if (copy_out(a[3], own, given))
		return -EFAULT;
	/* The program may take it for whole: there is nothing in it that was there before. */
	if (given < space && clear_out(a[3] + given, space - given))
		return -EFAULT;
	return copy_out(a[4], &given, sizeof(given));
}

/* A socket of IPv6 that becomes one of IPv4 would have other addresses than it was made for. */
HANDLER(do_setsockopt)
{
	u8 *value = take_buffer(self, LARGEST_OPTION);

	if (!is_open((s32)a[0]))
		return -EBADF;
	if ((s32)a[1] == IPPROTO_IPV6 && a[2] == IPV6_ADDRFORM)
		return -EOPNOTSUPP;
	if ((u32)a[4] > LARGEST_OPTION)
		return -EINVAL;
	if (a[3] && copy_in(value, a[3], (u32)a[4]))
		return -EFAULT;
	return outside_done(self, 54, a[0], a[1], a[2], a[3] ? (u64)value : 0, (u32)a[4], 0);
}
