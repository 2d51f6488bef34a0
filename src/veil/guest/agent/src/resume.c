/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "resume.h"

#include <fcntl.h>
#include <linux/random.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

/*
 * A guest that was resumed from a snapshot has the clock and the random state of the moment it was taken, as has every
 * other guest resumed from it. RDRAND is mixed in by the kernel itself; this adds what the host sends, credited with
 * nothing, since the host is not trusted, and makes the kernel reseed at once.
 */
void catch_up(const uint8_t given[ENTROPY_SIZE], uint64_t realtime_ns)
{
	struct {
		struct rand_pool_info info;
		uint8_t bytes[ENTROPY_SIZE];
	} entropy = { .info = { .entropy_count = 0, .buf_size = ENTROPY_SIZE } };
	int random = open("/dev/urandom", O_RDWR | O_CLOEXEC);

	if (random >= 0) {
		memcpy(entropy.bytes, given, ENTROPY_SIZE);
		ioctl(random, RNDADDENTROPY, &entropy);
		ioctl(random, RNDRESEEDCRNG);
		close(random);
	}
	if (realtime_ns) {
		const struct timespec now = {
			.tv_sec = (time_t)(realtime_ns / 1000000000u),
			.tv_nsec = (long)(realtime_ns % 1000000000u),
		};

		clock_settime(CLOCK_REALTIME, &now);
	}
}
