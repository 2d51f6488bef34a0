/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What an honest kernel puts into structures. Programs divide by a block's size, allocate by the length of a name, add up times:
 * with other values they go wrong where nobody wrote a mistake.
 */
#include "structures.h"

#define MICROSECONDS 1000000
#define NANOSECONDS 1000000000
/* A ktime_t is 63 bits of nanoseconds. */
#define LAST_SECOND 9223372036
#define LARGEST_BLOCK ((s64)1 << 30)
#define LONGEST_FILE_NAME 4096
#define LARGEST_UNIT 4096
#define MOST_BYTES ((u64)1 << 60) /* of memory, of swap */
#define SHORT_TEXT 16
#define LAST_LOCK_TYPE 2 /* F_UNLCK */

struct file_system {
	s64 type, block_size;
	u64 blocks, free, available, files, free_files;
	s32 number[2];
	s64 name_length, fragment_size, flags, spare[4];
};

struct usage {
	s64 user[2], system[2], counts[14];
};

struct system {
	s64 uptime;
	u64 loads[3], memory, free, shared, buffers, swap, free_swap;
	u16 processes, pad;
	u64 high, free_high;
	u32 unit;
};

struct file_lock {
	s16 type, whence;
	s64 start, length;
	s32 process;
};

_Static_assert(sizeof(struct file_system) == 120 && sizeof(struct usage) == LARGEST_STRUCTURE &&
		       sizeof(struct system) == 112 && sizeof(struct file_lock) == 32,
	       "Linux's structures of x86-64");

static bool is_time(const s64 time[2], s64 parts)
{
	return time[0] >= 0 && time[0] <= LAST_SECOND && time[1] >= 0 && time[1] < parts;
}

bool is_timer_in_microseconds(const void *copy)
{
	const s64 *time = copy;

	return is_time(time, MICROSECONDS) && is_time(time + 2, MICROSECONDS);
}

bool is_timer_in_nanoseconds(const void *copy)
{
	const s64 *time = copy;

	return is_time(time, NANOSECONDS) && is_time(time + 2, NANOSECONDS);
}

bool is_microseconds(const void *copy)
{
	return is_time(copy, MICROSECONDS);
}

bool is_natural(const void *copy)
{
	return *(const s32 *)copy >= 0;
}

bool is_error_number(const void *copy)
{
	return *(const s32 *)copy >= 0 && *(const s32 *)copy <= LAST_ERROR;
}

bool is_short_text(const void *copy)
{
	const u8 *text = copy;

	for (u32 i = 0; i < SHORT_TEXT; i++)
		if (!text[i])
			return true;
	return false;
}

static bool is_size(s64 bytes)
{
	return bytes > 0 && bytes <= LARGEST_BLOCK;
}

bool is_file_system(const void *copy)
{
	const struct file_system *from = copy;

	return is_size(from->block_size) && is_size(from->fragment_size) && from->free <= from->blocks &&
	       from->available <= from->blocks && from->free_files <= from->files && from->name_length >= 0 &&
	       from->name_length <= LONGEST_FILE_NAME;
}

bool is_usage(const void *copy)
{
	const struct usage *from = copy;

	for (u32 i = 0; i < LENGTH(from->counts); i++)
		if (from->counts[i] < 0)
			return false;
	return is_time(from->user, MICROSECONDS) && is_time(from->system, MICROSECONDS);
}

bool is_system(const void *copy)
{
	const struct system *from = copy;

	return from->uptime >= 0 && from->uptime <= LAST_SECOND && from->unit && from->unit <= LARGEST_UNIT &&
	       from->memory <= MOST_BYTES / from->unit && from->swap <= MOST_BYTES / from->unit &&
	       from->free <= from->memory && from->shared <= from->memory && from->buffers <= from->memory &&
	       from->free_swap <= from->swap && from->free_high <= from->high && from->high <= from->memory;
}

bool is_process_times(const void *copy)
{
	const s64 *ticks = copy;

	return ticks[0] >= 0 && ticks[1] >= 0 && ticks[2] >= 0 && ticks[3] >= 0;
}

bool is_file_lock(const void *copy)
{
	const struct file_lock *from = copy;

	/* -1: a lock of an open file, not of a process. */
	return from->type >= 0 && from->type <= LAST_LOCK_TYPE && from->start >= 0 && from->length >= 0 &&
	       !from->whence && from->process >= -1;
}
