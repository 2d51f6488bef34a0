# SPDX-License-Identifier: GPL-2.0-or-later
"""A user of the guest who takes all enclaves that it gets: another one's start still."""

from __future__ import annotations

import io
import re
import tarfile
from importlib.resources import files
from pathlib import Path

import pytest

from tests.e2e.enclave_images import EXIT, PRINT, enclave_image
from tests.e2e.snapshots import Resume
from tests.e2e.test_enclaves import counts
from tests.guest.enclaves.native_runtime import compile_program
from veil.cvm import ConfidentialVM
from veil.cvm.enclaves import image_place
from veil.formats.enclave_settings import ON, EncSettings
from veil.image.services_image import protected_services

MOST, OF_ONE = 40, 3
_PARAMETERS = "/sys/module/veil/parameters"
_SERVICES = protected_services(EncSettings(mode=ON, most=MOST, user_enclaves=OF_ONE))
TAKER, OTHER = 2000, 2001
_IMAGE = "hello.enclave"
_PLACE = image_place(Path(_IMAGE))

#: as UID COMMAND...: another user. take UID LAYOUT [spread]: makes enclaves until it gets none, says how many and why,
#: and keeps them. `spread`: each as another user of a user namespace of its own, to which root has given a hundred.
_PROGRAM = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "device.h"
static char layout[65536];
static struct veil_enclave_create create = { .layout = (uint64_t)layout };
static void become(int uid)
{
	if (setgroups(0, NULL) || setresgid(uid, uid, uid) || setresuid(uid, uid, uid))
		exit(90);
}
static int make(void)
{
	int device = open("/dev/veil-enclave", O_RDWR);
	return device < 0 || ioctl(device, VEIL_ENCLAVE_CREATE, &create);
}
static void say(int count)
{
	printf("%d %s\n", count, strerror(errno));
	fflush(stdout);
	for (;;)
		pause();
}
static void spread(int uid)
{
	int ready[2], go[2], count = 0, status;
	char line[64];
	pid_t child;
	if (pipe(ready) || pipe(go))
		exit(91);
	child = fork();
	if (!child) {
		become(uid);
		if (unshare(CLONE_NEWUSER) || write(ready[1], "x", 1) != 1 || read(go[0], line, 1) != 1)
			_exit(92);
		if (setresuid(0, 0, 0))
			_exit(93);
		for (;; count++) {
			int made[2];
			if (pipe(made))
				_exit(94);
			if (!fork()) {
				if (setresuid(-1, 1 + count, -1) || setresuid(1 + count, 1 + count, 1 + count))
					_exit(95);
				status = make() ? errno : 0;
				if (write(made[1], &status, sizeof(status)) != sizeof(status))
					_exit(96);
				for (;;)
					pause();
			}
			if (read(made[0], &status, sizeof(status)) != sizeof(status))
				_exit(97);
			if (status)
				break;
		}
		errno = status;
		say(count);
	}
	if (read(ready[0], line, 1) != 1)
		exit(98);
	snprintf(line, sizeof(line), "/proc/%d/uid_map", child);
	int map = open(line, O_WRONLY), length = snprintf(line, sizeof(line), "0 %d 1\n1 3001 100\n", uid);
	if (write(map, line, length) != length || write(go[1], "x", 1) != 1)
		exit(99);
	waitpid(child, &status, 0);
	exit(status >> 8);
}
int main(int argc, char **argv)
{
	int uid = atoi(argv[2]), count = 0;
	if (!strcmp(argv[1], "as")) {
		become(uid);
		execvp(argv[3], argv + 3);
		return 126;
	}
	create.length = read(open(argv[3], O_RDONLY), layout, sizeof(layout));
	if (argc > 4)
		spread(uid);
	become(uid);
	while (!make())
		count++;
	say(count);
}
"""


@pytest.fixture
def vm(resume: Resume, tmp_path: Path) -> ConfidentialVM:
    vm = resume(services=_SERVICES)
    image = tmp_path / _IMAGE
    image.write_bytes(enclave_image(PRINT + EXIT(0), window_pages=2, pool_pages=0))
    vm.copy_in(image, _PLACE)
    with tarfile.open(fileobj=io.BytesIO(image.read_bytes())) as parts:
        parts.extract("layout", tmp_path, filter="data")
    vm.copy_in(tmp_path / "layout", "/tmp/layout")
    program = compile_program(tmp_path, _PROGRAM, "-static", f"-I{files('veil.guest.enclaves')}")
    vm.copy_in(program, "/tmp/users")
    assert shell(vm, f"chmod 755 /tmp /tmp/users; chmod 644 /tmp/layout {_PLACE}") == ""
    return vm


def shell(vm: ConfidentialVM, script: str) -> str:
    result = vm.run(["sh", "-c", script])
    return (result.stdout + result.stderr).decode()


def bound(vm: ConfidentialVM, enclaves: int, memory: int) -> None:
    """What one user may have from here on."""
    assert shell(
        vm, f"echo {enclaves} > {_PARAMETERS}/enc_user_enclaves; echo {memory} > {_PARAMETERS}/enc_user_memory"
    ) == ""  # fmt: skip


def take(vm: ConfidentialVM, more: str = "") -> tuple[int, str]:
    """How many it got, and why no more; it has them until `give`."""
    said = shell(
        vm,
        f"/tmp/users take {TAKER} /tmp/layout {more} > /tmp/took & echo $! > /tmp/taker\n"
        "for i in $(seq 300); do [ -s /tmp/took ] && break; sleep 0.1; done; cat /tmp/took",
    )
    match = re.fullmatch(r"(\d+) (.*)\n", said)
    assert match is not None, said
    return int(match[1]), match[2]


def give(vm: ConfidentialVM) -> None:
    shell(
        vm, "kill -9 $(cat /tmp/taker); for i in $(seq 100); do grep -q 'enclaves 0' /dev/veil && exit; sleep 0.1; done"
    )
    assert counts(vm)["enclaves"] == 0


def run_as(vm: ConfidentialVM, uid: int) -> str:
    return shell(vm, f"/tmp/users as {uid} /bin/veil-enclave {_PLACE}")


def test_another_users_enclave_starts(vm: ConfidentialVM) -> None:
    assert take(vm) == (OF_ONE, "Disk quota exceeded")
    assert run_as(vm, OTHER) == "hello\n"
    assert "this user's enclaves have all that one user's may have" in run_as(vm, TAKER)
    # Root, who could raise the bound, is not held to it.
    assert run_as(vm, 0) == "hello\n"
    give(vm)
    assert run_as(vm, TAKER) == "hello\n"


def test_memory_of_one_user(vm: ConfidentialVM) -> None:
    """A percent of it, by enclaves that are not many."""
    bound(vm, 0, 1)
    pages = int(shell(vm, "grep MemTotal /proc/meminfo").split()[1]) // 4
    count, why = take(vm)
    assert why == "Disk quota exceeded"
    assert 1 < count < MOST
    assert counts(vm)["pages"] <= pages // 100
    assert run_as(vm, OTHER) == "hello\n"
    give(vm)
    # All of it is free again.
    assert take(vm) == (count, why)


def test_many_names_of_one_user(vm: ConfidentialVM) -> None:
    """In a user namespace it may have as many as it was given: they count as one."""
    assert take(vm, "spread") == (OF_ONE, "Disk quota exceeded")
    assert run_as(vm, OTHER) == "hello\n"


def test_without_a_bound_one_user_has_all(vm: ConfidentialVM) -> None:
    """The counter-test."""
    bound(vm, 0, 0)
    assert take(vm) == (MOST, "Cannot allocate memory")
    assert "VeilS-ENC makes no such enclave" in run_as(vm, OTHER)
