/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Process 1: mounts, modules, the agent; and the end of the machine when the agent ends. */
#define _GNU_SOURCE
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
#include <unistd.h>

#include "process1.h"

#define MODULE_LIST "/lib/veil/modules"
/* There if VeilS-KCI is in the image, and its policy is not off: "on" or "halt". */
#define LOCK_DOWN_POLICY "/lib/veil/lock-down"
#define LOCK_DOWN "/dev/veil-kci"
#define BPF_JIT "/proc/sys/net/core/bpf_jit_enable"
/* There if the machine has a network card: a script that brings it up. */
#define NETWORK "/lib/veil/network"
#define PORT_NAME "veil.agent"

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

static void network_up(void)
{
	int status = 0;
	pid_t pid;

	if (access(NETWORK, F_OK) < 0)
		return;
	pid = fork();
	if (!pid) {
		execl(NETWORK, NETWORK, NULL);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0 || status)
		printf("veil-init: the network is not up\n");
}

/* Attestation reports are asked for here; the directory is there if the kernel has configfs. */
static void mount_configfs(void)
{
	if (access("/sys/kernel/config", F_OK) == 0)
		mount_one("configfs", "/sys/kernel/config", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL);
}

static int write_word(const char *place, const char *word)
{
	int file = open(place, O_WRONLY | O_CLOEXEC);
	int result = file < 0 || write(file, word, strlen(word)) < 0 ? errno : 0;

	if (file >= 0)
		close(file);
	return result;
}

/*
 * From here on the kernel executes verified code alone. What a JIT compiler writes is not: filters are interpreted. With
 * "halt" nothing else begins unless it is so, even if there is no driver to ask for it.
 */
static void lock_down(void)
{
	char why[96], policy[8] = "";
	int error, file = open(LOCK_DOWN_POLICY, O_RDONLY | O_CLOEXEC);

	if (file < 0)
		return;
	if (read(file, policy, sizeof(policy) - 1) < 0)
		policy[0] = 0;
	close(file);
	error = write_word(BPF_JIT, "0");
	if (error)
		printf("veil-init: cannot turn the BPF JIT off: %s\n", strerror(error));
	error = write_word(LOCK_DOWN, "1");
	if (!error)
		return;
	snprintf(why, sizeof(why), "the kernel is not locked down: %s", strerror(error));
	if (strcmp(policy, "on") != 0)
		power_off(why);
	printf("veil-init: %s\n", why);
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

void run_as_process1(void)
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
	network_up();
	lock_down();
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
