/* SPDX-License-Identifier: GPL-2.0-or-later */
/* From the first entry to the program's first instruction: its stack, as the System V ABI wants it. */
#include "machine.h"
#include "memory.h"
#include "runtime.h"

#define START_AT (VEIL_ENC_WINDOW + PAGE)
#define START_BYTES (VEIL_ENC_WINDOW_STRIDE - PAGE)
#define MOST_STRINGS VEIL_ENC_MOST_STRINGS
#define MOST_TEXT VEIL_ENC_MOST_TEXT
#define FLAGS_AT_START 0x202

enum auxiliary {
	AT_NULL,
	AT_PHDR = 3,
	AT_PHENT = 4,
	AT_PHNUM = 5,
	AT_PAGESZ = 6,
	AT_BASE = 7,
	AT_FLAGS = 8,
	AT_ENTRY = 9,
	AT_UID = 11,
	AT_EUID = 12,
	AT_GID = 13,
	AT_EGID = 14,
	AT_PLATFORM = 15,
	AT_HWCAP = 16,
	AT_CLKTCK = 17,
	AT_SECURE = 23,
	AT_RANDOM = 25,
	AT_EXECFN = 31,
};

struct strings {
	const char *at[MOST_STRINGS];
	u32 count;
};

static struct veil_start_block given;
static struct strings arguments, variables;
static char *text; /* the strings from outside, copied once */

static u64 length_of(const char *string)
{
	u64 length = 0;

	while (string[length])
		length++;
	return length;
}

/* A program that got some of its arguments would do something else. */
static _Noreturn void too_big(struct thread *self, const char *what, u64 number)
{
	log_line(self, what, number);
	end_because(self, VEIL_END_TOO_BIG);
}

/* Half of the stack is left to the program. */
static void add(struct thread *self, struct strings *to, const char *string)
{
	static u64 room;

	if (to->count == MOST_STRINGS)
		too_big(self, "more than %d arguments or variables", MOST_STRINGS);
	to->at[to->count++] = string;
	room += length_of(string) + 1 + sizeof(string);
	if (room > CONFIG->stack_bytes / 2)
		too_big(self, "arguments and variables of more than %d bytes, half of the stack",
			CONFIG->stack_bytes / 2);
}

static void add_fixed(struct thread *self, struct strings *to, u32 offset, u32 count)
{
	const char *string = config_at(offset);

	for (u32 i = 0; i < count; i++) {
		add(self, to, string);
		string += length_of(string) + 1;
	}
}

/* Whether it is NAME=VALUE, of this name. */
static bool is_named(const char *variable, const char *name, u64 length)
{
	for (u64 at = 0; at < length; at++)
		if (variable[at] != name[at])
			return false;
	return variable[length] == '=';
}

/* One that the manifest fixes: of two of a name some programs take the last. */
static bool is_fixed(const char *variable)
{
	const char *fixed = config_at(CONFIG->environment);

	for (u32 i = 0; i < CONFIG->environment_count; i++) {
		u64 length = 0;

		while (fixed[length] != '=')
			length++;
		if (is_named(variable, fixed, length))
			return true;
		fixed += length_of(fixed) + 1;
	}
	return false;
}

/* Whether the manifest lets a variable of this name come from outside. */
static bool is_passed(const char *variable)
{
	const char *name = config_at(CONFIG->passed);

	for (u32 i = 0; i < CONFIG->passed_count; i++) {
		u64 length = length_of(name);

		if (!memcmp(name, "*", 2))
			return !is_fixed(variable);
		if (is_named(variable, name, length))
			return true;
		name += length + 1;
	}
	return false;
}

static void take_strings(struct thread *self)
{
	const struct veil_start_block *block = (const struct veil_start_block *)START_AT;
	bool outside_arguments = CONFIG->flags & FLAG_ARGUMENTS_OUTSIDE;
	u64 at = 0;

	memcpy(&given, block, sizeof(given));
	if (given.magic != VEIL_ENC_START_MAGIC)
		memset(&given, 0, sizeof(given));
	if (given.bytes > MOST_TEXT || given.bytes > START_BYTES - sizeof(given))
		too_big(self, "arguments and variables of %d bytes", given.bytes);
	text = heap_take(self, given.bytes + 1);
	if (!text)
		attacked(self, "no memory for arguments of %d bytes", (u64)given.bytes);
	memcpy(text, block + 1, given.bytes);
	text[given.bytes] = 0;
	if (!CONFIG->argument_count)
		add(self, &arguments, config_at(CONFIG->program));
	add_fixed(self, &arguments, CONFIG->arguments, CONFIG->argument_count);
	add_fixed(self, &variables, CONFIG->environment, CONFIG->environment_count);
	for (u64 i = 0; i < (u64)given.arguments + given.environment && at < given.bytes; i++) {
		const char *string = text + at;

		at += length_of(string) + 1;
		if (i >= given.arguments) {
			if (is_passed(string))
				add(self, &variables, string);
		} else if (outside_arguments && i) {
			/* The first is what the enclave is called outside. */
			add(self, &arguments, string);
		}
	}
}

struct stack {
	u64 top;
	u64 words[2 * MOST_STRINGS + 64];
	u32 count;
};

static u64 push_bytes(struct thread *self, struct stack *stack, const void *data, u64 bytes)
{
	stack->top -= bytes;
	if (copy_out(stack->top, data, bytes))
		attacked(self, "no memory for the program's stack");
	return stack->top;
}

static void word(struct stack *stack, u64 value)
{
	stack->words[stack->count++] = value;
}

static void pair(struct stack *stack, u64 kind, u64 value)
{
	word(stack, kind);
	word(stack, value);
}

static void push_strings(struct thread *self, struct stack *stack, const struct strings *strings)
{
	for (u32 i = 0; i < strings->count; i++)
		word(stack, push_bytes(self, stack, strings->at[i], length_of(strings->at[i]) + 1));
	word(stack, 0);
}

static u64 hardware(void)
{
	const struct veil_enclave_info *info = (const struct veil_enclave_info *)VEIL_ENC_INFO;

	for (u32 i = 0; i < least(info->cpuid_entries, VEIL_ENC_INFO_CPUID_ENTRIES); i++)
		if (info->cpuid[i].eax_in == 1)
			return info->cpuid[i].edx;
	return 0;
}

static void build_stack(struct thread *self, u64 top)
{
	static struct stack stack;
	u8 random[16];
	u64 program, platform, random_at;

	stack.top = top;
	random_bytes(self, random, sizeof(random));
	program = push_bytes(self, &stack, config_at(CONFIG->program), CONFIG->program_length + 1);
	platform = push_bytes(self, &stack, "x86_64", 7);
	random_at = push_bytes(self, &stack, random, sizeof(random));
	word(&stack, arguments.count);
	push_strings(self, &stack, &arguments);
	push_strings(self, &stack, &variables);
	pair(&stack, AT_PHDR, CONFIG->headers);
	pair(&stack, AT_PHENT, 56);
	pair(&stack, AT_PHNUM, CONFIG->header_count);
	pair(&stack, AT_PAGESZ, PAGE);
	pair(&stack, AT_BASE, CONFIG->interpreter);
	pair(&stack, AT_FLAGS, 0);
	pair(&stack, AT_ENTRY, CONFIG->program_entry);
	pair(&stack, AT_UID, 0);
	pair(&stack, AT_EUID, 0);
	pair(&stack, AT_GID, 0);
	pair(&stack, AT_EGID, 0);
	pair(&stack, AT_PLATFORM, platform);
	pair(&stack, AT_HWCAP, hardware());
	pair(&stack, AT_CLKTCK, 100);
	pair(&stack, AT_SECURE, 0);
	pair(&stack, AT_RANDOM, random_at);
	pair(&stack, AT_EXECFN, program);
	pair(&stack, AT_NULL, 0);
	stack.top = (stack.top - stack.count * 8) & ~(u64)15;
	if (copy_out(stack.top, stack.words, stack.count * 8))
		attacked(self, "no memory for the program's stack");
	self->regs.rsp = stack.top;
}

static void start_program(struct thread *self)
{
	s64 stack;

	if (CONFIG->magic != CONFIG_MAGIC)
		attacked(self, "the runtime has no configuration");
	heap_start();
	memory_start();
	descriptors_start();
	paths_start();
	take_strings(self);
	WRITE_ONCE(block_of(0)->state, VEIL_WINDOW_IDLE);
	stack = memory_map(self, 0, CONFIG->stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (stack < 0)
		attacked(self, "no memory for the program's stack");
	build_stack(self, (u64)stack + CONFIG->stack_bytes);
	forget_fault_address(self);
	self->regs.rip = CONFIG->entry;
	self->regs.rflags = FLAGS_AT_START;
}

/* A slot is entered for the first time. Only slot 0 has something to do then, unless clone() prepared this one. */
void slot_main(u32 slot)
{
	struct thread *self = thread_of(slot);
	static u32 started;

	self->slot = slot;
	if (!slot && !__atomic_exchange_n(&started, 1, __ATOMIC_SEQ_CST)) {
		self->state = THREAD_RUNS;
		start_program(self);
		resume(self);
	}
	end_thread(self);
}
