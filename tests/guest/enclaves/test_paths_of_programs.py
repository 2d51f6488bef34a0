# SPDX-License-Identifier: GPL-2.0-or-later
"""Files and folders of programs on the runtime as an ordinary process: which paths the manifest allows, and what they
mean.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.guest.enclaves.native_runtime import ANYTHING, NativeRuntime, compile_program

_FILES = r"""
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		char text[32] = "";
		int file = open(argv[i] + 1, argv[i][0] == 'w' ? O_WRONLY | O_CREAT : O_RDONLY, 0600);
		if (file < 0) {
			printf("%s\n", strerror(errno));
			continue;
		}
		if (argv[i][0] == 'w' ? write(file, "x", 1) < 0 : read(file, text, 10) < 0)
			printf("%s\n", strerror(errno));
		else
			printf("good %s\n", text);
	}
	return 0;
}
"""


def test_files_are_as_the_manifest_says(native: NativeRuntime, tmp_path: Path) -> None:
    for name in ("trusted", "changed", "read/a", "free/a", "other"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"in {name}")
    program = compile_program(tmp_path, _FILES, "-static")
    files = {
        "trusted": [f"{tmp_path}/trusted", f"{tmp_path}/changed"],
        "read": [f"{tmp_path}/read/"],
        "pass": [f"{tmp_path}/free/"],
    }
    image = native.build(program, {**ANYTHING, "files": files})
    (tmp_path / "changed").write_text("in channel")

    def tries(*names: str) -> list[str]:
        done = native.run(image, "p", *(f"{name[0]}{tmp_path}/{name[1:]}" for name in names))
        return done.stdout.decode().splitlines()

    assert tries("rtrusted", "wtrusted") == ["good in trusted", "Permission denied"]
    assert tries("rchanged") == ["Input/output error"]
    assert tries("rread/a", "wread/a", "wread/b") == ["good in read/a", *["Permission denied"] * 2]
    assert tries("rfree/a", "wfree/b") == ["good in free/a", "good "]
    assert tries("rother", "wother", "rfree/../other") == [
        "No such file or directory", "Permission denied", "No such file or directory",
    ]  # fmt: skip


_SLASHES = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
static struct stat status;
static void tell(const char *what, int failed) { printf("%s %s\n", what, failed < 0 ? strerror(errno) : "good"); }
#define TELL(call) tell(#call, call)
static int named(const char *path)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX };
	strcpy(name.sun_path, path);
	return bind(socket(AF_UNIX, SOCK_DGRAM, 0), (void *)&name, sizeof(name));
}
int main(int argc, char **argv)
{
	char text[20];
	if (chdir(argv[1]))
		return 1;
	TELL(open("new/", O_WRONLY | O_CREAT, 0600));
	TELL(open("file/", O_WRONLY | O_CREAT, 0600));
	TELL(open("folder/", O_RDONLY | O_CREAT, 0600));
	TELL(open("file/", O_RDONLY));
	TELL(open("file/.", O_RDONLY));
	TELL(open("folder//", O_RDONLY));
	TELL(stat("file/", &status));
	TELL(stat("folder/", &status));
	TELL(stat("", &status));
	TELL(stat("/", &status));
	TELL(stat("./", &status));
	TELL(lstat("link/", &status));
	tell("a link's folder", S_ISDIR(status.st_mode) - 1);
	TELL(access("file/", F_OK));
	TELL(access("folder/", F_OK));
	TELL(readlink("link/", text, sizeof(text)));
	TELL(readlink("link", text, sizeof(text)));
	TELL(unlink("link/"));
	TELL(unlink("file/"));
	TELL(rename("file/", "other"));
	TELL(rename("file", "other/"));
	TELL(link("file", "other/"));
	TELL(symlink("file", "other/"));
	TELL(truncate("file/", 0));
	TELL(chmod("file/", 0600));
	TELL(named("other/"));
	TELL(chdir("file/"));
	TELL(mkdir("made/", 0700));
	TELL(rename("made/", "moved/"));
	TELL(rmdir("moved/"));
	TELL(chdir("folder/"));
	TELL(strcmp(getcwd(NULL, 0) + strlen(argv[1]), "/folder") ? -1 : 0);
	return 0;
}
"""


def test_a_slash_at_the_end_of_a_path_is_a_folders(native: NativeRuntime, tmp_path: Path) -> None:
    """As outside, whatever the call."""
    program = compile_program(tmp_path, _SLASHES, "-static")
    for name in ("outside", "inside"):
        (tmp_path / name / "folder").mkdir(parents=True)
        (tmp_path / name / "file").touch()
        (tmp_path / name / "link").symlink_to("folder")
    wanted = subprocess.run([program, tmp_path / "outside"], capture_output=True, check=True)
    done = native.run(native.build(program), "p", str(tmp_path / "inside"))
    assert done.stdout.decode().splitlines() == wanted.stdout.decode().splitlines()
    assert [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("outside", "inside")] == [
        ["file", "folder", "link"]
    ] * 2


def test_what_is_known_to_be_a_file_is_no_folder(native: NativeRuntime, tmp_path: Path) -> None:
    """The kernel is not asked."""
    (tmp_path / "trusted").write_text("in trusted")
    files = {"trusted": [f"{tmp_path}/trusted"], "secrets": ["key"]}
    image = native.build(compile_program(tmp_path, _FILES, "-static"), {**ANYTHING, "files": files})
    words = (f"r{tmp_path}/trusted/", "r/run/secrets/key/", "r/dev/urandom/", f"r{tmp_path}/trusted")
    done = native.run(image, "p", *words)
    assert done.stdout.decode().splitlines() == ["Not a directory"] * 3 + ["good in trusted"]


def test_times_are_set_by_descriptor(native: NativeRuntime, tmp_path: Path) -> None:
    text = r"""
#include <fcntl.h>
#include <sys/stat.h>
int main(int argc, char **argv)
{
	struct timespec times[2] = { { 1000, 0 }, { 2000, 0 } };
	return futimens(open(argv[1], O_RDWR), times) + utimensat(AT_FDCWD, argv[2], times, 0);
}
"""
    for name in ("first", "second"):
        (tmp_path / name).touch()
    image = native.build(compile_program(tmp_path, text, "-static"))
    assert native.run(image, "p", str(tmp_path / "first"), str(tmp_path / "second")).returncode == 0
    assert [(tmp_path / name).stat().st_mtime for name in ("first", "second")] == [2000, 2000]


def test_a_directory_is_one_that_is_there(native: NativeRuntime, tmp_path: Path) -> None:
    text = r"""
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	char place[4096];
	for (int i = 1; i < argc; i++)
		printf("%s\n", chdir(argv[i]) ? strerror(errno) : "good");
	printf("%d\n", !strcmp(getcwd(place, sizeof(place)), argv[1]));
	return 0;
}
"""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    image = native.build(compile_program(tmp_path, text, "-static"), {**ANYTHING, "files": {"pass": [f"{tmp_path}/"]}})
    places = [str(tmp_path / name) for name in ("folder", "nothing", "file")]
    done = native.run(image, "p", *places, "/somewhere")
    assert done.stdout.decode().splitlines() == [
        "good", "No such file or directory", "Not a directory", "No such file or directory", "1",
    ]  # fmt: skip


def test_a_unix_sockets_path_goes_by_the_manifest(native: NativeRuntime, tmp_path: Path) -> None:
    text = r"""
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
static int fd;
static void show(int failed) { printf("%s\n", failed ? strerror(errno) : "good"); }
static struct sockaddr_un name(const char *path)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX };
	strcpy(name.sun_path, path);
	return name;
}
int main(int argc, char **argv)
{
	struct sockaddr_un own = name("own"), other = name(argv[2]);
	struct msghdr message = { .msg_name = &other, .msg_namelen = sizeof(other) };
	fd = socket(AF_UNIX, SOCK_DGRAM, 0);
	show(chdir(argv[1]));
	show(bind(fd, (void *)&own, sizeof(own)));
	show(sendto(fd, "x", 1, 0, (void *)&own, sizeof(own)) != 1);
	show(sendto(fd, "x", 1, 0, (void *)&other, sizeof(other)) != 1);
	show(sendmsg(fd, &message, 0) < 0);
	show(connect(fd, (void *)&other, sizeof(other)));
	show(connect(fd, (void *)&own, sizeof(own)));
	fd = socket(AF_UNIX, SOCK_DGRAM, 0);
	show(bind(fd, (void *)&other, sizeof(other)));
	return 0;
}
"""
    (tmp_path / "folder").mkdir()
    manifest: dict[str, object] = {**ANYTHING, "files": {"pass": [f"{tmp_path}/folder/"]}}
    image = native.build(compile_program(tmp_path, text, "-static"), manifest)
    done = native.run(image, "p", str(tmp_path / "folder"), str(tmp_path / "other"))
    denied = "Permission denied"
    assert done.stdout.decode().splitlines() == ["good"] * 3 + [denied] * 3 + ["good", denied], done
    assert (tmp_path / "folder" / "own").is_socket()
    assert not (tmp_path / "other").exists()


def test_a_program_finds_its_own_folder(native: NativeRuntime, tmp_path: Path) -> None:
    """Many look for their files beside themselves, as ../lib (SBCL); the folder has no rule, and nothing else in it."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "core").write_text("x")
    (tmp_path / "bin").mkdir()
    text = r"""
    #include <stdio.h>
    #include <stdlib.h>
    #include <unistd.h>
    int main(int argc, char **argv)
    {
        char found[4096], path[4200];
        if (argc == 2)
            return !access(argv[1], F_OK);
        snprintf(path, 4200, "%s/../lib/core", argv[1]);
        puts(realpath(path, found) ? found : "none");
        return 0;
    }
    """
    image = native.build(
        compile_program(tmp_path / "bin", text, "-static"),
        {"arguments": {"outside": True}, "files": {"trusted": [f"{tmp_path}/lib/core"]}},
    )
    done = native.run(image, "p", f"{tmp_path}/bin", "x")
    assert done.stdout.decode().splitlines() == [f"{tmp_path}/lib/core"], done
    assert native.run(image, "p", f"{tmp_path}/bin/other").returncode == 0
    assert native.run(image, "p", f"{tmp_path}/bin").returncode == 1


def test_a_program_sees_its_own_memory(native: NativeRuntime, tmp_path: Path) -> None:
    """In /proc/self/maps, whatever the manifest has: by it the first thread's stack is found."""
    text = r"""
    #define _GNU_SOURCE
    #include <errno.h>
    #include <fcntl.h>
    #include <pthread.h>
    #include <stdio.h>
    #include <string.h>
    #include <sys/stat.h>
    #include <unistd.h>
    static const char *rights_of(const char *name, const void *place)
    {
        static char rights[8];
        char line[256];
        FILE *maps = fopen(name, "r");
        unsigned long from, to;
        while (maps && fgets(line, sizeof(line), maps))
            if (sscanf(line, "%lx-%lx %7s", &from, &to, rights) == 3 && (unsigned long)place - from < to - from)
                return rights;
        return maps ? "none" : strerror(errno);
    }
    int main(int argc, char **argv)
    {
        char name[64];
        pthread_attr_t attributes;
        void *stack;
        size_t size;
        struct stat status;
        snprintf(name, 64, "/proc/%d/maps", getpid());
        puts(rights_of("/proc/self/maps", name));
        puts(rights_of(name, main));
        puts(rights_of("/proc/thread-self/maps", NULL));
        puts(rights_of("/proc/1/maps", NULL));
        printf("%d\n", open("/proc/self/maps", O_WRONLY));
        if (pthread_getattr_np(pthread_self(), &attributes))
            return 1;
        pthread_attr_getstack(&attributes, &stack, &size);
        printf("%d\n", (char *)name - (char *)stack < size);
        return fstat(open("/proc/self/maps", O_RDONLY), &status) || !S_ISREG(status.st_mode);
    }
    """
    image = native.build(compile_program(tmp_path, text, "-static"), {"threads": 1})
    done = native.run(image, "p")
    assert (done.stdout.decode().split("\n")[:-1], done.returncode) == (
        ["rw-p", "r-xp", "none", "No such file or directory", "-1", "1"], 0,
    ), done  # fmt: skip
