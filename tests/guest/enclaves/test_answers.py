# SPDX-License-Identifier: GPL-2.0-or-later
"""What a hostile kernel answers: a result that a system call cannot have ends the enclave (an Iago attack)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guest.enclaves.native_runtime import ANYTHING, Lie, NativeRuntime, compile_program
from veil.guest.enclaves.image import EnclaveImage

_TEXT = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	struct sockaddr_storage address;
	struct epoll_event event = { EPOLLOUT };
	struct stat status;
	struct timespec time = { 0, 1 };
	int pair[2] = { 1, 1 }, value;
	socklen_t length = sizeof(address), size = sizeof(value);
	int file = open(argv[1], O_RDWR | O_CREAT, 0600);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0 || pipe2(pair, 0) < 0 || ftruncate(file, 0) < 0 ||
		fallocate(file, 0, 0, 1) < 0 || syscall(SYS_access, argv[1], R_OK) < 0 ||
		syscall(SYS_newfstatat, AT_FDCWD, argv[1], &status, 0) < 0 || ioctl(pair[0], FIONREAD, &value) < 0 ||
		syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &time, NULL) < 0 ||
		epoll_ctl(epoll_create1(0), EPOLL_CTL_ADD, pair[1], &event) < 0)
		return 1;
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0 || getsockname(pair[0], (void *)&address, &length) < 0 ||
		getpeername(pair[0], (void *)&address, &length) < 0 ||
		getsockopt(pair[0], SOL_SOCKET, SO_TYPE, &value, &size) < 0)
		return 2;
	puts("done");
	return 0;
}
"""
_CALLS = {
    "socketpair": 53, "pipe2": 293, "ftruncate": 77, "fallocate": 285, "access": 21, "newfstatat": 262, "ioctl": 16,
    "clock_nanosleep": 230, "epoll_ctl": 233, "getsockname": 51, "getpeername": 52, "getsockopt": 55,
}  # fmt: skip


@pytest.fixture(scope="module")
def image(native: NativeRuntime, tmp_path_factory: pytest.TempPathFactory) -> EnclaveImage:
    return native.build(compile_program(tmp_path_factory.mktemp("answers"), _TEXT, "-static"), ANYTHING)


def test_an_honest_kernel_is_believed(native: NativeRuntime, image: EnclaveImage, tmp_path: Path) -> None:
    done = native.run(image, "p", str(tmp_path / "file"))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"done\n", b"")


@pytest.mark.parametrize("name", _CALLS)
def test_a_success_that_is_none(native: NativeRuntime, image: EnclaveImage, tmp_path: Path, name: str) -> None:
    """A number above 0 is a success for programs, but nothing was done, and no result is there."""
    done = native.run(image, "p", str(tmp_path / "file"), lie=Lie(_CALLS[name], 1))
    assert (done.returncode, done.stdout) == (125, b"")
    assert done.stderr == f"log: {name} is answered by 0x1, which it cannot be\n".encode()
