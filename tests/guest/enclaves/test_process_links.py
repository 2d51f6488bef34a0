# SPDX-License-Identifier: GPL-2.0-or-later
"""Names by which the kernel leads a process back to what it has: the runtime knows where /proc/self/fd/N leads."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.guest.enclaves.native_runtime import ANYTHING, NativeRuntime, compile_program
from tests.services.enc.believing import follows_no_names, links_what_names_lead_to
from veil.guest.enclaves.image import EnclaveImage

_TEXT = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
static char name[8192];
static const char *path;
static int opened;
/* F the descriptor, P the process, Q another process, T the thread, / behind a name the path itself, . its last part */
static void make(const char *form)
{
	char *to = name;
	for (; *form; form++) {
		if (*form == 'F')
			to += sprintf(to, "%d", opened);
		else if (*form == 'P')
			to += sprintf(to, "%d", (int)getpid());
		else if (*form == 'Q')
			to += sprintf(to, "%d", (int)getppid());
		else if (*form == 'T')
			to += sprintf(to, "%d", (int)gettid());
		else if (*form == '@')
			to += sprintf(to, "%s", path);
		else if (*form == '%')
			to += sprintf(to, "%s", strrchr(path, '/') + 1);
		else
			*to++ = *form;
	}
	*to = 0;
}
static void say(long result)
{
	printf("%s\n", result < 0 ? strerror(errno) : "done");
}
int main(int argc, char **argv)
{
	char text[8192] = { 0 };
	int folder = AT_FDCWD, flags = O_RDWR;
	setvbuf(stdout, NULL, _IONBF, 0);
	path = argv[2];
	opened = open(path, argv[1][0] == 'r' ? O_RDONLY : O_RDWR | O_CREAT, 0600);
	if (opened < 0)
		return 1;
	if (!strcmp(argv[1], "write") && write(opened, "first words", 11) != 11)
		return 2;
	if (argc > 4 && *argv[4]) {
		make(argv[4]);
		folder = open(name, O_PATH | O_NOFOLLOW);
		if (folder < 0)
			return 3;
	}
	make(argv[3]);
	if (argv[1][0] == 'r' && argv[1][1] == 'l') {
		long length = readlink(name, text, sizeof(text));
		say(length);
		puts(text);
		return 0;
	}
	if (!strcmp(argv[1], "link")) {
		say(linkat(AT_FDCWD, name, AT_FDCWD, argv[5], AT_SYMLINK_FOLLOW));
		return 0;
	}
	if (!strcmp(argv[1], "truncate")) {
		say(truncate(name, 5));
	} else if (!strcmp(argv[1], "chdir")) {
		say(chdir(name));
		puts(getcwd(text, sizeof(text)) ? text : "nowhere");
	} else if (!strcmp(argv[1], "stat")) {
		struct stat status;
		say(stat(name, &status));
		printf("%ld\n", (long)status.st_size);
	} else {
		int again = openat(folder, name, !strcmp(argv[1], "nofollow") ? O_RDWR | O_NOFOLLOW : flags);
		say(again);
		if (again >= 0)
			printf("%d\n", (int)write(again, "plain words", 11));
		close(again);
	}
	lseek(opened, 0, SEEK_SET);
	printf("%.*s\n", (int)read(opened, text, sizeof(text)), text);
	return 0;
}
"""
#: Names of a file that is open, or that has the path; and a folder that the name begins in, as it was opened.
_NAMES = {
    "/proc/self/fd": ("/proc/self/fd/F", ""),
    "/proc/thread-self/fd": ("/proc/thread-self/fd/F", ""),
    "/proc/PID/fd": ("/proc/P/fd/F", ""),
    "/proc/self/task": ("/proc/self/task/T/fd/F", ""),
    "/proc/PID/task": ("/proc/P/task/T/fd/F", ""),
    "/dev/fd": ("/dev/fd/F", ""),
    "not the shortest": ("/proc/./self//task/../fd/F", ""),
    "in the folder of descriptors": ("F", "/proc/self/fd"),
    "in the folder of a process": ("fd/F", "/proc/P"),
    "root": ("/proc/self/root@", ""),
    "root of a thread": ("/proc/self/task/T/root@", ""),
    "a link that was opened": ("./@", "/proc/self/root"),
    "the working directory": ("/proc/self/cwd/%", ""),
    "a link to the working directory": ("%", "/proc/P/cwd"),
    "one behind another": ("/proc/self/root/proc/P/cwd/%", ""),
    "a folder above": ("/proc/self/cwd/../sealed/%", ""),
}
_Place = tuple[Path, EnclaveImage]
"""A folder, and an enclave that has some of it sealed, may read some, has some passed."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program(tmp_path_factory.mktemp("links"), _TEXT, "-static", "-w")


def _image(native: NativeRuntime, program: Path, folder: Path, **changes: object) -> EnclaveImage:
    files = {
        "pass": ["/proc/", "/dev/", f"{folder}/pass/"],
        "read": [f"{folder}/read/"],
        "sealed": [f"{folder}/sealed/"],
    }
    return native.build(program, {**ANYTHING, "directory": f"{folder}/sealed", "files": files | changes})


@pytest.fixture(scope="module")
def place(native: NativeRuntime, program: Path, tmp_path_factory: pytest.TempPathFactory) -> _Place:
    folder = tmp_path_factory.mktemp("place")
    for name in ("sealed", "read", "pass"):
        (folder / name).mkdir()
    (folder / "read" / "file").write_bytes(b"first words")
    return folder, _image(native, program, folder)


def _lines(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    assert done.returncode == 0, done
    return done.stdout.decode().splitlines()


@pytest.mark.parametrize("name", _NAMES)
def test_a_sealed_file_stays_sealed(native: NativeRuntime, place: _Place, name: str) -> None:
    folder, image = place
    path = folder / "sealed" / name.replace("/", "-")
    done = native.run(image, "p", "write", str(path), *_NAMES[name])
    assert _lines(done) == ["done", "11", "plain words"]
    assert b"words" not in path.read_bytes()


@pytest.mark.parametrize("name", [name for name in _NAMES if name != "a folder above"])
def test_a_runtime_that_lets_the_kernel_follow(native: NativeRuntime, place: _Place, name: str) -> None:
    """The counter-test: what is written goes out in the clear."""
    folder, image = place
    path = folder / "sealed" / f"counter {name.replace('/', '-')}"
    believing = NativeRuntime(native.place, follows_no_names())
    done = believing.run(image, "p", "write", str(path), *_NAMES[name], directory=path.parent)
    assert (done.returncode, done.stdout.split(b"\n")[:2]) == (0, [b"done", b"11"])
    assert b"plain words" in path.read_bytes()


@pytest.mark.parametrize(
    "name",
    ["/proc/Q/root@", "/proc/Q/fd/0", "/proc/Q/cwd", "/proc/self/map_files/400000-401000", "/proc/1/task/1/root@"],
)
def test_what_another_process_has(native: NativeRuntime, place: _Place, name: str) -> None:
    folder, image = place
    done = native.run(image, "p", "write", str(folder / "sealed" / "other"), name)
    assert _lines(done) == ["Permission denied", "first words"]


@pytest.mark.parametrize("name", [name for name, words in _NAMES.items() if "cwd" not in "".join(words)])
def test_what_may_only_be_read(native: NativeRuntime, place: _Place, name: str) -> None:
    folder, image = place
    path = folder / "read" / "file"
    assert _lines(native.run(image, "p", "read", str(path), *_NAMES[name])) == ["Permission denied", "first words"]
    assert path.read_bytes() == b"first words"


def test_a_trusted_file_is_trusted(native: NativeRuntime, program: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"first words")
    image = _image(native, program, tmp_path, trusted=[str(path)])
    assert _lines(native.run(image, "p", "rstat", str(path), "/proc/self/fd/F"))[0] == "Permission denied"
    assert _lines(native.run(image, "p", "rl", str(path), "/proc/self/fd/F")) == ["done", str(path)]


def test_other_calls_follow_too(native: NativeRuntime, place: _Place) -> None:
    folder, image = place
    path = str(folder / "sealed" / "others")
    assert _lines(native.run(image, "p", "write", path, "/proc/self/fd/F"))[-1] == "plain words"
    assert _lines(native.run(image, "p", "truncate", path, "/proc/self/fd/F")) == ["done", "plain"]
    assert _lines(native.run(image, "p", "stat", path, "/dev/fd/F"))[:2] == ["done", "5"]
    assert _lines(native.run(image, "p", "nofollow", path, "/proc/self/fd/F"))[0] == "Too many levels of symbolic links"
    assert _lines(native.run(image, "p", "chdir", path, "/proc/self/root/proc"))[:2] == ["done", "/proc"]


def test_no_other_name_of_a_sealed_file(native: NativeRuntime, place: _Place) -> None:
    """By a hard link it would be one outside."""
    folder, image = place
    words = ("link", str(folder / "sealed" / "linked"), "/proc/self/fd/F", "", str(folder / "pass" / "link"))
    assert _lines(native.run(image, "p", *words)) == ["Operation not permitted"]
    assert not (folder / "pass" / "link").exists()
    # The counter-test.
    believing = NativeRuntime(native.place, links_what_names_lead_to())
    assert _lines(believing.run(image, "p", *words)) == ["done"]
    assert (folder / "pass" / "link").samefile(folder / "sealed" / "linked")


def test_other_files_have_other_names(native: NativeRuntime, place: _Place) -> None:
    """As one that was made without a name gets one."""
    folder, image = place
    path, other = folder / "pass" / "linked", folder / "pass" / "by another name"
    assert _lines(native.run(image, "p", "link", str(path), "/proc/self/fd/F", "", str(other))) == ["done"]
    assert other.samefile(path)


def test_what_links_say(native: NativeRuntime, place: _Place, program: Path) -> None:
    folder, image = place
    path = str(folder / "read" / "file")
    said = {
        "/proc/self/fd/F": path,
        "/proc/P/cwd": f"{folder}/sealed",
        "/proc/self/root": "/",
        "/proc/self/exe": str(program),
    }
    for name, text in said.items():
        assert _lines(native.run(image, "p", "rl", path, name)) == ["done", text]
    assert _lines(native.run(image, "p", "rl", path, "/proc/self/fd/99"))[0] == "No such file or directory"


def test_what_is_outside_stays_there(native: NativeRuntime, place: _Place, program: Path) -> None:
    """A pipe has no path: the kernel opens it again, if the manifest passes the name."""
    folder, image = place
    path = folder / "pass" / "file"
    assert _lines(native.run(image, "p", "write", str(path), "/dev/stdout"))[:2] == ["done", "plain words11"]
    less = _image(native, program, folder, **{"pass": [f"{folder}/pass/"]})
    assert _lines(native.run(less, "p", "write", str(path), "/dev/stdout"))[0] == "Permission denied"
    assert _lines(native.run(image, "p", "write", str(path), "/proc/self/fd/F")) == ["done", "11", "plain words"]


_DOTS = r"""
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
static void say(const char *what, const char *name, long result)
{
	printf("%s %s: %d\n", what, name, result < 0 ? errno : 0);
}
int main(int argc, char **argv)
{
	static const char *names[] = {
		"full/.", "full/..", "full/./", "full/../", "new/.", "new/..", "file/.", "file/..",
		"link/.", ".", "..", "./", "../", "full/../.", "full/inner/../..", "empty/.", "empty/..", "empty/",
	};
	struct stat status;
	mkdir("full", 0700);
	mkdir("full/inner", 0700);
	symlink("full", "link");
	close(open("file", O_WRONLY | O_CREAT, 0600));
	close(open("other", O_WRONLY | O_CREAT, 0600));
	for (unsigned i = 0; i < sizeof(names) / sizeof(*names); i++) {
		const char *name = names[i];
		mkdir("empty", 0700);
		say("stat", name, stat(name, &status));
		say("lstat", name, lstat(name, &status));
		printf("%o\n", status.st_mode & S_IFMT);
		say("access", name, access(name, F_OK));
		say("open", name, open(name, O_RDONLY));
		say("create", name, open(name, O_RDWR | O_CREAT, 0600));
		say("exclusive", name, open(name, O_RDWR | O_CREAT | O_EXCL, 0600));
		say("mkdir", name, mkdir(name, 0700));
		say("rmdir", name, rmdir(name));
		say("unlink", name, unlink(name));
		say("rename", name, rename(name, "moved"));
		say("rename to", name, rename("other", name));
		say("link", name, link("other", name));
		say("symlink", name, symlink("other", name));
		say("truncate", name, truncate(name, 0));
		if (!chdir(name))
			chdir(argv[1]);
	}
	return 0;
}
"""


def test_names_that_end_with_dots(native: NativeRuntime, tmp_path: Path) -> None:
    """As without the runtime."""
    program = compile_program(tmp_path, _DOTS, "-static", "-w")
    outside, inside = tmp_path / "outside" / "here", tmp_path / "inside" / "here"
    for place in (outside, inside):
        place.mkdir(parents=True)
    wanted = subprocess.run([program, str(outside)], cwd=outside, capture_output=True, check=True, env={})
    image = native.build(program, {**ANYTHING, "directory": str(inside)})
    done = native.run(image, "p", str(inside))
    assert done.stdout.decode().splitlines() == wanted.stdout.decode().splitlines()
    assert sorted(os.listdir(inside)) == sorted(os.listdir(outside))
