/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Ancillary data of messages: descriptors that are sent and come, and structures that a program reads where the kernel says. */
#include "ancillary.h"
#include "files.h"
#include "handlers.h"

#define SOL_SOCKET 1
#define IPPROTO_IP 0
#define IPPROTO_UDP 17
#define IPPROTO_TCP 6
#define IPPROTO_IPV6 41
#define SOL_PACKET 263
#define SOL_NETLINK 270
#define SCM_RIGHTS 1
#define SCM_PIDFD 4
#define DESCRIPTOR_BYTES 4

/* struct cmsghdr */
struct control {
	u64 length;
	u32 level, type;
};

/* Kinds that are known, and the least that a program reads of each. */
static const struct {
	u32 level, type;
	u16 bytes;
} kinds[] = {
	{ SOL_SOCKET, SCM_RIGHTS, DESCRIPTOR_BYTES },
	{ SOL_SOCKET, 2, 12 }, /* SCM_CREDENTIALS, SCM_SECURITY */
	{ SOL_SOCKET, 3, 1 },
	{ SOL_SOCKET, SCM_PIDFD, DESCRIPTOR_BYTES },
	{ SOL_SOCKET, 29, 16 }, /* SCM_TIMESTAMP, SCM_TIMESTAMPNS, SCM_TIMESTAMPING */
	{ SOL_SOCKET, 35, 16 },
	{ SOL_SOCKET, 37, 48 },
	{ SOL_SOCKET, 40, 4 },	/* SO_RXQ_OVFL */
	{ SOL_SOCKET, 63, 16 }, /* the times with 64 bits everywhere */
	{ SOL_SOCKET, 64, 16 },
	{ SOL_SOCKET, 65, 48 },
	{ IPPROTO_IP, 1, 1 }, /* IP_TOS, IP_TTL */
	{ IPPROTO_IP, 2, 4 },
	{ IPPROTO_IP, 8, 12 },	  /* IP_PKTINFO */
	{ IPPROTO_IP, 11, 32 },	  /* IP_RECVERR, and whose it is */
	{ IPPROTO_IP, 20, 16 },	  /* IP_ORIGDSTADDR */
	{ IPPROTO_TCP, 36, 4 },	  /* TCP_CM_INQ */
	{ IPPROTO_UDP, 104, 4 },  /* UDP_GRO */
	{ IPPROTO_IPV6, 25, 44 }, /* IPV6_RECVERR, IPV6_PKTINFO, IPV6_HOPLIMIT, IPV6_TCLASS */
	{ IPPROTO_IPV6, 50, 20 },
	{ IPPROTO_IPV6, 52, 4 },
	{ IPPROTO_IPV6, 67, 4 },
	{ SOL_PACKET, 8, 20 }, /* PACKET_AUXDATA */
	{ SOL_NETLINK, 3, 4 }, /* NETLINK_PKTINFO */
};

static bool has_descriptors(const struct control *head)
{
	return head->level == SOL_SOCKET && (head->type == SCM_RIGHTS || head->type == SCM_PIDFD);
}

/* The place of the next part. */
static u64 behind(const struct control *head, u64 at, u64 bytes)
{
	return least(bytes, at + ((head->length + 7) & ~(u64)7));
}

/* Whoever receives a descriptor has the kernel's file: what is checked or decrypted in here would not be, by that one. */
s64 check_sent(struct thread *self, const u8 *data, u64 bytes)
{
	struct control head;

	for (u64 at = 0; bytes - at >= sizeof(head); at = behind(&head, at, bytes)) {
		memcpy(&head, data + at, sizeof(head));
		if (head.length < sizeof(head) || head.length > bytes - at)
			return -EINVAL;
		for (u64 place = sizeof(head); has_descriptors(&head) && place + DESCRIPTOR_BYTES <= head.length;
		     place += DESCRIPTOR_BYTES) {
			struct open_file *file;
			bool outside;
			s32 fd;

			memcpy(&fd, data + at + place, sizeof(fd));
			file = use(self, fd);
			outside = file && file->kind == FILE_OUTSIDE;
			release(self, file);
			if (!outside)
				return file ? -EPERM : -EBADF;
		}
	}
	return 0;
}

/* 0: it is not known. */
static u64 least_bytes(const struct control *head)
{
	for (u32 i = 0; i < LENGTH(kinds); i++)
		if (kinds[i].level == head->level && kinds[i].type == head->type)
			return kinds[i].bytes;
	return 0;
}

/* Descriptors are known from now on; one that cannot be known is not given on. */
static void take_descriptors(struct thread *self, const struct control *head, u8 *data)
{
	for (u64 place = sizeof(*head); place + DESCRIPTOR_BYTES <= head->length; place += DESCRIPTOR_BYTES) {
		s32 fd;

		memcpy(&fd, data + place, sizeof(fd));
		/* Of a process that is gone the kernel gives an error. */
		if (head->type == SCM_PIDFD && fd < 0 && fd >= -LAST_ERROR)
			continue;
		if (new_descriptor(self, fd, NULL) < 0)
			memset(data + place, 0xff, sizeof(fd));
	}
}

u64 check_received(struct thread *self, u8 *data, u64 bytes, u64 room)
{
	struct control head;

	for (u64 at = 0; bytes - at >= sizeof(head); at = behind(&head, at, bytes)) {
		u64 wanted, given;
		bool whole;

		memcpy(&head, data + at, sizeof(head));
		if (head.length < sizeof(head) || head.length > bytes - at)
			attacked(self, "ancillary data of %d bytes in %d", head.length, bytes - at);
		wanted = least_bytes(&head);
		if (!wanted)
			return at;
		given = head.length - sizeof(head);
		whole = given >= wanted && !(has_descriptors(&head) && given % DESCRIPTOR_BYTES);
		/* What the program has no room for is cut. */
		if (!whole && at + head.length < room)
			attacked(self, "ancillary data of kind %d at level %d have %d bytes", (u64)head.type,
				 (u64)head.level, given);
		if (has_descriptors(&head))
			take_descriptors(self, &head, data + at);
	}
	return bytes;
}
