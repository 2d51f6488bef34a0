/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Does the system calls that its arguments say, prints the result of each and at last all buffers: what is in them, and
 * a "!" if something beside one was written. Words: a number; "@N" a buffer of N zeros, with pieces that it begins with
 * behind a colon (xHEX; dN four bytes; qN eight; &I the place of the I-th buffer); "&I" that place; "/" ends a call;
 * "5*100" does call 5 a hundred times. The result of sync (162) is not printed.
 */
typedef unsigned char u8;
typedef unsigned long u64;
static u8 room[1 << 18] __attribute__((aligned(16)));
static u64 used, count, places[64], sizes[64];
static long call(u64 nr, const u64 *a)
{
	register u64 r10 __asm__("r10") = a[3], r8 __asm__("r8") = a[4], r9 __asm__("r9") = a[5];
	long result;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"(nr), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}
static void print(const void *text, u64 length)
{
	const u64 a[6] = { 1, (u64)text, length };
	call(1, a);
}
static u64 number(const char **at)
{
	u64 value = 0, minus = **at == '-';
	*at += minus;
	while (**at >= '0' && **at <= '9')
		value = value * 10 + (u64)(*(*at)++ - '0');
	return minus ? -value : value;
}
static void put(u8 **to, u64 value, int bytes)
{
	while (bytes--) {
		*(*to)++ = (u8)value;
		value >>= 8;
	}
}
static u8 digit(char c)
{
	return (u8)(c <= '9' ? c - '0' : c - 'a' + 10);
}
static u64 buffer(const char *at)
{
	u64 size = number(&at), place = used + 64;
	u8 *to = room + place;
	/* what lies around it is looked at in the end */
	for (u64 i = used; i < place; i++)
		room[i] = 0xee;
	for (u64 i = place + size; i < place + size + 4096; i++)
		room[i] = 0xee;
	used = (place + size + 4096 + 15) & ~15ul;
	places[count] = (u64)to;
	sizes[count++] = size;
	while (*at) {
		switch (*++at) {
		case 'x':
			for (at++; *at && *at != ','; at += 2)
				*to++ = (u8)(digit(at[0]) << 4 | digit(at[1]));
			break;
		case 'd':
			at++;
			put(&to, number(&at), 4);
			break;
		case 'q':
			at++;
			put(&to, number(&at), 8);
			break;
		case '&':
			at++;
			put(&to, places[number(&at)], 8);
			break;
		}
	}
	return places[count - 1];
}
static void print_number(long value)
{
	char text[24];
	int at = 24, minus = value < 0;
	u64 left = minus ? -(u64)value : (u64)value;
	text[--at] = '\n';
	do
		text[--at] = (char)('0' + left % 10);
	while (left /= 10);
	if (minus)
		text[--at] = '-';
	print(text + at, (u64)(24 - at));
}
static void print_buffers(void)
{
	static char line[2 * 4096 + 16];
	for (u64 i = 0; i < count; i++) {
		const u8 *at = (const u8 *)places[i];
		u64 length = 0, broken = 0;
		for (u64 k = 0; k < sizes[i] && k < 4096; k++) {
			line[length++] = "0123456789abcdef"[at[k] >> 4];
			line[length++] = "0123456789abcdef"[at[k] & 15];
		}
		for (u64 k = 0; k < 4096; k++)
			broken |= at[sizes[i] + k] != 0xee;
		for (u64 k = 1; k <= 64; k++)
			broken |= *(at - k) != 0xee;
		line[length++] = broken ? '!' : '.';
		line[length++] = '\n';
		print(line, length);
	}
}
void main_of(u64 *stack)
{
	const char **words = (const char **)(stack + 2);
	const u64 end[6] = { 0 };
	while (*words) {
		u64 a[6] = { 0 }, nr = 0, times = 1;
		long result = 0;
		for (int i = -1; *words && **words != '/'; words++, i++) {
			const char *at = *words;
			u64 value = *at == '@'	 ? buffer(at + 1)
				    : *at == '&' ? (at++, places[number(&at)])
						 : number(&at);
			if (i < 0) {
				nr = value;
				if (*at == '*' && at++)
					times = number(&at);
			} else {
				a[i] = value;
			}
		}
		while (times--)
			result = call(nr, a);
		if (nr != 162)
			print_number(result);
		if (*words)
			words++;
	}
	print_buffers();
	call(231, end);
}
__asm__(".globl _start\n_start: xor %ebp, %ebp\nmov %rsp, %rdi\nand $-16, %rsp\ncall main_of\n");
