# SPDX-License-Identifier: GPL-2.0-or-later
"""A secret's file: what a program can do with it, and that nothing of it is outside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guest.enclaves.native_runtime import ANYTHING, Lie, NativeRuntime, compile_program

_TEXT = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#define KEY "/run/secrets/key"
static char buffer[100], target[100];
static void tell(const char *what, long result)
{
	printf("%s %s\n", what, result < 0 ? strerror(errno) : "good");
}
static void caught(int number)
{
}
static void *interrupt(void *thread)
{
	usleep(100000);
	pthread_kill(*(pthread_t *)thread, SIGUSR1);
	return NULL;
}
int main(int argc, char **argv)
{
	struct stat status, same;
	int file;
	if (!strcmp(argv[1], "read")) {
		file = open(KEY, O_RDONLY);
		ssize_t first = read(file, buffer, 6), rest = read(file, buffer + 6, 90);
		printf("%zd %zd %s\n", first, rest, buffer);
		memset(buffer, 0, sizeof(buffer));
		printf("%ld ", (long)lseek(file, -3, SEEK_END));
		printf("%zd ", pread(file, buffer, 90, 3));
		puts(buffer);
		char *map = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, file, 0);
		printf("%.5s %zd\n", map, read(file, buffer, 0));
		printf("%d ", !stat(KEY, &same) && !fstat(file, &status) && same.st_ino == status.st_ino);
		printf("%ld %o %d\n", (long)status.st_size, status.st_mode, access(KEY, R_OK));
		printf("%d ", stat("/run/secrets", &status));
		printf("%d\n", S_ISDIR(status.st_mode));
		return 0;
	}
	if (!strcmp(argv[1], "change")) {
		tell("write", open(KEY, O_RDWR));
		tell("create", open("/run/secrets/other", O_RDWR | O_CREAT, 0600));
		tell("other", open("/run/secrets/other", O_RDONLY));
		tell("unlink", unlink(KEY));
		tell("rename", rename("/tmp/there is no such file", KEY));
		tell("symlink", symlink("/tmp/file", KEY));
		tell("access", access(KEY, W_OK));
		tell("readlink", readlink(KEY, target, sizeof(target)));
		tell("folder", open(KEY, O_RDONLY | O_DIRECTORY));
		file = open(KEY, O_RDONLY);
		tell("write", write(file, "x", 1));
		tell("truncate", ftruncate(file, 0));
		return 0;
	}
	if (!strcmp(argv[1], "soon")) {
		tell("at once", open(KEY, O_RDONLY | O_NONBLOCK));
		struct sigaction action = { .sa_handler = caught };
		pthread_t self = pthread_self(), other;
		sigaction(SIGUSR1, &action, NULL);
		pthread_create(&other, NULL, interrupt, &self);
		tell("interrupted", open(KEY, O_RDONLY));
		return 0;
	}
	return 1;
}
"""

Run = Callable[..., "tuple[list[str], list[str]]"]


@pytest.fixture
def run(native: NativeRuntime, tmp_path: Path) -> Run:
    """Lines of the program's, and of the protected log."""
    manifest = {**ANYTHING, "files": {"pass": ["/tmp/"], "secrets": ["key"]}}
    image = native.build(compile_program(tmp_path, _TEXT, "-static"), manifest)

    def call(*words: str, **more: object) -> tuple[list[str], list[str]]:
        done = native.run(image, "p", *words, **more)  # type: ignore[arg-type]
        assert done.returncode == 0, done
        return done.stdout.decode().splitlines(), done.stderr.decode().splitlines()

    return call


def test_a_secret_is_a_file(run: Run) -> None:
    lines, told = run("read", secret="key=secret words")
    assert lines == ["6 6 secret words", "9 9 ret words", "secre 0", "1 12 100400 0", "0 1"]
    assert told == []


def test_what_is_not_there_yet_is_waited_for(run: Run) -> None:
    lines, told = run("read", secret="key=secret words", late=3)
    assert lines[0] == "6 6 secret words"
    assert told == ["log: waits for the secret key"]


def test_a_kernel_that_does_not_sleep_gets_nothing_but_the_processor(run: Run) -> None:
    assert run("read", secret="key=secret words", late=50, lie=Lie(230, 0))[0][0] == "6 6 secret words"


def test_who_does_not_wait(run: Run) -> None:
    """O_NONBLOCK; and a signal with a handler that does not restart the call."""
    lines, _ = run("soon", secret="another=secret")
    assert lines == ["at once Resource temporarily unavailable", "interrupted Interrupted system call"]


def test_it_is_not_changed_and_the_kernel_is_not_asked(run: Run) -> None:
    lines, _ = run("change", secret="key=secret words")
    assert lines == [
        "write Permission denied",
        "create Permission denied",
        "other No such file or directory",
        "unlink Permission denied",
        "rename Permission denied",
        "symlink Permission denied",
        "access Permission denied",
        "readlink Invalid argument",
        "folder Not a directory",
        "write Bad file descriptor",
        "truncate Invalid argument",
    ]


@pytest.mark.parametrize(
    "lie", [(257, 7), (0, 7), (17, 7), (262, 0), (21, 7)], ids=["openat", "read", "pread64", "newfstatat", "access"]
)
def test_whatever_the_kernel_says_of_the_file(run: Run, lie: tuple[int, int]) -> None:
    """Of openat it gets to know: /dev/null is opened, for a number."""
    lines, _ = run("read", secret="key=secret words", lie=Lie(*lie))
    assert lines[0] == "6 6 secret words"
    assert lines[3] == "1 12 100400 0"
