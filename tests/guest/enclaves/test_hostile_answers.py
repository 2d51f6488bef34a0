# SPDX-License-Identifier: GPL-2.0-or-later
"""Iago attacks, call by call: what no honest kernel answers ends the enclave; a runtime without the check is fooled.

The table of system calls (`calls.def`) says which there are. Calls that it describes are tried by their descriptions;
each that has a handler of its own is in one of the tables here.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.guest.enclaves.native_runtime import ANYTHING, EVERY_CALL, Lie, NativeRuntime
from tests.guest.enclaves.test_programs_outside import PROGRAM_LIES
from tests.services.enc.believing import believes_results, believes_sets, reads_twice
from veil.guest.enclaves.image import EnclaveImage

#: Does the system calls that its arguments say: the words are explained there.
_CALLER = Path(__file__).parent / "caller.c"
_SYNC = ["162", "/"]
_ATTACKED = 125
_LARGE = 1 << 40
_ENCLAVE = 0x7000_0000_0000
"""An address in it."""

# Calls that calls.def describes

_ROW = re.compile(r"^CALL\((\d+), (\w+), \w+, (\w+), (.*)\)$", re.MULTILINE)
_HANDLER = re.compile(r"^OWN\((\d+), (\w+), \w+, \w+\)$", re.MULTILINE)
_ARGUMENT = re.compile(r"(\w+)(?:\(([^)]*)\))?")
_TABLE = files("veil.guest.enclaves.runtime").joinpath("src", "calls.def").read_text()
_PATH = "@16:x2f746d7000"  # /tmp
_PROC = "@16:x2f70726f6300"  # /proc
_PASSWD = "@16:x2f6574632f70617373776400"  # /etc/passwd


class _Described(NamedTuple):
    number: int
    name: str
    result: str
    arguments: list[str]
    """As words for the caller."""


def _described() -> list[_Described]:
    found = []
    for number, name, result, text in _ROW.findall(_TABLE):
        words: list[str] = []
        arguments = _ARGUMENT.findall(text)
        counting = {int(values.split(",")[0]) for kind, values in arguments if kind in ("IN_N", "OUT_N", "PART_IN")}
        for at, (kind, values) in enumerate(arguments):
            words.append(
                {
                    "N": "0", "V": "2" if at in counting else "0", "FD": "1", "AT": "-100", "READ_PATH": _PATH,
                    "WRITE_NAME": _PATH, "WRITE_PATH": _PATH, "STRING": _PATH,
                }.get(kind)
                or f"@{int(values.split(',')[-1]) * (2 if '_' in kind else 1)}"
            )  # fmt: skip
        found.append(_Described(int(number), name, result, words))
    return found


_LIES = {
    "ZERO": (1, _ENCLAVE), "NUMBER": (1 << 31, _ENCLAVE), "DESCRIPTOR": (1, 1 << 31), "BYTES": (3, _ENCLAVE),
    "COUNT": (3, _ENCLAVE), "ANY": (), "MODE": (0o1000, _ENCLAVE), "PRIORITY": (0, 41),
}  # fmt: skip
#: Neither an error number nor a result: what lies between.
_NO_RESULTS = (-200, -4096, -(1 << 63))


@pytest.fixture(scope="module")
def image(native: NativeRuntime, tmp_path_factory: pytest.TempPathFactory) -> EnclaveImage:
    program = tmp_path_factory.mktemp("caller") / "caller"
    command = ["cc", "-O1", "-nostdlib", "-static", "-no-pie", "-ffreestanding", "-fno-stack-protector", "-w"]
    done = subprocess.run(
        [*command, "-mgeneral-regs-only", "-o", program, _CALLER], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return native.build(program, {**ANYTHING, "memory": "4M", "threads": 1})


@pytest.fixture(scope="module")
def believing(native: NativeRuntime) -> NativeRuntime:
    """Without checks of results."""
    return NativeRuntime(native.place, believes_results())


def _ended(done: subprocess.CompletedProcess[bytes]) -> bool:
    return done.returncode == _ATTACKED and done.stderr.startswith(b"log: ") and done.stderr.count(b"\n") == 1


def _results(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    return done.stdout.decode().splitlines()


@pytest.mark.parametrize("call", _described(), ids=lambda call: call.name)
def test_calls_that_are_described(native: NativeRuntime, image: EnclaveImage, call: _Described) -> None:
    words = [*_SYNC, str(call.number), *call.arguments]
    if call.name == "sync":
        words = words[2:]
    for result in (*_LIES[call.result], *_NO_RESULTS[:1]):
        done = native.run(image, "p", *words, lie=Lie(call.number, result, once=call.name != "sync"))
        assert _ended(done), (result, done)


@pytest.mark.parametrize("call", [call for call in _described() if call.name != "sync"], ids=lambda call: call.name)
def test_calls_that_are_described_without_checks(
    believing: NativeRuntime, image: EnclaveImage, call: _Described
) -> None:
    """The counter-test: the program is told what cannot be."""
    for result in _LIES[call.result][:1] or _NO_RESULTS[:1]:
        words = [*_SYNC, str(call.number), *call.arguments]
        done = believing.run(image, "p", *words, lie=Lie(call.number, result, once=True))
        assert done.returncode != _ATTACKED
        # A descriptor beyond all is closed again; one that is another file's is given.
        assert call.result == "BYTES" or _results(done)[:1] == [str(result)], done


@pytest.mark.parametrize("result", _NO_RESULTS)
def test_numbers_that_are_no_result(native: NativeRuntime, image: EnclaveImage, result: int) -> None:
    done = native.run(image, "p", *_SYNC, "102", lie=Lie(102, result, once=True))
    assert _ended(done)
    assert b"which no system call is" in done.stderr


# Calls with handlers of their own


class _Attack(NamedTuple):
    """Words for the caller."""

    words: str
    lie: Lie
    why: bytes
    """In the protected log."""


def _lie(call: int, result: int | None = None, *put: tuple[int, int, int, int]) -> Lie:
    return Lie(call, result, once=True, put=put)


def _answered(name: str, words: str, call: int, *results: int, why: bytes = b"") -> dict[str, _Attack]:
    return {f"{name} answers {result:#x}": _Attack(words, _lie(call, result), why) for result in results}


_LOCKED = f"2 {_PASSWD} 0 0 / "
_SOCKETS = "53 1 1 0 @8 / "
_PIPE = "293 @8 0 / 1 4 @8:q1 8 / "
_EPOLL = "291 0 / 233 3 1 1 @12:d1,q77 / "
_MESSAGE = "102 @64 @16:&1,q32 @64 / 1 4 @8:q1 8"
_FILES = {
    **_answered("read", f"{_PIPE}0 3 @8 8", 0, 9, _ENCLAVE, why=b"a read of 8 bytes"),
    **_answered("pread64", "17 1 @8 8 0", 17, 9, _LARGE, why=b"a read of 8 bytes"),
    **_answered("readv", f"{_PIPE}19 3 @32:&0,q8,&1,q8 2", 0, 17, why=b"a read of 16 bytes"),
    **_answered("preadv", "102 @8 / 295 1 @16:&0,q8 1 0", 17, 9, why=b"a read of 8 bytes"),
    **_answered("write", "1 1 @8 8", 1, 9, _ENCLAVE, why=b"a write of 8 bytes"),
    **_answered("pwrite64", "18 1 @8 8 0", 18, 9, why=b"a write of 8 bytes"),
    **_answered("writev", "102 @8 / 20 1 @32:&0,q8,&0,q8 2", 1, 17, why=b"a write of 16 bytes"),
    **_answered("pwritev", "102 @8 / 296 1 @16:&0,q8 1 0", 18, 9, why=b"a write of 8 bytes"),
    **_answered("sendfile", f"{_PIPE}40 4 3 0 8", 40, 9, why=b"sendfile of 8 bytes"),
    **_answered("lseek", "8 1 0 1", 8, -200, why=b"no system call"),
    **_answered("open", f"2 {_PATH} 0 0", 257, 1, why=b"descriptor 1, which is open"),
    **_answered("openat", f"257 -100 {_PATH} 0 0", 257, 2, why=b"descriptor 2, which is open"),
    **_answered("stat", f"4 {_PATH} @144", 262, 1, why=b"newfstatat is answered by 0x1, which it cannot be"),
    **_answered("lstat", f"6 {_PATH} @144", 262, 1, why=b"newfstatat is answered by 0x1, which it cannot be"),
    **_answered("fstat", "5 1 @144", 262, 1, why=b"newfstatat is answered by 0x1, which it cannot be"),
    **_answered(
        "newfstatat", f"262 -100 {_PATH} @144 0", 262, 1, why=b"newfstatat is answered by 0x1, which it cannot be"
    ),
    **_answered(
        "statx", f"332 -100 {_PATH} 0 0 @256", 262, 1, why=b"newfstatat is answered by 0x1, which it cannot be"
    ),
    "fstat of a negative size": _Attack(
        "2 @16:x2f6465762f6e756c6c00 0 0 / 5 3 @144", _lie(262, None, (2, 48, 8, 1 << 63)), b"a file has"
    ),
    "stat of a negative number of blocks": _Attack(
        # /usr: other programs change /tmp meanwhile
        "4 @16:x2f75737200 @144",
        _lie(262, None, (2, 64, 8, (1 << 64) - 1)),
        b"a file has",
    ),
    **_answered("access", f"21 {_PATH} 0", 21, 1, why=b"access is answered by 0x1, which it cannot be"),
    **_answered("faccessat", f"269 -100 {_PATH} 0", 21, 1, why=b"access is answered by 0x1, which it cannot be"),
    **_answered("faccessat2", f"439 -100 {_PATH} 0 0", 21, 1, why=b"access is answered by 0x1, which it cannot be"),
    **_answered("readlink", f"89 {_PATH} @8 8", 89, 9, why=b"readlink of 8 bytes"),
    **_answered("readlinkat", f"267 -100 {_PATH} @8 8", 89, 4097, why=b"readlink of 8 bytes"),
    **_answered("getdents64", f"2 {_PATH} 0 0 / 217 3 @512 512", 217, 513, why=b"getdents of 512 bytes"),
    **_answered("getdents", f"2 {_PATH} 0 0 / 78 3 @512 512", 78, 513, why=b"getdents of 512 bytes"),
    "an entry of no bytes": _Attack(
        f"2 {_PATH} 0 0 / 217 3 @512 512", _lie(217, 48, (1, 16, 2, 0)), b"an entry of a folder has 0 bytes"
    ),
    "an entry beyond the answer": _Attack(
        f"2 {_PATH} 0 0 / 217 3 @512 512", _lie(217, 48, (1, 16, 2, 64)), b"an entry of a folder has 64 bytes of 48"
    ),
    "an entry cut short": _Attack(
        f"2 {_PATH} 0 0 / 217 3 @512 512", _lie(217, 8), b"an entry of a folder is cut short"
    ),
    "an entry whose name does not end": _Attack(
        f"2 {_PATH} 0 0 / 217 3 @512 512",
        _lie(217, 24, (1, 16, 2, 24), (1, 18, 6, 0x6161_6161_6161)),
        b"the name of a folder's entry",
    ),
    "an entry that is a path": _Attack(
        f"2 {_PATH} 0 0 / 217 3 @512 512",
        _lie(217, 24, (1, 16, 2, 24), (1, 18, 6, 0x612F2E2E04)),
        b"the name of a folder's entry",
    ),
    "an entry whose name is longer than one can be": _Attack(
        # what was written stands in the window still
        f"293 @8 0 / 1 4 @512:x{'61' * 512} 512 / 2 {_PATH} 0 0 / 217 5 @512 512",
        _lie(217, 300, (1, 16, 2, 300), (1, 18, 1, 8), (1, 275, 1, 0)),
        b"the name of a folder's entry",
    ),
    "stat of a time that is none": _Attack(
        # /usr: other programs change /tmp meanwhile
        "4 @16:x2f75737200 @144",
        _lie(262, None, (2, 80, 8, 1_000_000_000)),
        b"the time of a file has 1000000000 nanoseconds",
    ),
    **_answered("truncate", f"76 {_PATH} 0", 76, 1, why=b"truncate is answered by 0x1, which it cannot be"),
    **_answered("ftruncate", "77 1 0", 77, 1, why=b"ftruncate is answered by 0x1, which it cannot be"),
    **_answered("fallocate", "285 1 0 0 1", 285, 1, why=b"fallocate is answered by 0x1, which it cannot be"),
    **_answered("link", f"86 {_PATH} {_PATH}", 265, 1, why=b"linkat is answered by 0x1, which it cannot be"),
    **_answered(
        "linkat", f"265 -100 {_PATH} -100 {_PATH} 0", 265, 1, why=b"linkat is answered by 0x1, which it cannot be"
    ),
    **_answered("symlink", f"88 {_PATH} {_PATH}", 266, 1, why=b"symlinkat is answered by 0x1, which it cannot be"),
    **_answered(
        "symlinkat", f"266 {_PATH} -100 {_PATH}", 266, 1, why=b"symlinkat is answered by 0x1, which it cannot be"
    ),
    **_answered("rename", f"82 {_PATH} {_PATH}", 316, 1, why=b"renameat2 is answered by 0x1, which it cannot be"),
    **_answered(
        "renameat", f"264 -100 {_PATH} -100 {_PATH}", 316, 1, why=b"renameat2 is answered by 0x1, which it cannot be"
    ),
    **_answered(
        "renameat2", f"316 -100 {_PATH} -100 {_PATH} 0", 316, 1, why=b"renameat2 is answered by 0x1, which it cannot be"
    ),
    **_answered("unlink", f"87 {_PATH}", 263, 1, why=b"unlinkat is answered by 0x1, which it cannot be"),
    **_answered("rmdir", f"84 {_PATH}", 263, 1, why=b"unlinkat is answered by 0x1, which it cannot be"),
    **_answered("unlinkat", f"263 -100 {_PATH} 0", 263, 1, why=b"unlinkat is answered by 0x1, which it cannot be"),
}
_DESCRIPTORS = {
    **_answered("dup", "32 1", 32, 1, why=b"descriptor 1, which is open"),
    **_answered("dup2", "! 33 1 5 / 1 5 @8 8", 292, 6, why=b"dup3 to 5"),
    **_answered("dup3", "! 292 1 5 0 / 1 5 @8 8", 292, _ENCLAVE, why=b"dup3 to 5"),
    **_answered("pipe", "22 @8", 293, 1, why=b"pipe2 is answered by 0x1, which it cannot be"),
    **_answered("pipe2", "293 @8 0", 293, 1, why=b"pipe2 is answered by 0x1, which it cannot be"),
    "pipe2 of one descriptor twice": _Attack("293 @8 0", _lie(293, 0, (0, 0, 8, 7 << 32 | 7)), b"descriptor 7"),
    **_answered("fcntl", "72 1 3 0", 72, 1 << 31, why=b"fcntl is answered by"),
    **_answered("fcntl of flags", "72 1 1 0", 72, 2, why=b"fcntl is answered by"),
    **_answered("fcntl that sets flags", "72 1 2 0", 72, 1, why=b"fcntl is answered by"),
    **_answered("fcntl of a lock", f"{_LOCKED}72 3 5 @32", 72, 1, why=b"fcntl is answered by 0x1, which it cannot be"),
    "fcntl of a lock of no type": _Attack(f"{_LOCKED}72 3 5 @32", _lie(72, None, (2, 0, 2, 7)), b"a lock that cannot"),
    "fcntl of a lock before the file": _Attack(
        f"{_LOCKED}72 3 5 @32", _lie(72, None, (2, 0, 2, 1), (2, 8, 8, 1 << 63)), b"a lock that cannot be"
    ),
    "ioctl of a negative group": _Attack("16 1 21519 @4", _lie(16, 0, (2, 0, 4, (1 << 32) - 1)), b"has the group"),
    "ioctl of an interface without a number": _Attack(
        "53 1 1 0 @8 / 16 3 35123 @40", _lie(16, 0, (2, 16, 4, 0)), b"an interface has the number"
    ),
    "fcntl duplicates what is open": _Attack("72 1 0 10", _lie(72, 2), b"descriptor 2, which is open"),
    **_answered("ioctl", "16 1 21531 @8", 16, 1, why=b"ioctl is answered by 0x1, which it cannot be"),
    "ioctl of a negative count": _Attack(
        "293 @8 0 / 16 3 21531 @8", _lie(16, None, (2, 0, 4, 1 << 31)), b"are said to be there to read"
    ),
    "ioctl of an interface's name that does not end": _Attack(
        "53 1 1 0 @8 / 16 3 35088 @40:q0,q0,d1", _lie(16, None, (2, 15, 1, 0x61)), b"the name of an interface"
    ),
    **_answered("epoll_create", "213 1", 291, 1, why=b"descriptor 1, which is open"),
    **_answered("epoll_create1", "291 0", 291, 1, why=b"descriptor 1, which is open"),
    **_answered(
        "epoll_ctl", "291 0 / 233 3 1 1 @12:d1,q77", 233, 1, why=b"epoll_ctl is answered by 0x1, which it cannot be"
    ),
    **_answered("epoll_wait", f"{_EPOLL}232 3 @24 2 0", 232, 3, why=b"epoll_wait for 2 events"),
    **_answered("epoll_pwait", f"{_EPOLL}281 3 @24 2 0 0", 232, 3, why=b"epoll_wait for 2 events"),
    "epoll_wait reports what nobody watches": _Attack(
        f"{_EPOLL}232 3 @24 2 0", _lie(232, 1, (1, 0, 4, 1), (1, 4, 8, 2)), b"epoll reports 0x2"
    ),
    "epoll_wait reports an address": _Attack(
        f"{_EPOLL}232 3 @24 2 0", _lie(232, 1, (1, 0, 4, 1), (1, 4, 8, _ENCLAVE)), b"epoll reports"
    ),
    **_answered("poll", "7 @8:d1,d4 1 0", 7, 2, why=b"poll of 1 descriptors"),
    **_answered("ppoll", "271 @8:d1,d4 1 @16 0 8", 271, 2, why=b"poll of 1 descriptors"),
    **_answered("select", "23 2 @128:q2 0 0 @16", 23, 7, why=b"select of 2 descriptors"),
    **_answered("pselect6", "270 2 @128:q2 0 0 @16 0", 270, 7, why=b"select of 2 descriptors"),
}
_NETWORK = {
    **_answered("accept", f"{_SOCKETS}43 3 @16 @4:d16", 288, 1, why=b"descriptor 1, which is open"),
    **_answered("accept4", f"{_SOCKETS}288 3 @16 @4:d16 0", 288, 1, why=b"descriptor 1, which is open"),
    "accept's address": _Attack(f"{_SOCKETS}43 3 @16 @4:d16", _lie(288, 9, (2, 0, 4, 129)), b"address has 129 bytes"),
    **_answered(
        "getsockname", f"{_SOCKETS}51 3 @16 @4:d16", 51, 1, why=b"getsockname is answered by 0x1, which it cannot be"
    ),
    **_answered(
        "getpeername", f"{_SOCKETS}52 3 @16 @4:d16", 52, 1, why=b"getpeername is answered by 0x1, which it cannot be"
    ),
    "getsockname's length": _Attack(
        f"{_SOCKETS}51 3 @16 @4:d16", _lie(51, None, (2, 0, 4, 129)), b"address has 129 bytes"
    ),
    "getpeername's length": _Attack(
        f"{_SOCKETS}52 3 @16 @4:d16", _lie(52, None, (2, 0, 4, 0xFFFFFFFF)), b"a socket's address has"
    ),
    **_answered("connect", f"{_SOCKETS}42 3 @16:x0100 2", 42, 1, why=b"connect is answered by 0x1, which it cannot be"),
    **_answered("bind", f"{_SOCKETS}49 3 @16:x0100 2", 49, 1, why=b"bind is answered by 0x1, which it cannot be"),
    **_answered("sendto", f"{_SOCKETS}44 3 @8 8 0 0 0", 44, 9, why=b"sendto of 8 bytes"),
    **_answered("recvfrom", f"{_SOCKETS}45 3 @8 8 64 0 0", 45, 9, why=b"recvfrom of 8 bytes"),
    "recvfrom's address": _Attack(
        f"{_SOCKETS}45 3 @8 8 64 @16 @4:d16", _lie(45, 8, (5, 0, 4, 4096)), b"address has 4096 bytes"
    ),
    **_answered("socketpair", "53 1 1 0 @8", 53, 1, why=b"socketpair is answered by 0x1, which it cannot be"),
    "socketpair of what is open": _Attack("53 1 1 0 @8", _lie(53, 0, (3, 0, 8, 9 << 32 | 1)), b"descriptor 1"),
    **_answered(
        "getsockopt", f"{_SOCKETS}55 3 1 3 @4 @4:d4", 55, 1, why=b"getsockopt is answered by 0x1, which it cannot be"
    ),
    "getsockopt's length": _Attack(
        f"{_SOCKETS}55 3 1 3 @4 @4:d4", _lie(55, None, (4, 0, 4, 64)), b"getsockopt of 4 bytes is answered by 64"
    ),
    **_answered("sendmsg", f"{_SOCKETS}{_MESSAGE} / 46 3 @56:&1,d0,d0,&2,q1 0", 46, 33, why=b"sendmsg of 32 bytes"),
    **_answered("recvmsg", f"{_SOCKETS}{_MESSAGE} / 47 3 @56:q0,d0,d0,&2,q1 64", 47, 33, why=b"recvmsg of 32"),
    "recvmsg's address": _Attack(
        f"{_SOCKETS}{_MESSAGE} / 47 3 @56:&1,d64,d0,&2,q1 64", _lie(47, None, (1, 8, 4, 129)), b"recvmsg of 32"
    ),
    "recvmsg's address of half a family": _Attack(
        f"{_SOCKETS}{_MESSAGE} / 47 3 @56:&1,d64,d0,&2,q1 64",
        _lie(47, None, (1, 8, 4, 5), (1, 80, 2, 2)),
        b"a message's address has 5 bytes",
    ),
    "getsockname's address of half a family": _Attack(
        "41 2 2 0 / 51 3 @16 @4:d16", _lie(51, None, (2, 0, 4, 2)), b"a socket's address has 2 bytes"
    ),
    "getsockopt's short answer": _Attack(
        f"{_SOCKETS}55 3 1 4 @4:d77 @4:d4", _lie(55, None, (4, 0, 4, 1)), b"option 4 of a socket is answered by what"
    ),
    "getsockopt's error that is none": _Attack(
        f"{_SOCKETS}55 3 1 4 @4 @4:d4", _lie(55, None, (3, 0, 4, 200)), b"option 4 of a socket"
    ),
    "getsockopt's negative size": _Attack(
        f"{_SOCKETS}55 3 1 7 @4 @4:d4", _lie(55, None, (3, 0, 4, 1 << 31)), b"option 7 of a socket"
    ),
    "getsockopt's time that is none": _Attack(
        f"{_SOCKETS}55 3 1 20 @16 @4:d16", _lie(55, None, (3, 8, 8, 1_000_000)), b"option 20 of a socket"
    ),
    "recvmsg's ancillary data": _Attack(
        f"{_SOCKETS}{_MESSAGE} / 47 3 @56:q0,d0,d0,&2,q1,&3,q64 64", _lie(47, None, (1, 40, 8, 65)), b"recvmsg of 32"
    ),
}
_OTHERS = {
    **_answered("getpid", "39", 39, 0, 1 << 23, why=b"getpid is answered by"),
    **_answered("gettid", "186", 39, 1 << 23, why=b"getpid is answered by"),
    **_answered("getuid", "102", 102, 1 << 32, why=b"getuid is answered by"),
    **_answered("getgid", "104", 104, 1 << 32, why=b"getgid is answered by"),
    **_answered("geteuid", "107", 107, _ENCLAVE, why=b"geteuid is answered by"),
    **_answered("getegid", "108", 108, _ENCLAVE, why=b"getegid is answered by"),
    **_answered("setuid", "105 0", 105, 1, why=b"setuid is answered by"),
    **_answered("setgid", "106 0", 106, 1, why=b"setgid is answered by"),
    **_answered("uname", "63 @390", 63, 1, why=b"uname is answered by 0x1, which it cannot be"),
    "uname without an end": _Attack("63 @390", _lie(63, None, (0, 64, 1, 0x61)), b"a string of uname does not end"),
    **_answered("alarm", "37 0", 37, 1 << 32, why=b"alarm is answered by"),
    **_answered("setitimer", "38 0 @32 @32", 38, 1, why=b"setitimer is answered by 0x1, which it cannot be"),
    **_answered("nanosleep", "35 @16 @16", 230, 1, why=b"clock_nanosleep is answered by 0x1, which it cannot be"),
    **_answered("clock_nanosleep", "230 1 0 @16 @16", 230, 1, why=b"clock_nanosleep is answered by 0x1,"),
    "what is left of a sleep": _Attack(
        "35 @16 @16", _lie(230, -4, (3, 0, 8, 1), (3, 8, 8, 1_000_000_000)), b"seconds of a sleep are left"
    ),
    "clock_gettime of no time": _Attack("228 2 @16", _lie(228, 0, (1, 0, 8, 1 << 63)), b"clock 2 says"),
    "clock_gettime of too many nanoseconds": _Attack("228 2 @16", _lie(228, 0, (1, 8, 8, 1 << 30)), b"clock 2 says"),
    "gettimeofday": _Attack("96 @16 0", _lie(228, 0, (1, 0, 8, 1 << 40)), b"clock 0 says"),
    **{
        f"{name} of no time": _Attack(
            # What was used so far changes by itself.
            words, _lie(call, 0 if call in (98, 100) else None, (argument, 8, 8, parts)),
            f"{name} is answered by values that".encode(),
        )
        for name, words, call, argument, parts in (
            ("getitimer", "36 0 @32", 36, 1, 1_000_000),
            ("setitimer", "38 0 @32 @32", 38, 2, 1_000_000),
            ("timerfd_settime", "283 1 0 / 286 3 0 @32 @32", 286, 3, 1_000_000_000),
            ("timerfd_gettime", "283 1 0 / 287 3 @32", 287, 1, 1_000_000_000),
            ("getrusage", "98 0 @144", 98, 1, 1_000_000),
            ("times", "100 @32", 100, 0, 1 << 63),
        )
    },
    "getitimer of a time before all": _Attack("36 0 @32", _lie(36, None, (1, 16, 8, 1 << 63)), b"getitimer is"),
    "getrusage of a negative count": _Attack("98 0 @144", _lie(98, 0, (1, 32, 8, 1 << 63)), b"getrusage is"),
    **{
        f"{name} of {what}": _Attack(
            words, _lie(call, None, (argument, offset, 8, value)), f"{name} is answered by values that".encode()
        )
        for name, words, call, argument in (
            ("statfs", f"137 {_PROC} @120", 137, 1), ("fstatfs", f"2 {_PROC} 0 0 / 138 3 @120", 138, 1),
        )
        for what, offset, value in (
            ("no block size", 8, 0), ("no fragment size", 72, 0), ("a block size that is none", 8, 1 << 31),
            ("more free blocks than blocks", 24, 1 << 60), ("more available blocks", 32, 1 << 60),
            ("more free files", 48, 1 << 60), ("a negative name", 64, 1 << 63), ("a name without an end", 64, 1 << 20),
        )
    },
    **{
        f"sysinfo of {what}": _Attack("99 @112", _lie(99, None, put), b"sysinfo is answered by values that")
        for what, put in {
            "no unit": (0, 104, 4, 0), "more free memory than memory": (0, 40, 8, 1 << 62),
            "memory that no number counts": (0, 32, 8, (1 << 64) - 1), "a time before it began": (0, 0, 8, 1 << 63),
        }.items()
    },
    "time": _Attack("201 @8", _lie(228, 0, (1, 8, 8, (1 << 64) - 1)), b"clock 0 says"),
}  # fmt: skip
_ATTACKS = {**_FILES, **_DESCRIPTORS, **_NETWORK, **_OTHERS}
#: The kernel has no word in these; how each is called to show it.
_INSIDE = {
    "mmap": "9 0 8192 3 34 -1 0", "mprotect": "10 & 4096 3", "munmap": "11 1048576 4096", "brk": "12 0",
    "mremap": "25 1048576 4096 8192 1", "msync": "26 & 4096 4", "madvise": "28 & 4096 4",
    "rt_sigaction": "13 10 0 @32 8", "rt_sigprocmask": "14 0 0 @8 8", "rt_sigpending": "127 @8 8",
    "sigaltstack": "131 0 @24", "kill": "62 0 0", "tkill": "200 0 0", "tgkill": "234 0 0 0",
    "set_tid_address": "218 0", "set_robust_list": "273 0 24", "rseq": "334 0 0 0 0", "membarrier": "324 0 0",
    "clone3": "435 0 0", "fork": "57",
    "sched_setaffinity": "203 0 8 @8", "sched_getaffinity": "204 0 8 @8", "getcpu": "309 @4 @4",
    "getcwd": "79 @64 64", "getrlimit": "97 3 @16", "setrlimit": "160 3 @16", "prlimit64": "302 0 3 0 @16",
    "prctl": "157 3 0", "arch_prctl": "158 4099 @8", "clock_getres": "229 1 @16", "getrandom": "318 @8 8 0",
    "fadvise64": "221 1 0 0 0", "close_range": "436 3 4 0",
    "setxattr": "188 0 0 0 0", "lsetxattr": "189 0 0 0 0",
    "fsetxattr": "190 0 0 0 0", "getxattr": "191 0 0 0 0",
    "lgetxattr": "192 0 0 0 0", "fgetxattr": "193 0 0 0 0",
    "listxattr": "194 0 0 0 0", "llistxattr": "195 0 0 0 0",
    "flistxattr": "196 0 0 0 0", "removexattr": "197 0 0 0 0",
    "lremovexattr": "198 0 0 0 0", "fremovexattr": "199 0 0 0 0",
}  # fmt: skip
#: What it answers does not come to the program: these wait, and know themselves whether there is an end to it.
_WAITING = {"futex": "202 @4 128 0 @16:q0,q1000000", "rt_sigtimedwait": "128 @8:q512 0 @16:q0,q1000000 8"}
#: The rest. An ending has no answer, and a handler's return none either. `close` has done its part when it asks.
#: `clone` asks the process, for a number or an error. What a folder is, and what a mapped file holds, other calls ask.
_NO_ANSWER = {"exit", "exit_group", "rt_sigreturn", "pause", "rt_sigsuspend", "close", "clone", "chdir", "fchdir"}


def test_no_call_is_forgotten() -> None:
    """A call that is added to the table without a case here fails this one."""
    described = {call.name for call in _described()}
    handled = {name for _, name in _HANDLER.findall(_TABLE)}
    named = {word for name in _ATTACKS for word in (name.split()[0], name.split("'")[0])} & handled
    programs = {name.split()[0] for name in PROGRAM_LIES}
    groups = (described, named, set(_INSIDE), set(_WAITING), _NO_ANSWER, programs)
    assert sum(map(len, groups)) == len(set().union(*groups)), "each call is in one group"
    assert set().union(*groups) == {
        name for _, name in re.findall(r"^(?:CALL|OWN)\((\d+), (\w+), ", _TABLE, re.MULTILINE)
    }
    assert handled >= _NO_ANSWER


@pytest.mark.parametrize("name", _INSIDE)
def test_the_kernel_is_not_asked(native: NativeRuntime, image: EnclaveImage, name: str) -> None:
    """All that it would answer is nonsense, and would end the enclave."""
    # The number of the process is asked for once, and known afterwards.
    words = ["39", "/", "102", "@8192", "/", *_SYNC, *_INSIDE[name].replace("&", "&0").split(), "/", "162"]
    done = native.run(image, "p", *words, lie=Lie(EVERY_CALL, -200, once=True))
    assert done.returncode == 0, done
    assert done.stderr.count(b"\n") <= 1, done


def test_one_that_asks_would_be_seen(native: NativeRuntime, image: EnclaveImage) -> None:
    words = [*_SYNC, "110", "/", "162"]
    assert _ended(native.run(image, "p", *words, lie=Lie(EVERY_CALL, -200, once=True)))


@pytest.mark.parametrize("result", [0, 7, -14, _LARGE])
@pytest.mark.parametrize("name", _WAITING)
def test_who_waits_is_not_told_the_answer(native: NativeRuntime, image: EnclaveImage, name: str, result: int) -> None:
    words = [*_SYNC, *_WAITING[name].split()]
    honest = native.run(image, "p", *words)
    lying = native.run(image, "p", *words, lie=Lie(202, result, once=True))
    assert (lying.returncode, lying.stdout) == (honest.returncode, honest.stdout)


def test_a_file_that_is_mapped(native: NativeRuntime, image: EnclaveImage) -> None:
    """Its content is read, and more than was asked for cannot come."""
    words = f"2 {_PASSWD} 0 0 / 162 / 9 0 4096 1 2 3 0".split()
    assert native.run(image, "p", *words).returncode == 0
    done = native.run(image, "p", *words, lie=_lie(17, _LARGE))
    assert _ended(done)
    assert b"a read of " in done.stderr


def test_a_folder_that_is_none(native: NativeRuntime, image: EnclaveImage) -> None:
    for words in (f"162 / 80 {_PATH}", f"2 {_PATH} 65536 0 / 162 / 81 3"):
        done = native.run(image, "p", *words.split(), lie=_lie(262, 1))
        assert _ended(done), done


def test_a_descriptor_that_the_kernel_does_not_close(native: NativeRuntime, image: EnclaveImage) -> None:
    """The program has closed it, whatever the kernel answers."""
    for result in (1, -5, _LARGE):
        done = native.run(image, "p", *_SYNC, *["3", "2", "/", "1", "2", "@1", "1"], lie=Lie(3, result, once=True))
        assert _results(done)[:2] == ["0", "-9"]


def _words(attack: _Attack) -> Sequence[str]:
    """The lie holds for the last call, or for the one with a `!`."""
    calls = attack.words.split(" / ")
    marked = [call for call in calls if call.startswith("! ")]
    calls.insert(calls.index(marked[0]) if marked else -1, "162")
    return [word for call in calls for word in (*call.removeprefix("! ").split(), "/")][:-1]


@pytest.mark.parametrize("name", _ATTACKS)
def test_what_no_honest_kernel_answers(native: NativeRuntime, image: EnclaveImage, name: str) -> None:
    attack = _ATTACKS[name]
    honest = native.run(image, "p", *_words(attack))
    assert honest.returncode == 0, "the call is one that a program can make"
    done = native.run(image, "p", *_words(attack), lie=attack.lie)
    assert _ended(done), done
    assert attack.why in done.stderr, done.stderr


@pytest.mark.parametrize("name", _ATTACKS)
def test_without_the_check_it_gets_through(believing: NativeRuntime, image: EnclaveImage, name: str) -> None:
    attack = _ATTACKS[name]
    done = believing.run(image, "p", *_words(attack), lie=attack.lie)
    assert done.returncode != _ATTACKED
    assert done.stdout != believing.run(image, "p", *_words(attack)).stdout, "the program sees another answer"


# What is not watched any more

#: A pipe is watched, and no more: it is closed, by its number or by another one's coming there, or taken out.
_WATCHED = "291 0 / 293 @8 0 / 233 3 1 4 @12:d1,q77 / 1 5 @8 8 / "
_NO_MORE = ("3 4", "33 1 4", "233 3 2 4 0")


@pytest.mark.parametrize("how", _NO_MORE)
def test_what_is_not_watched_any_more(native: NativeRuntime, image: EnclaveImage, how: str) -> None:
    """What the program kept with it is freed memory by now. It may be an event of before, so nobody is blamed."""
    words = f"{_WATCHED}{how} / 162 / 232 3 @12 1 0".split()
    done = native.run(image, "p", *words, lie=_lie(232, 1, (1, 0, 4, 1), (1, 4, 8, 4)))
    assert done.stdout == native.run(image, "p", *words).stdout
    assert (_results(done)[-1], done.stderr) == ("0" * 24 + ".", b"")


@pytest.mark.parametrize("how", _NO_MORE)
def test_a_set_that_forgets_nothing(native: NativeRuntime, image: EnclaveImage, how: str) -> None:
    words = f"{_WATCHED}{how} / 162 / 232 3 @12 1 0".split()
    lie = _lie(232, 1, (1, 0, 4, 1), (1, 4, 8, 4))
    done = NativeRuntime(native.place, believes_sets()).run(image, "p", *words, lie=lie)
    assert _results(done)[-1] == "010000004d00000000000000."


def test_what_is_watched_still(native: NativeRuntime, image: EnclaveImage) -> None:
    """By another descriptor of the same file; and as it was before something that the kernel refused."""
    for more in ("32 4 / 3 4", "233 3 1 4 @12:d4,q88"):
        done = native.run(image, "p", *f"{_WATCHED}{more} / 232 3 @12 1 0".split())
        assert _results(done)[-1] == "010000004d00000000000000.", done


def test_who_waits_for_ever_hears_of_something(native: NativeRuntime, image: EnclaveImage) -> None:
    """An event that is not the program's is no answer: some programs take "none" for a time that has passed."""
    words = f"{_WATCHED}293 @8 0 / 233 3 1 6 @12:d1,q88 / 3 6 / 162 / 232 3 @12 1 -1".split()
    done = native.run(image, "p", *words, lie=_lie(232, 1, (1, 0, 4, 1), (1, 4, 8, 6)))
    assert _results(done)[-1] == "010000004d00000000000000.", done


# What changes while it is read


def _changing() -> list[str]:
    """Attacks whose hostile value comes when the good one was read."""
    # Free memory changes by itself.
    return [name for name, attack in _ATTACKS.items() if attack.lie.put and not name.startswith("sysinfo")]


@pytest.mark.parametrize("name", _changing())
def test_what_changes_after_it_was_read(native: NativeRuntime, image: EnclaveImage, name: str) -> None:
    """What is used is what was checked: as if nothing had changed, or the enclave ends."""
    attack = _ATTACKS[name]
    honest = Lie(attack.lie.call, attack.lie.result, once=True)
    wanted = native.run(image, "p", *_words(attack), lie=honest)
    done = native.run(image, "p", *_words(attack), lie=replace(honest, later=attack.lie.put[0]))
    assert _ended(done) or (done.returncode, done.stdout) == (wanted.returncode, wanted.stdout), done


def test_a_length_that_is_read_twice(native: NativeRuntime, image: EnclaveImage) -> None:
    """The counter-test: a length that is checked, and read again when it is used."""
    words = _words(_ATTACKS["getsockopt's length"])
    lie = Lie(55, None, once=True, later=(4, 0, 4, 2048))
    assert _results(native.run(image, "p", *words, lie=lie))[-2:] == ["01000000.", "04000000."]
    done = NativeRuntime(native.place, reads_twice()).run(image, "p", *words, lie=lie)
    assert _results(done)[-2:] == ["01000000!", "00080000."], "what lies behind the buffer was overwritten"


def test_what_an_option_leaves_of_its_room(native: NativeRuntime, image: EnclaveImage) -> None:
    """Of an option without a size of its own (TCP_CONGESTION) nothing stays there that was there before."""
    words = f"41 2 1 0 / 162 / 55 3 6 13 @16:x{'77' * 16} @4:d16".split()
    done = native.run(image, "p", *words, lie=_lie(55, 0, (3, 0, 8, 0x6162), (4, 0, 4, 3)))
    assert _results(done)[-2:] == ["626100" + "00" * 13 + ".", "03000000."]


def test_a_part_of_an_option(native: NativeRuntime, image: EnclaveImage) -> None:
    """A program with less room than the option needs gets as much."""
    done = native.run(image, "p", *f"{_SOCKETS}55 3 1 3 @2 @4:d2".split())
    assert _results(done)[-2:] == ["0100.", "02000000."]
