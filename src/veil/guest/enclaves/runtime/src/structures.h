/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Structures that a kernel fills in: whether one holds what an honest kernel puts there. Each is given as a copy. */
#ifndef RUNTIME_STRUCTURES_H
#define RUNTIME_STRUCTURES_H

#include "base.h"

#define LARGEST_STRUCTURE 144

typedef bool (*structure_check)(const void *copy);

/* struct itimerval, struct itimerspec: interval and rest */
bool is_timer_in_microseconds(const void *);
bool is_timer_in_nanoseconds(const void *);
/* struct timeval */
bool is_microseconds(const void *);
/* s32 */
bool is_natural(const void *);
bool is_error_number(const void *);
/* 16 bytes that end with a NUL, at the latest with their last one */
bool is_short_text(const void *);
/* struct statfs, struct rusage, struct sysinfo, struct tms, struct flock */
bool is_file_system(const void *);
bool is_usage(const void *);
bool is_system(const void *);
bool is_process_times(const void *);
bool is_file_lock(const void *);

#endif
