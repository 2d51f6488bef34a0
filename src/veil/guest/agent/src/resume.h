/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a guest must be told after a snapshot. */
#ifndef VEIL_RESUME_H
#define VEIL_RESUME_H

#include <stdint.h>

enum { ENTROPY_SIZE = 32 };

/* Entropy from the host, and its time of day; 0: it says none. */
void catch_up(const uint8_t given[ENTROPY_SIZE], uint64_t realtime_ns);

#endif
