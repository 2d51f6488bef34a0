/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "port.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PORTS "/sys/class/virtio-ports"

enum { PORT_WAIT_MS = 20000 };

static bool names_port(const char *device, const char *wanted)
{
	char path[320], name[64] = "";
	ssize_t got;
	int file;

	snprintf(path, sizeof(path), PORTS "/%s/name", device);
	file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return false;
	got = read(file, name, sizeof(name) - 1);
	close(file);
	name[got > 0 ? got : 0] = 0;
	name[strcspn(name, "\n")] = 0;
	return !strcmp(name, wanted);
}

static int open_named_port(const char *wanted)
{
	DIR *ports = opendir(PORTS);
	struct dirent *entry;
	int port = -1;

	while (ports && port < 0 && (entry = readdir(ports))) {
		char path[320];

		if (!names_port(entry->d_name, wanted))
			continue;
		snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
		port = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	}
	if (ports)
		closedir(ports);
	return port;
}

int find_port(const char *name)
{
	const struct timespec pause = { .tv_nsec = 1000000 };

	/* The device tells its ports' names by messages that may still be on their way. */
	for (int i = 0; i < PORT_WAIT_MS; i++) {
		int port = open_named_port(name);

		if (port >= 0)
			return port;
		nanosleep(&pause, NULL);
	}
	errno = ENODEV;
	return -1;
}
