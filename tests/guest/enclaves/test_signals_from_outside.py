# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals that come while the runtime is at work: no call ends by one that would not on Linux, and none waits with one.

When they come is the kernel's choice: here always between two requests of one call, or before one begins.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guest.enclaves.native_runtime import ANYTHING, Lie, NativeRuntime, compile_program
from tests.services.enc.believing import believes_signals
from veil.formats.enclave_pages import WindowBlock
from veil.formats.enclaves import WINDOW_STRIDE
from veil.formats.page_sizes import PAGE_SIZE
from veil.guest.enclaves.config import CHUNK

_TEXT = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
static char buffer[1 << 20];
static int caught;
static void catch(int number)
{
	caught++;
}
static void tell(long result)
{
	printf("%ld %s, caught %d\n", result, result < 0 ? strerror(errno) : "good", caught);
}
static void *wait_for_another(void *unused)
{
	sigset_t set;
	int number;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigwait(&set, &number);
	return NULL;
}
int main(int argc, char **argv)
{
	const char *what = argv[1], *path = argv[2];
	struct sigaction action = { .sa_handler = catch };
	struct timespec long_time = { 3, 4 }, moment = { 0, 100000000 }, left = { 0 };
	int file = path ? open(path, O_RDWR | O_CREAT, 0600) : -1;
	sigaction(SIGUSR1, &action, NULL);
	if (!strcmp(what, "seal")) {
		memset(buffer, 'a', 9000);
		sync();
		tell(write(file, buffer, 9000));
		memset(buffer, 0, 9000);
		tell(pread(file, buffer, 9000, 0));
		printf("%c\n", buffer[8999]);
	} else if (!strcmp(what, "read")) {
		file = open(path, O_RDONLY);
		sync();
		tell(read(file, buffer, 9000));
	} else if (!strcmp(what, "map")) {
		sync();
		char *map = mmap(NULL, 5, PROT_READ, MAP_PRIVATE, file, 0);
		tell(map == MAP_FAILED ? -1 : 0);
		printf("%.5s\n", map);
	} else if (!strcmp(what, "lock")) {
		struct flock lock = { .l_type = F_WRLCK };
		sync();
		tell(fcntl(file, F_SETLK, &lock));
	} else if (!strcmp(what, "sleep")) {
		sync();
		tell(nanosleep(&long_time, &left));
		printf("%ld %ld\n", (long)left.tv_sec, left.tv_nsec);
	} else if (!strcmp(what, "wait")) {
		int pipes[2];
		if (pipe(pipes))
			return 1;
		sync();
		tell(read(pipes[0], buffer, sizeof(buffer)));
	} else {
		pthread_t threads[2];
		sigset_t set;
		sigfillset(&set);
		sigprocmask(SIG_BLOCK, &set, NULL);
		for (int i = 0; i < 2; i++)
			pthread_create(&threads[i], NULL, wait_for_another, NULL);
		nanosleep(&moment, NULL);
		alarm(1000);
		pthread_kill(threads[0], SIGUSR2);
		tell(0);
	}
	return 0;
}
"""
_SIGUSR1, _SIGALRM = 1 << 9, 1 << 13
#: Of a thread's wake word in its window.
_WAKE_WORD = 0x80
_NOT_BEGUN = -512

Run = Callable[..., "list[str]"]


def _signal(argument: int, signal: int, place: int = PAGE_SIZE) -> tuple[tuple[int, int, int, int], ...]:
    """What the starter writes when one comes; the argument points to this place of the thread's window."""
    fields = {name: getattr(WindowBlock, name) for name in ("signals", "interrupt")}
    return tuple(
        (argument, field.offset - place & (1 << 64) - 1, field.size, signal if name == "signals" else 1)
        for name, field in fields.items()
    )


@pytest.fixture
def run(native: NativeRuntime, tmp_path: Path) -> Run:
    (tmp_path / "sealed").mkdir()
    (tmp_path / "trusted").write_bytes(bytes(9000))
    (tmp_path / "passed").write_text("words")
    files = {"pass": [f"{tmp_path}/passed"], "sealed": [f"{tmp_path}/sealed/"], "trusted": [f"{tmp_path}/trusted"]}
    manifest = {**ANYTHING, "files": files, "signals": ["USR1"]}
    image = native.build(compile_program(tmp_path, _TEXT, "-static"), manifest)

    def call(*words: str, lie: Lie) -> list[str]:
        done = native.run(image, "p", *(word.replace("~", str(tmp_path)) for word in words), lie=lie)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode().splitlines()

    return call


def _before(call: int, argument: int, place: int = PAGE_SIZE) -> Lie:
    """A signal comes before this call begins."""
    return Lie(call, _NOT_BEGUN, once=True, put=_signal(argument, _SIGUSR1, place))


def test_a_signal_that_is_not_allowed(native: NativeRuntime, tmp_path: Path) -> None:
    """It does not come, whatever the process outside passes on. The counter-test: without the check it does."""
    (tmp_path / "passed").write_text("words")
    manifest = {**ANYTHING, "files": {"pass": [f"{tmp_path}/passed"]}, "signals": ["TERM"]}
    program = compile_program(tmp_path, _TEXT, "-static")
    trusting = NativeRuntime(native.place, believes_signals())
    for runtime, caught in ((native, 0), (trusting, 1)):
        done = runtime.run(runtime.build(program, manifest), "p", "lock", f"{tmp_path}/passed", lie=_before(72, 2))
        assert done.stdout.decode() == f"0 good, caught {caught}\n"


def test_what_is_sealed_is_whole(run: Run) -> None:
    """A block that was not written would not be read any more: the enclave knows its tag."""
    assert run("seal", "~/sealed/file", lie=_before(18, 1)) == ["9000 good, caught 1", "9000 good, caught 1", "a"]
    assert run("read", "~/sealed/file", lie=_before(17, 1)) == ["9000 good, caught 1"]


def test_files_do_not_wait(run: Run) -> None:
    # A chunk of a trusted file has its own place.
    assert run("read", "~/trusted", lie=_before(17, 1, WINDOW_STRIDE - CHUNK)) == ["9000 good, caught 1"]
    assert run("map", "~/passed", lie=_before(17, 1)) == ["0 good, caught 1", "words"]
    assert run("lock", "~/passed", lie=_before(72, 2)) == ["0 good, caught 1"]


def test_a_sleep_that_did_not_begin(run: Run) -> None:
    """All of it is left."""
    assert run("sleep", lie=_before(230, 2)) == ["-1 Interrupted system call, caught 1", "3 4"]


def test_a_signal_before_a_wait(run: Run) -> None:
    """It comes with another request of the same call, and nothing else would end the wait."""
    lie = Lie(262, once=True, put=_signal(1, _SIGUSR1))
    assert run("wait", lie=lie) == ["-1 Interrupted system call, caught 1"]


def test_one_more_while_others_are_told(run: Run) -> None:
    """The first thread blocks the signal and wakes two others; when it wakes the first of them, one comes for it."""
    lie = Lie(202, put=_signal(0, _SIGALRM, WINDOW_STRIDE + _WAKE_WORD))
    assert run("tell", lie=lie) == ["0 good, caught 0"]
