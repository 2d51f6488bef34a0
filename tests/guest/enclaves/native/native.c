/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The runtime as an ordinary process: it plays starter, driver, service and processor for one enclave, so that programs
 * can be tried in a moment, and with a debugger. Nothing is protected here.
 *
 * Linux's system call user dispatch (PR_SET_SYSCALL_USER_DISPATCH) raises SIGSYS for a system call from outside the
 * runtime's code, as #UD would be raised; faults come as signals too.
 */
#include "machine.h"
#include "runtime.h"

s64 raw(u64 nr, u64 a0, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5);
s64 raw_clone(u64 flags, void *stack, u64 slot);
void restorer(void);
extern const char runtime_start[];

#define NR_WRITE 1
#define NR_OPEN 2
#define NR_FSTAT 5
#define NR_MMAP 9
#define NR_MPROTECT 10
#define NR_MUNMAP 11
#define NR_SIGACTION 13
#define NR_EXIT 60
#define NR_SIGALTSTACK 131
#define NR_PRCTL 157
#define NR_SYNC 162
#define NR_EXIT_GROUP 231
#define SET_DISPATCH 59
#define FIXED 0x32 /* MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED */
#define IMAGE_AT 0x7e0000000000
#define TAR_BLOCK 512
#define RUNTIME_ROOM 0x1000000
#define CODE_ROOM 0x100000
#define ALTERNATE_AT 0x1000
#define FLAG_TF 0x100
#define SIGNAL_FLAGS 0x4c000004 /* SA_NODEFER | SA_ONSTACK | SA_RESTORER | SA_SIGINFO */

static struct {
	u64 fault;
	u8 *fp;
} slots[VEIL_ENC_MAX_SLOTS];
static u64 pool_left;
static u8 blocking = 1;
/*
 * A kernel that lies about one system call. It answers `result` and does nothing, or does it, if there is no `result`;
 * then it writes into the window, where arguments point to. `once`: only the first time after a sync(). `later`: what a
 * place holds from the second time on that the runtime reads it; its page is not there, so each access shows.
 */
#define MOST_PUT 4
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

struct kernel_action {
	void (*handler)(int, void *, void *);
	u64 flags;
	void (*restorer)(void);
	u64 mask;
};

/* struct ucontext up to its machine context */
struct user_context {
	u64 flags, link, stack[3];
	u64 r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, rflags, segments, error,
		trap, mask, cr2;
	u8 *fp;
};

struct layout_header {
	u8 magic[8];
	u32 version, slots;
	u64 entry, vectors, pool_pages, arena_pages;
	u32 window_pages, records;
	u64 reserved;
};

struct layout_record {
	u32 kind, prot;
	u64 va, pages;
	u8 digest[48];
};

static _Noreturn void die(const char *text)
{
	u64 length = 0;

	while (text[length])
		length++;
	raw(NR_WRITE, 2, (u64)text, length, 0, 0, 0);
	raw(NR_EXIT_GROUP, 126, 0, 0, 0, 0, 0);
	__builtin_trap();
}

static void map(u64 address, u64 bytes, u32 prot)
{
	if (raw(NR_MMAP, address, bytes, prot, FIXED, (u64)-1, 0) != (s64)address)
		die("cannot map\n");
}

static u32 give_secret(struct veil_mailbox *mailbox)
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

static u32 serve(struct thread *self, struct veil_mailbox *mailbox)
{
	u64 *a = mailbox->args;
	u64 bytes = a[1] * PAGE;

	switch (mailbox->call) {
	case VEIL_MAILBOX_MAP:
		if (a[1] > pool_left)
			return 5;
		if (raw(NR_MMAP, a[0], bytes, a[2], FIXED, (u64)-1, 0) != (s64)a[0])
			return 2;
		pool_left -= a[1];
		return 0;
	case VEIL_MAILBOX_UNMAP:
		pool_left += a[1];
		return raw(NR_MUNMAP, a[0], bytes, 0, 0, 0, 0) ? 2 : 0;
	case VEIL_MAILBOX_PROTECT:
		return raw(NR_MPROTECT, a[0], bytes, a[2], 0, 0, 0) ? 2 : 0;
	case VEIL_MAILBOX_LOG:
		raw(NR_WRITE, 2, (u64) "log: ", 5, 0, 0, 0);
		raw(NR_WRITE, 2, (u64)mailbox->data, a[0], 0, 0, 0);
		raw(NR_WRITE, 2, (u64) "\n", 1, 0, 0, 0);
		return 0;
	case VEIL_MAILBOX_KEY:
		memset(mailbox->data, 0x5a, 32);
		return 0;
	case VEIL_MAILBOX_SECRET:
		return give_secret(mailbox);
	case VEIL_MAILBOX_FAULT:
		mailbox->result = slots[self->slot].fault;
		return 0;
	default:
		return 3;
	}
}

static void put(u64 address, u64 bytes, u64 value)
{
	/* As the kernel would: what is not there it cannot write. */
	if (address - VEIL_ENC_WINDOW < VEIL_ENC_MAX_SLOTS * (u64)VEIL_ENC_WINDOW_STRIDE)
		memcpy((void *)address, &value, bytes);
}

static bool lies_now(u64 nr)
{
	bool now = lie.told && lie.armed && lie.nr == nr;

	if (lie.once && nr == NR_SYNC)
		lie.armed = true;
	else if (lie.once && now)
		lie.armed = false;
	return now;
}

static void watch(u32 prot)
{
	if (lie.place)
		raw(NR_MPROTECT, page_down(lie.place), PAGE, prot, 0, 0, 0);
}

static s64 system_call_outside(u64 nr, const u64 *a)
{
	bool now = lies_now(nr);
	s64 result;

	if (now && lie.answered)
		result = (s64)lie.result;
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
static bool is_watched(int number, u64 address, struct user_context *user)
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

void leave(struct thread *self)
{
	struct veil_window_block *block = block_of(self->slot);
	struct veil_mailbox *mailbox = (void *)((u8 *)self + VEIL_ENC_MAILBOX);
	u64 *a = block->args;

	watch(3);
	lie.place = 0;

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
	case VEIL_WINDOW_EXIT:
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
		/* Linux leaves the number there, with the other registers as they were. */
		self->regs.rax = *(u32 *)((u8 *)information + 24);
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
	memcpy(slots[self->slot].fp, from, 464);
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

static void start_slot(u64 slot)
{
	u64 stack[3] = { (u64)thread_of((u32)slot) + ALTERNATE_AT, 0, VEIL_ENC_STACK_TOP - ALTERNATE_AT };

	if (raw(NR_SIGALTSTACK, (u64)stack, 0, 0, 0, 0, 0) ||
	    raw(NR_PRCTL, SET_DISPATCH, 1, (u64)runtime_start, CODE_ROOM, (u64)&blocking, 0))
		die("no system call user dispatch\n");
	slot_main((u32)slot);
}

void native_thread(u64 slot)
{
	start_slot(slot);
}

static u64 octal(const u8 *text)
{
	u64 value = 0;

	for (u32 i = 0; text[i] >= '0' && text[i] <= '7'; i++)
		value = value * 8 + (u64)(text[i] - '0');
	return value;
}

static bool same(const u8 *a, const char *b)
{
	while (*b && *a == (u8)*b)
		a++, b++;
	return *a == (u8)*b;
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
static void hear(char **variables)
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

static void load_records(const struct layout_header *layout, const u8 *content)
{
	const struct layout_record *records = (const void *)(layout + 1);

	for (u32 i = 0; i < layout->records; i++) {
		const struct layout_record *record = &records[i];
		u64 bytes = record->pages * PAGE;

		if (record->va - VEIL_ENC_RUNTIME >= RUNTIME_ROOM) {
			map(record->va, bytes, 3);
			if (record->kind == 1)
				memcpy((void *)record->va, content, bytes);
			if (raw(NR_MPROTECT, record->va, bytes, record->prot, 0, 0, 0))
				die("cannot protect\n");
		}
		content += record->kind == 1 ? bytes : 0;
	}
}

static void fill_info(const struct layout_header *layout)
{
	static const u32 leaves[] = { 0, 1, 7, 0x80000000, 0x80000001 };
	struct veil_enclave_info *info = (void *)VEIL_ENC_INFO;

	map(VEIL_ENC_INFO, PAGE, 3);
	info->slots = layout->slots;
	info->window_pages = layout->window_pages;
	info->pool_pages = layout->pool_pages;
	info->arena_pages = layout->arena_pages;
	for (u32 i = 0; i < LENGTH(leaves); i++) {
		struct veil_cpuid_entry *entry = &info->cpuid[info->cpuid_entries++];

		entry->eax_in = leaves[i];
		__asm__ volatile("cpuid"
				 : "=a"(entry->eax), "=b"(entry->ebx), "=c"(entry->ecx), "=d"(entry->edx)
				 : "a"(leaves[i]), "c"(0));
	}
}

static void load_image(const char *path)
{
	u8 status[144];
	s64 fd = raw(NR_OPEN, (u64)path, 0, 0, 0, 0, 0);
	const struct layout_header *layout = NULL;
	const u8 *content = NULL;
	u64 size;

	if (fd < 0 || raw(NR_FSTAT, (u64)fd, (u64)status, 0, 0, 0, 0))
		die("cannot open the image\n");
	memcpy(&size, status + 48, 8);
	if (raw(NR_MMAP, IMAGE_AT, size, 1, 0x12, (u64)fd, 0) != (s64)IMAGE_AT)
		die("cannot map the image\n");
	raw(3, (u64)fd, 0, 0, 0, 0, 0);
	for (u64 at = 0; at + TAR_BLOCK <= size;) {
		const u8 *member = (const u8 *)IMAGE_AT + at;
		u64 bytes = octal(member + 124);

		if (same(member, "layout"))
			layout = (const void *)(member + TAR_BLOCK);
		if (same(member, "content"))
			content = member + TAR_BLOCK;
		at += TAR_BLOCK + (bytes + TAR_BLOCK - 1) / TAR_BLOCK * TAR_BLOCK;
	}
	if (!layout || !content)
		die("no layout or content in the image\n");
	pool_left = layout->pool_pages;
	map(VEIL_ENC_WINDOW, layout->slots * VEIL_ENC_WINDOW_STRIDE, 3);
	map(VEIL_ENC_THREADS, layout->slots * VEIL_ENC_THREAD_STRIDE, 3);
	fill_info(layout);
	load_records(layout, content);
}

static void pass_strings(char **arguments)
{
	struct veil_start_block *start = (void *)(VEIL_ENC_WINDOW + PAGE);
	char *to = (char *)(start + 1);
	char **at = arguments;

	start->magic = VEIL_ENC_START_MAGIC;
	for (u32 part = 0; part < 2; part++, at++) {
		for (; *at; at++) {
			u64 length = 0;

			while ((*at)[length])
				length++;
			memcpy(to, *at, length + 1);
			to += length + 1;
			if (part)
				start->environment++;
			else
				start->arguments++;
		}
	}
	start->bytes = (u32)(to - (char *)(start + 1));
}

/* The image's path, then the program's arguments from argv[0] on. */
_Noreturn void native_main(u64 *stack)
{
	static const u8 numbers[] = { 4, 5, 7, 8, 11, 31 };
	char **arguments = (char **)stack + 1;
	struct kernel_action action = { handler, SIGNAL_FLAGS, restorer, 0 };

	if (stack[0] < 3)
		die("usage: native X.enclave NAME [ARGUMENT...]\n");
	load_image(arguments[1]);
	pass_strings(arguments + 2);
	hear(arguments + stack[0] + 1);
	for (u32 i = 0; i < LENGTH(numbers); i++)
		if (raw(NR_SIGACTION, numbers[i], (u64)&action, 0, 8, 0, 0))
			die("cannot catch signals\n");
	start_slot(0);
	die("a slot returned\n");
}
