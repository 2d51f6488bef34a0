# SPDX-License-Identifier: GPL-2.0-or-later
"""The network's process in the hands of whoever has broken libslirp: what they try is refused, and would work in a
process that is not confined."""

from __future__ import annotations

import ctypes
import errno
import os
import queue
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.network.frames import free_port
from veil.network import Forward, UserNetwork, landlock, link
from veil.network.confinement import rules
from veil.network.seccomp import Action

_SOURCE = Path(__file__).with_name("taken_over.c")
_BEGIN = "import sys; sys.path.append(sys.argv[1]); from veil.network import process, seccomp, landlock; "
_END = "; process.main()"
_UNCONFINED = "process._confine = lambda slirp, restrict: None"
_ONLY_LANDLOCK = "process._confine = lambda slirp, restrict: landlock.give_up_names() and None"
_ONLY_LIMITS = "process._confine = lambda slirp, restrict: process.limit()"
_MUCH = 4096


@pytest.fixture(scope="module")
def taken_over(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wl,-soname,libslirp.so.0"]
    subprocess.run(["gcc", *flags, "-o", str(folder / "libslirp.so.0"), str(_SOURCE)], check=True)
    return folder


class _Attacker:
    """The guest, whose frames say what the process is to do."""

    def __init__(self, network: UserNetwork) -> None:
        self.network = network
        self._answers: queue.Queue[int] = queue.Queue()
        network.plug(self, lambda action: action())

    def receive(self, frames: Sequence[bytes], /) -> None:
        for frame in frames:
            self._answers.put(int.from_bytes(frame[14:18], "little", signed=True))
        self.network.taken()

    def resume(self) -> None:
        pass

    def announce(self) -> None:
        pass

    def unplug(self) -> None:
        self._answers.put(-1)

    def attack(self, name: str, argument: object = "") -> int:
        """Its answer; -1 if the process ended."""
        assert self.network.send(bytes(12) + b"\x08\x06" + f"{name}\0{argument}\0".encode())
        return self._answers.get(timeout=20)


@contextmanager
def _attacker(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    instead: str = "",
    *,
    restrict: bool = False,
    forwards: Sequence[Forward] = (),
) -> Iterator[_Attacker]:
    with monkeypatch.context() as patch:
        if instead:
            patch.setattr(link, "_PROGRAM", f"{_BEGIN}{instead}{_END}")
        network = UserNetwork(forwards, restrict=restrict, folders=[folder])
    with closing(network):
        assert network.unconfined is None
        yield _Attacker(network)


@pytest.fixture
def confined(taken_over: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Attacker]:
    with _attacker(taken_over, monkeypatch) as attacker:
        yield attacker


@pytest.fixture
def unconfined(taken_over: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Attacker]:
    with _attacker(taken_over, monkeypatch, _UNCONFINED) as attacker:
        yield attacker


@pytest.fixture
def only_landlock(taken_over: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Attacker]:
    if not _landlock_version():
        pytest.skip("this kernel has no Landlock")
    with _attacker(taken_over, monkeypatch, _ONLY_LANDLOCK) as attacker:
        yield attacker


def _landlock_version() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    version: int = libc.syscall(landlock._CREATE_RULESET, None, ctypes.c_size_t(0), landlock._VERSION)
    return max(version, 0)


def test_files(confined: _Attacker, unconfined: _Attacker, tmp_path: Path) -> None:
    secret, made, kept = (tmp_path / name for name in ("secret", "made", "kept"))
    secret.write_text("of this computer's user")
    kept.write_text("of this computer's user")
    for name, path in (("read_file", secret), ("write_file", made), ("remove_file", kept)):
        assert confined.attack(name, path) == errno.EPERM
    assert not made.exists()
    assert kept.exists()
    for name, path in (("read_file", secret), ("write_file", made), ("remove_file", kept)):
        assert unconfined.attack(name, path) == 0
    assert made.exists()
    assert not kept.exists()


def test_programs(confined: _Attacker, unconfined: _Attacker, tmp_path: Path) -> None:
    made = tmp_path / "made"
    assert confined.attack("execute", made) == errno.EPERM
    assert not made.exists()
    assert unconfined.attack("execute", made) == -1
    assert made.exists()


_OWN_NUMBER = "own number"


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("make_process", ""),
        ("new_name_space", ""),
        ("unnamed_file", ""),
        ("be_traced", ""),
        ("have_signals_sent", _OWN_NUMBER),
        ("map_code", ""),
        ("make_code", ""),
        ("be_reached", ""),
        ("filter_frames", ""),
        # of other kinds: netlink, and a Unix socket
        ("make_socket", f"{socket.AF_NETLINK} {socket.SOCK_RAW} 0"),
        ("make_socket", f"{socket.AF_UNIX} {socket.SOCK_DGRAM} 0"),
    ],
)
def test_what_it_does_not_need(confined: _Attacker, unconfined: _Attacker, name: str, argument: str) -> None:
    # Not in the parameters: processes that share the tests must collect the same.
    argument = argument.replace(_OWN_NUMBER, str(os.getpid()))
    assert confined.attack(name, argument) == errno.EPERM
    assert unconfined.attack(name, argument) == 0


def test_a_server_of_this_users_at_a_unix_socket(confined: _Attacker, unconfined: _Attacker, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        server.settimeout(5)
        assert confined.attack("unix_socket", tmp_path / "socket") == errno.EPERM
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
        assert unconfined.attack("unix_socket", tmp_path / "socket") == 0
        server.accept()[0].close()


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    yield heard
    signal.signal(signal.SIGUSR1, before)


def test_the_process_that_has_the_guest(confined: _Attacker, unconfined: _Attacker, heard: list[int]) -> None:
    assert confined.attack("send_signal", os.getpid()) == errno.EPERM
    assert not heard
    assert unconfined.attack("send_signal", os.getpid()) == 0
    assert heard == [signal.SIGUSR1]


def test_memory_without_bound(
    confined: _Attacker, unconfined: _Attacker, taken_over: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 300 < confined.attack("take_memory") < 768, "so much that a thousand connections have their buffers"
    assert unconfined.attack("take_memory") == _MUCH
    with _attacker(taken_over, monkeypatch, _ONLY_LIMITS) as limited:
        assert limited.attack("take_memory") < 768, "without a filter as well"


@pytest.mark.parametrize("name", ["call_of_x32", "call_of_i386"])
def test_calls_of_other_architectures(confined: _Attacker, unconfined: _Attacker, name: str) -> None:
    """Their numbers are other calls' in the table."""
    ends: list[str] = []
    confined.network.on_end = ends.append
    assert unconfined.attack(name) in (0, errno.ENOSYS, -1), "-1: the kernel has none of i386"
    assert confined.attack(name) == -1
    confined.network.close()
    assert confined.network._process.returncode == -signal.SIGSYS


def test_landlock_alone(only_landlock: _Attacker, tmp_path: Path, heard: list[int]) -> None:
    secret = tmp_path / "secret"
    secret.touch()
    for name, path in (("read_file", secret), ("write_file", secret), ("remove_file", secret)):
        assert only_landlock.attack(name, path) == errno.EACCES
    assert only_landlock.attack("execute", tmp_path / "made") == errno.EACCES
    if _landlock_version() >= 4:
        assert only_landlock.attack("be_reached") == errno.EACCES
    if _landlock_version() >= 6:
        assert only_landlock.attack("send_signal", os.getpid()) == errno.EPERM
        assert not heard


def test_an_older_landlock(taken_over: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The rights that it knows are asked for, and no others."""
    older = f"landlock._FILE_RIGHTS = landlock._FILE_RIGHTS[:1]; {_ONLY_LANDLOCK}"
    if not _landlock_version():
        pytest.skip("this kernel has no Landlock")
    with _attacker(taken_over, monkeypatch, older) as attacker:
        assert attacker.attack("write_file", tmp_path / "made") == errno.EACCES


class _Listener:
    """A server of this computer's user."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]

    def was_reached(self) -> bool:
        self._socket.settimeout(0.2)
        with suppress(TimeoutError):
            self._socket.accept()[0].close()
            return True
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.mark.parametrize("name", ["reach", "reach_from_a_forwarded_port"])
@pytest.mark.parametrize(
    ("instead", "restrict", "reached"), [("", True, False), (_UNCONFINED, True, True), ("", False, True)]
)
def test_who_is_reached(
    taken_over: Path, monkeypatch: pytest.MonkeyPatch, name: str, instead: str, restrict: bool, reached: bool
) -> None:
    """restrict=on binds whoever takes the process over; without it they reach what the guest may."""
    forwards = [Forward("tcp", "127.0.0.1", free_port(socket.SOCK_STREAM), 80)]
    with (
        closing(_Listener()) as server,
        _attacker(taken_over, monkeypatch, instead, restrict=restrict, forwards=forwards) as attacker,
    ):
        assert (attacker.attack(name, server.port) == 0) is reached
        assert server.was_reached() is reached


def test_what_is_open(confined: _Attacker) -> None:
    folder = Path(f"/proc/{confined.network._process.pid}/fd")
    names = sorted(os.readlink(entry).partition(":")[0] for entry in folder.iterdir())
    assert names == ["/dev/null", "/dev/null", "/dev/null", "socket"]


def test_it_is_root_in_name_only(confined: _Attacker) -> None:
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{confined.network._process.pid}/status").read_text().splitlines()
    )
    assert {status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"


_WITHOUT_SECCOMP = """
import os, sys
sys.path.append(sys.argv[1])
from veil.network.seccomp import Action, Filters, Rule, is_
refused = [Rule("seccomp", action=Action.REFUSE), Rule("prctl", (is_(0, 22),), Action.REFUSE)]
Filters().load(refused, Action.ALLOW)
os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", PROGRAM, *sys.argv[1:]])
"""


@pytest.mark.parametrize("restrict", [False, True])
@pytest.mark.parametrize(
    ("program", "why"),
    [
        (_WITHOUT_SECCOMP.replace("PROGRAM", repr(link._PROGRAM)), "the kernel takes no filter of system calls: "),
        (f"{_BEGIN}seccomp.LIBRARY = 'libveil-none.so'{_END}", "there is no libseccomp: libveil-none.so: cannot ope"),
    ],
    ids=["kernel", "library"],
)
def test_where_there_are_no_filters(
    taken_over: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, why: str, restrict: bool
) -> None:
    """It is said, and the network is there."""
    monkeypatch.setattr(link, "_PROGRAM", program)
    with closing(UserNetwork(folders=[taken_over], restrict=restrict)) as network:
        assert network.unconfined is not None
        assert network.unconfined.startswith(why)
        assert _Attacker(network).attack("take_memory") < 768


@pytest.mark.parametrize("restrict", [False, True])
def test_the_table_names_nothing_twice(restrict: bool) -> None:
    table = list(rules(restrict=restrict))
    assert len({(rule.call, rule.conditions) for rule in table}) == len(table)
    assert not [rule for rule in table if rule.action is Action.REFUSE], "all else is refused"
    names = {rule.call for rule in table}
    assert (names & {"socket", "connect"} == set()) is restrict
