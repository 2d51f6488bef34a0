// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A libslirp that somebody has taken over. Each frame of the guest's is an attack by name, with an argument; the
 * answer is a number: 0 if it was done, else errno; or what the attack says.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define HEADER 14
#define TYPE_OF_ARP 6
#define MIB (1 << 20)
#define MUCH 4096 /* MiB */
#define X32 0x40000000

struct callbacks {
	ssize_t (*send_packet)(const void *frame, size_t bytes, void *opaque);
};

static const struct callbacks *callbacks;
static int listening = -1;

static int result(long done)
{
	return done < 0 ? errno : 0;
}

static int read_file(const char *path)
{
	return result(open(path, O_RDONLY));
}

static int write_file(const char *path)
{
	return result(open(path, O_WRONLY | O_CREAT, 0600));
}

static int remove_file(const char *path)
{
	return result(unlink(path));
}

static int execute(const char *path)
{
	char *const words[] = { "touch", (char *)path, NULL };

	return result(execv("/usr/bin/touch", words));
}

static int make_process(const char *unused)
{
	pid_t child = fork();

	if (child == 0)
		_exit(0);
	return child < 0 ? errno : result(waitpid(child, NULL, 0));
}

static int new_name_space(const char *unused)
{
	return result(unshare(CLONE_NEWUSER));
}

static int unnamed_file(const char *unused)
{
	return result(memfd_create("veil", 0));
}

static int unix_socket(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int made = socket(AF_UNIX, SOCK_STREAM, 0);

	if (made < 0)
		return errno;
	strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
	return result(connect(made, (struct sockaddr *)&address, sizeof(address)));
}

static int make_socket(const char *words)
{
	int domain, type, protocol;

	if (sscanf(words, "%d %d %d", &domain, &type, &protocol) != 3)
		return EINVAL;
	return result(socket(domain, type, protocol));
}

static int send_signal(const char *process)
{
	return result(kill(atoi(process), SIGUSR1));
}

static int have_signals_sent(const char *process)
{
	return result(fcntl(STDIN_FILENO, F_SETOWN, atoi(process)));
}

static int be_traced(const char *unused)
{
	return result(ptrace(PTRACE_TRACEME, 0, NULL, NULL));
}

/* How many MiB there are. */
static int take_memory(const char *unused)
{
	int taken = 0;

	while (taken < MUCH &&
	       mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED)
		taken++;
	return taken;
}

static int map_code(const char *unused)
{
	return mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? errno : 0;
}

static int make_code(const char *unused)
{
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return result(mprotect(page, 4096, PROT_READ | PROT_EXEC));
}

static struct sockaddr_in here(int port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return address;
}

static int reach(const char *port)
{
	struct sockaddr_in address = here(atoi(port));
	int made = socket(AF_INET, SOCK_STREAM, 0);

	return made < 0 ? errno : result(connect(made, (struct sockaddr *)&address, sizeof(address)));
}

/* With no other socket than the one at which this process listens. */
static int reach_from_a_forwarded_port(const char *port)
{
	struct sockaddr_in address = here(atoi(port));

	if (shutdown(listening, SHUT_RD))
		return errno;
	return result(sendto(listening, "x", 1, MSG_FASTOPEN, (struct sockaddr *)&address, sizeof(address)));
}

static int be_reached(const char *unused)
{
	struct sockaddr_in address = here(0);
	int made = socket(AF_INET, SOCK_STREAM, 0);

	if (made < 0 || bind(made, (struct sockaddr *)&address, sizeof(address)))
		return errno;
	return result(listen(made, 1));
}

static int filter_frames(const char *unused)
{
	struct {
		uint16_t code;
		uint8_t jt, jf;
		uint32_t k;
	} accept_all = { 6, 0, 0, 0xffff };
	struct {
		uint16_t length;
		void *filter;
	} program = { 1, &accept_all };
	int made = socket(AF_INET, SOCK_DGRAM, 0);

	if (made < 0)
		return errno;
	return result(setsockopt(made, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)));
}

static int call_of_x32(const char *unused)
{
	return result(syscall(X32 | __NR_getpid));
}

static int call_of_i386(const char *unused)
{
	int done = 20; /* getpid */

	asm volatile("int $0x80" : "+a"(done) : : "memory", "r8", "r9", "r10", "r11");
	return done < 0 ? -done : 0;
}

static const struct {
	const char *name;
	int (*attack)(const char *argument);
} attacks[] = {
	{ "read_file", read_file },
	{ "write_file", write_file },
	{ "remove_file", remove_file },
	{ "execute", execute },
	{ "make_process", make_process },
	{ "new_name_space", new_name_space },
	{ "unnamed_file", unnamed_file },
	{ "unix_socket", unix_socket },
	{ "make_socket", make_socket },
	{ "send_signal", send_signal },
	{ "have_signals_sent", have_signals_sent },
	{ "be_traced", be_traced },
	{ "take_memory", take_memory },
	{ "map_code", map_code },
	{ "make_code", make_code },
	{ "reach", reach },
	{ "reach_from_a_forwarded_port", reach_from_a_forwarded_port },
	{ "be_reached", be_reached },
	{ "filter_frames", filter_frames },
	{ "call_of_x32", call_of_x32 },
	{ "call_of_i386", call_of_i386 },
};

void *slirp_new(const void *config, const struct callbacks *given, void *opaque)
{
	callbacks = given;
	return &callbacks;
}

void slirp_input(void *slirp, const uint8_t *frame, int bytes)
{
	const char *name = (const char *)frame + HEADER;
	uint8_t answer[HEADER + sizeof(int32_t)] = { 0 };
	int32_t number = -1;

	/* What comes before the guest's first frame is IPv4. */
	if (bytes <= HEADER || frame[HEADER - 1] != TYPE_OF_ARP)
		return;
	for (size_t i = 0; i < sizeof(attacks) / sizeof(*attacks); i++)
		if (!strcmp(attacks[i].name, name))
			number = attacks[i].attack(name + strlen(name) + 1);
	memcpy(answer + HEADER, &number, sizeof(number));
	callbacks->send_packet(answer, sizeof(answer), NULL);
}

int slirp_add_hostfwd(void *slirp, int is_udp, struct in_addr address, int port, struct in_addr guest, int guest_port)
{
	struct sockaddr_in place = here(port);

	listening = socket(AF_INET, SOCK_STREAM, 0);
	if (listening < 0 || bind(listening, (struct sockaddr *)&place, sizeof(place)))
		return -1;
	return listen(listening, 1);
}

void slirp_pollfds_fill(void *slirp, uint32_t *timeout, void *add_poll, void *opaque)
{
}

void slirp_pollfds_poll(void *slirp, int failed, void *get_revents, void *opaque)
{
}
