/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Pipes, and what else comes from outside as two descriptors. */
#include "files.h"
#include "handlers.h"

s64 new_pair(struct thread *self, const s32 *shared, s32 own[2])
{
	s64 result = 0;

	for (u32 i = 0; i < 2; i++) {
		own[i] = READ_ONCE(shared[i]);
		if (new_descriptor(self, own[i], NULL) < 0)
			result = -EMFILE;
	}
	return result;
}

HANDLER(do_pipe)
{
	s32 *shared = take_buffer(self, 8), own[2];
	s64 result = outside_done(self, 293, (u64)shared, self->regs.rax == 293 ? a[1] : 0, 0, 0, 0, 0);

	if (result)
		return result;
	return new_pair(self, shared, own) ?: copy_out(a[0], own, sizeof(own));
}
