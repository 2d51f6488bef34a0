/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Programs outside that this one starts: programs.c, child_calls.c; and what is known of them afterwards: children.c. */
#ifndef RUNTIME_CHILDREN_H
#define RUNTIME_CHILDREN_H

#include "runtime.h"

/* vfork(), or clone() as posix_spawn() does it, with a stack for the child: 0, and the thread is the child from here on. */
s64 become_child(struct thread *, u64 nr, u64 stack);
/* A system call of such a thread, if it is not one that child_may_call() says is as any other. */
bool child_may_call(u64 nr);
s64 child_call(struct thread *, u64 nr, const u64 *a);

bool is_child(s32 number);
/* False: as many are there as can be known. */
bool has_room_for_child(void);
void add_child(struct thread *, s32 number);
/* There was one, so SIGCHLD may come. */
bool has_children(void);

#endif
