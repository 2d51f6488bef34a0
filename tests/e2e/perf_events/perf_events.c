// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What perf stat and perf record do, without a PMU: counts a software clock, takes samples of it, and counts a tracepoint, by
 * its number in tracefs. Says how many of each there were.
 */
#include <linux/perf_event.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGES 8
#define CALLS 1000
#define NANOSECONDS 200000000

static int open_event(uint32_t type, uint64_t config, uint64_t period)
{
	struct perf_event_attr attr = {
		.size = sizeof(attr), .type = type, .config = config, .disabled = 1, .sample_period = period
	};
	int event;

	if (period)
		attr.sample_type = PERF_SAMPLE_IP | PERF_SAMPLE_TIME;
	event = syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
	if (event < 0) {
		perror("perf_event_open");
		exit(1);
	}
	return event;
}

static uint64_t count(int event)
{
	uint64_t value;

	if (read(event, &value, sizeof(value)) != sizeof(value)) {
		perror("read");
		exit(1);
	}
	return value;
}

int main(int argc, char **argv)
{
	long page = sysconf(_SC_PAGESIZE);
	int clock = open_event(PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_CLOCK, 0);
	int samples = open_event(PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_CLOCK, 1000000);
	int calls = open_event(PERF_TYPE_TRACEPOINT, argc > 1 ? strtoull(argv[1], NULL, 0) : 0, 0);
	struct perf_event_mmap_page *ring =
		mmap(NULL, (1 + PAGES) * page, PROT_READ | PROT_WRITE, MAP_SHARED, samples, 0);
	int i;

	if (ring == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	ioctl(clock, PERF_EVENT_IOC_ENABLE, 0);
	ioctl(samples, PERF_EVENT_IOC_ENABLE, 0);
	ioctl(calls, PERF_EVENT_IOC_ENABLE, 0);
	while (count(clock) < NANOSECONDS)
		for (i = 0; i < CALLS; i++)
			syscall(SYS_getppid);
	ioctl(calls, PERF_EVENT_IOC_DISABLE, 0);
	ioctl(samples, PERF_EVENT_IOC_DISABLE, 0);
	printf("clock %d samples %d calls %d\n", count(clock) >= NANOSECONDS, ring->data_head > 0,
	       count(calls) >= CALLS);
	return 0;
}
