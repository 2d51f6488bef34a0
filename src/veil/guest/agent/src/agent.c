/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Veil's guest agent: runs commands and moves files for the host, over one stream of frames.
 *
 * One thread and one poll(): nothing here may block. Each stream of each job has a window of bytes that its receiver
 * has granted, so neither a program that writes without end nor a host that reads slowly can stop the other jobs, and
 * the agent can always take what the host sends.
 *
 * Usage: as process 1 it brings up the system and starts itself as the agent. `agent --port NAME` serves the
 * virtio-console port of that name, `agent --fd NUMBER` a stream that is already open (for tests).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "command.h"
#include "file.h"
#include "jobs.h"
#include "port.h"
#include "process1.h"
#include "resume.h"

enum { POLL_PORT, POLL_SIGNAL, POLL_JOBS, POLLS_PER_JOB = 4, HUNG_UP_PAUSE_MS = 20, READS_PER_TURN = 16 };

struct hello {
	uint32_t version, flags;
	uint64_t nonce, realtime_ns;
	uint8_t entropy[ENTROPY_SIZE];
};
_Static_assert(sizeof(struct hello) == 56, "HELLO is a wire format");

struct hello_answer {
	uint32_t version, max_payload, window, max_jobs;
	uint64_t nonce;
};
_Static_assert(sizeof(struct hello_answer) == 24, "HELLO is a wire format");

static void say_hello(uint64_t nonce)
{
	const struct hello_answer answer = {
		.version = WIRE_VERSION,
		.max_payload = MAX_PAYLOAD,
		.window = WINDOW,
		.max_jobs = MAX_JOBS,
		.nonce = nonce,
	};

	send_frame(TO_HOST_HELLO, 0, 0, &answer, sizeof(answer));
}

static void start_session(const uint8_t *payload, size_t size, bool in_guest)
{
	struct hello hello;

	if (size != sizeof(hello)) {
		send_garbage(0, "malformed HELLO");
		return;
	}
	memcpy(&hello, payload, sizeof(hello));
	for (size_t i = 0; i < MAX_JOBS; i++)
		if (jobs[i].kind != JOB_FREE)
			free_job(&jobs[i]);
	/* The host skips all that comes before the answer, cut-off frames included. */
	tx.length = tx.start = 0;
	if (in_guest)
		catch_up(hello.entropy, hello.realtime_ns);
	say_hello(hello.nonce);
}

static void job_frame(struct job *job, const struct header *frame, const uint8_t *payload)
{
	uint32_t number = 0;
	uint16_t window[2] = { 0 };

	if (frame->length == sizeof(number)) {
		memcpy(&number, payload, sizeof(number));
		memcpy(window, payload, sizeof(window));
	}
	switch (frame->type) {
	case FROM_HOST_DATA:
		if (job->kind == JOB_PUT)
			put_data(job, payload, frame->length);
		else if (job->kind == JOB_COMMAND && !job->input_ended)
			command_input(job, payload, frame->length);
		break;
	case FROM_HOST_END:
		if (job->kind == JOB_PUT) {
			put_end(job);
		} else if (job->kind == JOB_COMMAND && !job->input_ended) {
			job->input_ended = true;
			command_flush_input(job);
		}
		break;
	case FROM_HOST_SIGNAL:
		/* For a file on its way any signal means: drop it. */
		if (job->kind == JOB_COMMAND)
			signal_job(job, (int)number);
		else
			job_failed(job, ECANCELED, job->path);
		break;
	case FROM_HOST_RESIZE:
		command_resize(job, window[0], window[1]);
		break;
	case FROM_HOST_CREDIT: {
		uint32_t *credit = frame->stream == 2 ? &job->credit_err : &job->credit_out;

		/* More than a window was never taken. */
		*credit = number > WINDOW - *credit ? WINDOW : *credit + number;
		break;
	}
	default:
		break;
	}
}

static void handle_frame(const struct header *frame, bool in_guest)
{
	const uint8_t *payload = (const uint8_t *)(frame + 1);
	struct job *job;

	switch (frame->type) {
	case FROM_HOST_HELLO:
		start_session(payload, frame->length, in_guest);
		return;
	case FROM_HOST_EXEC:
		command_start(frame->job, payload, frame->length);
		return;
	case FROM_HOST_PUT:
		put_start(frame->job, payload, frame->length);
		return;
	case FROM_HOST_GET:
		get_start(frame->job, payload, frame->length);
		return;
	case FROM_HOST_PING:
		send_frame(TO_HOST_PONG, 0, 0, payload, frame->length < 64 ? frame->length : 64);
		return;
	default:
		/* A frame for a job that has just ended crossed our EXIT on its way: nothing to tell. */
		job = find_job(frame->job);
		if (job)
			job_frame(job, frame, payload);
	}
}

/* True if the host's end is closed. */
static bool read_port(int port, struct buffer *rx, bool in_guest)
{
	const struct header *frame;

	/* virtio-console gives a page at a time. Not without end: the jobs want their turn. */
	for (int i = 0; i < READS_PER_TURN; i++) {
		ssize_t got = read(port, buffer_reserve(rx, DATA_CHUNK), DATA_CHUNK);

		if (got <= 0) {
			if (got < 0 && errno != EAGAIN && errno != EINTR)
				die("reading the port");
			return got == 0;
		}
		rx->length += (size_t)got;
		while ((frame = next_frame(rx)))
			handle_frame(frame, in_guest);
	}
	return false;
}

static void write_port(int port)
{
	while (tx.length) {
		size_t size = tx.length < DATA_CHUNK ? tx.length : DATA_CHUNK;
		ssize_t put = write(port, tx.bytes + tx.start, size);

		if (put < 0 && errno == EINTR)
			continue;
		/* Nothing taken: virtio-console found no bounce buffer free. */
		if (put == 0 || (put < 0 && errno == EAGAIN))
			return;
		if (put < 0)
			die("writing to the port");
		buffer_consume(&tx, (size_t)put);
	}
}

static void watch(struct pollfd *slot, int fd, short events)
{
	/* With no events wanted, the descriptor is left out: a hang-up is always reported and would spin. */
	slot->fd = events ? fd : -1;
	slot->events = events;
	slot->revents = 0;
}

/* Returns how many slots are in use; sets *busy if there is work that needs no waiting. */
static nfds_t fill_polls(struct pollfd *polls, bool *busy)
{
	bool room = tx_has_room();
	nfds_t used = POLL_JOBS;

	*busy = false;

	for (size_t i = 0; i < MAX_JOBS; i++) {
		const struct job *job = &jobs[i];
		struct pollfd *slots = &polls[POLL_JOBS + i * POLLS_PER_JOB];
		bool command = job->kind == JOB_COMMAND;

		watch(&slots[0], job->exec_fd, command && job->exec_fd >= 0 ? POLLIN : 0);
		watch(&slots[1], job->in, command && job->input.length ? POLLOUT : 0);
		watch(&slots[2], job->out, command && room && job->credit_out ? POLLIN : 0);
		watch(&slots[3], job->err, command && room && job->credit_err ? POLLIN : 0);
		*busy |= job->kind == JOB_GET && room && job->credit_out;
		if (job->kind != JOB_FREE)
			used = POLL_JOBS + (i + 1) * POLLS_PER_JOB;
	}
	return used;
}

static void serve_jobs(const struct pollfd *polls)
{
	for (size_t i = 0; i < MAX_JOBS; i++) {
		struct job *job = &jobs[i];
		const struct pollfd *slots = &polls[POLL_JOBS + i * POLLS_PER_JOB];

		if (job->kind == JOB_GET)
			get_pump(job);
		if (job->kind == JOB_COMMAND && slots[0].revents)
			command_check_exec(job);
		if (job->kind == JOB_COMMAND && slots[1].revents)
			command_flush_input(job);
		if (job->kind == JOB_COMMAND)
			command_pump(job, slots[2].revents, slots[3].revents);
	}
}

static _Noreturn void serve(int port, bool in_guest)
{
	static struct pollfd polls[POLL_JOBS + MAX_JOBS * POLLS_PER_JOB];
	const struct sched_param no_priority = { 0 };
	struct signalfd_siginfo ignored;
	struct buffer rx = { 0 };
	bool hung_up = false;
	sigset_t signals;

	sigemptyset(&signals);
	sigaddset(&signals, SIGCHLD);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	signal(SIGPIPE, SIG_IGN);
	/* Woken by a program's first bytes, do not push it off the CPU: when it has filled its pipe, one frame does. */
	sched_setscheduler(0, SCHED_BATCH, &no_priority);
	polls[POLL_SIGNAL].fd = signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
	polls[POLL_SIGNAL].events = POLLIN;
	if (polls[POLL_SIGNAL].fd < 0)
		die("signalfd");
	say_hello(0);
	for (;;) {
		bool busy;
		nfds_t used = fill_polls(polls, &busy);

		watch(&polls[POLL_PORT], hung_up ? -1 : port, (short)(POLLIN | (tx.length ? POLLOUT : 0)));
		if (poll(polls, used, busy ? 0 : hung_up ? HUNG_UP_PAUSE_MS : -1) < 0 && errno != EINTR)
			die("poll");
		if (polls[POLL_SIGNAL].revents) {
			while (read(polls[POLL_SIGNAL].fd, &ignored, sizeof(ignored)) > 0)
				;
			command_reap();
		}
		/* Jobs first: what poll() said is about the descriptors they have now, not those of jobs yet to come. */
		serve_jobs(polls);
		hung_up = read_port(port, &rx, in_guest);
		if (hung_up && !in_guest)
			exit(0);
		write_port(port);
	}
}

int main(int count, char **arguments)
{
	int port = -1;
	bool in_guest = false;

	if (getpid() == 1)
		run_as_process1();
	if (count == 3 && !strcmp(arguments[1], "--fd")) {
		port = atoi(arguments[2]);
		fcntl(port, F_SETFL, fcntl(port, F_GETFL) | O_NONBLOCK);
		fcntl(port, F_SETFD, FD_CLOEXEC);
	} else if (count == 3 && !strcmp(arguments[1], "--port")) {
		in_guest = true;
		port = find_port(arguments[2]);
	} else {
		fprintf(stderr, "usage: %s --port NAME | --fd NUMBER\n", count ? arguments[0] : "agent");
		return 2;
	}
	if (port < 0)
		die("the port");
	serve(port, in_guest);
}
