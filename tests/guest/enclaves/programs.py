# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs in C that tests run on the runtime as a process, and shielded in a guest."""

__all__ = ["FLOATING_POINT", "INTERRUPTS", "MEMORY", "OUTSIDE", "SIGNALS", "TERMINATED", "THREADS", "TIMERS"]

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

#: Signals come while the program computes, and while a call of its waits.
INTERRUPTS = r"""
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile int ticks, urged, ended;
static int pipes[2];
static void tick(int number) { (void)number; ticks++; }
static void urge(int number) { (void)number; urged = 1; }
static void nothing(int number) { (void)number; }
static void handle(int number, void (*handler)(int), int flags)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = flags };
	sigaction(number, &action, 0);
}
static double work(int until)
{
	double sum = 0;
	unsigned long state = 1;
	for (int i = 0; i < 300000 || ticks < until; i++) {
		if (i >= 300000)
			continue;
		state = state * 6364136223846793005ul + 1442695040888963407ul;
		sum += (double)(state >> 40) / 3;
	}
	return sum;
}
static void *compute(void *unused)
{
	volatile unsigned long count = 0;
	while (!urged)
		count++;
	return unused;
}
static void *receive(void *unused)
{
	char byte;
	long result = read(pipes[0], &byte, 1) < 0 ? errno : 0;
	(void)unused;
	ended = 1;
	return (void *)result;
}
static void *wait_for_signal(void *unused)
{
	sigset_t set;
	int number = 0;
	(void)unused;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigwait(&set, &number);
	return (void *)(long)number;
}
int main(void)
{
	struct itimerval every = { { 0, 3000 }, { 0, 3000 } }, none = { 0 };
	struct timespec moment = { 0, 20000000 }, left;
	pthread_t thread;
	void *result;
	sigset_t set;
	if (pipe(pipes))
		return 1;
	handle(SIGALRM, tick, 0);
	double alone = work(0);
	setitimer(ITIMER_REAL, &every, 0);
	double interrupted = work(5);
	setitimer(ITIMER_REAL, &none, 0);
	printf("interrupted %d, the same sum %d\n", ticks >= 5, alone == interrupted);
	handle(SIGURG, urge, SA_RESTART);
	pthread_create(&thread, 0, compute, 0);
	nanosleep(&moment, 0);
	pthread_kill(thread, SIGURG);
	pthread_join(thread, 0);
	printf("urged %d\n", urged);
	handle(SIGUSR1, nothing, 0);
	pthread_create(&thread, 0, receive, 0);
	while (!ended) {
		pthread_kill(thread, SIGUSR1);
		nanosleep(&moment, 0);
	}
	pthread_join(thread, &result);
	printf("without SA_RESTART %s\n", (long)result == EINTR ? "EINTR" : "?");
	ended = 0;
	handle(SIGUSR1, nothing, SA_RESTART);
	pthread_create(&thread, 0, receive, 0);
	for (int i = 0; i < 3; i++) {
		nanosleep(&moment, 0);
		pthread_kill(thread, SIGUSR1);
	}
	printf("goes on %d\n", !ended);
	if (write(pipes[1], "x", 1) != 1)
		return 1;
	pthread_join(thread, &result);
	printf("with SA_RESTART %ld\n", (long)result);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &set, 0);
	pthread_create(&thread, 0, wait_for_signal, 0);
	nanosleep(&moment, 0);
	kill(getpid(), SIGUSR2);
	pthread_join(thread, &result);
	printf("waited for %d\n", (long)result == SIGUSR2);
	ticks = 0;
	setitimer(ITIMER_REAL, &every, 0);
	int slept = nanosleep(&moment, &left);
	setitimer(ITIMER_REAL, &none, 0);
	printf("what is blocked interrupts nobody %d %d\n", slept, ticks);
	pthread_sigmask(SIG_UNBLOCK, &set, 0);
	printf("until it is let in %d\n", ticks);
	alarm(1);
	for (;;)
		if (ticks > 1)
			return 7;
}
"""

#: It says that it is there, and computes until somebody outside ends it.
TERMINATED = r"""
#include <signal.h>
#include <unistd.h>
static void end(int number) { _exit(number); }
int main(void)
{
	signal(SIGTERM, end);
	if (write(1, "here\n", 5) != 5)
		return 1;
	for (;;)
		;
}
"""

#: It starts programs outside; its first argument says which and how.
OUTSIDE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
static pid_t child;
static int spawn(const char *path, char **arguments, posix_spawn_file_actions_t *actions)
{
	char *environment[] = { "GREETING=hello", NULL };
	return posix_spawn(&child, path, actions, NULL, arguments, environment);
}
static void wait_and_tell(void)
{
	int status = 0;
	struct rusage usage;
	pid_t found = wait4(child, &status, 0, &usage);
	if (usage.ru_utime.tv_usec >= 1000000)
		puts("a time that is none");
	printf("%s %x\n", found == child ? "ended" : strerror(errno), status);
	if (found != child || waitpid(child, &status, 0) != -1 || errno != ECHILD)
		puts("not right");
}
static volatile int came;
static void on_child(int number)
{
	came = number;
}
int main(int argc, char **argv)
{
	char text[4096];
	int ends[2];
	setvbuf(stdout, NULL, _IONBF, 0);
	if (!strcmp(argv[1], "echo")) {
		char *words[] = { "echo", "hi", "there", NULL };
		printf("%d\n", spawn("/bin/echo", words, NULL));
		wait_and_tell();
	} else if (!strcmp(argv[1], "env")) {
		char *words[] = { "env", NULL };
		printf("%d\n", spawn("/usr/bin/env", words, NULL));
		wait_and_tell();
	} else if (!strcmp(argv[1], "actions")) {
		char *words[] = { "sh", "-c", "read a <&9; echo $a; pwd; cat; ls /proc/self/fd >&2; exit 3", NULL };
		posix_spawn_file_actions_t actions;
		int output, parents = dup(2);
		pipe2(ends, O_CLOEXEC);
		posix_spawn_file_actions_init(&actions);
		posix_spawn_file_actions_addopen(&actions, 9, argv[2], O_RDONLY, 0);
		posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
		posix_spawn_file_actions_addopen(&actions, 0, argv[2], O_RDONLY, 0);
		posix_spawn_file_actions_addclose(&actions, parents);
		posix_spawn_file_actions_addchdir_np(&actions, argv[3]);
		printf("%d\n", spawn("/bin/sh", words, &actions));
		close(ends[1]);
		output = read(ends[0], text, sizeof(text));
		while (output > 0) {
			write(1, text, output);
			output = read(ends[0], text, sizeof(text));
		}
		printf("%d\n", fcntl(parents, F_GETFD));
		wait_and_tell();
	} else if (!strcmp(argv[1], "refused")) {
		char *words[] = { "echo", NULL };
		printf("%s\n", strerror(spawn("/bin/true", words, NULL)));
		printf("%s\n", strerror(spawn("/bin/none", words, NULL)));
		printf("%s\n", strerror(spawn("../../bin/./echo", words, NULL)));
		wait_and_tell();
		child = fork();
		printf("%d %s\n", child, strerror(errno));
	} else if (!strcmp(argv[1], "ends")) {
		volatile int before = 1;
		child = vfork();
		if (!child) {
			before = 2;
			dup2(2, 1);
			_exit(7);
		}
		printf("%d %d\n", child > 0, before);
		wait_and_tell();
	} else if (!strcmp(argv[1], "signal")) {
		char *words[] = { "sleep", "0.2", NULL };
		signal(SIGCHLD, on_child);
		spawn("/bin/sleep", words, NULL);
		while (!came)
			usleep(10000);
		printf("%d\n", came);
		wait_and_tell();
	} else if (!strcmp(argv[1], "kill")) {
		char *words[] = { "sleep", "100", NULL };
		siginfo_t information;
		spawn("/bin/sleep", words, NULL);
		printf("%d\n", waitpid(child, NULL, WNOHANG));
		kill(child, SIGTERM);
		waitid(P_PID, child, &information, WEXITED | WNOWAIT);
		printf("%d %d %d %d\n", information.si_pid == child, information.si_code, information.si_status,
			information.si_signo);
		wait_and_tell();
	}
	return 0;
}
"""

#: Rounding and the x87 stack belong to each thread: a new one has its maker's, a handler what a program begins with.
FLOATING_POINT = r"""
#define _GNU_SOURCE
#include <fenv.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <asm/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
static volatile int in_handler;
static volatile long double product;
static long gs(void)
{
	long base = 0;
	syscall(SYS_arch_prctl, ARCH_GET_GS, &base);
	return base;
}
static void handle(int number)
{
	volatile long double a = number, b = 2;
	in_handler = fegetround();
	product = a * b;
	fesetround(FE_TOWARDZERO);
}
static void *work(void *wanted)
{
	long found = fegetround() | gs() << 16;
	fesetround((int)(long)wanted);
	syscall(SYS_arch_prctl, ARCH_SET_GS, 0L);
	return (void *)found;
}
int main(void)
{
	long double full;
	signal(SIGUSR1, handle);
	fesetround(FE_UPWARD);
	syscall(SYS_arch_prctl, ARCH_SET_GS, 7L);
	for (int i = 0; i < 3; i++) {
		pthread_t thread;
		void *found;
		if (pthread_create(&thread, 0, work, (void *)FE_DOWNWARD) || pthread_join(thread, &found))
			return 1;
		printf("%lx ", (long)found);
	}
	/* A handler comes while the x87 stack is full. */
	__asm__ volatile("fld1; fld1; fld1; fld1; fld1; fld1; fld1; fld1; syscall; "
			"faddp; faddp; faddp; faddp; faddp; faddp; faddp"
			: "=t"(full) : "a"(SYS_tkill), "D"(syscall(SYS_gettid)), "S"(SIGUSR1)
			: "rcx", "r11", "memory");
	printf("%x %g %g %x\n", in_handler, (double)product, (double)full, fegetround());
	return 0;
}
"""

#: Timers of POSIX: for the process, for a thread (as glibc has a function called), for nobody.
TIMERS = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
static volatile int caught, called;
static void *volatile value;
static volatile int code;
static void handle(int number, siginfo_t *information, void *context)
{
	caught++;
	value = information->si_value.sival_ptr;
	code = information->si_code;
}
static void call(union sigval with)
{
	called += with.sival_int;
}
int main(void)
{
	struct sigaction action = { .sa_sigaction = handle, .sa_flags = SA_SIGINFO };
	struct itimerspec soon = { { 0, 0 }, { 0, 20000000 } }, often = { { 0, 5000000 }, { 0, 5000000 } };
	struct itimerspec late = { { 0, 0 }, { 1000, 0 } }, none = { 0 }, left;
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 3 };
	timer_t timer, other, nobody;
	volatile long sum = 0;
	event.sigev_value.sival_ptr = &sum;
	sigaction(SIGRTMIN + 3, &action, NULL);
	if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &soon, NULL))
		return 1;
	/* It computes, and makes no system call. */
	while (!caught)
		sum++;
	printf("%d %d %d\n", caught, value == &sum, code == SI_TIMER);
	timer_settime(timer, 0, &often, NULL);
	while (caught < 4)
		sum++;
	timer_settime(timer, 0, &none, &left);
	printf("often %d, none left %ld\n", left.it_interval.tv_nsec == 5000000, left.it_value.tv_sec);
	event.sigev_notify = SIGEV_THREAD;
	event.sigev_notify_function = call;
	event.sigev_notify_attributes = NULL;
	event.sigev_value.sival_int = 7;
	if (timer_create(CLOCK_REALTIME, &event, &other) || timer_settime(other, 0, &soon, NULL))
		return 2;
	while (!called)
		usleep(1000);
	printf("called with %d\n", called);
	event.sigev_notify = SIGEV_NONE;
	if (timer_create(CLOCK_MONOTONIC, &event, &nobody) || timer_settime(nobody, 0, &late, NULL) ||
		timer_gettime(nobody, &left))
		return 3;
	printf("%d left, %d more\n", left.it_value.tv_sec > 900, timer_getoverrun(nobody));
	printf("%d %d\n", timer_delete(other), timer_delete(nobody));
	printf("%d %d\n", timer_delete(other), errno == EINVAL);
	event.sigev_notify = 9;
	printf("%d %d\n", timer_create(CLOCK_MONOTONIC, &event, &other), errno == EINVAL);
	return 0;
}
"""
