/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Names by which a process reaches what it has already. */
#ifndef RUNTIME_PROCESS_LINKS_H
#define RUNTIME_PROCESS_LINKS_H

#include "base.h"

struct thread;

/*
 * Where such a name leads: the length of that path, which has no end, in `to` (LONGEST_PATH bytes). 0: it is no such name, or
 * one of a descriptor without a path (a pipe, say), which outside is nothing else than in here. -ENOENT, -EACCES.
 */
s64 process_link(struct thread *, const char *path, u64 length, char *to);
/* The name of a descriptor, whatever it is. */
bool names_descriptor(const char *path, u64 length);
/* /proc/self/maps, by whatever number. */
bool names_own_map(struct thread *, const char *path, u64 length);

#endif
