// SPDX-License-Identifier: GPL-2.0-or-later
// system_calls NAME BATCHES FOLDER: nanoseconds of a system call, seen from user space: the least of some batches,
// after one that warms up. Buffers have 10 KiB. The same binary runs as it is and in an enclave.
//
// A write of nothing to descriptor 1 stands before and behind each batch: whoever counts what an enclave does sees both.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define CALLS 16 /* at most */
#define BUFFER 10240

static char buffer[BUFFER], path[4096];
static int fds[CALLS];
static void *places[CALLS];
static FILE *out;
static int calls; /* of a batch */

static void check(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(1);
	}
}

static void nothing(void)
{
}

static void prepare(void)
{
	int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

	check(file >= 0, path);
	for (int i = 0; i < CALLS; i++)
		check(write(file, buffer, BUFFER) == BUFFER, "write");
	fds[0] = file;
	out = fopen(path, "r+");
	check(out != NULL, path);
	memset(buffer, 'x', BUFFER - 1);
	check(lseek(file, 0, SEEK_SET) == 0, "lseek");
}

static void call_open(void)
{
	for (int i = 0; i < calls; i++)
		fds[i] = open(path, O_RDONLY);
	check(fds[calls - 1] >= 0, "open");
}

static void call_socket(void)
{
	for (int i = 0; i < calls; i++)
		fds[i] = socket(AF_UNIX, SOCK_STREAM, 0);
	check(fds[calls - 1] >= 0, "socket");
}

static void undo_open(void)
{
	for (int i = 0; i < calls; i++)
		close(fds[i]);
}

static void call_read(void)
{
	for (int i = 0; i < calls; i++)
		check(read(fds[0], buffer, BUFFER) == BUFFER, "read");
}

static void call_write(void)
{
	for (int i = 0; i < calls; i++)
		check(write(fds[0], buffer, BUFFER) == BUFFER, "write");
}

static void undo_read(void)
{
	check(lseek(fds[0], 0, SEEK_SET) == 0, "lseek");
}

static void call_mmap(void)
{
	for (int i = 0; i < calls; i++)
		places[i] = mmap(NULL, BUFFER, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(places[calls - 1] != MAP_FAILED, "mmap");
}

static void call_munmap(void)
{
	for (int i = 0; i < calls; i++)
		check(munmap(places[i], BUFFER) == 0, "munmap");
}

static void call_memory(void)
{
	for (int i = 0; i < calls; i++) {
		char *place = mmap(NULL, BUFFER, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		check(place != MAP_FAILED, "mmap");
		place[0] = place[4096] = place[8192] = 1;
		check(munmap(place, BUFFER) == 0, "munmap");
	}
}

static void call_getpid(void)
{
	for (int i = 0; i < calls; i++)
		check(syscall(SYS_getpid) > 0, "getpid");
}

static void call_umask(void)
{
	for (int i = 0; i < calls; i++)
		umask(022);
}

static void call_printf(void)
{
	for (int i = 0; i < calls; i++)
		fprintf(out, "%s\n", buffer);
	check(fflush(out) == 0, "fflush");
}

static void undo_printf(void)
{
	rewind(out);
}

static const struct {
	const char *name;
	int calls;
	void (*before)(void), (*batch)(void), (*after)(void);
} tests[] = {
	{ "open", CALLS, nothing, call_open, undo_open },     { "read", CALLS, nothing, call_read, undo_read },
	{ "write", CALLS, nothing, call_write, undo_read },   { "mmap", CALLS, nothing, call_mmap, call_munmap },
	{ "munmap", CALLS, call_mmap, call_munmap, nothing }, { "memory", 1, nothing, call_memory, nothing },
	{ "getpid", CALLS, nothing, call_getpid, nothing },   { "umask", CALLS, nothing, call_umask, nothing },
	{ "socket", CALLS, nothing, call_socket, undo_open }, { "printf", 4, nothing, call_printf, undo_printf },
};

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static void mark(void)
{
	check(write(1, "", 0) == 0, "write");
}

int main(int count, char **arguments)
{
	long long least = 0;

	if (count != 4)
		return 2;
	snprintf(path, sizeof(path), "%s/file", arguments[3]);
	prepare();
	for (unsigned i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
		if (strcmp(tests[i].name, arguments[1]))
			continue;
		calls = tests[i].calls;
		for (int batch = 0; batch <= atoi(arguments[2]); batch++) {
			long long start, spent;

			tests[i].before();
			mark();
			start = now();
			tests[i].batch();
			spent = now() - start;
			mark();
			tests[i].after();
			if (batch && (!least || spent < least))
				least = spent;
		}
		printf("%.1f %d\n", (double)least / calls, calls);
		return 0;
	}
	return 2;
}
