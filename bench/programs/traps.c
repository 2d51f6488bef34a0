// SPDX-License-Identifier: GPL-2.0-or-later
// Nanoseconds of what an SNP guest's kernel does in its #VC handler, seen from user space: the median of some batches.
#include <cpuid.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/io.h>
#include <time.h>

#define BATCHES 7
#define COUNT 2000

static void cpuid(unsigned leaf)
{
	unsigned a, b, c, d;

	__cpuid_count(leaf, 0, a, b, c, d);
}

static void cpuid_table(void)
{
	cpuid(0);
}

static void cpuid_host(void)
{
	cpuid(1);
}

static void port_write(void)
{
	outb(0, 0x80);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static int compare(const void *left, const void *right)
{
	double a = *(const double *)left, b = *(const double *)right;

	return (a > b) - (a < b);
}

static void measure(const char *name, void (*action)(void))
{
	double batches[BATCHES];

	for (int i = 0; i < BATCHES; i++) {
		double start = now();

		for (int j = 0; j < COUNT; j++)
			action();
		batches[i] = (now() - start) / COUNT;
	}
	qsort(batches, BATCHES, sizeof(*batches), compare);
	printf("%s %.1f\n", name, batches[BATCHES / 2]);
}

int main(void)
{
	measure("cpuid-table", cpuid_table);
	measure("cpuid-host", cpuid_host);
	if (ioperm(0x80, 1, 1) == 0)
		measure("port-write", port_write);
	return 0;
}
