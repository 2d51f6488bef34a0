/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The process's working directory: an absolute path, which is known in here. */
#ifndef RUNTIME_DIRECTORY_H
#define RUNTIME_DIRECTORY_H

#include "base.h"

struct thread;

void directory_start(void);
/* Its length, without an end, in `to` (LONGEST_PATH bytes). */
s64 current_directory(struct thread *, char *to);
void set_directory(struct thread *, const char *path, u64 length);

#endif
