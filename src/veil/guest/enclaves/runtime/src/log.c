/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Lines for the protected log: %s string, %d number, %x hexadecimal. They say what happened, never what data is. */
#include <stdarg.h>

#include "runtime.h"

#define LONGEST 200

static bool ending;

static u32 put_number(char *to, u32 at, u64 number, u32 base)
{
	char digits[20];
	u32 count = 0;

	do
		digits[count++] = "0123456789abcdef"[number % base];
	while (number /= base);
	while (count && at < LONGEST)
		to[at++] = digits[--count];
	return at;
}

static u32 format(char *to, const char *text, va_list values)
{
	u32 at = 0;

	for (; *text && at < LONGEST; text++) {
		const char *string;

		if (*text != '%') {
			to[at++] = *text;
			continue;
		}
		switch (*++text) {
		case 's':
			for (string = va_arg(values, const char *); *string && at < LONGEST; string++)
				to[at++] = *string >= ' ' && *string <= '~' ? *string : '?';
			break;
		case 'd':
			at = put_number(to, at, va_arg(values, u64), 10);
			break;
		default:
			if (at + 2 < LONGEST) {
				to[at++] = '0';
				to[at++] = 'x';
			}
			at = put_number(to, at, va_arg(values, u64), 16);
		}
	}
	return at;
}

static void put(struct thread *self, const char *text, va_list values)
{
	struct veil_mailbox *mailbox = (void *)((u8 *)thread_of(self->slot) + VEIL_ENC_MAILBOX);
	u32 length = format((char *)mailbox->data, text, values);

	ask_service(self, VEIL_MAILBOX_LOG, length, 0, 0, NULL);
}

void log_line(struct thread *self, const char *text, ...)
{
	va_list values;

	va_start(values, text);
	put(self, text, values);
	va_end(values);
}

void attacked(struct thread *self, const char *text, ...)
{
	va_list values;

	/* What is wrong while this is told is not told again. */
	if (!__atomic_exchange_n(&ending, true, __ATOMIC_RELAXED)) {
		va_start(values, text);
		put(self, text, values);
		va_end(values);
	}
	end_because(self, VEIL_END_RUNTIME);
}
