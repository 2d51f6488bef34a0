/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Random bytes from the processor: the kernel and the host have no part in them. */
#include "handlers.h"
#include "machine.h"

#define TRIES 1000

void random_bytes(struct thread *self, void *to, u64 bytes)
{
	u8 *next = to;

	while (bytes) {
		u64 word = 0, part = least(bytes, sizeof(word));
		u32 tries = 0;

		while (!random_word(&word))
			if (++tries == TRIES)
				attacked(self, "the processor gives no random numbers");
		memcpy(next, &word, part);
		next += part;
		bytes -= part;
	}
}

HANDLER(do_getrandom)
{
	u8 bytes[64];
	u64 wanted = least(a[1], 0x1000000);

	for (u64 done = 0; done < wanted; done += sizeof(bytes)) {
		u64 part = least(sizeof(bytes), wanted - done);

		random_bytes(self, bytes, part);
		if (copy_out(a[0] + done, bytes, part))
			return -EFAULT;
	}
	return (s64)wanted;
}
