/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "jobs.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct job jobs[MAX_JOBS];

struct job *find_job(uint32_t number)
{
	for (size_t i = 0; i < MAX_JOBS; i++)
		if (jobs[i].kind != JOB_FREE && jobs[i].number == number)
			return &jobs[i];
	return NULL;
}

struct job *new_job(uint32_t number, enum job_kind kind)
{
	if (!number || find_job(number)) {
		send_garbage(number, "a job with a number that is zero or in use");
		return NULL;
	}
	for (size_t i = 0; i < MAX_JOBS; i++) {
		struct job *job = &jobs[i];

		if (job->kind != JOB_FREE)
			continue;
		memset(job, 0, sizeof(*job));
		job->kind = kind;
		job->number = number;
		job->exec_fd = job->in = job->out = job->err = -1;
		job->credit_out = job->credit_err = WINDOW;
		return job;
	}
	send_failed(number, EAGAIN, "too many jobs at once");
	return NULL;
}

void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void signal_job(const struct job *job, int number)
{
	if (job->pid <= 0 || number <= 0 || number >= NSIG)
		return;
	/* The whole session; only the one process while it has not made its session yet. */
	if (kill(-job->pid, number) < 0)
		kill(job->pid, number);
}

void free_job(struct job *job)
{
	if (job->kind == JOB_COMMAND)
		signal_job(job, SIGKILL);
	close_fd(&job->exec_fd);
	close_fd(&job->in);
	close_fd(&job->out);
	close_fd(&job->err);
	buffer_free(&job->input);
	if (job->scratch)
		unlink(job->scratch);
	free(job->scratch);
	free(job->path);
	memset(job, 0, sizeof(*job));
}

void job_failed(struct job *job, int error, const char *what)
{
	send_failed(job->number, error, what);
	free_job(job);
}

void credit_input(struct job *job, size_t size)
{
	job->input_done += (uint32_t)size;
	if (job->input_done < WINDOW / 4)
		return;
	send_frame(TO_HOST_CREDIT, 0, job->number, &job->input_done, sizeof(job->input_done));
	job->input_done = 0;
}

bool pump_output(struct job *job, int *fd, unsigned int stream, uint32_t *credit)
{
	static uint8_t chunk[DATA_CHUNK];
	size_t size = *credit < DATA_CHUNK ? *credit : DATA_CHUNK;
	ssize_t got;

	if (*fd < 0 || !size || !tx_has_room())
		return false;
	got = read(*fd, chunk, size);
	if (got < 0 && errno == EINTR)
		return true;
	if (got < 0 && errno == EAGAIN)
		return false;
	if (got <= 0) { /* a pty whose programs are all gone says EIO */
		close_fd(fd);
		return false;
	}
	*credit -= (uint32_t)got;
	send_frame(TO_HOST_DATA, stream, job->number, chunk, (size_t)got);
	return true;
}
