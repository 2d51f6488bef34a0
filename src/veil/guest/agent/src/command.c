/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Commands: programs with pipes or a terminal between them and the host. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "command.h"

struct exec_request {
	uint32_t flags; /* bit 0: on a pty */
	uint16_t rows, columns;
	uint32_t arguments, variables;
	/* then strings, each with its NUL: the directory, the arguments, the environment */
};
_Static_assert(sizeof(struct exec_request) == 16, "the request is a wire format");

struct exec_report {
	int error;
	char what[64];
};

struct program {
	const char *directory;
	char **arguments, **variables;
};

/* Split the strings; the pointers lead into `text`, which must stay. */
static bool split_strings(char *text, size_t size, const struct exec_request *request, struct program *program)
{
	uint64_t wanted = 1 + (uint64_t)request->arguments + request->variables;
	char **vector;
	size_t at = 0;

	/* Each string takes a byte at least: a count beyond the payload must not make us allocate for it. */
	if (!request->arguments || wanted > size)
		return false;
	vector = calloc(wanted + 2, sizeof(*vector));
	if (!vector)
		die("memory");
	program->arguments = vector;
	program->variables = vector + request->arguments + 1;
	for (uint64_t i = 0; i < wanted; i++) {
		size_t length = strnlen(text + at, size - at);

		if (at + length >= size) {
			free(vector);
			return false;
		}
		if (i == 0)
			program->directory = text + at;
		else if (i <= request->arguments)
			program->arguments[i - 1] = text + at;
		else
			program->variables[i - 1 - request->arguments] = text + at;
		at += length + 1;
	}
	if (at != size) {
		free(vector);
		return false;
	}
	return true;
}

static int open_pty(const struct exec_request *request, int ends[3])
{
	struct winsize window = { .ws_row = request->rows, .ws_col = request->columns };
	int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	int unlock = 0;

	if (master < 0)
		return -1;
	if (ioctl(master, TIOCSPTLCK, &unlock) < 0 ||
	    (ends[0] = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0) {
		close(master);
		return -1;
	}
	ioctl(master, TIOCSWINSZ, &window);
	ends[1] = ends[2] = ends[0];
	return master;
}

/* Make the job's descriptors; `ends` gets the program's own stdin, stdout and stderr. */
static bool open_streams(struct job *job, const struct exec_request *request, int ends[3])
{
	int in[2], out[2], err[2];

	ends[0] = ends[1] = ends[2] = -1;
	if (job->pty) {
		job->out = open_pty(request, ends);
		if (job->out < 0)
			return false;
		job->in = fcntl(job->out, F_DUPFD_CLOEXEC, 0);
		return job->in >= 0;
	}
	if (pipe2(in, O_CLOEXEC) < 0)
		return false;
	ends[0] = in[0];
	job->in = in[1];
	if (pipe2(out, O_CLOEXEC) < 0)
		return false;
	ends[1] = out[1];
	job->out = out[0];
	if (pipe2(err, O_CLOEXEC) < 0)
		return false;
	ends[2] = err[1];
	job->err = err[0];
	fcntl(job->in, F_SETFL, O_NONBLOCK);
	fcntl(job->out, F_SETFL, O_NONBLOCK);
	fcntl(job->err, F_SETFL, O_NONBLOCK);
	return true;
}

static _Noreturn void become_program(const struct program *program, const int ends[3], bool pty, int report_fd)
{
	struct exec_report report = { 0 };
	struct sigaction ordinary = { .sa_handler = SIG_DFL };
	const struct sched_param no_priority = { 0 };
	sigset_t none;
	int moved[3];

	for (int number = 1; number < NSIG; number++)
		sigaction(number, &ordinary, NULL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	sched_setscheduler(0, SCHED_OTHER, &no_priority);
	setsid();
	if (pty)
		ioctl(ends[0], TIOCSCTTY, 0);
	/* First out of the way of 0..2: one of them may be another stream's number. */
	for (int i = 0; i < 3; i++)
		moved[i] = fcntl(ends[i], F_DUPFD_CLOEXEC, 3);
	for (int i = 0; i < 3; i++)
		dup2(moved[i], i);
	if (*program->directory && chdir(program->directory) < 0) {
		report.error = errno;
		snprintf(report.what, sizeof(report.what), "%s", program->directory);
	} else {
		environ = program->variables;
		execvp(program->arguments[0], program->arguments);
		report.error = errno;
		snprintf(report.what, sizeof(report.what), "%s", program->arguments[0]);
	}
	if (write(report_fd, &report, sizeof(report)) < 0)
		_exit(126);
	_exit(127);
}

void command_start(uint32_t number, const uint8_t *payload, size_t size)
{
	struct exec_request request;
	struct program program = { 0 };
	struct job *job;
	char *text;
	int ends[3], report[2] = { -1, -1 };
	pid_t pid = -1;

	if (size <= sizeof(request)) {
		send_garbage(number, "malformed EXEC");
		return;
	}
	memcpy(&request, payload, sizeof(request));
	text = malloc(size - sizeof(request));
	if (!text)
		die("memory");
	memcpy(text, payload + sizeof(request), size - sizeof(request));
	if (request.flags > 1 || !split_strings(text, size - sizeof(request), &request, &program)) {
		send_garbage(number, "malformed EXEC");
		free(text);
		return;
	}
	job = new_job(number, JOB_COMMAND);
	if (!job)
		goto out;
	job->pty = request.flags & 1;
	if (open_streams(job, &request, ends) && pipe2(report, O_CLOEXEC) == 0)
		pid = fork();
	if (pid == 0)
		become_program(&program, ends, job->pty, report[1]);
	if (pid < 0) {
		job_failed(job, errno, "cannot start a command");
		close_fd(&report[0]);
	} else {
		job->pid = pid;
		job->exec_fd = report[0];
		fcntl(job->exec_fd, F_SETFL, O_NONBLOCK);
	}
	close_fd(&report[1]);
	close_fd(&ends[0]);
	if (!request.flags) {
		close_fd(&ends[1]);
		close_fd(&ends[2]);
	}
out:
	free(program.arguments);
	free(text);
}

void command_check_exec(struct job *job)
{
	struct exec_report report;
	ssize_t got = read(job->exec_fd, &report, sizeof(report));
	uint32_t pid = (uint32_t)job->pid;

	if (got < 0)
		return;
	close_fd(&job->exec_fd);
	if (got == 0) {
		send_frame(TO_HOST_STARTED, 0, job->number, &pid, sizeof(pid));
		return;
	}
	report.what[sizeof(report.what) - 1] = 0;
	job_failed(job, report.error, report.what);
}

void command_input(struct job *job, const uint8_t *data, size_t size)
{
	if (job->in < 0) { /* the program has closed its stdin: what comes now has nowhere to go */
		credit_input(job, size);
		return;
	}
	if (job->input.length + size > WINDOW) {
		job_failed(job, EPROTO, "more input than was granted");
		return;
	}
	buffer_append(&job->input, data, size);
	command_flush_input(job);
}

void command_flush_input(struct job *job)
{
	while (job->in >= 0 && job->input.length) {
		ssize_t put = write(job->in, job->input.bytes + job->input.start, job->input.length);

		if (put < 0 && errno == EINTR)
			continue;
		if (put < 0 && errno == EAGAIN)
			return;
		if (put < 0) {
			close_fd(&job->in);
			credit_input(job, job->input.length);
			buffer_free(&job->input);
			return;
		}
		buffer_consume(&job->input, (size_t)put);
		credit_input(job, (size_t)put);
	}
	if (job->in < 0 || !job->input_ended)
		return;
	if (job->pty) {
		/* A terminal has no end: type ^D, which a program in line mode reads as one. */
		static const uint8_t end = 4;

		job->input_ended = false;
		buffer_append(&job->input, &end, 1);
		job->input_done -= 1; /* not one of the host's bytes */
		command_flush_input(job);
		return;
	}
	close_fd(&job->in);
}

static void finish(struct job *job)
{
	uint32_t result[2] = { 0, (uint32_t)WEXITSTATUS(job->status) };

	if (WIFSIGNALED(job->status)) {
		result[0] = 1;
		result[1] = (uint32_t)WTERMSIG(job->status);
	}
	send_frame(TO_HOST_EXIT, 0, job->number, result, sizeof(result));
	free_job(job);
}

void command_pump(struct job *job, bool out_ready, bool err_ready)
{
	bool gone = !job->pid && job->exec_fd < 0;

	if (out_ready || gone)
		pump_output(job, &job->out, 1, &job->credit_out);
	if (err_ready || gone)
		pump_output(job, &job->err, 2, &job->credit_err);
	if (!gone)
		return;
	/*
	 * What the program wrote is in the pipes by now. Its children may hold them open forever: read what is there,
	 * then stop. With no credit left, what is there has to wait for the host.
	 */
	while (pump_output(job, &job->out, 1, &job->credit_out))
		;
	if (job->credit_out && tx_has_room())
		close_fd(&job->out);
	while (pump_output(job, &job->err, 2, &job->credit_err))
		;
	if (job->credit_err && tx_has_room())
		close_fd(&job->err);
	if (job->out < 0 && job->err < 0)
		finish(job);
}

void command_resize(const struct job *job, uint16_t rows, uint16_t columns)
{
	struct winsize window = { .ws_row = rows, .ws_col = columns };

	if (job->pty && job->out >= 0)
		ioctl(job->out, TIOCSWINSZ, &window);
}

void command_reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (size_t i = 0; i < MAX_JOBS; i++)
			if (jobs[i].kind == JOB_COMMAND && jobs[i].pid == pid) {
				jobs[i].pid = 0;
				jobs[i].status = status;
			}
}
