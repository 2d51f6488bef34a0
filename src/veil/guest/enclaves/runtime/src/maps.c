/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * /proc/self/maps. What the kernel has there is of the process outside; programs look for their own stack in it, as C
 * libraries and garbage collectors do.
 */
#include "areas.h"
#include "files.h"
#include "handlers.h"
#include "memory.h"
#include "memory_parts.h"

#define LONGEST_LINE 64
#define FEWEST_DIGITS 8

static u64 put_number(u8 *to, u64 number)
{
	u64 digits = FEWEST_DIGITS;

	while (digits < 16 && number >> 4 * digits)
		digits++;
	for (u64 i = 0; i < digits; i++)
		to[i] = (u8) "0123456789abcdef"[number >> 4 * (digits - 1 - i) & 15];
	return digits;
}

/* As proc(5) has it, of memory without a file. */
static u64 put_line(u8 *to, const struct area *area)
{
	static const char rights[] = "rwx", rest[] = "p 00000000 00:00 0 \n";
	static const u32 bits[] = { PROT_READ, PROT_WRITE, PROT_EXEC };
	u64 at = put_number(to, area->start);

	to[at++] = '-';
	at += put_number(to + at, area->end);
	to[at++] = ' ';
	for (u32 i = 0; i < LENGTH(bits); i++)
		to[at++] = (u8)(area->prot & bits[i] ? rights[i] : '-');
	memcpy(to + at, rest, sizeof(rest) - 1);
	return at + sizeof(rest) - 1;
}

s64 open_map(struct thread *self, const char *path, u64 length, u64 flags)
{
	u64 lines = 0, bytes = 0;
	u8 *text;

	lock(self, &memory_lock);
	while (area_number((u32)lines))
		lines++;
	text = heap_take(self, most(lines * LONGEST_LINE, LONGEST_SECRET));
	for (u64 i = 0; text && i < lines; i++)
		bytes += put_line(text + bytes, area_number((u32)i));
	unlock(&memory_lock);
	return text ? open_inside(self, path, length, flags, text, bytes) : -ENOMEM;
}
