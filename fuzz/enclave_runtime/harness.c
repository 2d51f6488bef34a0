/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The enclaves' runtime under the address and undefined-behaviour sanitizers, with a hostile kernel in place of the way
 * out: each input says which system calls the program makes and what they are answered by. A second thread may change
 * the window all the while, so what is read twice is found too.
 *
 * Standard input: u32 length and an input, again and again; for each a letter on standard output: "." it was done, "a"
 * the runtime noticed an attack, "s" it waits for a kernel that lets it starve. "!" and a line on standard error: what
 * must not be. Behind it u32: how many ways from one block of code to the next were gone for the first time. Each input
 * has a process of its own.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#undef EPERM
#include "files.h"
#include "machine.h"

#define SLOTS 2
#define USER 0x200000000000
#define PART 0x2000
#define PARTS 7
#define LONGEST 4096
#define LEAVES 3000

enum ending { DONE = '.', ATTACK = 'a', STARVED = 's', WRONG = '!' };

/* By a hash of two blocks of code that follow each other. */
#define WAYS (1 << 16)
static u8 *gone, known[WAYS];

__attribute__((no_sanitize_coverage)) void __sanitizer_cov_trace_pc(void)
{
	static __thread u64 before;
	u64 place = (u64)__builtin_return_address(0) - (u64)known;

	if (gone)
		gone[(place ^ before) % WAYS] = 1;
	before = place >> 1;
}

static u32 new_ways(void)
{
	u32 count = 0;

	for (u32 i = 0; i < WAYS; i++) {
		count += gone[i] && !known[i];
		known[i] |= gone[i];
	}
	return count;
}

static const u8 *next, *end;
static jmp_buf out;
static u32 leaves;
static u64 may_from[PARTS], may_to[PARTS];
static bool checks;
const char copy_user_site[1], copy_user_fault[1], swap_user_site[1], swap_user_fault[1];
const char peek_site[1], peek_fault[1];

static u8 byte(void)
{
	return next < end ? *next++ : 0;
}

static u64 number(void)
{
	static const u64 edges[] = { 0,
				     1,
				     (u64)-1,
				     (u64)-4095,
				     (u64)-4096,
				     0x7fffffff,
				     0x80000000,
				     1ull << 63,
				     ~(u64)0 >> 1,
				     USER,
				     VEIL_ENC_RUNTIME,
				     VEIL_ENC_WINDOW,
				     VEIL_ENC_THREADS,
				     999,
				     1000,
				     4096,
				     0x3f000 };
	u8 kind = byte();
	u64 value = 0;

	if (kind < 100)
		return kind;
	if (kind < 160)
		return edges[kind % LENGTH(edges)] + (kind & 1 ? 0 : byte()) - (kind & 2 ? 1 : 0);
	if (kind < 200)
		return (u64) - (s64)(kind - 160); /* errors */
	for (u32 i = 0; i < 8; i++)
		value = value << 8 | byte();
	return value;
}

static _Noreturn void finish(enum ending ending)
{
	longjmp(out, ending);
}

static _Noreturn void wrong(const char *text)
{
	fprintf(stderr, "invariant: %s\n", text);
	abort();
}

/* The kernel: it writes what it likes into the window, and answers what it likes. */
void leave(struct thread *self)
{
	struct veil_window_block *block = block_of(self->slot);
	struct veil_mailbox *mailbox = (void *)((u8 *)thread_of(self->slot) + VEIL_ENC_MAILBOX);
	u8 *buffer = (u8 *)block + PAGE;
	u32 changes;

	if (++leaves > LEAVES)
		finish(STARVED);
	switch (block->state) {
	case VEIL_WINDOW_EXIT:
		finish(block->args[0] == 125 ? ATTACK : DONE);
	case VEIL_WINDOW_THREAD_EXIT:
		finish(DONE);
	case VEIL_WINDOW_SERVICE:
		/* The service is honest. What it does to memory is done already. */
		mailbox->status = 0;
		if (mailbox->call == VEIL_MAILBOX_FAULT)
			mailbox->result = 0x1234;
		if (mailbox->call == VEIL_MAILBOX_KEY)
			memset(mailbox->data, 7, 32);
		if (mailbox->call == VEIL_MAILBOX_SECRET) {
			mailbox->status = byte() % 4 ? STATUS_OK : STATUS_UNAVAILABLE;
			mailbox->result = byte() % 4 ? 12 : LONGEST_SECRET;
		}
		if (mailbox->call == VEIL_MAILBOX_LOG && mailbox->args[0] > sizeof(mailbox->data))
			wrong("a line of the log is too long");
		break;
	default:
		changes = byte() % 8;
		for (u32 i = 0; i < changes; i++) {
			u64 at = (u64)byte() << 4 | byte() >> 4, value = number();

			memcpy(buffer + at % (VEIL_ENC_WINDOW_STRIDE - PAGE - 8), &value, 8);
		}
		block->result = (s64)number();
		if (byte() % 16 == 0) {
			block->interrupt = 1;
			block->signals = number();
		}
		if (byte() % 16 == 0)
			return; /* an interrupt */
	}
	block->state = VEIL_WINDOW_IDLE;
}

_Noreturn void resume(struct thread *self)
{
	(void)self;
	finish(DONE);
}

_Noreturn void run_on_fresh_stack(struct thread *self, void (*function)(struct thread *))
{
	function(self);
	finish(DONE);
}

static bool is_there(u64 address, u64 bytes)
{
	return address >= USER && address + bytes <= USER + PARTS * PART;
}

/* What user_memory.c does, for memory that the harness knows the bounds of. */
bool is_user(u64 address, u64 bytes)
{
	return address + bytes >= address && address + bytes <= VEIL_ENC_TOP &&
	       (address + bytes <= VEIL_ENC_WINDOW || address >= VEIL_ENC_INFO + PAGE);
}

s64 copy_in(void *to, u64 from, u64 bytes)
{
	if (bytes && (!is_user(from, bytes) || !is_there(from, bytes)))
		return -EFAULT;
	if (bytes)
		memmove(to, (const void *)from, bytes);
	return 0;
}

s64 copy_out(u64 to, const void *from, u64 bytes)
{
	if (bytes && (!is_user(to, bytes) || !is_there(to, bytes)))
		return -EFAULT;
	for (u32 i = 0; checks && bytes && i < PARTS; i++)
		if (to >= USER + (u64)i * PART && to < USER + (i + 1ul) * PART &&
		    (to < may_from[i] || to + bytes > may_to[i]))
			wrong("a result goes where the program did not want it");
	if (bytes)
		memmove((void *)to, from, bytes);
	return 0;
}

s64 clear_out(u64 to, u64 bytes)
{
	while (bytes--)
		if (copy_out(to++, "", 1))
			return -EFAULT;
	return 0;
}

s64 copy_string_in(char *to, u64 from, u64 space)
{
	for (u64 i = 0; i < space; i++) {
		if (copy_in(to + i, from + i, 1))
			return -EFAULT;
		if (!to[i])
			return (s64)i;
	}
	return -ENAMETOOLONG;
}

/* Of pages that the runtime moves itself, which are not there here. */
bool copy_user(void *to, const void *from, u64 bytes)
{
	(void)to;
	(void)from;
	(void)bytes;
	return false;
}

bool swap_user(u32 *place, u32 old, u32 new, u32 *found)
{
	if (!is_there((u64)place, 4))
		return false;
	*found = *place;
	if (*found == old)
		*place = new;
	return true;
}

void fp_save(struct thread *self, void *to)
{
	(void)self;
	memset(to, 0, 512);
}

void fp_restore(struct thread *self, const void *from)
{
	(void)self;
	(void)from;
}

u16 fp_status(struct thread *self, u32 *mxcsr, u16 *control)
{
	(void)self;
	*mxcsr = 0x1f80;
	*control = 0x37f;
	return 0;
}

/* The heap is the C library's here, so that the sanitizer sees the bounds of each block. */
void heap_start(void)
{
}

void *heap_take(struct thread *self, u64 bytes)
{
	(void)self;
	return bytes > 1 << 20 ? NULL : calloc(1, bytes);
}

void heap_give(struct thread *self, void *block)
{
	(void)self;
	free(block);
}

/* Calls whose result is bytes in a buffer: which argument is the buffer, and which its length. */
static void bounds(u64 nr, u64 *a)
{
	static const struct {
		u16 nr, buffer, length;
	} known[] = { { 0, 1, 2 },   { 17, 1, 2 },  { 45, 1, 2 },  { 78, 1, 2 }, { 89, 1, 2 },
		      { 217, 1, 2 }, { 267, 2, 3 }, { 318, 0, 1 }, { 79, 0, 1 } };

	checks = false;
	for (u32 i = 0; i < LENGTH(known); i++) {
		if (known[i].nr != nr)
			continue;
		for (u32 part = 0; part < PARTS; part++) {
			may_from[part] = 0;
			may_to[part] = ~(u64)0;
			if (a[known[i].buffer] - (USER + (u64)part * PART) < PART) {
				may_from[part] = a[known[i].buffer];
				may_to[part] = may_from[part] + a[known[i].length];
				if (may_to[part] < may_from[part])
					may_to[part] = ~(u64)0;
				checks = true;
			}
		}
	}
}

static void one_call(struct thread *self)
{
	static const char *const paths[] = { "/pass/../pass/file", "/trusted/file", "/run/secrets/key",
					     "/sealed/file",	   "/sealed/other", "/pass/folder/" };
	struct regs *regs = &self->regs;
	u64 nr = (u64)(byte() % 3 == 0 ? byte() + 200 : byte()), a[6];

	for (u32 i = 0; i < 6; i++) {
		u8 kind = byte();

		if (kind < 120) /* a place in the i-th part */
			a[i] = USER + (u64)i * PART + (kind < 60 ? 0 : (u64)kind * 16);
		else if (kind < 180)
			a[i] = kind % 8; /* a descriptor or a small number */
		else
			a[i] = number();
	}
	for (u32 i = byte() % 6; i; i--) {
		u64 value = number(), at = (u64)(byte() % 8) * 8 + (u64)(byte() % 6) * PART;

		memcpy((u8 *)USER + at, &value, 8);
	}
	if (byte() % 3 == 0)
		strcpy((char *)USER + (byte() % 3) * PART, paths[byte() % LENGTH(paths)]);
	bounds(nr, a);
	*regs = (struct regs){ .rax = nr,
			       .rdi = a[0],
			       .rsi = a[1],
			       .rdx = a[2],
			       .r10 = a[3],
			       .r8 = a[4],
			       .r9 = a[5],
			       .rip = USER + 0x100,
			       .rsp = USER + 7 * PART - 64,
			       .rflags = 0x202 };
	self->buffer_used = 0;
	system_call(self);
	checks = false;
	/* The program touches a page of a map: a trusted file's is read then. */
	if (nr == 9 && (s64)regs->rax > 0)
		memory_bring(self, regs->rax + (u64)byte() * PAGE, 1);
	if ((s64)regs->rax < 0 && (s64)regs->rax < -LAST_ERROR && nr != 15 && nr != 102)
		wrong("a result that is neither a number nor an error");
}

static void *change(void *seed)
{
	u64 state = (u64)seed | 1;

	for (;;) {
		volatile u64 *window = (u64 *)VEIL_ENC_WINDOW;

		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		/* not the block's state, which says whose turn it is */
		window[(PAGE + (state >> 8) % 0x3000) / 8] = state % 5 ? state : state % 64;
	}
	return NULL;
}

static void map(u64 address, u64 bytes)
{
	if (mmap((void *)address, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
		 0) != (void *)address) {
		perror("map");
		exit(2);
	}
}

static void prepare(const char *config)
{
	struct veil_enclave_info *info = (void *)VEIL_ENC_INFO;
	FILE *file = fopen(config, "rb");

	map(VEIL_ENC_WINDOW, SLOTS * VEIL_ENC_WINDOW_STRIDE);
	map(VEIL_ENC_THREADS, SLOTS * VEIL_ENC_THREAD_STRIDE);
	map(VEIL_ENC_INFO, PAGE);
	map(CONFIG_AT, 0x100000);
	map(USER, PARTS * PART);
	info->arena_pages = 1 << 20;
	info->pool_pages = 1 << 16;
	if (!file || !fread((void *)CONFIG_AT, 1, 0x100000, file)) {
		perror(config);
		exit(2);
	}
	fclose(file);
}

static int run(const u8 *data, u32 length)
{
	struct thread *self = thread_of(0);
	pthread_t thread;
	int ending;

	next = data;
	end = data + length;
	if (byte() % 4 == 0)
		pthread_create(&thread, NULL, change, (void *)(u64)(byte() + 1));
	ending = setjmp(out);
	if (!ending) {
		self->state = THREAD_RUNS;
		memory_start();
		descriptors_start();
		paths_start();
		while (next < end)
			one_call(self);
		ending = DONE;
	}
	return ending;
}

int main(int count, char **arguments)
{
	static u8 data[LONGEST];
	u32 length, ways;

	if (count != 2)
		return 2;
	gone = mmap(NULL, WAYS, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (gone == (void *)-1)
		return 2;
	prepare(arguments[1]);
	while (fread(&length, sizeof(length), 1, stdin) == 1) {
		int status;
		char letter;
		pid_t child;

		if (length > LONGEST || fread(data, 1, length, stdin) != length)
			return 2;
		memset(gone, 0, WAYS);
		child = fork();
		if (!child) {
			/* An endless loop is a finding as well. */
			alarm(20);
			_exit(run(data, length));
		}
		waitpid(child, &status, 0);
		letter = WIFEXITED(status) && strchr(".as", WEXITSTATUS(status)) && WEXITSTATUS(status)
				 ? (char)WEXITSTATUS(status)
				 : WRONG;
		ways = new_ways();
		fwrite(&letter, 1, 1, stdout);
		fwrite(&ways, sizeof(ways), 1, stdout);
		fflush(stdout);
	}
	return 0;
}
