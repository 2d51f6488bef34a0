/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * System calls: which there are, which the manifest allows, and how those that the runtime has no handler for are done
 * outside. Arguments are copied to the window, results back; a result that the call cannot have ends the enclave, for
 * then the kernel has lied (an Iago attack).
 */
#include "calls.h"
#include "children.h"
#include "files.h"
#include "handlers.h"

#define LARGEST_NUMBER 0x7fffffff
#define LARGEST_MODE 0777
#define LOWEST_PRIORITY 40 /* the kernel answers 20 - nice, which is no error number */
#define CALL_BYTES 2
#define NR_RT_SIGRETURN 15

#define CALL(nr, call_name, group, call_result, ...)                                                                   \
	[nr] = { .name = #call_name, .result = call_result, .arguments = { __VA_ARGS__ } },
#define OWN(nr, call_name, group, call_handler, ...)                                                                   \
	[nr] = { .name = #call_name, .handler = call_handler, .arguments = { __VA_ARGS__ } },
static const struct call calls[CALL_NUMBERS] = {
#include "calls.def"
};

static u64 told[CALL_NUMBERS / 64];

const char *call_name(u32 nr)
{
	return nr < CALL_NUMBERS && calls[nr].name ? calls[nr].name : "unknown";
}

bool call_allowed(u32 nr)
{
	return nr < CALL_NUMBERS && CONFIG->calls[nr / 64] >> nr % 64 & 1;
}

/* One line for each call, however often a program tries. */
void unsupported(struct thread *self, const char *what, u64 nr)
{
	u64 bit = (u64)1 << nr % 64;

	if (nr >= CALL_NUMBERS || !(__atomic_fetch_or(&told[nr / 64], bit, __ATOMIC_RELAXED) & bit))
		log_line(self, "system call %d (%s): %s", nr, call_name((u32)least(nr, CALL_NUMBERS)), what);
	if (CONFIG->flags & FLAG_END_ON_UNSUPPORTED)
		end_because(self, VEIL_END_RUNTIME);
}

/* Bytes that an argument has, or a negative error. */
static s64 size_of(const struct argument *argument, const u64 *a)
{
	u64 count;

	switch (argument->kind) {
	case FIXED_IN:
	case FIXED_OUT:
	case FIXED_BOTH:
		return argument->size;
	case COUNTED_IN:
	case COUNTED_OUT:
		count = (u32)a[argument->count_in];
		return count > VEIL_ENC_WINDOW_STRIDE ? -EINVAL : (s64)(count * argument->size);
	default:
		return 0;
	}
}

static s64 put_allowed_path(struct thread *self, s32 folder, u64 from, u8 kind, u64 *to)
{
	char path[LONGEST_PATH];
	s64 length = kind == NAME_TO_CHANGE ? name_from(self, folder, from, path) : path_from(self, folder, from, path);

	if (length < 0)
		return length;
	length = path_allowed(path, (u64)length, kind != PATH_TO_READ) ?: length;
	if (length < 0)
		return length;
	*to = (u64)put_path(self, path, (u64)length);
	return *to ? 0 : -ENOMEM;
}

static s64 put_text(struct thread *self, u64 from, u64 *to)
{
	char *buffer = take_buffer(self, LONGEST_PATH);
	s64 length;

	if (!buffer)
		return -ENOMEM;
	length = copy_string_in(buffer, from, LONGEST_PATH);
	*to = (u64)buffer;
	/* The window may change meanwhile: then the kernel reads another string, as it could anyway. */
	return length < 0 ? length : 0;
}

static s64 put_argument(struct thread *self, const struct call *call, u32 i, const u64 *a, u64 *to)
{
	const struct argument *argument = &call->arguments[i];
	s64 size = size_of(argument, a);
	void *buffer;

	if (size < 0)
		return size;
	switch (argument->kind) {
	case NOTHING:
		*to = 0;
		return 0;
	case VALUE:
	case INTEGER:
	case UNSIGNED:
		*to = a[i];
		return 0;
	case OPEN_FILE:
		*to = a[i];
		return is_open((s32)a[i]) ? 0 : -EBADF;
	case FOLDER:
		/* futimens() and its like: no path, the descriptor itself is meant. */
		if (!a[i + 1] && is_open((s32)a[i]))
			*to = a[i];
		else
			*to = (u64)(s64)AT_FDCWD;
		return 0;
	case PATH_TO_READ:
	case PATH_TO_CHANGE:
	case NAME_TO_CHANGE:
		*to = 0;
		if (!a[i] && i && call->arguments[i - 1].kind == FOLDER && is_open((s32)a[i - 1]))
			return 0;
		return put_allowed_path(self, i && call->arguments[i - 1].kind == FOLDER ? (s32)a[i - 1] : AT_FDCWD,
					a[i], argument->kind, to);
	case TEXT:
		return put_text(self, a[i], to);
	case PARTIAL_IN:
	case PARTIAL_OUT:
		return 0; /* when the others have their places */
	default:
		break;
	}
	if (!a[i]) {
		*to = 0;
		return 0;
	}
	buffer = take_buffer(self, (u64)size);
	if (!buffer)
		return -ENOMEM;
	*to = (u64)buffer;
	if (argument->kind == FIXED_IN || argument->kind == FIXED_BOTH || argument->kind == COUNTED_IN)
		return copy_in(buffer, a[i], (u64)size);
	memset(buffer, 0, (u64)size);
	return 0;
}

/* As much as the window has room for. */
static s64 put_part(struct thread *self, const struct argument *argument, u32 i, const u64 *a, u64 *to)
{
	u64 bytes = least(a[argument->count_in], buffer_left(self));
	void *buffer = take_buffer(self, bytes);

	to[i] = (u64)buffer;
	to[argument->count_in] = bytes;
	return argument->kind == PARTIAL_IN ? copy_in(buffer, a[i], bytes) : 0;
}

/* Of what the program gave room for; with no room it asks how many there are. */
static bool is_count(const struct call *call, const u64 *a, s64 result)
{
	for (u32 i = 0; i < ARGUMENTS; i++) {
		const struct argument *argument = &call->arguments[i];

		if (argument->kind == COUNTED_OUT && (u32)a[argument->count_in])
			return (u64)result <= (u32)a[argument->count_in];
	}
	return result <= LARGEST_NUMBER;
}

static s64 check_result(struct thread *self, u64 nr, const struct call *call, const u64 *a, s64 result, u64 bytes)
{
	bool good;

	switch (call->result) {
	case ZERO:
		good = !result;
		break;
	case BYTES:
		good = (u64)result <= bytes;
		break;
	case COUNT:
		good = is_count(call, a, result);
		break;
	case MODE:
		good = result <= LARGEST_MODE;
		break;
	case PRIORITY:
		good = result >= 1 && result <= LOWEST_PRIORITY;
		break;
	case ANY:
		good = true;
		break;
	default:
		good = result <= LARGEST_NUMBER;
	}
	if (!good)
		attacked(self, "%s is answered by %x, which it cannot be", call_name((u32)nr), (u64)result);
	return call->result == DESCRIPTOR ? new_descriptor(self, result, NULL) : result;
}

/* What is checked is what the program gets: a copy. */
static s64 take_structure(struct thread *self, const struct call *call, const struct argument *argument, u64 to,
			  u64 from)
{
	u8 copy[LARGEST_STRUCTURE] __attribute__((aligned(8)));

	memcpy(copy, (const void *)from, argument->size);
	if (!argument->check(copy))
		attacked(self, "%s is answered by values that it cannot have", call->name);
	return copy_out(to, copy, argument->size);
}

static s64 take_results(struct thread *self, const struct call *call, const u64 *a, const u64 *to, s64 result)
{
	for (u32 i = 0; i < ARGUMENTS; i++) {
		const struct argument *argument = &call->arguments[i];
		u64 bytes = (u64)size_of(argument, a);

		if (argument->kind == PARTIAL_OUT)
			bytes = (u64)result;
		else if (argument->kind != FIXED_OUT && argument->kind != FIXED_BOTH && argument->kind != COUNTED_OUT)
			continue;
		if (!a[i])
			continue;
		if (argument->check ? take_structure(self, call, argument, a[i], to[i])
				    : copy_out(a[i], (const void *)to[i], bytes))
			return -EFAULT;
	}
	return result;
}

s64 call_outside(struct thread *self, u64 nr, const struct call *call, const u64 *a)
{
	u64 to[ARGUMENTS] = { 0 }, bytes = 0;
	s64 result;

	for (u32 i = 0; i < ARGUMENTS; i++) {
		result = put_argument(self, call, i, a, &to[i]);
		if (result < 0)
			return result;
	}
	for (u32 i = 0; i < ARGUMENTS; i++) {
		const struct argument *argument = &call->arguments[i];

		if (argument->kind != PARTIAL_IN && argument->kind != PARTIAL_OUT)
			continue;
		result = put_part(self, argument, i, a, to);
		if (result < 0)
			return result;
		bytes = to[argument->count_in];
	}
	result = outside(self, nr, to[0], to[1], to[2], to[3], to[4], to[5]);
	if (result < 0)
		return result;
	result = check_result(self, nr, call, a, result, bytes);
	return result < 0 ? result : take_results(self, call, a, to, result);
}

/*
 * Linux looks at the lower half of an int's register, and a program leaves there whatever was there before: what is compared in
 * here must be what the kernel acts on.
 */
static void narrow(const struct call *call, const u64 *from, u64 *to)
{
	for (u32 i = 0; i < ARGUMENTS; i++) {
		switch (call->arguments[i].kind) {
		case INTEGER:
		case OPEN_FILE:
		case FOLDER:
			to[i] = (u64)(s64)(s32)from[i];
			break;
		case UNSIGNED:
			to[i] = (u32)from[i];
			break;
		default:
			to[i] = from[i];
		}
	}
}

static s64 perform(struct thread *self, u64 nr, const u64 *registers)
{
	const struct call *call;
	u64 a[ARGUMENTS];

	if (nr >= CALL_NUMBERS || !calls[nr].name) {
		unsupported(self, "not supported", nr);
		return -ENOSYS;
	}
	if (!call_allowed((u32)nr)) {
		unsupported(self, "not allowed by the manifest", nr);
		return -ENOSYS;
	}
	call = &calls[nr];
	narrow(call, registers, a);
	if (self->child && !child_may_call(nr))
		return child_call(self, nr, a);
	return call->handler ? call->handler(self, a) : call_outside(self, nr, call, a);
}

/* Calls that a signal interrupts and that nobody notices, if its handler says so (signal(7)). */
static bool can_restart(u64 nr)
{
	switch (nr) {
	case 0: /* read, write, and their like */
	case 1:
	case 2: /* open, of what has to be waited for */
	case 16 ... 20:
	case 42 ... 47:
	case 72:
	case 61: /* wait4, waitid */
	case 73:
	case 202:
	case 247:
	case 257:
	case 288:
		return true;
	default:
		return false;
	}
}

void remember(struct thread *self, u64 nr, s64 answer)
{
	if (nr < ANSWERED_CALLS && answer >= 0)
		self->answers[nr] = (u32)answer + 1;
}

void system_call(struct thread *self)
{
	struct regs *regs = &self->regs;
	const u64 nr = (u32)regs->rax,
		  a[ARGUMENTS] = { regs->rdi, regs->rsi, regs->rdx, regs->r10, regs->r8, regs->r9 };
	s64 result, restart = -1;

	/* What SYSCALL does: APM volume 3. */
	regs->rip += CALL_BYTES;
	regs->rcx = regs->rip;
	regs->r11 = regs->rflags;
	/* Handlers that are several calls' look there which one it is. */
	regs->rax = nr;
	result = perform(self, nr, a);
	if (result == -EINTR && can_restart(nr))
		restart = (s64)nr;
	/* rt_sigreturn has set all registers. */
	if (nr != NR_RT_SIGRETURN)
		regs->rax = (u64)result;
	deliver_signals(self, restart);
}

HANDLER(do_not_there)
{
	return -ENOSYS;
}

/* As a file system without extended attributes: programs that copy files go on. */
HANDLER(do_no_attributes)
{
	return -EOPNOTSUPP;
}

/* Hints, and what has no meaning in here. */
HANDLER(do_accept_silently)
{
	return 0;
}
