// SPDX-License-Identifier: GPL-2.0-or-later
// The rate of this computer's time stamp counter in kHz.
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

int main(void)
{
	long long start = now(), end;
	unsigned long long tsc = __rdtsc();

	while ((end = now()) - start < 200000000)
		;
	tsc = __rdtsc() - tsc;
	printf("%llu\n", tsc * 1000000 / (end - start));
	return 0;
}
