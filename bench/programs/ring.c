// SPDX-License-Identifier: GPL-2.0-or-later
// A byte from standard input goes to standard output, until there is none. With `COUNT FIRST LAST` as arguments: sends a
// byte into FIRST and waits for it at LAST, COUNT times, after some that warm up; nanoseconds of a turn.
//
// Without a C library: many of these are in memory at once.
typedef long word;

#define SYS_READ 0
#define SYS_WRITE 1
#define SYS_OPEN 2
#define SYS_EXIT 231
#define SYS_CLOCK 228
#define WARM 3

static word call(word nr, word a, word b, word c)
{
	word result;

	__asm__ volatile("syscall" : "=a"(result) : "0"(nr), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return result;
}

static word now(void)
{
	word time[2];

	call(SYS_CLOCK, 1, (word)time, 0);
	return time[0] * 1000000000 + time[1];
}

static word number(const char *text)
{
	word value = 0;

	while (*text)
		value = value * 10 + *text++ - '0';
	return value;
}

static void print(word value)
{
	char text[24];
	int at = sizeof(text);

	text[--at] = '\n';
	do
		text[--at] = (char)('0' + value % 10);
	while (value /= 10);
	call(SYS_WRITE, 1, (word)(text + at), (word)sizeof(text) - at);
}

static int turn(word from, word to, char *byte)
{
	return call(SYS_READ, from, (word)byte, 1) == 1 && call(SYS_WRITE, to, (word)byte, 1) == 1;
}

static void drive(word count, const char *first, const char *last)
{
	/* In this order: each opening waits for the other end. */
	word to = call(SYS_OPEN, (word)first, 1, 0), from = call(SYS_OPEN, (word)last, 0, 0), start = 0;
	char byte = 'x';

	for (word i = 0; i < WARM + count; i++) {
		if (i == WARM)
			start = now();
		call(SYS_WRITE, to, (word)&byte, 1);
		call(SYS_READ, from, (word)&byte, 1);
	}
	print((now() - start) / count);
}

__attribute__((used)) void begin(word *stack)
{
	char **arguments = (char **)(stack + 1), byte;

	if (stack[0] == 4)
		drive(number(arguments[1]), arguments[2], arguments[3]);
	else
		while (turn(0, 1, &byte))
			;
	call(SYS_EXIT, 0, 0, 0);
}

__asm__(".globl _start\n_start: movq %rsp, %rdi\nandq $-16, %rsp\ncall begin\nud2\n");
