/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What tests have the kernel outside do: tell the truth, or lie; and whether a secret has come. */
#include "../../../../src/veil/guest/enclaves/program_calls.h"
#include "files.h"
#include "native.h"
#include "signal_numbers.h"

#define NR_CLOSE 3
#define NR_CLONE 56
#define NR_WAIT4 61
#define NR_SYNC 162
#define NR_DUP3 292
#define CLONE_VFORK 0x4000
#define MAP_SHARED 1
#define MAP_ANONYMOUS 0x20
#define FLAG_TF 0x100

/*
 * A kernel that lies about one system call, or (EVERY_CALL) about all from one sync() to the next, but of the writes by
 * which a program tells what it got. It answers `result` and does nothing, or does it, if there is no `result`;
 * then it writes into the window, where arguments point to. `once`: only the first time after a sync(). `later`: what a
 * place holds from the second time on that the runtime reads it; its page is not there, so each access shows.
 */
#define MOST_PUT 4
#define EVERY_CALL 4095
static struct {
	bool told, answered, once, armed, stepping;
	u64 nr, result;
	struct put {
		u64 argument, offset, bytes, value;
	} put[MOST_PUT], later;
	u32 count, reads;
	u64 place;
} lie;
/* NAME=VALUE that an owner has sent; so often it has not come yet. */
static struct {
	const char *text;
	u64 late;
} secret;

static void put(u64 address, u64 bytes, u64 value)
{
	/* As the kernel would: what is not there it cannot write. */
	if (address - VEIL_ENC_WINDOW < VEIL_ENC_MAX_SLOTS * (u64)VEIL_ENC_WINDOW_STRIDE)
		memcpy((void *)address, &value, bytes);
}

static bool lies_now(u64 nr)
{
	bool now = lie.told && lie.armed && (lie.nr == nr || (lie.nr == EVERY_CALL && nr != NR_WRITE && nr != NR_SYNC));

	if (lie.once && nr == NR_SYNC)
		lie.armed = !lie.armed;
	else if (lie.once && now && lie.nr != EVERY_CALL)
		lie.armed = false;
	return now;
}

static void watch(u32 prot)
{
	if (lie.place)
		raw(NR_MPROTECT, page_down(lie.place), PAGE, prot, 0, 0, 0);
}

/* As the starter does it, in a child that has memory of its own, and with one page of its parent's. */
static s64 start_program(const struct veil_program_call *calls, u64 count)
{
	static volatile s64 *error;
	s64 process;

	if (!error)
		error = (s64 *)raw(NR_MMAP, 0, PAGE, 3, MAP_SHARED | MAP_ANONYMOUS, (u64)-1, 0);
	*error = 0;
	process = raw(NR_CLONE, CLONE_VFORK | SIGCHLD, 0, 0, 0, 0, 0);
	for (u64 i = 0; !process && i < count; i++) {
		const u64 *a = calls[i].args;
		s64 result = raw(calls[i].nr, a[0], a[1], a[2], a[3], 0, 0);

		if (result >= 0 && calls[i].to >= 0 && result != calls[i].to) {
			s64 moved = raw(NR_DUP3, (u64)result, (u64)calls[i].to, a[2] & O_CLOEXEC, 0, 0, 0);

			raw(NR_CLOSE, (u64)result, 0, 0, 0, 0, 0);
			result = moved;
		}
		if (result < 0 && calls[i].nr != NR_CLOSE) {
			*error = result;
			raw(NR_EXIT_GROUP, 127, 0, 0, 0, 0, 0);
		}
	}
	if (*error)
		raw(NR_WAIT4, (u64)process, 0, 0, 0, 0, 0);
	return *error ? *error : process;
}

s64 system_call_outside(u64 nr, const u64 *a)
{
	bool now = lies_now(nr);
	s64 result;

	if (now && lie.answered)
		result = (s64)lie.result;
	else if (nr == NR_EXECVE)
		result = start_program((const struct veil_program_call *)a[0], a[1]);
	else
		result = raw(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
	for (u32 i = 0; now && i < lie.count; i++)
		put(a[lie.put[i].argument] + lie.put[i].offset, lie.put[i].bytes, lie.put[i].value);
	if (now && lie.later.bytes) {
		lie.place = a[lie.later.argument] + lie.later.offset;
		watch(0);
	}
	return result;
}

/* Between two accesses the kernel writes. */
bool is_watched(int number, u64 address, struct user_context *user)
{
	if (number == 5 && lie.stepping) {
		watch(0);
		lie.stepping = false;
		user->rflags &= ~(u64)FLAG_TF;
		return true;
	}
	if (number != 11 || !lie.place || page_down(address) != page_down(lie.place))
		return false;
	watch(3);
	if (address == lie.place && lie.reads++)
		put(lie.place, lie.later.bytes, lie.later.value);
	lie.stepping = true;
	user->rflags |= FLAG_TF;
	return true;
}

void watch_no_more(void)
{
	watch(3);
	lie.place = 0;
}

u32 give_secret(struct veil_mailbox *mailbox)
{
	u64 name = mailbox->args[0], bytes = 0;

	if (secret.late && secret.late--)
		return STATUS_UNAVAILABLE;
	if (!secret.text || memcmp(secret.text, mailbox->data, name) || secret.text[name] != '=')
		return STATUS_UNAVAILABLE;
	while (secret.text[name + 1 + bytes])
		bytes++;
	memcpy(mailbox->data, secret.text + name + 1, bytes);
	mailbox->result = bytes;
	return STATUS_OK;
}

static u64 decimal(const char **text)
{
	u64 value = 0;

	while (**text >= '0' && **text <= '9')
		value = value * 10 + (u64)(*(*text)++ - '0');
	if (**text)
		(*text)++;
	return value;
}

static struct put hear_put(const char *text)
{
	struct put put;

	put.argument = decimal(&text) % 6;
	put.offset = decimal(&text);
	put.bytes = least(decimal(&text), 8);
	put.value = decimal(&text);
	return put;
}

/* LIE_CALL=number, LIE_RESULT=number, LIE_ONCE, LIE_PUTn and LIE_LATER=argument,offset,bytes,value; SECRET and SECRET_LATE. */
void hear(char **variables)
{
	lie.armed = true;
	for (; *variables; variables++) {
		const char *text = *variables;

		while (*text && *text++ != '=')
			;
		if (!memcmp(*variables, "LIE_CALL=", 9)) {
			lie.nr = decimal(&text);
			lie.told = true;
		} else if (!memcmp(*variables, "LIE_RESULT=", 11)) {
			lie.result = decimal(&text);
			lie.answered = true;
		} else if (!memcmp(*variables, "LIE_ONCE=", 9)) {
			lie.once = true;
			lie.armed = false;
		} else if (!memcmp(*variables, "LIE_PUT", 7) && lie.count < MOST_PUT) {
			lie.put[lie.count++] = hear_put(text);
		} else if (!memcmp(*variables, "LIE_LATER=", 10)) {
			lie.later = hear_put(text);
		}
		if (!memcmp(*variables, "SECRET=", 7))
			secret.text = *variables + 7;
		if (!memcmp(*variables, "SECRET_LATE=", 12))
			secret.late = decimal(&text);
	}
}
