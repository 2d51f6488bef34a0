/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A process that does to /dev/veil-enclave what its input says: caller LAYOUT CONTENT <INPUT. Several files, several
 * threads on each of them, requests that are none, windows whose content changes all the while, signals at any time. It
 * says nothing of its own: what counts is what is left of it in the driver and in the service.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "device.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

#define DEVICE "/dev/veil-enclave"
#define FILES 3
#define SLOTS 2
#define MOST_THREADS 3
#define MOST_STEPS 40
#define LONGEST 4096
#define PAGE 4096
#define TICK_NS 10000000
#define SECONDS 30
#define RESULT 0x40
/* What the enclave of the input asks its service for: the call and its arguments; and where it writes. */
#define ASKS 0x800
#define WRITES 0x840

static uint8_t *layout, *content;
static size_t layout_size, content_size;
static int devices[FILES];
static uint8_t *windows[FILES][SLOTS];
static size_t window_size;

/* Of a thread. */
struct input {
	const uint8_t *at, *end;
};

static uint8_t byte(struct input *in)
{
	return in->at < in->end ? *in->at++ : 0;
}

static uint64_t number(struct input *in)
{
	static const uint64_t special[] = {
		0,
		1,
		2,
		4095,
		4096,
		0x7fffffff,
		0x80000000,
		0xffffffff,
		1ull << 40,
		1ull << 63,
		~0ull,
		~0ull - 4095,
		VEIL_ENC_ARENA,
		VEIL_ENC_ARENA + PAGE,
		VEIL_ENC_WINDOW,
		VEIL_ENC_RUNTIME,
		VEIL_ENC_RUNTIME + 0x20000,
		VEIL_ENC_THREADS,
		VEIL_ENC_IDT,
		VEIL_ENC_INFO,
		VEIL_ENC_TOP,
	};
	uint8_t kind = byte(in);
	uint64_t value = 0;

	if (kind < 64)
		return kind;
	if (kind < 224)
		return special[kind % (sizeof(special) / sizeof(*special))];
	for (int i = 0; i < 8; i++)
		value = value << 8 | byte(in);
	return value;
}

/* Where an argument may be: good, nowhere, the kernel's, the end of a page, read-only, of the device itself. */
static void *place(struct input *in, void *good, size_t size)
{
	uint8_t *page;

	switch (byte(in) % 12) {
	case 0:
		return NULL;
	case 1:
		return (void *)0xffff888000000000;
	case 2:
		return (void *)number(in);
	case 3:
		page = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		munmap(page + PAGE, PAGE);
		return page + PAGE - byte(in) % (size + 1);
	case 4:
		page = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		return page;
	case 5:
		page = windows[byte(in) % FILES][0];
		return page ? page + byte(in) * 8 : NULL;
	default:
		return good;
	}
}

static void create(struct input *in, int fd, int flips)
{
	uint8_t *copy = malloc(layout_size + 1);
	struct veil_enclave_create request = { 0 };

	memcpy(copy, layout, layout_size);
	while (flips--)
		copy[(byte(in) << 8 | byte(in)) % layout_size] ^= 1 << byte(in) % 8;
	request.layout = (uint64_t)place(in, copy, layout_size);
	request.length = byte(in) % 8 ? layout_size : number(in);
	ioctl(fd, VEIL_ENCLAVE_CREATE, place(in, &request, sizeof(request)));
	free(copy);
}

static void add(struct input *in, int fd)
{
	struct veil_enclave_add request = { .pages = content_size / PAGE };

	request.from = (uint64_t)place(in, content, content_size);
	if (byte(in) % 4 == 0)
		request.record = number(in);
	if (byte(in) % 4 == 0)
		request.page = number(in);
	if (byte(in) % 4 == 0)
		request.pages = number(in);
	ioctl(fd, VEIL_ENCLAVE_ADD, place(in, &request, sizeof(request)));
}

static void enter(struct input *in, int fd)
{
	struct veil_enclave_enter request = { .slot = byte(in) % 8 < 6 ? byte(in) % SLOTS : (uint32_t)number(in) };

	ioctl(fd, VEIL_ENCLAVE_ENTER, place(in, &request, sizeof(request)));
}

static void map(struct input *in, int which)
{
	static const int flags[] = { MAP_SHARED, MAP_SHARED, MAP_SHARED, MAP_PRIVATE, MAP_SHARED | MAP_POPULATE };
	static const int rights[] = { 3, 3, 3, 1, 7, 0 };
	int slot = byte(in) % SLOTS, right = rights[byte(in) % 6], flag = flags[byte(in) % 5];
	size_t size = byte(in) % 4 ? window_size : number(in) % (1 << 20);
	off_t offset = byte(in) % 4 ? (off_t)slot * VEIL_ENC_WINDOW_STRIDE : (off_t)number(in);
	uint8_t *found = mmap(NULL, size, right, flag, devices[which], offset);

	if (found == MAP_FAILED)
		return;
	if (size == window_size && right == 3 && flag == MAP_SHARED)
		windows[which][slot] = found;
	else if (byte(in) % 2)
		munmap(found, size / 2);
}

static void change_window(struct input *in, int which)
{
	uint8_t *window = windows[which][byte(in) % SLOTS];
	size_t at;

	if (!window)
		return;
	switch (byte(in) % 6) {
	case 0: /* the state */
		*(volatile uint32_t *)window = byte(in) % 8 < 7 ? byte(in) % 7 : (uint32_t)number(in);
		break;
	case 1: /* is interrupted */
		((volatile uint32_t *)window)[1] = byte(in) % 3;
		break;
	case 2:
	case 3: /* asks the service */
		for (at = 1; at < 7; at++)
			*(volatile uint64_t *)(window + ASKS + 8 * at) = number(in);
		*(volatile uint32_t *)(window + ASKS) = byte(in) % 12;
		break;
	case 4:
		*(volatile uint64_t *)(window + WRITES) = number(in);
		break;
	default:
		at = (byte(in) << 8 | byte(in)) % (window_size - 8);
		*(volatile uint64_t *)(window + (at & -8ul)) = number(in);
	}
}

static void anything(struct input *in, int fd)
{
	static const unsigned long commands[] = {
		VEIL_ENCLAVE_CREATE,
		VEIL_ENCLAVE_ADD,
		VEIL_ENCLAVE_FINISH,
		VEIL_ENCLAVE_ENTER,
		_IOR('V', 0x40, char[24]),
		_IOWR('V', 0x43, char[4096]),
		_IO('V', 0x42),
		_IO('V', 0x44),
		0x5401,
		0x5451,
	};
	uint64_t argument[8];
	unsigned long command = commands[byte(in) % 10];

	for (int i = 0; i < 8; i++)
		argument[i] = number(in);
	if (byte(in) % 4 == 0)
		command = number(in);
	ioctl(fd, command, place(in, argument, sizeof(argument)));
}

/* As a starter makes it. */
static void whole(int which)
{
	struct veil_enclave_create create = { (uint64_t)layout, layout_size, 0 };
	struct veil_enclave_add add = { 0, 0, (uint64_t)content, content_size / PAGE };
	struct veil_enclave_finish finish;
	int fd = devices[which];

	ioctl(fd, VEIL_ENCLAVE_CREATE, &create);
	ioctl(fd, VEIL_ENCLAVE_ADD, &add);
	ioctl(fd, VEIL_ENCLAVE_FINISH, &finish);
	for (int slot = 0; slot < SLOTS; slot++) {
		void *window = mmap(NULL, window_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
				    (off_t)slot * VEIL_ENC_WINDOW_STRIDE);

		if (window != MAP_FAILED)
			windows[which][slot] = window;
	}
}

/* The window asks for nothing any more, and the enclave goes on. */
static void run(struct input *in, int which)
{
	struct veil_enclave_enter request = { .slot = byte(in) % SLOTS };
	uint8_t *window = windows[which][request.slot];

	if (window) {
		*(volatile uint64_t *)(window + RESULT) = 0;
		*(volatile uint32_t *)window = 0;
	}
	ioctl(devices[which], VEIL_ENCLAVE_ENTER, &request);
}

static void write_number(const char *path, uint64_t value)
{
	char text[32];
	int fd = open(path, O_WRONLY), length = 0;
	ssize_t written = 0;

	do
		text[sizeof(text) - ++length] = '0' + value % 10;
	while (value /= 10);
	if (fd >= 0)
		written = write(fd, text + sizeof(text) - length, length);
	(void)written;
	close(fd);
}

static void renew(int which)
{
	close(devices[which]);
	devices[which] = open(DEVICE, O_RDWR);
}

/* Another process with the same files. */
static void in_child(struct input *in, int which)
{
	uint8_t how = byte(in);
	pid_t child = fork();

	if (!child) {
		alarm(1);
		if (how % 2)
			run(in, which);
		else
			change_window(in, which);
		_exit(0);
	}
	if (child > 0 && how % 4 == 3)
		kill(child, SIGKILL);
	while (child > 0 && waitpid(child, NULL, 0) < 0 && errno == EINTR)
		continue;
}

static void step(struct input *in)
{
	uint8_t what = byte(in);
	int which = byte(in) % FILES, slot;

	switch (what % 16) {
	case 0:
		whole(which);
		break;
	case 1:
		renew(which);
		break;
	case 2:
		create(in, devices[which], byte(in) % 4);
		break;
	case 3:
		add(in, devices[which]);
		break;
	case 4:
		ioctl(devices[which], VEIL_ENCLAVE_FINISH, place(in, content + content_size, 48));
		break;
	case 5:
		enter(in, devices[which]);
		break;
	case 6:
		map(in, which);
		break;
	case 7:
	case 8:
		change_window(in, which);
		break;
	case 9:
	case 10:
		run(in, which);
		break;
	case 11:
		write_number(DEVICE, byte(in) % 4 ? byte(in) : number(in));
		break;
	case 12:
		anything(in, devices[which]);
		break;
	case 13:
		in_child(in, which);
		break;
	case 14:
		slot = byte(in) % SLOTS;
		if (windows[which][slot])
			munmap(windows[which][slot], window_size);
		windows[which][slot] = NULL;
		break;
	default:
		/* MiB that all enclaves may have; a small enclave of the input has about one. */
		write_number("/sys/module/veil/parameters/enc_limit", byte(in) % 4);
	}
}

static void ticked(int signal)
{
	(void)signal;
}

/* A window that another thread has unmapped, or a page that is nobody's. */
static void fell(int signal)
{
	(void)signal;
	_exit(0);
}

static void *thread(void *argument)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1 };
	struct itimerspec tick = { { 0, TICK_NS }, { 0, TICK_NS } };
	timer_t timer;

	/* An enclave that wants nothing is left for the signal. */
	event.sigev_notify_thread_id = (int)syscall(SYS_gettid);
	if (timer_create(CLOCK_MONOTONIC, &event, &timer))
		_exit(3);
	timer_settime(timer, 0, &tick, NULL);
	for (int i = 0; i < MOST_STEPS && ((struct input *)argument)->at < ((struct input *)argument)->end; i++)
		step(argument);
	timer_delete(timer);
	return NULL;
}

static uint8_t *read_all(const char *path, size_t *size)
{
	int fd = open(path, O_RDONLY);
	uint8_t *data = malloc(1 << 20);
	ssize_t got;

	*size = 0;
	while (fd >= 0 && (got = read(fd, data + *size, (1 << 20) - *size)) > 0)
		*size += got;
	if (!*size)
		_exit(2);
	close(fd);
	return data;
}

int main(int argc, char **argv)
{
	struct sigaction ticks = { .sa_handler = ticked }, falls = { .sa_handler = fell };
	static uint8_t data[LONGEST];
	struct input inputs[MOST_THREADS];
	pthread_t threads[MOST_THREADS];
	size_t size = 0, part;
	ssize_t got;
	int count;

	if (argc != 3)
		return 2;
	layout = read_all(argv[1], &layout_size);
	content = read_all(argv[2], &content_size);
	window_size = *(uint32_t *)(layout + 0x30) * PAGE;
	while (size < LONGEST && (got = read(0, data + size, LONGEST - size)) > 0)
		size += got;
	sigaction(SIGUSR1, &ticks, NULL);
	sigaction(SIGSEGV, &falls, NULL);
	sigaction(SIGBUS, &falls, NULL);
	/* It ends in any case; a device that could not be left then is a finding. */
	alarm(SECONDS);
	for (int i = 0; i < FILES; i++)
		devices[i] = open(DEVICE, O_RDWR);
	if (devices[0] < 0)
		return 4;
	if (!size)
		return 0;
	count = data[0] % MOST_THREADS + 1;
	part = (size - 1) / count;
	for (int i = 0; i < count; i++) {
		inputs[i].at = data + 1 + i * part;
		inputs[i].end = inputs[i].at + part;
		if (pthread_create(&threads[i], NULL, thread, &inputs[i]))
			return 5;
	}
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	return 0;
}
