/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef RUNTIME_ANCILLARY_H
#define RUNTIME_ANCILLARY_H

#include "base.h"

struct thread;

/* What a program sends with a message: 0, or a negative error. */
s64 check_sent(struct thread *, const u8 *data, u64 bytes);
/* A copy of what came, for which there was so much room: each part is as large as its kind, and descriptors are known from now
 * on. How much of it is known: what is behind that is cut off. */
u64 check_received(struct thread *, u8 *data, u64 bytes, u64 room);

#endif
