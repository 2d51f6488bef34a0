# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs on the runtime as an ordinary process: the calls' semantics, without the machine."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.guest.enclaves.native_runtime import ANYTHING, NativeRuntime, compile_program
from tests.guest.enclaves.programs import FLOATING_POINT, MEMORY, SIGNALS, THREADS
from tests.guest.enclaves.test_image import config_of, with_config
from tests.services.enc.believing import executes_anything
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


def test_each_thread_has_its_own_floating_point_state(native: NativeRuntime, tmp_path: Path) -> None:
    """As on Linux: a new one has its maker's, whatever the one before did in its slot; a handler begins anew."""
    program = compile_program(tmp_path, FLOATING_POINT, "-static", "-lm")
    outside = subprocess.run([program], capture_output=True, check=True).stdout
    assert native.run(native.build(program), "p").stdout == outside == b"70800 70800 70800 0 20 8 800\n"


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


def test_no_code_comes_from_a_file_that_is_only_passed(native: NativeRuntime, tmp_path: Path) -> None:
    """With variables from outside the kernel names a library of its own, which the loader would have run first."""
    (tmp_path / "more").mkdir()
    (tmp_path / "evil.c").write_text(
        '#include <stdio.h>\n__attribute__((constructor)) static void in(void) { puts("evil"); fflush(stdout); }'
    )
    library = tmp_path / "more" / "evil.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "evil.c"], check=True)
    program = compile_program(tmp_path, '#include <stdio.h>\nint main(void) { puts("good"); return 0; }')
    variables = {"environment": {"outside": ["*"]}}
    image = native.build(program, {**variables, "files": {"read": [f"{tmp_path}/more/"]}})
    preload = {"LD_PRELOAD": str(library)}
    done = native.run(image, "p", environment=preload)
    assert done.stdout == b"good\n"
    assert f"log: {library} is not executed: it is no trusted file\n" in done.stderr.decode()
    believing = NativeRuntime(native.place, executes_anything())
    assert believing.run(image, "p", environment=preload).stdout == b"evil\ngood\n"
    trusted = native.build(program, {**variables, "files": {"trusted": [str(library)]}})
    assert native.run(trusted, "p", environment=preload).stdout == b"evil\ngood\n"
