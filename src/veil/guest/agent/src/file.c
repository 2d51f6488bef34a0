/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Files to and from the host. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "file.h"

struct file_info {
	uint32_t mode, reserved;
	uint64_t size, modified_ns;
};

/* The path in a payload after `skip` bytes, or NULL. The caller frees it. */
static char *take_path(const uint8_t *payload, size_t size, size_t skip)
{
	if (size <= skip + 1 || size - skip > PATH_MAX || payload[size - 1] ||
	    strnlen((const char *)payload + skip, size - skip) != size - skip - 1)
		return NULL;
	return strdup((const char *)payload + skip);
}

static void make_parents(char *path)
{
	for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = 0;
		mkdir(path, 0755); /* what cannot be made shows when the file is opened */
		*slash = '/';
	}
}

void put_start(uint32_t number, const uint8_t *payload, size_t size)
{
	char *path = take_path(payload, size, 4), *real;
	struct stat status;
	struct job *job;
	uint32_t mode;

	if (!path) {
		send_garbage(number, "malformed PUT");
		return;
	}
	memcpy(&mode, payload, sizeof(mode));
	job = new_job(number, JOB_PUT);
	if (!job) {
		free(path);
		return;
	}
	make_parents(path);
	/* The file appears by rename: through a symbolic link that must hit the file it means. */
	real = realpath(path, NULL);
	if (real) {
		free(path);
		path = real;
	}
	job->path = path;
	if (stat(path, &status) == 0 && !S_ISREG(status.st_mode)) {
		job_failed(job, S_ISDIR(status.st_mode) ? EISDIR : EINVAL, path);
		return;
	}
	if (asprintf(&job->scratch, "%s.veil-%08x", path, number) < 0)
		die("memory");
	unlink(job->scratch);
	job->in = open(job->scratch, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (job->in < 0) {
		int error = errno;

		free(job->scratch);
		job->scratch = NULL;
		job_failed(job, error, path);
		return;
	}
	fchmod(job->in, mode & 07777);
}

void put_data(struct job *job, const uint8_t *data, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t put = write(job->in, data + done, size - done);

		if (put < 0 && errno == EINTR)
			continue;
		if (put < 0) {
			job_failed(job, errno, job->path);
			return;
		}
		done += (size_t)put;
	}
	credit_input(job, size);
}

void put_end(struct job *job)
{
	static const uint32_t success[2];
	uint32_t number = job->number;

	if (close(job->in) < 0 || rename(job->scratch, job->path) < 0) {
		job->in = -1;
		job_failed(job, errno, job->path);
		return;
	}
	job->in = -1;
	free(job->scratch);
	job->scratch = NULL;
	free_job(job);
	send_frame(TO_HOST_EXIT, 0, number, success, sizeof(success));
}

void get_start(uint32_t number, const uint8_t *payload, size_t size)
{
	char *path = take_path(payload, size, 0);
	struct file_info info = { 0 };
	struct stat status;
	struct job *job;

	if (!path) {
		send_garbage(number, "malformed GET");
		return;
	}
	job = new_job(number, JOB_GET);
	if (!job) {
		free(path);
		return;
	}
	job->path = path;
	/* O_NONBLOCK: opening a FIFO or a terminal must not stop the agent. */
	job->out = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (job->out < 0 || fstat(job->out, &status) < 0) {
		job_failed(job, errno, path);
		return;
	}
	if (!S_ISREG(status.st_mode)) {
		job_failed(job, S_ISDIR(status.st_mode) ? EISDIR : EINVAL, path);
		return;
	}
	info.mode = status.st_mode & 07777;
	info.size = (uint64_t)status.st_size;
	info.modified_ns = (uint64_t)status.st_mtim.tv_sec * 1000000000u + (uint64_t)status.st_mtim.tv_nsec;
	send_frame(TO_HOST_FILE, 0, number, &info, sizeof(info));
}

void get_pump(struct job *job)
{
	static const uint32_t success[2];
	static uint8_t chunk[DATA_CHUNK];
	uint32_t number = job->number;

	while (job->credit_out && tx_has_room()) {
		size_t size = job->credit_out < DATA_CHUNK ? job->credit_out : DATA_CHUNK;
		ssize_t got = read(job->out, chunk, size);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0) {
			job_failed(job, errno, job->path);
			return;
		}
		if (got == 0) {
			free_job(job);
			send_frame(TO_HOST_EXIT, 0, number, success, sizeof(success));
			return;
		}
		job->credit_out -= (uint32_t)got;
		send_frame(TO_HOST_DATA, 1, number, chunk, (size_t)got);
	}
}
