# SPDX-License-Identifier: GPL-2.0-or-later
"""Maps of trusted files, whose pages come when they are touched: what was measured is there, or nothing."""

from __future__ import annotations

import resource
import signal
import subprocess
from pathlib import Path

import pytest

from tests.guest.enclaves.native_runtime import ANYTHING, NativeRuntime, compile_program
from tests.services.enc.believing import believes_chunks
from veil.guest.enclaves.image import EnclaveImage

_CHUNK = 0x10000
_PAGE = 4096
#: Five chunks, and a bit of a sixth.
_DATA = b"".join(at.to_bytes(8, "little") for at in range(5 * _CHUNK // 8)) + b"the end"
#: Each word is a step: a letter and a number of a chunk.
_TEXT = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#define CHUNK 0x10000
#define CHUNKS 6
static char *map, *own;
static int file;
static void line(const char *what)
{
	char byte;
	printf("%s\n", what);
	/* Until whoever plays the kernel has done something. */
	if (read(0, &byte, 1) != 1)
		exit(9);
}
static int is_good(const char *chunk, long number)
{
	for (long at = 0; at < CHUNK / 8; at++)
		if (((long *)chunk)[at] != number * CHUNK / 8 + at)
			return 0;
	return 1;
}
static void *touch_all(void *wrong)
{
	for (long number = 0; number < CHUNKS - 1; number++)
		if (!is_good(map + number * CHUNK, number))
			*(int *)wrong = 1;
	return 0;
}
int main(int argc, char **argv)
{
	setvbuf(stdout, 0, _IOLBF, 0);
	file = open(argv[1], O_RDONLY);
	map = mmap(0, CHUNKS * CHUNK, PROT_READ, MAP_PRIVATE, file, 0);
	own = mmap(0, 3 * CHUNK, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, CHUNK - 4096);
	if (map == MAP_FAILED || own == MAP_FAILED)
		return 1;
	for (int i = 2; i < argc; i++) {
		long number = atol(argv[i] + 1), wrong = 0;
		pthread_t threads[6];
		char *moved;
		switch (*argv[i]) {
		case 'c': /* as a loader */
			close(file);
			break;
		case 'm':
			line("mapped");
			break;
		case 'g':
			printf("%d\n", is_good(map + number * CHUNK, number));
			break;
		case 'b': /* the first byte */
			printf("%c\n", map[number * CHUNK]);
			break;
		case 'e':
			printf("%.8s %d\n", map + 5 * CHUNK, map[5 * CHUNK + 4095] + map[5 * CHUNK + 8192]);
			break;
		case 'w': /* a copy of its own */
			strcpy(own + 4096, "written");
			printf("%s %d %d\n", own + 4096, is_good(map + CHUNK, 1), is_good(own + CHUNK + 4096, 2));
			break;
		case 'r': /* a read from the file into its map, where nothing is yet */
			wrong = pread(file, own, 2 * CHUNK, 0);
			printf("%ld %d\n", wrong, is_good(own, 0) && is_good(own + CHUNK, 1));
			break;
		case 'n': /* write(2) from where nothing is yet: all of a call's room is taken */
			printf("%ld\n", (long)write(open("/dev/null", O_WRONLY), map, 5 * CHUNK));
			break;
		case 'k': /* a system call with a path that is not there */
			printf("%s\n", open(map + number * CHUNK, O_RDONLY) < 0 ? strerror(errno) : "opened");
			break;
		case 'p':
			if (mprotect(map, CHUNKS * CHUNK, PROT_READ | PROT_WRITE))
				return 2;
			map[3 * CHUNK] = 'x';
			printf("%c %d %d\n", map[3 * CHUNK], map[3 * CHUNK + 8] == 1, is_good(map + 4 * CHUNK, 4));
			break;
		case 'v':
			moved = mremap(own, CHUNK, CHUNK, MREMAP_MAYMOVE | MREMAP_FIXED, map + CHUNK);
			wrong = ((long *)moved)[0] != (CHUNK - 4096) / 8;
			printf("%d %ld %d\n", moved == map + CHUNK, wrong, ((long *)moved)[512] == CHUNK / 8);
			break;
		case 't':
			for (int j = 0; j < 6; j++)
				pthread_create(&threads[j], 0, touch_all, &wrong);
			for (int j = 0; j < 6; j++)
				pthread_join(threads[j], 0);
			printf("%ld\n", wrong);
			break;
		}
	}
	return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program(tmp_path_factory.mktemp("maps"), _TEXT, "-static")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "file"
    made.write_bytes(_DATA)
    return made


def _image(native: NativeRuntime, program: Path, file: Path) -> EnclaveImage:
    return native.build(program, {**ANYTHING, "files": {"trusted": [str(file)], "pass": ["/dev/null"]}})


def _says(native: NativeRuntime, program: Path, file: Path, *steps: str) -> list[str]:
    done = native.run(_image(native, program, file), "p", str(file), *steps)
    assert (done.stderr, done.returncode) == (b"", 0), done
    return done.stdout.decode().splitlines()


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ("g0 c g4 g2 g0 g3 g1 e", "1 1 1 1 1 1|the end 0"),
        ("c w g1", "written 1 1|1"),
        ("g1 w", "1|written 1 1"),
        ("r", "131072 1"),
        ("c n g3", "327680|1"),
        ("c p", "x 1 1"),
        ("g3 c p", "1|x 1 1"),
        ("c v g4", "1 0 1|1"),
        ("t", "0"),
        ("c t e", "0|the end 0"),
    ],
)
def test_what_a_program_finds(native: NativeRuntime, program: Path, file: Path, steps: str, said: str) -> None:
    found = _says(native, program, file, *steps.split())
    assert " ".join(found) == said.replace("|", " ")


def _changed(native: NativeRuntime, program: Path, file: Path, *steps: str) -> subprocess.CompletedProcess[bytes]:
    """Once it is mapped, and nothing of it was touched, the kernel has something else in the third chunk."""
    place = native.place / f"changed-{program.parent.name}.enclave"
    place.write_bytes(_image(native, program, file).pack())
    command = [str(native.program), str(place), "p", str(file), "c", "m", *steps]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mapped\n"
        with file.open("r+b") as open_file:
            open_file.seek(3 * _CHUNK)
            open_file.write(b"attack")
        out, errors = process.communicate(b"\n", timeout=30)
    return subprocess.CompletedProcess(command, process.returncode, out, errors)


def test_a_file_that_changes_after_it_was_mapped(native: NativeRuntime, program: Path, file: Path) -> None:
    """Other chunks are as they were; this one cannot be used, as a page that a disk does not give."""
    done = _changed(native, program, file, "g2", "g4", "b3", "b3")
    assert done.stdout == b"1\n1\n"
    assert done.returncode == 128 + signal.SIGBUS
    assert f"the file {file} is not the trusted one: its bytes from {3 * _CHUNK} on are others".encode() in done.stderr


def test_a_system_call_with_what_has_changed(native: NativeRuntime, program: Path, file: Path) -> None:
    done = _changed(native, program, file, "k3", "g2")
    assert done.stdout == b"Bad address\n1\n"


def test_a_runtime_that_does_not_check(native: NativeRuntime, program: Path, file: Path) -> None:
    """The counter-test: the program reads what the kernel has put there."""
    believing = NativeRuntime(native.place, believes_chunks())
    assert _changed(believing, program, file, "b3").stdout == b"a\n"


def test_a_file_that_is_replaced_while_it_is_mapped(native: NativeRuntime, program: Path, file: Path) -> None:
    """By another one of its name, as a package's new version: the map stays that of the file that was opened."""
    place = native.place / "replaced.enclave"
    place.write_bytes(_image(native, program, file).pack())
    command = [str(native.program), str(place), "p", str(file), "c", "m", "g3", "g0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mapped\n"
        other = file.with_name("other")
        other.write_bytes(b"another one")
        other.replace(file)
        out, errors = process.communicate(b"\n", timeout=30)
    assert (out, errors, process.returncode) == (b"1\n1\n", b"", 0)


def test_a_process_that_has_no_descriptors_to_keep(native: NativeRuntime, program: Path, file: Path) -> None:
    """All of a map is read at once then: what changes afterwards is not seen."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (900, before[1]))
    try:
        done = _changed(native, program, file, "g3", "g0")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (done.stdout, done.stderr, done.returncode) == (b"1\n1\n", b"", 0)
