# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs in C that tests run on the runtime as a process, and shielded in a guest."""

__all__ = ["MEMORY", "SIGNALS", "THREADS"]

THREADS = r"""
#include <pthread.h>
#include <stdio.h>
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t all = PTHREAD_COND_INITIALIZER;
static __thread int own;
static int sum, there;
static void *work(void *number)
{
	for (own = 0; own < 1000; own++) {
		pthread_mutex_lock(&mutex);
		sum += (int)(long)number;
		pthread_mutex_unlock(&mutex);
	}
	pthread_mutex_lock(&mutex);
	if (++there == 8)
		pthread_cond_broadcast(&all);
	while (there < 8)
		pthread_cond_wait(&all, &mutex);
	pthread_mutex_unlock(&mutex);
	return (void *)(long)own;
}
int main(void)
{
	pthread_t threads[8];
	long total = 0;
	for (int round = 0; round < 5; round++) {
		there = 0;
		for (long i = 0; i < 8; i++)
			if (pthread_create(&threads[i], 0, work, (void *)(i + 1)))
				return 1;
		for (int i = 0; i < 8; i++) {
			void *result;
			pthread_join(threads[i], &result);
			total += (long)result;
		}
	}
	printf("%d %ld\n", sum, total);
	return 0;
}
"""

SIGNALS = r"""
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
static sigjmp_buf back;
static char *page;
static void jump(int number) { siglongjmp(back, number); }
static void repair(int number, siginfo_t *info, void *context)
{
	(void)number; (void)context;
	if (info->si_addr == page + 100)
		mprotect(page, 4096, PROT_READ | PROT_WRITE);
	else
		_exit(9);
}
static int count;
static void tick(int number) { (void)number; count++; }
int main(void)
{
	struct sigaction action = { .sa_sigaction = repair, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	static char stack[65536];
	stack_t alternate = { .ss_sp = stack, .ss_size = sizeof(stack) };
	double kept = 1.5;
	page = mmap(0, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	sigaltstack(&alternate, 0);
	sigaction(SIGSEGV, &action, 0);
	page[100] = 'x';
	printf("repaired %c %.1f\n", page[100], kept);
	signal(SIGFPE, jump);
	volatile int zero = 0;
	int caught = sigsetjmp(back, 1);
	if (!caught)
		printf("%d\n", 100 / zero);
	printf("caught %d\n", caught);
	signal(SIGUSR1, tick);
	sigset_t set, old;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, &old);
	raise(SIGUSR1);
	printf("blocked %d\n", count);
	sigprocmask(SIG_SETMASK, &old, 0);
	printf("delivered %d\n", count);
	signal(SIGILL, jump);
	caught = sigsetjmp(back, 1);
	if (!caught)
		__asm__ volatile("ud2");
	printf("caught %d\n", caught);
	fflush(stdout);
	raise(SIGTERM);
	return 0;
}
"""

MEMORY = r"""
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	size_t size = 40 << 20;
	char *big = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (size_t at = 0; at < size; at += 8192)
		big[at] = (char)(at >> 13);
	big = mremap(big, size, 2 * size, MREMAP_MAYMOVE);
	for (size_t at = 0; at < size; at += 8192)
		if (big[at] != (char)(at >> 13))
			return 1;
	if (big[size + 5])
		return 2;
	madvise(big, size, MADV_DONTNEED);
	if (big[8192])
		return 3;
	munmap(big, 2 * size);
	char *start = sbrk(0);
	if (sbrk(1 << 20) != start || start[1000])
		return 4;
	memset(start, 7, 1 << 20);
	unsigned char *code = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memcpy(code, "\xb8\x2a\x00\x00\x00\xc3", 6);
	printf("%d\n", ((int (*)(void))code)());
	FILE *file = fopen(argv[argc - 1], "r");
	char *map = mmap(0, 10, PROT_READ, MAP_PRIVATE, fileno(file), 0);
	printf("%.5s\n", map);
	char *strings[100];
	for (int i = 0; i < 100; i++)
		strings[i] = strdup("something");
	for (int i = 0; i < 100; i++)
		free(strings[i]);
	return mmap((void *)0x700000000000, 4096, PROT_READ, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED;
}
"""
