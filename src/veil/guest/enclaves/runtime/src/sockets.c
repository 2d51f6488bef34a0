/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Sockets: addresses and messages, whose lengths and families come back from outside. */
#include "ancillary.h"
#include "files.h"
#include "handlers.h"

#define LONGEST_ADDRESS 128
#define MOST_VECTORS 64
#define MOST_CONTROL 4096
#define FAMILY_UNIX 1
#define FAMILY_INTERNET 2
#define FAMILY_INTERNET_6 10
#define FAMILY_NETLINK 16
#define FAMILY_PACKET 17
#define FAMILY_BYTES 2
#define LEAST_PACKET_ADDRESS 12 /* and the hardware's own behind it */
#define LONGEST_UNIX_PATH 108
#define MSG_NOSIGNAL 0x4000
#define SOCK_TYPE 0xf
#define SOCK_DATAGRAM 2
#define SOCK_PACKET 10
#define MSG_CTRUNC 8
#define MSG_ERRQUEUE 0x2000

struct vector {
	u64 base, length;
};

/* struct msghdr */
struct message {
	u64 name;
	u32 name_length, pad;
	u64 vectors, count, control, control_length;
	u32 flags, pad2;
};

/* An address with its length, which goes out as the space there is and comes back as what it takes. */
struct address {
	u8 *buffer;
	u32 *length;
	u32 space;
};

u16 socket_family(struct thread *self, s32 fd)
{
	struct open_file *file = use(self, fd);
	u16 family = file ? file->family : 0;

	release(self, file);
	return family;
}

static void note_family(struct thread *self, s64 fd, u16 family)
{
	struct open_file *file = fd < 0 ? NULL : use(self, (s32)fd);

	if (file)
		file->family = family;
	release(self, file);
}

/* Of a new socket. Sockets of others may have addresses of another family (SMC). 0: nothing is known. */
static u16 known_family(const u64 *a)
{
	switch ((u32)a[0]) {
	case FAMILY_UNIX:
	case FAMILY_INTERNET:
	case FAMILY_INTERNET_6:
	case FAMILY_NETLINK:
	case FAMILY_PACKET:
		return (a[1] & SOCK_TYPE) == SOCK_PACKET ? 0 : (u16)a[0];
	default:
		return 0;
	}
}

/* A program that has got a datagram reads from whom: if nothing were there, whoever was there before. */
static void note_says_from(struct thread *self, s64 fd, const u64 *a)
{
	struct open_file *file = fd < 0 ? NULL : use(self, (s32)fd);

	if (file)
		file->says_from =
			(a[1] & SOCK_TYPE) == SOCK_DATAGRAM && (a[0] == FAMILY_INTERNET || a[0] == FAMILY_INTERNET_6);
	release(self, file);
}

/* Of what has come, an error of before or nothing: there need not be an address. */
static bool has_address(struct thread *self, s32 fd, s64 bytes, u64 flags)
{
	struct open_file *file = bytes > 0 && !(flags & MSG_ERRQUEUE) ? use(self, fd) : NULL;
	bool says_from = file && file->says_from;

	release(self, file);
	return says_from;
}

HANDLER(do_socket)
{
	s64 fd = outside(self, 41, a[0], a[1], a[2], 0, 0, 0);

	if (fd < 0)
		return fd;
	fd = new_descriptor(self, fd, NULL);
	note_family(self, fd, known_family(a));
	note_says_from(self, fd, a);
	return fd;
}

static s64 put_address(struct thread *self, u64 length_at, struct address *to)
{
	u32 space;

	if (copy_in(&space, length_at, sizeof(space)))
		return -EFAULT;
	if ((s32)space < 0)
		return -EINVAL;
	to->space = space;
	to->buffer = take_buffer(self, LONGEST_ADDRESS);
	to->length = take_buffer(self, sizeof(u32));
	memset(to->buffer, 0, LONGEST_ADDRESS);
	*to->length = LONGEST_ADDRESS;
	return 0;
}

static bool has_length(u16 family, u32 length)
{
	switch (family) {
	case FAMILY_UNIX:
		/* A path need not end; one that is longer than programs have room for is none. */
		return length <= FAMILY_BYTES + LONGEST_UNIX_PATH;
	case FAMILY_INTERNET:
		return length == 16;
	case FAMILY_INTERNET_6:
		return length == 28;
	case FAMILY_NETLINK:
		return length == 12;
	case FAMILY_PACKET:
		return length >= LEAST_PACKET_ADDRESS;
	default:
		return true;
	}
}

/*
 * A program reads as much as the family has, and knows the family, for it has made the socket: of a shorter address the rest
 * would be whatever was there before, and another one would be read as what it is not.
 */
static void check_address(struct thread *self, const u8 *copy, u32 length, u16 expected)
{
	u16 family;

	if (length < FAMILY_BYTES || length > LONGEST_ADDRESS)
		attacked(self, "a socket's address has %d bytes", (u64)length);
	memcpy(&family, copy, FAMILY_BYTES);
	if (!has_length(family, length))
		attacked(self, "a socket's address has %d bytes", (u64)length);
	if (expected && family != expected)
		attacked(self, "a socket of family %d has an address of family %d", (u64)expected, (u64)family);
}

/* `always`: there is one. With data there need not be: a stream's are from whom it is connected to. */
static s64 take_address(struct thread *self, s32 fd, const struct address *from, u64 to, u64 length_at, bool always)
{
	u32 length = READ_ONCE(*from->length);
	u8 own[LONGEST_ADDRESS];

	memcpy(own, from->buffer, LONGEST_ADDRESS);
	if (length || always)
		check_address(self, own, length, socket_family(self, fd));
	if (copy_out(to, own, least(least(length, LONGEST_ADDRESS), from->space)))
		return -EFAULT;
	return copy_out(length_at, &length, sizeof(length));
}

/*
 * An address that the program names, as it goes out; its length may change. That of a UNIX socket is a path, unless it begins
 * with NUL: the manifest says of it what it says of a file that is written.
 */
static s64 name_address(struct thread *self, u64 from, u32 *length, u8 *shared)
{
	char path[LONGEST_PATH];
	u8 own[LONGEST_ADDRESS + 1] = { 0 };
	u64 bytes = 0;
	s64 result;
	u16 family;

	if (*length > LONGEST_ADDRESS)
		return -EINVAL;
	if (copy_in(own, from, *length))
		return -EFAULT;
	memcpy(&family, own, FAMILY_BYTES);
	if (family == FAMILY_UNIX && own[FAMILY_BYTES]) {
		while (own[FAMILY_BYTES + bytes])
			bytes++;
		result = resolve_path(self, AT_FDCWD, (const char *)own + FAMILY_BYTES, bytes, path, true);
		if (result < 0)
			return result;
		bytes = (u64)result;
		result = path_allowed(path, bytes, true);
		if (result)
			return result;
		bytes = length_outside(path, bytes);
		if (bytes >= LONGEST_UNIX_PATH)
			return -ENAMETOOLONG;
		memcpy(own + FAMILY_BYTES, path, bytes);
		own[FAMILY_BYTES + bytes] = 0;
		*length = (u32)(FAMILY_BYTES + bytes + 1);
	}
	memcpy(shared, own, *length);
	return 0;
}

/* bind and connect */
HANDLER(do_bind)
{
	u8 *address = take_buffer(self, LONGEST_ADDRESS);
	u32 length = (u32)a[2];
	s64 result;

	if (!is_open((s32)a[0]))
		return -EBADF;
	result = name_address(self, a[1], &length, address);
	return result ?: outside_done(self, self->regs.rax, a[0], (u64)address, length, 0, 0, 0);
}

HANDLER(do_sendto)
{
	u8 *address = a[4] ? take_buffer(self, LONGEST_ADDRESS) : NULL, *data;
	u32 length = address ? (u32)a[5] : 0;
	u64 bytes = least(a[2], buffer_left(self));
	s64 result = 0;

	if (!is_open((s32)a[0]))
		return -EBADF;
	if (address)
		result = name_address(self, a[4], &length, address);
	data = take_buffer(self, bytes);
	result = result ?: copy_in(data, a[1], bytes);
	if (result)
		return result;
	result = outside(self, 44, a[0], (u64)data, bytes, a[3], (u64)address, length);
	if (result > (s64)bytes)
		attacked(self, "sendto of %d bytes is answered by %d", bytes, (u64)result);
	if (result == -EPIPE && !(a[3] & MSG_NOSIGNAL))
		signal_self(self, self, SIGPIPE, SI_USER);
	return result;
}

HANDLER(do_accept)
{
	struct address address = { 0 };
	s64 fd;

	if (!is_open((s32)a[0]))
		return -EBADF;
	if (a[1]) {
		s64 result = put_address(self, a[2], &address);

		if (result)
			return result;
	}
	fd = outside(self, 288, a[0], (u64)address.buffer, (u64)address.length, self->regs.rax == 288 ? a[3] : 0, 0, 0);
	if (fd < 0)
		return fd;
	fd = new_descriptor(self, fd, NULL);
	note_family(self, fd, socket_family(self, (s32)a[0]));
	if (fd >= 0 && a[1] && take_address(self, (s32)a[0], &address, a[1], a[2], true))
		return -EFAULT;
	return fd;
}

HANDLER(do_getname)
{
	struct address address;
	s64 result;

	if (!is_open((s32)a[0]))
		return -EBADF;
	result = put_address(self, a[2], &address);
	result = result ?: outside_done(self, self->regs.rax, a[0], (u64)address.buffer, (u64)address.length, 0, 0, 0);
	return result ? result : take_address(self, (s32)a[0], &address, a[1], a[2], true);
}

HANDLER(do_recvfrom)
{
	struct address address = { 0 };
	u64 bytes;
	u8 *buffer;
	s64 result;

	if (!is_open((s32)a[0]))
		return -EBADF;
	if (a[4]) {
		result = put_address(self, a[5], &address);
		if (result)
			return result;
	}
	bytes = least(a[2], buffer_left(self));
	buffer = take_buffer(self, bytes);
	result = outside(self, 45, a[0], (u64)buffer, bytes, a[3], (u64)address.buffer, (u64)address.length);
	if (result < 0)
		return result;
	/* MSG_TRUNC: how long it would have been, which is a number and no length of anything here. */
	if (result > (s64)bytes && (!(a[3] & 0x20) || result > 0x7fffffff))
		attacked(self, "recvfrom of %d bytes is answered by %d", bytes, (u64)result);
	if (copy_out(a[1], buffer, least((u64)result, bytes)))
		return -EFAULT;
	if (!a[4])
		return result;
	return take_address(self, (s32)a[0], &address, a[4], a[5], has_address(self, (s32)a[0], result, a[3]))
		       ?: result;
}

HANDLER(do_socketpair)
{
	s32 *shared = take_buffer(self, 8), own[2];
	s64 result = outside_done(self, 53, a[0], a[1], a[2], (u64)shared, 0, 0);

	if (result)
		return result;
	result = new_pair(self, shared, own);
	for (u32 i = 0; i < 2; i++)
		note_family(self, own[i], known_family(a));
	return result ?: copy_out(a[3], own, sizeof(own));
}

/* A message as it goes out: one vector, for all data lie together in the window. */
struct shared_message {
	struct message *message;
	struct vector *vector;
	u8 *name, *control, *data;
	u64 total;
};

static s64 put_message(struct thread *self, const struct message *own, struct vector *vectors,
		       struct shared_message *to)
{
	u64 total = 0;

	if (own->count > MOST_VECTORS || own->name_length > LONGEST_ADDRESS || own->control_length > MOST_CONTROL)
		return -EMSGSIZE;
	if (copy_in(vectors, own->vectors, own->count * sizeof(*vectors)))
		return -EFAULT;
	to->message = take_buffer(self, sizeof(*to->message));
	to->vector = take_buffer(self, sizeof(*to->vector));
	to->name = take_buffer(self, LONGEST_ADDRESS);
	to->control = take_buffer(self, MOST_CONTROL);
	for (u64 i = 0; i < own->count; i++) {
		/* What has no room is not sent or received by this call: a stream goes on with the next. */
		vectors[i].length = least(vectors[i].length, buffer_left(self) - total);
		total += vectors[i].length;
	}
	to->total = total;
	to->data = take_buffer(self, total);
	if (!to->data || !to->control)
		return -ENOMEM;
	*to->vector = (struct vector){ (u64)to->data, total };
	*to->message = (struct message){
		.name = own->name ? (u64)to->name : 0,
		.name_length = own->name ? own->name_length : 0,
		.vectors = (u64)to->vector,
		.count = 1,
		.control = own->control ? (u64)to->control : 0,
		.control_length = own->control ? own->control_length : 0,
		.flags = own->flags,
	};
	return 0;
}

HANDLER(do_sendmsg)
{
	struct message own;
	struct vector vectors[MOST_VECTORS];
	struct shared_message to;
	u8 control[MOST_CONTROL];
	s64 result;
	u64 at = 0;

	if (!is_open((s32)a[0]))
		return -EBADF;
	if (copy_in(&own, a[1], sizeof(own)))
		return -EFAULT;
	result = put_message(self, &own, vectors, &to);
	if (result)
		return result;
	if (own.name)
		result = name_address(self, own.name, &own.name_length, to.name);
	if (result)
		return result;
	to.message->name_length = own.name ? own.name_length : 0;
	if (own.control) {
		if (copy_in(control, own.control, own.control_length))
			return -EFAULT;
		result = check_sent(self, control, own.control_length);
		if (result)
			return result;
		memcpy(to.control, control, own.control_length);
	}
	for (u64 i = 0; i < own.count; at += vectors[i++].length)
		if (copy_in(to.data + at, vectors[i].base, vectors[i].length))
			return -EFAULT;
	result = outside(self, 46, a[0], (u64)to.message, a[2], 0, 0, 0);
	if (result > (s64)to.total)
		attacked(self, "sendmsg of %d bytes is answered by %d", to.total, (u64)result);
	if (result == -EPIPE && !(a[2] & MSG_NOSIGNAL))
		signal_self(self, self, SIGPIPE, SI_USER);
	return result;
}

HANDLER(do_recvmsg)
{
	struct message own, answer;
	struct vector vectors[MOST_VECTORS];
	struct shared_message to;
	u8 control[MOST_CONTROL], name[LONGEST_ADDRESS];
	s64 result;

	if (!is_open((s32)a[0]))
		return -EBADF;
	if (copy_in(&own, a[1], sizeof(own)))
		return -EFAULT;
	own.name_length = (u32)least(own.name_length, LONGEST_ADDRESS);
	/* Of more than that the kernel says that it is cut. */
	own.control_length = own.control ? least(own.control_length, MOST_CONTROL) : 0;
	result = put_message(self, &own, vectors, &to);
	if (result)
		return result;
	/* As much room as any address needs: one that is cut would be no address. */
	memset(to.name, 0, LONGEST_ADDRESS);
	to.message->name_length = own.name ? LONGEST_ADDRESS : 0;
	result = outside(self, 47, a[0], (u64)to.message, a[2], 0, 0, 0);
	if (result < 0)
		return result;
	memcpy(&answer, to.message, sizeof(answer));
	if ((result > (s64)to.total && (!(a[2] & 0x20) || result > 0x7fffffff)) ||
	    answer.name_length > LONGEST_ADDRESS || answer.control_length > own.control_length)
		attacked(self, "recvmsg of %d bytes is answered by %d", to.total, (u64)result);
	for (u64 i = 0, at = 0, got = least((u64)result, to.total); i < own.count && at < got; i++) {
		u64 part = least(vectors[i].length, got - at);

		if (copy_out(vectors[i].base, to.data + at, part))
			return -EFAULT;
		at += part;
	}
	if (own.control) {
		u64 known;

		memcpy(control, to.control, answer.control_length);
		known = check_received(self, control, answer.control_length, own.control_length);
		if (known < answer.control_length)
			answer.flags |= MSG_CTRUNC;
		answer.control_length = known;
		if (copy_out(own.control, control, answer.control_length))
			return -EFAULT;
	}
	memcpy(name, to.name, sizeof(name));
	if (own.name && (answer.name_length || has_address(self, (s32)a[0], result, a[2])))
		check_address(self, name, answer.name_length, socket_family(self, (s32)a[0]));
	if (own.name && copy_out(own.name, name, least(answer.name_length, own.name_length)))
		return -EFAULT;
	own.name_length = answer.name_length;
	own.control_length = answer.control_length;
	own.flags = answer.flags;
	return copy_out(a[1], &own, sizeof(own)) ?: result;
}
