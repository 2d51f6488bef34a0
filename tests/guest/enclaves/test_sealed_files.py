# SPDX-License-Identifier: GPL-2.0-or-later
"""Sealed files: what is outside says nothing, and what somebody else puts there is not read."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guest.enclaves.native_runtime import ANYTHING, Lie, NativeRuntime, compile_program
from tests.services.enc.believing import forgets_removed_files, forgets_tags, meets_none_again

_TEXT = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
static char buffer[20000], older[20000];
static void line(const char *path, int flags)
{
	int file = open(path, flags, 0600);
	ssize_t size = file < 0 ? -1 : read(file, buffer, sizeof(buffer));
	if (size < 0)
		printf("%s\n", strerror(errno));
	else
		printf("%zd %.6s\n", size, buffer);
	close(file);
}
int main(int argc, char **argv)
{
	const char *path = argv[2];
	struct stat status;
	int file, copy;
	if (!strcmp(argv[1], "write")) {
		file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
		memset(buffer, 'a', sizeof(buffer));
		memcpy(buffer, "secret", 6);
		if (write(file, buffer, 10000) != 10000 || pwrite(file, "end", 3, 12000) != 3 || fstat(file, &status))
			return 1;
		printf("%ld\n", (long)status.st_size);
		if (ftruncate(file, 5000) || lseek(file, 0, SEEK_END) != 5000 || write(file, "more", 4) != 4)
			return 2;
		close(file);
	} else if (!strcmp(argv[1], "replay")) {
		/* What the kernel could do: an older block of the same file. */
		file = open(path, O_RDWR);
		copy = open(argv[3], O_RDWR);
		ssize_t size = read(copy, older, sizeof(older));
		pwrite(file, "others", 6, 0);
		line(path, O_RDONLY);
		pwrite(copy, older, size, 0);
		line(path, O_RDONLY);
		return 0;
	} else if (!strcmp(argv[1], "rename")) {
		char other[200];
		snprintf(other, sizeof(other), "%s.new", path);
		file = open(other, O_RDWR | O_CREAT, 0600);
		if (write(file, "fresh!", 6) != 6)
			return 3;
		close(file);
		if (rename(other, path))
			return 4;
		line(path, O_RDONLY);
		unlink(path);
		line(path, O_RDWR | O_CREAT);
		return 0;
	} else if (!strcmp(argv[1], "append")) {
		/* As fdopen() does it. */
		file = open(path, O_RDWR | O_CREAT, 0600);
		if (write(file, "1", 1) != 1 || fcntl(file, F_SETFL, O_APPEND) || !(fcntl(file, F_GETFL) & O_APPEND))
			return 14;
		if (lseek(file, 0, SEEK_SET) || write(file, "2", 1) != 1)
			return 15;
		if (fcntl(file, F_SETFL, 0) || fcntl(file, F_GETFL) & O_APPEND || pwrite(file, "3", 1, 0) != 1)
			return 16;
	} else if (!strcmp(argv[1], "above")) {
		/* The folder above, and one beside it. */
		char other[200];
		snprintf(other, sizeof(other), "%s.new", argv[3]);
		printf("%s\n", rename(argv[3], other) < 0 ? strerror(errno) : "good");
		printf("%s\n", rename(argv[4], other) < 0 ? strerror(errno) : "good");
	} else if (!strcmp(argv[1], "empty")) {
		line(path, O_RDONLY);
		file = open(path, O_RDWR | O_TRUNC);
		if (fstat(file, &status) || status.st_size || write(file, "short!", 6) != 6)
			return 5;
	} else if (!strcmp(argv[1], "folder")) {
		for (int i = 0; i < 3; i++) {
			static const int flags[] = { O_TMPFILE | O_RDWR, O_RDWR | O_CREAT, O_RDONLY | O_DIRECTORY };
			printf("%s\n", open(path, flags[i], 0600) < 0 ? strerror(errno) : "good");
		}
		return 0;
	} else if (!strcmp(argv[1], "back")) {
		/* Removed, or with another path; and the kernel has it there all the same. */
		char other[200];
		snprintf(other, sizeof(other), "%s.new", path);
		copy = open(argv[3], O_RDONLY);
		ssize_t size = read(copy, older, sizeof(older));
		close(copy);
		line(path, O_RDONLY);
		if (argv[4] ? rename(path, other) : unlink(path))
			return 9;
		copy = open(argv[3], O_WRONLY | O_CREAT, 0600);
		if (write(copy, older, size) != size || close(copy))
			return 10;
		printf("%d %d\n", stat(path, &status), access(path, F_OK));
		line(path, O_RDONLY);
		line(path, O_RDWR | O_CREAT);
		/* One that is new, and one that is a link to another. */
		file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
		if (write(file, "fresh!", 6) != 6 || close(file))
			return 11;
		line(path, O_RDONLY);
		snprintf(other, sizeof(other), "%s.link", path);
		if (symlink("nothing", other) || unlink(other) || symlink(path, other))
			return 12;
		line(other, O_RDONLY);
		return 0;
	} else if (!strcmp(argv[1], "many")) {
		/* More of them than there is memory for what is known of files. */
		for (int i = 0; i < 1500; i++) {
			char other[200];
			snprintf(other, sizeof(other), "%s.%d", path, i);
			file = open(other, O_RDWR | O_CREAT, 0600);
			if (write(file, "x", 1) != 1 || unlink(other) || close(file))
				return 13;
		}
		return 0;
	} else if (!strcmp(argv[1], "links")) {
		/* Two names of one file. */
		char other[200];
		snprintf(other, sizeof(other), "%s.link", path);
		if (symlink(path, other))
			return 17;
		line(other, O_RDONLY);
		file = open(path, O_RDWR);
		if (pwrite(file, "others", 6, 0) != 6 || close(file))
			return 18;
		line(other, O_RDONLY);
		file = open(other, O_RDWR);
		if (pwrite(file, "again!", 6, 0) != 6 || close(file) || unlink(other))
			return 19;
	} else if (!strcmp(argv[1], "elsewhere")) {
		/* What the kernel could do: an older state by a name that the program has not used yet. */
		char other[200];
		ssize_t size;
		if (!argv[4])
			line(path, O_RDONLY);
		file = open(path, O_RDWR | O_CREAT, 0600);
		if (argv[4] && write(file, "first!", 6) != 6)
			return 20;
		copy = open(argv[3], O_RDONLY);
		size = read(copy, older, sizeof(older));
		if (argv[4] ? unlink(path) : pwrite(file, "others", 6, 0) != 6)
			return 21;
		close(file);
		snprintf(other, sizeof(other), "%s.other", argv[3]);
		copy = open(other, O_WRONLY | O_CREAT, 0600);
		if (write(copy, older, size) != size || close(copy))
			return 22;
		snprintf(other, sizeof(other), "%s.other", path);
		line(other, O_RDONLY);
		return 0;
	} else if (!strcmp(argv[1], "pair")) {
		line(argv[3], O_RDONLY);
		file = open(path, O_RDWR);
		if (pwrite(file, "others", 6, 0) != 6 || close(file))
			return 23;
		line(path, O_RDONLY);
		line(argv[3], O_RDONLY);
		return 0;
	} else if (!strcmp(argv[1], "full")) {
		line(path, O_RDONLY);
		file = open(path, O_RDWR);
		sync();
		ssize_t done = pwrite(file, "others", 6, 0);
		printf("%zd %s\n", done, strerror(errno));
	} else if (!strcmp(argv[1], "below")) {
		/* As data bases do it, to have a new file's name on the disk. */
		if (mkdir(path, 0700) || (file = open(path, O_RDONLY)) < 0)
			return 24;
		printf("%d\n", fsync(file));
		line(path, O_RDONLY);
		return 0;
	} else if (!strcmp(argv[1], "large")) {
		file = open(path, O_RDWR | O_CREAT, 0600);
		for (int size = 40; size <= 128; size += 44)
			printf("%d %s\n", size, ftruncate(file, size << 20) ? strerror(errno) : "good");
		return 0;
	} else if (!strcmp(argv[1], "make")) {
		file = open(path, O_RDONLY | O_CREAT, 0600);
		printf("%d\n", file >= 0);
		copy = ftruncate(file, 10);
		printf("%d %s\n", copy, strerror(errno));
	} else if (!strcmp(argv[1], "move")) {
		/* The folder of an open file, and an older state of the file under its new path. */
		char other[200];
		snprintf(other, sizeof(other), "%s/file", path);
		if (mkdir(path, 0700))
			return 6;
		file = open(other, O_RDWR | O_CREAT, 0600);
		snprintf(other, sizeof(other), "%s.new", path);
		if (write(file, "first,", 6) != 6 || rename(path, other))
			return 7;
		copy = open(argv[3], O_RDWR);
		ssize_t size = read(copy, older, sizeof(older));
		snprintf(other, sizeof(other), "%s.new/file", path);
		if (write(file, "second", 6) != 6)
			return 8;
		pwrite(copy, older, size, 0);
		line(other, O_RDONLY);
		return 0;
	}
	line(path, O_RDONLY);
	return 0;
}
"""


@pytest.fixture
def run(native: NativeRuntime, tmp_path: Path) -> Callable[..., list[str]]:
    place = tmp_path / "sealed"
    place.mkdir()
    # The same folder by another name, through which a test reads what is outside.
    (tmp_path / "outside").symlink_to(place)
    files = {"sealed": [f"{place}/"], "pass": [f"{tmp_path}/outside/"]}
    image = native.build(compile_program(tmp_path, _TEXT, "-static"), {**ANYTHING, "files": files})

    def call(*words: str, lie: Lie | None = None, runtime: NativeRuntime = native) -> list[str]:
        done = runtime.run(image, "p", *words, lie=lie)
        assert done.returncode == 0, done
        return done.stdout.decode().splitlines()

    return call


def test_what_was_written_is_read_by_a_later_run(run: Callable[..., list[str]], tmp_path: Path) -> None:
    path = tmp_path / "sealed" / "file"
    assert run("write", str(path)) == ["12003", "5004 secret"]
    assert run("read", str(path)) == ["5004 secret"]
    assert b"secret" not in path.read_bytes()
    assert b"aaaa" not in path.read_bytes()


@pytest.mark.parametrize("position", [0, 20, 40, 90, 150, 4400, -1])
def test_a_changed_byte_is_an_error(run: Callable[..., list[str]], tmp_path: Path, position: int) -> None:
    path = tmp_path / "sealed" / "file"
    run("write", str(path))
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    # The second block's data are read after the first's: what is good comes, and then the end.
    assert run("read", str(path))[0] in ("Input/output error", "4096 secret")


def test_blocks_of_two_files_do_not_mix(run: Callable[..., list[str]], tmp_path: Path) -> None:
    first, second = tmp_path / "sealed" / "first", tmp_path / "sealed" / "second"
    run("write", str(first))
    run("write", str(second))
    mixed = bytearray(second.read_bytes())
    mixed[200:4200] = first.read_bytes()[200:4200]
    second.write_bytes(mixed)
    assert run("read", str(second)) == ["Input/output error"]


def test_an_older_state_is_noticed_while_the_enclave_runs(
    run: Callable[..., list[str]], native: NativeRuntime, tmp_path: Path
) -> None:
    path = tmp_path / "sealed" / "file"
    words = ("replay", str(path), str(tmp_path / "outside" / "file"))
    run("write", str(path))
    assert run(*words) == ["5004 others", "Input/output error"]
    run("write", str(path))
    assert run(*words, runtime=NativeRuntime(native.place, forgets_tags())) == ["5004 others", "5004 secret"]


@pytest.mark.parametrize("made", [[], ["made"]])
def test_an_older_state_is_noticed_by_another_name_too(
    run: Callable[..., list[str]], native: NativeRuntime, tmp_path: Path, made: list[str]
) -> None:
    """The kernel says where links lead: a program that looks (realpath) opens what it never opened before."""
    path, outside = tmp_path / "sealed" / "file", tmp_path / "outside" / "file"
    words = ("elsewhere", str(path), str(outside), *made)
    expected = [] if made else ["5004 secret"]
    for runtime, last in ((native, "Input/output error"), (NativeRuntime(native.place, meets_none_again()), None)):
        path.unlink(missing_ok=True)
        if not made:
            run("write", str(path))
        assert run(*words, runtime=runtime) == [*expected, last or ("6 first!" if made else "5004 secret")]


def test_a_file_has_several_names(run: Callable[..., list[str]], tmp_path: Path) -> None:
    path = tmp_path / "sealed" / "file"
    run("write", str(path))
    assert run("links", str(path)) == ["5004 secret", "5004 others", "5004 again!"]
    assert run("read", str(path)) == ["5004 again!"]


def test_a_copy_is_another_file(run: Callable[..., list[str]], native: NativeRuntime, tmp_path: Path) -> None:
    """Of what was copied outside before, each goes its way."""
    path = tmp_path / "sealed" / "file"
    run("write", str(path))
    copy = tmp_path / "sealed" / "file.link"
    copy.write_bytes(path.read_bytes())
    assert run("pair", str(path), str(copy)) == ["5004 secret", "5004 others", "5004 secret"]
    assert run("read", str(copy)) == ["5004 secret"]


def test_what_could_not_be_written_is_as_it_was(run: Callable[..., list[str]], tmp_path: Path) -> None:
    path = tmp_path / "sealed" / "file"
    run("write", str(path))
    full = Lie(18, -errno.ENOSPC, once=True)
    assert run("full", str(path), lie=full) == ["5004 secret", "-1 No space left on device", "5004 secret"]
    assert run("read", str(path)) == ["5004 secret"]


def test_who_may_not_write_makes_a_file_and_does_not_cut_it(run: Callable[..., list[str]], tmp_path: Path) -> None:
    path = tmp_path / "sealed" / "file"
    assert run("make", str(path)) == ["1", "-1 Invalid argument", "0 "]
    assert run("read", str(path)) == ["0 "]


def test_a_folder_below_is_opened_as_any_other(
    run: Callable[..., list[str]], native: NativeRuntime, tmp_path: Path
) -> None:
    """Nothing is read of it: nor of a file that the kernel says is one."""
    path = tmp_path / "sealed" / "folder"
    assert run("below", str(path)) == ["0", "Is a directory"]
    run("write", str(tmp_path / "sealed" / "file"))
    folder = Lie(262, put=((2, 24, 4, 0o40700),))
    assert run("read", str(tmp_path / "sealed" / "file"), lie=folder) == ["Is a directory"]


@pytest.mark.soak
def test_how_large_a_sealed_file_can_be(run: Callable[..., list[str]], tmp_path: Path) -> None:
    assert run("large", str(tmp_path / "sealed" / "file")) == ["40 good", "84 good", "128 No space left on device"]


def test_files_are_renamed_and_made_anew(run: Callable[..., list[str]], tmp_path: Path) -> None:
    path = tmp_path / "sealed" / "file"
    run("write", str(path))
    assert run("rename", str(path)) == ["6 fresh!", "0 fresh!"]


@pytest.mark.parametrize("renamed", [[], ["renamed"]])
def test_a_file_that_was_removed_does_not_come_back(
    run: Callable[..., list[str]], native: NativeRuntime, tmp_path: Path, renamed: list[str]
) -> None:
    """A data base that finds the journal of what it has done would undo it."""
    path, outside = tmp_path / "sealed" / "file", tmp_path / "outside" / "file"
    run("write", str(path))
    words = ["back", str(path), str(outside), *renamed]
    assert run(*words) == [
        "5004 secret", "-1 -1", "No such file or directory", "Input/output error", "6 fresh!", "6 fresh!",
    ]  # fmt: skip
    (tmp_path / "sealed" / "file.link").unlink()
    run("write", str(path))
    forgetful = NativeRuntime(native.place, forgets_removed_files())
    assert run(*words, runtime=forgetful)[:4] == ["5004 secret", "0 0", "5004 secret", "5004 secret"]


def test_files_that_are_closed_and_removed_take_no_memory(run: Callable[..., list[str]], tmp_path: Path) -> None:
    assert run("many", str(tmp_path / "sealed" / "file")) == []


def test_a_file_is_emptied_whatever_the_kernel_says(run: Callable[..., list[str]], tmp_path: Path) -> None:
    """By lseek it is not empty. What it held before would be behind what is written now."""
    path = tmp_path / "sealed" / "file"
    run("write", str(path))
    assert run("empty", str(path), lie=Lie(8, 1)) == ["5004 secret", "6 short!"]


def test_what_is_known_of_a_file_moves_with_its_folder(run: Callable[..., list[str]], tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "folder.new" / "file"
    assert run("move", str(tmp_path / "sealed" / "folder"), str(outside)) == ["Input/output error"]


def test_a_file_without_a_name_is_refused(run: Callable[..., list[str]], tmp_path: Path) -> None:
    """By its path it would be the folder, which is not sealed: what is written would be outside in the clear."""
    place = tmp_path / "sealed"
    (place / "below").mkdir()
    assert run("folder", str(place)) == ["Operation not supported", "Is a directory", "good"]
    assert run("folder", str(place / "below"))[::2] == ["Operation not supported", "good"]


def test_what_is_put_at_the_end_from_now_on(run: Callable[..., list[str]], tmp_path: Path) -> None:
    """O_APPEND by fcntl is the enclave's affair: outside each block has its place."""
    assert run("append", str(tmp_path / "sealed" / "file")) == ["2 32"]
    assert run("read", str(tmp_path / "sealed" / "file")) == ["2 32"]


def test_a_folder_above_what_is_sealed_stays_where_it_is(native: NativeRuntime, tmp_path: Path) -> None:
    """By its new path what is in it would not be sealed."""
    (tmp_path / "data" / "keys").mkdir(parents=True)
    (tmp_path / "data.other").mkdir()
    files = {"pass": [f"{tmp_path}/"], "sealed": [f"{tmp_path}/data/keys/"]}
    image = native.build(compile_program(tmp_path, _TEXT, "-static"), {**ANYTHING, "files": files})
    words = ("above", str(tmp_path / "data" / "keys" / "file"), str(tmp_path / "data"), str(tmp_path / "data.other"))
    done = native.run(image, "p", *words)
    assert done.stdout.decode().splitlines()[:2] == ["Invalid cross-device link", "good"]
    assert (tmp_path / "data" / "keys").is_dir()
