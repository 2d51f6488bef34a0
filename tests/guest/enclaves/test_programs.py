# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs on the runtime as an ordinary process: the calls' semantics, without the machine."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.guest.enclaves.native_runtime import ANYTHING, NativeRuntime, compile_program
from tests.guest.enclaves.programs import MEMORY, SIGNALS, THREADS
from tests.guest.enclaves.test_image import config_of, with_config
from veil.guest.enclaves.image import EnclaveImage
from veil.guest.enclaves.rules import ConfigFlag
from veil.guest.errors import GuestImageError

_HELLO = r"""
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv)
{
	char line[100];
	printf("%d %s %s\n", argc, argv[argc - 1], getenv("WORD"));
	while (fgets(line, sizeof(line), stdin))
		printf("> %s", line);
	return 3;
}
"""


@pytest.mark.parametrize("flag", ["-static", "-static-pie", "-pie", "-no-pie"])
def test_a_program_gets_its_arguments_streams_and_status(native: NativeRuntime, tmp_path: Path, flag: str) -> None:
    image = native.build(compile_program(tmp_path, _HELLO, flag))
    done = native.run(image, "p", "one two", stdin=b"a\nb\n", environment={"WORD": "w"})
    assert (done.stdout, done.stderr, done.returncode) == (b"2 one two w\n> a\n> b\n", b"", 3)


def test_arguments_all_come_or_none(native: NativeRuntime, tmp_path: Path) -> None:
    """With some of them a program would do something else: `sh -c` counted 2,043 of 3,000."""
    image = native.build(compile_program(tmp_path, _HELLO, "-static"))
    most = native.run(image, "p", *["x"] * 2047, environment={"WORD": "w"})
    assert (most.stdout, most.returncode) == (b"2048 x w\n", 3)
    most = native.run(image, "p", environment={"WORD": "w", **{f"V{at}": "" for at in range(2047)}})
    assert (most.stdout, most.returncode) == (f"1 {tmp_path}/program w\n".encode(), 3)
    for arguments, variables, words in (
        (["x"] * 2048, {}, "more than 2048 arguments or variables"),
        ([], {f"V{at}": "" for at in range(2049)}, "more than 2048 arguments or variables"),
        (["x" * (64 << 10)] * 2, {}, "arguments and variables of [0-9]+ bytes"),
    ):  # fmt: skip
        more = native.run(image, "p", *arguments, environment=variables)
        assert (more.stdout, more.returncode) == (b"", 126)
        assert re.fullmatch(f"log: {words}\ntoo big\n", more.stderr.decode()), more


def test_arguments_leave_half_of_the_stack(native: NativeRuntime, tmp_path: Path) -> None:
    image = native.build(compile_program(tmp_path, _HELLO, "-static"), {**ANYTHING, "stack": "64K"})
    most = native.run(image, "p", "x" * 32000, environment={"WORD": "w"})
    assert (most.stdout[:10], most.returncode) == (b"2 xxxxxxxx", 3)
    more = native.run(image, "p", "x" * 33000)
    assert more.stderr == b"log: arguments and variables of more than 32768 bytes, half of the stack\ntoo big\n"


def test_what_is_fixed_is_there_once(native: NativeRuntime, tmp_path: Path) -> None:
    """Some programs take the last of two variables of a name, and that would be the one from outside."""
    text = "#include <stdio.h>\nint main(int c, char **v, char **e) { while (*e) puts(*e++); return 0; }"
    manifest: dict[str, object] = {"environment": {"outside": ["*"], "fixed": {"WORD": "w", "A": ""}}}
    image = native.build(compile_program(tmp_path, text, "-static"), manifest)
    done = native.run(image, "p", environment={"WORD": "evil", "A": "evil", "WORDS": "x", "AB": "y"})
    assert done.stdout.decode().splitlines() == ["A=", "WORD=w", "WORDS=x", "AB=y"]


def test_nothing_comes_from_outside_unless_the_manifest_says_so(native: NativeRuntime, tmp_path: Path) -> None:
    program = compile_program(tmp_path, _HELLO, "-static")
    manifest: dict[str, object] = {"arguments": {"fixed": ["p", "fixed"]}, "environment": {"fixed": {"WORD": "w"}}}
    image = native.build(program, manifest)
    done = native.run(image, "p", "evil", environment={"WORD": "evil"})
    assert (done.stdout, done.returncode) == (b"2 fixed w\n", 3)


def test_without_a_comparison_a_program_gets_what_its_manifest_denies(
    native: NativeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime believes what is measured: that it is what the measured manifest says is for readers to compare."""
    image = native.build(compile_program(tmp_path, _HELLO, "-static"), {"arguments": {"fixed": ["p", "fixed"]}})
    config = config_of(image)[0]
    rules = replace(config.rules, flags=ConfigFlag.ARGUMENTS_OUTSIDE)
    lying = with_config(image, replace(config, rules=rules).pack())
    with pytest.raises(GuestImageError, match="its rules are not those of its manifest"):
        EnclaveImage.parse(lying.pack(), "x")
    monkeypatch.setattr(EnclaveImage, "_check_config", lambda *_: None)
    assert "outside = false" in EnclaveImage.parse(lying.pack(), "x").manifest
    assert native.run(lying, "p", "evil").stdout == b"3 evil (null)\n"


@pytest.mark.parametrize("flag", ["-static", "-pie"])
def test_threads_wait_for_each_other(native: NativeRuntime, tmp_path: Path, flag: str) -> None:
    done = native.run(native.build(compile_program(tmp_path, THREADS, flag)), "p")
    assert (done.stdout, done.stderr, done.returncode) == (b"180000 40000\n", b"", 0)


_TERMINAL = r"""
#include <pty.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>
int main(void)
{
	int outer, inner;
	char text[10] = "";
	struct winsize size = { 24, 80, 0, 0 }, same = { 0 };
	if (openpty(&outer, &inner, NULL, NULL, &size) || write(outer, "hi\n", 3) != 3)
		return 1;
	printf("%zd ", read(inner, text, 9));
	ioctl(inner, TIOCGWINSZ, &same);
	printf("%s%d %d\n", text, same.ws_row, same.ws_col);
	return 0;
}
"""


def test_a_terminal_of_its_own(native: NativeRuntime, tmp_path: Path) -> None:
    done = native.run(native.build(compile_program(tmp_path, _TERMINAL, "-static")), "p")
    assert (done.stdout, done.returncode) == (b"3 hi\n24 80\n", 0), done


_ANCILLARY = r"""
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
int main(void)
{
	int pair[2], got = -1;
	char byte = 'x', room[10000], name[IF_NAMESIZE];
	union { struct cmsghdr header; char bytes[CMSG_SPACE(sizeof(int))]; } sent = { 0 };
	struct iovec vector = { &byte, 1 };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = &sent };
	message.msg_controllen = sizeof(sent);
	sent.header = (struct cmsghdr){ CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
	memcpy(CMSG_DATA(&sent.header), &(int){ 1 }, sizeof(int));
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || sendmsg(pair[0], &message, 0) != 1)
		return 1;
	message.msg_control = room;
	message.msg_controllen = sizeof(room);
	if (recvmsg(pair[1], &message, 0) != 1)
		return 2;
	memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(got));
	dprintf(got, "passed, %zu bytes\n", message.msg_controllen);
	printf("%s\n", if_indextoname(if_nametoindex("lo"), name));
	return 0;
}
"""


def test_more_room_for_ancillary_data_than_there_can_be(native: NativeRuntime, tmp_path: Path) -> None:
    """A descriptor comes with it. And interfaces have numbers and names."""
    done = native.run(native.build(compile_program(tmp_path, _ANCILLARY, "-static")), "p")
    assert (done.stdout, done.stderr, done.returncode) == (b"passed, 24 bytes\nlo\n", b"", 0), done


_SENT = r"""
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	int pair[2], pipes[2], fds[] = { open(argv[1], O_RDONLY), open("/dev/urandom", O_RDONLY), 99, 0 };
	char byte = 'x';
	union { struct cmsghdr header; char bytes[CMSG_SPACE(sizeof(int))]; } sent = { 0 };
	struct iovec vector = { &byte, 1 };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = &sent };
	message.msg_controllen = sizeof(sent);
	if (pipe(pipes) || socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		return 1;
	fds[3] = pipes[0];
	for (int i = 0; i < 4; i++) {
		sent.header = (struct cmsghdr){ CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
		memcpy(CMSG_DATA(&sent.header), &fds[i], sizeof(int));
		printf("%s\n", sendmsg(pair[0], &message, 0) == 1 ? "good" : strerror(errno));
	}
	return 0;
}
"""


def test_no_descriptor_is_sent_of_what_is_checked_inside(native: NativeRuntime, tmp_path: Path) -> None:
    """Whoever received it, this program even, would read of a trusted file what the kernel has there."""
    (tmp_path / "trusted").write_text("in trusted")
    manifest = {**ANYTHING, "files": {"trusted": [f"{tmp_path}/trusted"]}}
    done = native.run(native.build(compile_program(tmp_path, _SENT, "-static"), manifest), "p", f"{tmp_path}/trusted")
    denied = "Operation not permitted"
    assert done.stdout.decode().splitlines() == [denied, denied, "Bad file descriptor", "good"], done


_AGAIN = r"""
#include <pthread.h>
#include <stdio.h>
static void *work(void *number)
{
	return number;
}
int main(void)
{
	long sum = 0;
	for (long i = 0; i < 500; i++) {
		pthread_t thread;
		void *result;
		int error = pthread_create(&thread, 0, work, (void *)i);
		if (error)
			return error;
		pthread_join(thread, &result);
		sum += (long)result;
	}
	printf("%ld\n", sum);
	return 0;
}
"""


def test_whoever_has_joined_a_thread_has_its_slot(native: NativeRuntime, tmp_path: Path) -> None:
    image = native.build(compile_program(tmp_path, _AGAIN, "-static"), {**ANYTHING, "threads": 2})
    done = native.run(image, "p")
    assert (done.stdout, done.stderr, done.returncode) == (b"124750\n", b"", 0)


def test_signals_reach_their_handlers(native: NativeRuntime, tmp_path: Path) -> None:
    done = native.run(native.build(compile_program(tmp_path, SIGNALS, "-static")), "p")
    assert done.stdout.decode().splitlines() == [
        "repaired x 1.5", "caught 8", "blocked 0", "delivered 1", "caught 4",
    ]  # fmt: skip
    assert done.returncode == 143


def test_memory_is_managed_inside(native: NativeRuntime, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("words")
    done = native.run(native.build(compile_program(tmp_path, MEMORY, "-static")), "p", str(tmp_path / "text"))
    assert (done.stdout, done.returncode) == (b"42\nwords\n", 0)


_MOVED = r"""
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/mman.h>
#define PAGES 640
int main(void)
{
	char *from = mmap(0, PAGES << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *to;
	char *behind = mmap(from + (PAGES << 12), 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	for (int at = 0; at < PAGES; at++)
		from[at << 12] = at;
	mprotect(from, PAGES << 11, PROT_NONE);
	to = mremap(from, PAGES << 12, (PAGES + 64) << 12, MREMAP_MAYMOVE);
	if (behind == MAP_FAILED || to == MAP_FAILED || to == from || mprotect(to, PAGES << 11, PROT_READ))
		return 1;
	for (int at = 0; at < PAGES; at++)
		if (to[at << 12] != (char)at)
			return 2;
	printf("%d\n", to[PAGES << 12]);
	return 0;
}
"""


def test_memory_moves_without_as_much_again(native: NativeRuntime, tmp_path: Path) -> None:
    """2.5 of 4 MiB."""
    image = native.build(compile_program(tmp_path, _MOVED, "-static"), {**ANYTHING, "memory": "4M"})
    done = native.run(image, "p")
    assert (done.stdout, done.stderr, done.returncode) == (b"0\n", b"", 0)


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


_SOCKETS = r"""
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <sys/timerfd.h>
#include <unistd.h>
static void *client(void *place)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	char text[20] = "";
	if (connect(fd, place, sizeof(struct sockaddr_in)))
		return "connect";
	send(fd, "ping", 4, 0);
	recv(fd, text, sizeof(text), 0);
	return strcmp(text, "pong") ? "answer" : 0;
}
int main(void)
{
	struct sockaddr_in place = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof(place);
	int server = socket(AF_INET, SOCK_STREAM, 0), set = epoll_create1(0), pipes[2], counter = eventfd(0, 0);
	char text[20] = "";
	pthread_t thread;
	void *failed;
	bind(server, (void *)&place, sizeof(place));
	listen(server, 5);
	getsockname(server, (void *)&place, &length);
	pthread_create(&thread, 0, client, &place);
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = &place }, got[4];
	epoll_ctl(set, EPOLL_CTL_ADD, server, &event);
	int count = epoll_wait(set, got, 4, 5000);
	printf("%d %d\n", count, got[0].data.ptr == &place);
	int peer = accept(server, 0, 0);
	struct iovec part = { text, 4 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
	printf("%zd %s\n", recvmsg(peer, &message, 0), text);
	send(peer, "pong", 4, 0);
	pthread_join(thread, &failed);
	printf("%s\n", failed ? (char *)failed : "good");
	if (pipe(pipes))
		return 1;
	struct pollfd polled[2] = { { pipes[0], POLLIN, 0 }, { counter, POLLOUT, 0 } };
	printf("%d", poll(polled, 2, 0));
	printf(" %d %d\n", polled[0].revents, polled[1].revents);
	int timer = timerfd_create(CLOCK_MONOTONIC, 0);
	struct itimerspec soon = { .it_value.tv_nsec = 1000 };
	timerfd_settime(timer, 0, &soon, 0);
	unsigned long times = 0;
	ssize_t bytes = read(timer, &times, 8);
	printf("%zd %d\n", bytes, times > 0);
	return 0;
}
"""


def test_sockets_and_events(native: NativeRuntime, tmp_path: Path) -> None:
    done = native.run(native.build(compile_program(tmp_path, _SOCKETS, "-static")), "p")
    assert done.stdout.decode().splitlines() == ["1 1", "4 ping", "good", "1 0 4", "8 1"]
    assert (done.stderr, done.returncode) == (b"", 0)


def test_what_cannot_be_is_refused_with_a_line(native: NativeRuntime, tmp_path: Path) -> None:
    text = r"""
#include <stdio.h>
#include <unistd.h>
#include <sys/syscall.h>
#include <errno.h>
int main(void)
{
	for (int i = 0; i < 3; i++)
		if (fork() >= 0)
			return 1;
	perror("fork");
	if (syscall(SYS_io_uring_setup, 1, 0) != -1 || errno != ENOSYS)
		return 2;
	return 0;
}
"""
    done = native.run(native.build(compile_program(tmp_path, text, "-static")), "p")
    assert done.returncode == 0
    assert done.stderr.decode().splitlines() == [
        "log: system call 56 (clone): an enclave cannot fork",
        "fork: Function not implemented",
        "log: system call 425 (unknown): not supported",
    ]
    ended = native.run(native.build(tmp_path / "program", {**ANYTHING, "unsupported": "end"}), "p")
    assert ended.returncode == 125
