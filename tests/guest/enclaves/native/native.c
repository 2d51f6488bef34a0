/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The runtime as an ordinary process: it plays starter, driver, service and processor for one enclave, so that programs
 * can be tried in a moment, and with a debugger. Nothing is protected here.
 *
 * Linux's system call user dispatch (PR_SET_SYSCALL_USER_DISPATCH) raises SIGSYS for a system call from outside the
 * runtime's code, as #UD would be raised; faults come as signals too.
 */
#include "machine.h"
#include "memory.h"
#include "native.h"

s64 raw_clone(u64 flags, void *stack, u64 slot);
void restorer(void);
extern const char runtime_start[];

#define NR_MUNMAP 11
#define NR_SIGACTION 13
#define NR_MREMAP 25
#define NR_EXIT 60
#define NR_SIGALTSTACK 131
#define NR_PRCTL 157
#define SET_DISPATCH 59
#define CODE_ROOM 0x100000
#define ALTERNATE_AT 0x1000
#define XSAVE_MAGIC 0x46505853
#define SIGNAL_FLAGS 0x4c000004 /* SA_NODEFER | SA_ONSTACK | SA_RESTORER | SA_SIGINFO */

/* Of the service, beside those that the runtime looks for (`veil.formats.status`). */
enum { STATUS_UNKNOWN_CALL = 2, STATUS_BAD_REQUEST = 3, STATUS_FULL = 6 };

static struct {
	u64 fault;
	u8 *fp;
} slots[VEIL_ENC_MAX_SLOTS];
static u64 pool_left;
static u8 blocking = 1;

struct kernel_action {
	void (*handler)(int, void *, void *);
	u64 flags;
	void (*restorer)(void);
	u64 mask;
};

_Noreturn void die(const char *text)
{
	u64 length = 0;

	while (text[length])
		length++;
	raw(NR_WRITE, 2, (u64)text, length, 0, 0, 0);
	raw(NR_EXIT_GROUP, 126, 0, 0, 0, 0, 0);
	__builtin_trap();
}

static u32 serve(struct thread *self, struct veil_mailbox *mailbox)
{
	u64 *a = mailbox->args;
	u64 bytes = a[1] * PAGE, made;

	switch (mailbox->call) {
	case VEIL_MAILBOX_MAP:
		if (a[1] > pool_left)
			return STATUS_FULL;
		if (raw(NR_MMAP, a[0], bytes, a[2], FIXED, (u64)-1, 0) != (s64)a[0])
			return STATUS_BAD_REQUEST;
		pool_left -= a[1];
		return STATUS_OK;
	case VEIL_MAILBOX_FILL:
		if (a[1] > pool_left)
			return STATUS_FULL;
		made = (u64)raw(NR_MMAP, 0, bytes, PROT_READ | PROT_WRITE, FIXED & ~(u64)MAP_FIXED, (u64)-1, 0);
		memcpy((void *)made, (const void *)a[3], bytes);
		raw(NR_MPROTECT, made, bytes, a[2], 0, 0, 0);
		if (raw(NR_MREMAP, made, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, a[0], 0) != (s64)a[0])
			return STATUS_BAD_REQUEST;
		pool_left -= a[1];
		return STATUS_OK;
	case VEIL_MAILBOX_UNMAP:
		pool_left += a[1];
		return raw(NR_MUNMAP, a[0], bytes, 0, 0, 0, 0) ? STATUS_BAD_REQUEST : STATUS_OK;
	case VEIL_MAILBOX_PROTECT:
		return raw(NR_MPROTECT, a[0], bytes, a[2], 0, 0, 0) ? STATUS_BAD_REQUEST : STATUS_OK;
	case VEIL_MAILBOX_LOG:
		raw(NR_WRITE, 2, (u64) "log: ", 5, 0, 0, 0);
		raw(NR_WRITE, 2, (u64)mailbox->data, a[0], 0, 0, 0);
		raw(NR_WRITE, 2, (u64) "\n", 1, 0, 0, 0);
		return STATUS_OK;
	case VEIL_MAILBOX_KEY:
		memset(mailbox->data, 0x5a, 32);
		return STATUS_OK;
	case VEIL_MAILBOX_SECRET:
		return give_secret(mailbox);
	case VEIL_MAILBOX_FAULT:
		mailbox->result = slots[self->slot].fault;
		return STATUS_OK;
	default:
		return STATUS_UNKNOWN_CALL;
	}
}

void leave(struct thread *self)
{
	struct veil_window_block *block = block_of(self->slot);
	struct veil_mailbox *mailbox = (void *)((u8 *)self + VEIL_ENC_MAILBOX);
	u64 *a = block->args;

	watch_no_more();
	switch (block->state) {
	case VEIL_WINDOW_SYSCALL:
		/* As the starter: whoever is interrupted has not begun. */
		block->result =
			block->interrupt
				? -ERESTART
				: system_call_outside(block->nr, (const u64[6]){ a[0], a[1], a[2], a[3], a[4], a[5] });
		break;
	case VEIL_WINDOW_INTERRUPT:
		/* Nobody is interrupted here: a signal comes with the next event. */
		block->result = 0;
		break;
	case VEIL_WINDOW_SERVICE:
		mailbox->status = serve(self, mailbox);
		break;
	case VEIL_WINDOW_SPAWN:
		block->result = raw_clone(0x50f00, (u8 *)thread_of((u32)a[0]) + VEIL_ENC_STACK_TOP, a[0]);
		break;
	case VEIL_WINDOW_PROGRAM:
		block->result = system_call_outside(NR_EXECVE, (const u64[6]){ a[0], a[1] });
		break;
	case VEIL_WINDOW_EXIT:
		if (a[2] == VEIL_END_TOO_BIG)
			die("too big\n");
		raw(NR_EXIT_GROUP, a[0], 0, 0, 0, 0, 0);
		break;
	case VEIL_WINDOW_THREAD_EXIT:
		raw(NR_EXIT, 0, 0, 0, 0, 0, 0);
		break;
	default:
		break;
	}
	block->state = VEIL_WINDOW_IDLE;
}

static void load(struct thread *self, const struct user_context *from, u64 vector)
{
	self->regs = (struct regs){
		.r15 = from->r15,
		.r14 = from->r14,
		.r13 = from->r13,
		.r12 = from->r12,
		.r11 = from->r11,
		.r10 = from->r10,
		.r9 = from->r9,
		.r8 = from->r8,
		.rbp = from->rbp,
		.rdi = from->rdi,
		.rsi = from->rsi,
		.rdx = from->rdx,
		.rcx = from->rcx,
		.rbx = from->rbx,
		.rax = from->rax,
		.vector = vector,
		.error = from->error,
		.rip = from->rip,
		.rflags = from->rflags,
		.rsp = from->rsp,
	};
}

static void store(const struct regs *from, struct user_context *to)
{
	to->r15 = from->r15;
	to->r14 = from->r14;
	to->r13 = from->r13;
	to->r12 = from->r12;
	to->r11 = from->r11;
	to->r10 = from->r10;
	to->r9 = from->r9;
	to->r8 = from->r8;
	to->rbp = from->rbp;
	to->rdi = from->rdi;
	to->rsi = from->rsi;
	to->rdx = from->rdx;
	to->rcx = from->rcx;
	to->rbx = from->rbx;
	to->rax = from->rax;
	to->rip = from->rip;
	to->rflags = from->rflags;
	to->rsp = from->rsp;
}

static void handler(int number, void *information, void *context)
{
	struct user_context *user = context;
	struct thread *self = (void *)((u64)__builtin_frame_address(0) & ~(u64)(VEIL_ENC_THREAD_STRIDE - 1));
	bool call = number == 31;
	u64 vector = call ? 6 : user->trap;
	struct frame frame = { vector, user->error, user->rip, 0, user->rflags, user->rsp, 0 };

	if (is_watched(number, *(u64 *)((u8 *)information + 16), user))
		return;
	if (vector == 14)
		slots[self->slot].fault = *(u64 *)((u8 *)information + 16);
	if (user->rip - (u64)runtime_start < CODE_ROOM) {
		event_in_runtime(self, &frame);
		user->rip = frame.rip;
		return;
	}
	slots[self->slot].fp = user->fp;
	load(self, user, vector);
	if (call) {
		self->regs.rip -= 2;
		/* Linux leaves the number there, with the other registers as they were; of what is above it the program's. */
		self->regs.rax = (self->regs.rax & ~(u64)0xffffffff) | *(u32 *)((u8 *)information + 24);
	}
	event_of_program(self);
	store(&self->regs, user);
}

void fp_save(struct thread *self, void *to)
{
	memcpy(to, slots[self->slot].fp, 512);
	/* no XSAVE area: it lies outside of the enclave's frame */
	memset((u8 *)to + 464, 0, 48);
}

void fp_restore(struct thread *self, const void *from)
{
	u8 *fp = slots[self->slot].fp;

	if (!fp) {
		__asm__ volatile("fxrstor64 (%0)" : : "r"(from) : "memory");
		return;
	}
	memcpy(fp, from, 464);
	/* In an XSAVE area the kernel takes what is said to be there. */
	if (*(u32 *)(fp + 464) == XSAVE_MAGIC)
		*(u64 *)(fp + 512) |= 3;
}

u16 fp_status(struct thread *self, u32 *mxcsr, u16 *control)
{
	const u8 *fp = slots[self->slot].fp;
	u16 status;

	memcpy(control, fp, 2);
	memcpy(&status, fp + 2, 2);
	memcpy(mxcsr, fp + 24, 4);
	return status;
}

void native_thread(u64 slot)
{
	u64 stack[3] = { (u64)thread_of((u32)slot) + ALTERNATE_AT, 0, VEIL_ENC_STACK_TOP - ALTERNATE_AT };

	slots[slot].fp = NULL;
	if (raw(NR_SIGALTSTACK, (u64)stack, 0, 0, 0, 0, 0) ||
	    raw(NR_PRCTL, SET_DISPATCH, 1, (u64)runtime_start, CODE_ROOM, (u64)&blocking, 0))
		die("no system call user dispatch\n");
	slot_main((u32)slot);
}

/* The image's path, then the program's arguments from argv[0] on. */
_Noreturn void native_main(u64 *stack)
{
	static const u8 numbers[] = { 4, 5, 7, 8, 11, 31 };
	char **arguments = (char **)stack + 1;
	struct kernel_action action = { handler, SIGNAL_FLAGS, restorer, 0 };

	if (stack[0] < 3)
		die("usage: native X.enclave NAME [ARGUMENT...]\n");
	load_image(arguments[1], &pool_left);
	pass_strings(arguments + 2);
	hear(arguments + stack[0] + 1);
	for (u32 i = 0; i < LENGTH(numbers); i++)
		if (raw(NR_SIGACTION, numbers[i], (u64)&action, 0, 8, 0, 0))
			die("cannot catch signals\n");
	native_thread(0);
	die("a slot returned\n");
}
