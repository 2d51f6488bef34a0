/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Process 1: mounts, modules, the agent; and the end of the machine when the agent ends. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "jobs.h"

#define PORTS "/sys/class/virtio-ports"
#define MODULE_LIST "/lib/veil/modules"
#define PORT_NAME "veil.agent"

enum { PORT_WAIT_MS = 20000 };

static volatile sig_atomic_t asked_to_stop;

static void on_stop(int number)
{
	asked_to_stop = number;
}

static _Noreturn void power_off(const char *why)
{
	printf("veil-init: %s: powering off\n", why);
	fflush(stdout);
	sync();
	reboot(asked_to_stop == SIGTERM ? RB_AUTOBOOT : RB_POWER_OFF);
	for (;;)
		pause();
}

static void mount_one(const char *type, const char *place, unsigned long flags, const char *options)
{
	mkdir(place, 0755);
	if (mount(type, place, type, flags, options) < 0)
		printf("veil-init: cannot mount %s: %s\n", place, strerror(errno));
}

static void mount_all(void)
{
	const unsigned long careful = MS_NOSUID | MS_NOEXEC | MS_NODEV;

	mount_one("proc", "/proc", careful, NULL);
	mount_one("sysfs", "/sys", careful, NULL);
	mount_one("devtmpfs", "/dev", MS_NOSUID, "mode=755");
	mount_one("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666");
	mount_one("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
	mount_one("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=755");
	mount_one("tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777");
	symlink("/proc/self/fd", "/dev/fd");
	symlink("/proc/self/fd/0", "/dev/stdin");
	symlink("/proc/self/fd/1", "/dev/stdout");
	symlink("/proc/self/fd/2", "/dev/stderr");
}

static void open_console(void)
{
	int console = open("/dev/console", O_RDWR | O_NOCTTY);

	if (console < 0)
		console = open("/dev/null", O_RDWR);
	for (int i = 0; i < 3; i++)
		if (console != i)
			dup2(console, i);
	if (console > 2)
		close(console);
	setvbuf(stdout, NULL, _IOLBF, 0);
}

static void loopback_up(void)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (sock < 0 || ioctl(sock, SIOCSIFFLAGS, &request) < 0)
		printf("veil-init: no loopback interface: %s\n", strerror(errno));
	if (sock >= 0)
		close(sock);
}

/* Each line of the list is a path and, after a space, the module's parameters. */
static void insert_modules(void)
{
	FILE *list = fopen(MODULE_LIST, "re");
	char line[1024];

	while (list && fgets(line, sizeof(line), list)) {
		char *parameters = line + strcspn(line, " \n");
		int module;

		line[strcspn(line, "\n")] = 0;
		if (*parameters)
			*parameters++ = 0;
		module = open(line, O_RDONLY | O_CLOEXEC);
		if (module < 0 || (syscall(SYS_finit_module, module, parameters, 0) < 0 && errno != EEXIST))
			printf("veil-init: cannot insert %s: %s\n", line, strerror(errno));
		if (module >= 0)
			close(module);
	}
	if (list)
		fclose(list);
}

/* Attestation reports are asked for here; the directory is there if the kernel has configfs. */
static void mount_configfs(void)
{
	if (access("/sys/kernel/config", F_OK) == 0)
		mount_one("configfs", "/sys/kernel/config", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL);
}

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

static pid_t start_agent(void)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	setsid();
	execl("/proc/self/exe", "veil-agent", "--port", PORT_NAME, NULL);
	_exit(127);
}

void run_as_init(void)
{
	const struct sigaction stop = { .sa_handler = on_stop }; /* without SA_RESTART: it ends the wait below */
	char why[96] = "asked to stop";
	int status;
	pid_t agent;

	umask(022);
	mount_all();
	open_console();
	if (sethostname("veil", 4) < 0)
		printf("veil-init: cannot set the host name: %s\n", strerror(errno));
	loopback_up();
	insert_modules();
	mount_configfs();
	/* What busybox's poweroff, reboot and halt send. */
	sigaction(SIGUSR1, &stop, NULL);
	sigaction(SIGUSR2, &stop, NULL);
	sigaction(SIGTERM, &stop, NULL);
	agent = start_agent();
	while (!asked_to_stop) {
		pid_t pid = waitpid(-1, &status, 0);

		if (pid < 0 && errno == ECHILD)
			break;
		if (pid != agent)
			continue;
		if (WIFSIGNALED(status))
			snprintf(why, sizeof(why), "the agent was killed by signal %d", WTERMSIG(status));
		else
			snprintf(why, sizeof(why), "the agent ended with status %d", WEXITSTATUS(status));
		break;
	}
	power_off(why);
}
