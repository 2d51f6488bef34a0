/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Jobs: commands that run and files on their way, each with the number that the host gave it. */
#ifndef VEIL_JOBS_H
#define VEIL_JOBS_H

#include <sys/types.h>

#include "wire.h"

enum { MAX_JOBS = 128 };

enum job_kind { JOB_FREE, JOB_COMMAND, JOB_PUT, JOB_GET };

struct job {
	enum job_kind kind;
	uint32_t number;
	bool pty;

	/* Commands. A pty's master is in `out`; `in` is a duplicate of it. */
	pid_t pid; /* 0 once reaped */
	int status;
	int exec_fd; /* closes when the program starts, else tells errno and what failed */
	int in, out, err;
	struct buffer input;
	bool input_ended;
	uint32_t credit_out, credit_err; /* how many bytes the host still takes */
	uint32_t input_done;		 /* bytes consumed and not yet credited to the host */

	/* Files: `in` is being written, `out` being read. */
	char *path, *scratch;
};

extern struct job jobs[MAX_JOBS];

struct job *find_job(uint32_t number);
struct job *new_job(uint32_t number, enum job_kind kind);
/* A command that still runs is killed. */
void free_job(struct job *job);
/* To the whole session of a command; nothing if it has ended. */
void signal_job(const struct job *job, int number);
void close_fd(int *fd);
void job_failed(struct job *job, int error, const char *what);
void credit_input(struct job *job, size_t size);
/* Read from *fd once and send it; false when nothing more comes from it for now. At its end, *fd is closed. */
bool pump_output(struct job *job, int *fd, unsigned int stream, uint32_t *credit);

#endif
