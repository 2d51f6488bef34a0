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
#define IPPROTO_UDP 17
#define IPPROTO_IPV6 41
#define IPV6_ADDRFORM 1

/*
 * Options that are known, and what comes: from `least` bytes, if the kernel's version decides, to `most`; less only if the program
 * has less room for it.
 */
static const struct option {
	s16 level, first, last;
	u16 least, most;
	structure_check check;
} options[] = {
	{ SOL_SOCKET, 2, 2, 4, 4, is_natural },		 /* SO_REUSEADDR */
	{ SOL_SOCKET, 3, 3, 4, 4, is_natural },		 /* SO_TYPE */
	{ SOL_SOCKET, 4, 4, 4, 4, is_error_number },	 /* SO_ERROR */
	{ SOL_SOCKET, 5, 11, 4, 4, is_natural },	 /* from SO_DONTROUTE to SO_NO_CHECK; SO_SNDBUF, SO_RCVBUF */
	{ SOL_SOCKET, 12, 12, 4, 4, NULL },		 /* SO_PRIORITY */
	{ SOL_SOCKET, 13, 13, 8, 8, is_natural },	 /* SO_LINGER */
	{ SOL_SOCKET, 15, 16, 4, 4, is_natural },	 /* SO_REUSEPORT, SO_PASSCRED */
	{ SOL_SOCKET, 17, 17, 12, 12, is_natural },	 /* SO_PEERCRED */
	{ SOL_SOCKET, 18, 19, 4, 4, is_natural },	 /* SO_RCVLOWAT, SO_SNDLOWAT */
	{ SOL_SOCKET, 20, 21, 16, 16, is_microseconds }, /* SO_RCVTIMEO, SO_SNDTIMEO */
	{ SOL_SOCKET, 29, 30, 4, 4, is_natural },	 /* SO_TIMESTAMP, SO_ACCEPTCONN */
	{ SOL_SOCKET, 34, 35, 4, 4, is_natural },	 /* SO_PASSSEC, SO_TIMESTAMPNS */
	{ SOL_SOCKET, 36, 36, 4, 4, NULL },		 /* SO_MARK */
	{ SOL_SOCKET, 37, 37, 4, 8, is_natural },	 /* SO_TIMESTAMPING */
	{ SOL_SOCKET, 38, 41, 4, 4, is_natural },	 /* from SO_PROTOCOL and SO_DOMAIN to SO_WIFI_STATUS */
	{ SOL_SOCKET, 42, 42, 4, 4, NULL },		 /* SO_PEEK_OFF */
	{ SOL_SOCKET, 43, 46, 4, 4, is_natural },	 /* from SO_NOFCS to SO_BUSY_POLL */
	{ SOL_SOCKET, 47, 47, 4, 8, NULL },		 /* SO_MAX_PACING_RATE */
	{ SOL_SOCKET, 49, 49, 4, 4, NULL },		 /* SO_INCOMING_CPU */
	{ SOL_SOCKET, 56, 56, 4, 4, NULL },		 /* SO_INCOMING_NAPI_ID */
	{ SOL_SOCKET, 57, 57, 8, 8, NULL },		 /* SO_COOKIE */
	{ SOL_SOCKET, 60, 60, 4, 4, is_natural },	 /* SO_ZEROCOPY */
	{ SOL_SOCKET, 62, 64, 4, 4, is_natural },	 /* SO_BINDTOIFINDEX, the times with 64 bits everywhere */
	{ SOL_SOCKET, 65, 65, 4, 8, is_natural },
	{ SOL_SOCKET, 66, 67, 16, 16, is_microseconds },    /* SO_RCVTIMEO, SO_SNDTIMEO with them */
	{ IPPROTO_TCP, 1, 7, 4, 4, is_natural },	    /* from TCP_NODELAY to TCP_SYNCNT */
	{ IPPROTO_TCP, 8, 8, 4, 4, NULL },		    /* TCP_LINGER2 */
	{ IPPROTO_TCP, 9, 10, 4, 4, is_natural },	    /* TCP_DEFER_ACCEPT, TCP_WINDOW_CLAMP */
	{ IPPROTO_TCP, 11, 11, 104, LARGEST_OPTION, NULL }, /* TCP_INFO: counts and times, nothing that is a length */
	{ IPPROTO_TCP, 12, 12, 4, 4, is_natural },	    /* TCP_QUICKACK */
	{ IPPROTO_TCP, 13, 13, 16, 16, is_short_text },	    /* TCP_CONGESTION */
	{ IPPROTO_TCP, 16, 18, 4, 4, is_natural },   /* TCP_THIN_LINEAR_TIMEOUTS, TCP_THIN_DUPACK, TCP_USER_TIMEOUT */
	{ IPPROTO_TCP, 23, 23, 4, 4, is_natural },   /* TCP_FASTOPEN */
	{ IPPROTO_TCP, 24, 25, 4, 4, NULL },	     /* TCP_TIMESTAMP, TCP_NOTSENT_LOWAT */
	{ IPPROTO_TCP, 30, 30, 4, 4, is_natural },   /* TCP_FASTOPEN_CONNECT */
	{ IPPROTO_TCP, 36, 36, 4, 4, is_natural },   /* TCP_INQ */
	{ IPPROTO_IP, 1, 2, 4, 4, NULL },	     /* IP_TOS, IP_TTL */
	{ IPPROTO_IP, 3, 3, 4, 4, is_natural },	     /* IP_HDRINCL */
	{ IPPROTO_IP, 6, 8, 4, 4, is_natural },	     /* IP_RECVOPTS, IP_RETOPTS, IP_PKTINFO */
	{ IPPROTO_IP, 10, 15, 4, 4, is_natural },    /* from IP_MTU_DISCOVER to IP_FREEBIND; IP_MTU */
	{ IPPROTO_IP, 19, 24, 4, 4, is_natural },    /* from IP_TRANSPARENT to IP_BIND_ADDRESS_NO_PORT */
	{ IPPROTO_IP, 32, 33, 4, 4, NULL },	     /* IP_MULTICAST_IF, IP_MULTICAST_TTL */
	{ IPPROTO_IP, 34, 34, 4, 4, is_natural },    /* IP_MULTICAST_LOOP */
	{ IPPROTO_IP, 49, 49, 4, 4, is_natural },    /* IP_MULTICAST_ALL */
	{ IPPROTO_UDP, 1, 1, 4, 4, is_natural },     /* UDP_CORK */
	{ IPPROTO_UDP, 103, 104, 4, 4, is_natural }, /* UDP_SEGMENT, UDP_GRO */
	{ IPPROTO_IPV6, 16, 18, 4, 4, NULL },	     /* IPV6_UNICAST_HOPS, IPV6_MULTICAST_IF, IPV6_MULTICAST_HOPS */
	{ IPPROTO_IPV6, 19, 19, 4, 4, is_natural },  /* IPV6_MULTICAST_LOOP */
	{ IPPROTO_IPV6, 23, 26, 4, 4, is_natural },  /* from IPV6_MTU_DISCOVER and IPV6_MTU to IPV6_V6ONLY */
	{ IPPROTO_IPV6, 49, 49, 4, 4, is_natural },  /* IPV6_RECVPKTINFO */
	{ IPPROTO_IPV6, 51, 51, 4, 4, is_natural },  /* IPV6_RECVHOPLIMIT */
	{ IPPROTO_IPV6, 62, 62, 4, 4, is_natural },  /* IPV6_DONTFRAG */
	{ IPPROTO_IPV6, 66, 67, 4, 4, NULL },	     /* IPV6_RECVTCLASS, IPV6_TCLASS */
};

static const struct option *find_option(const u64 *a)
{
	for (u32 i = 0; i < LENGTH(options); i++)
		if ((s32)a[1] == options[i].level && (s32)a[2] >= options[i].first && (s32)a[2] <= options[i].last)
			return &options[i];
	return NULL;
}

/* The family is that of the socket's addresses: what a program takes them for. */
static bool is_family(const u8 *value, u16 expected)
{
	u32 family;

	memcpy(&family, value, sizeof(family));
	return !expected || family == expected;
}

static bool is_answer(const struct option *option, const u64 *a, const u8 *value, u32 given, u32 space, u16 family)
{
	if (space < option->least)
		return true; /* a part, which says nothing */
	if (option->level == SOL_SOCKET && (s32)a[2] == SO_DOMAIN && !is_family(value, family))
		return false;
	return given >= option->least && given <= option->most && (!option->check || option->check(value));
}

HANDLER(do_getsockopt)
{
	u32 space, given, *length = take_buffer(self, sizeof(*length));
	u8 *value = take_buffer(self, LARGEST_OPTION), own[LARGEST_OPTION] __attribute__((aligned(8)));
	const struct option *option = find_option(a);
	s64 result;

	if (!is_open((s32)a[0]))
		return -EBADF;
	/* What it answers could not be told from what no kernel answers. */
	if (!option) {
		unsupported(self, "an option that is not known", 55);
		return -ENOPROTOOPT;
	}
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
	if (!is_answer(option, a, own, given, space, socket_family(self, (s32)a[0])))
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
