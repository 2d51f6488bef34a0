/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "directory.h"
#include "files.h"
#include "runtime.h"

static char directory[LONGEST_PATH];
static u64 directory_length;
static struct lock directory_lock;

void directory_start(void)
{
	memcpy(directory, config_at(CONFIG->directory), CONFIG->directory_length);
	directory_length = CONFIG->directory_length;
}

s64 current_directory(struct thread *self, char *to)
{
	s64 length;

	lock(self, &directory_lock);
	length = (s64)directory_length;
	memcpy(to, directory, directory_length);
	unlock(&directory_lock);
	return length;
}

void set_directory(struct thread *self, const char *path, u64 length)
{
	lock(self, &directory_lock);
	memcpy(directory, path, length);
	directory_length = length;
	unlock(&directory_lock);
}
