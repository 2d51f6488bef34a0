# SPDX-License-Identifier: GPL-2.0-or-later
"""What no honest kernel answers, for each system call of an enclave that has a handler of its own.

`caller.c` makes the calls that the words say. A call that is added to `calls.def` is added to one of the groups here.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from tests.guest.enclaves.native_runtime import Lie

__all__ = [
    "ATTACKS",
    "ENCLAVE",
    "INSIDE",
    "LARGE",
    "NO_ANSWER",
    "PASSWD",
    "PATH",
    "SOCKETS",
    "WAITING",
    "Attack",
    "lie_once",
]

LARGE = 1 << 40
ENCLAVE = 0x7000_0000_0000
"""An address in it."""
PATH = "@16:x2f746d7000"  # /tmp
_PROC = "@16:x2f70726f6300"  # /proc
PASSWD = "@16:x2f6574632f70617373776400"  # /etc/passwd


class Attack(NamedTuple):
    """Words for the caller."""

    words: str
    lie: Lie
    why: bytes
    """In the protected log."""


def lie_once(call: int, result: int | None = None, *put: tuple[int, int, int, int]) -> Lie:
    return Lie(call, result, once=True, put=put)


def _answered(name: str, words: str, call: int, *results: int, why: bytes = b"") -> dict[str, Attack]:
    return {f"{name} answers {result:#x}": Attack(words, lie_once(call, result), why) for result in results}


_LOCKED = f"2 {PASSWD} 0 0 / "
SOCKETS = "53 1 1 0 @8 / "
#: 127.x.y.1, which is nobody else's for the moment
_ADDRESS = f"7f{os.urandom(2).hex()}01"
_PIPE = "293 @8 0 / 1 4 @8:q1 8 / "
_TIMER = "222 1 0 @4"
_EPOLL = "291 0 / 233 3 1 1 @12:d1,q77 / "
_MESSAGE = "102 @64 @16:&1,q32 @64 / 1 4 @8:q1 8"
_FILES = {
    **_answered("read", f"{_PIPE}0 3 @8 8", 0, 9, ENCLAVE, why=b"a read of 8 bytes"),
    **_answered("pread64", "17 1 @8 8 0", 17, 9, LARGE, why=b"a read of 8 bytes"),
    **_answered("readv", f"{_PIPE}19 3 @32:&0,q8,&1,q8 2", 0, 17, why=b"a read of 16 bytes"),
    **_answered("preadv", "102 @8 / 295 1 @16:&0,q8 1 0", 17, 9, why=b"a read of 8 bytes"),
    **_answered("write", "1 1 @8 8", 1, 9, ENCLAVE, why=b"a write of 8 bytes"),
    **_answered("pwrite64", "18 1 @8 8 0", 18, 9, why=b"a write of 8 bytes"),
    **_answered("writev", "102 @8 / 20 1 @32:&0,q8,&0,q8 2", 1, 17, why=b"a write of 16 bytes"),
    **_answered("pwritev", "102 @8 / 296 1 @16:&0,q8 1 0", 18, 9, why=b"a write of 8 bytes"),
    **_answered("sendfile", f"{_PIPE}40 4 3 0 8", 40, 9, why=b"sendfile of 8 bytes"),
    **_answered("lseek", "8 1 0 1", 8, -200, why=b"no system call"),
    **_answered("lseek to a place", f"2 {PASSWD} 0 0 / 8 3 100 0", 8, 101, 0, LARGE, why=b"lseek is answered by"),
    **_answered("lseek forwards", f"2 {PASSWD} 0 0 / 8 3 100 1", 8, 99, why=b"lseek is answered by"),
    **_answered("lseek behind the end", f"2 {PASSWD} 0 0 / 8 3 100 2", 8, 99, why=b"lseek is answered by"),
    **_answered("lseek to data", f"2 {PASSWD} 0 0 / 8 3 100 3", 8, 99, why=b"lseek is answered by"),
    **_answered("open", f"2 {PATH} 0 0", 257, 1, why=b"descriptor 1, which is open"),
    **_answered("openat", f"257 -100 {PATH} 0 0", 257, 2, why=b"descriptor 2, which is open"),
    **_answered("stat", f"4 {PATH} @144", 262, 1, why=b"newfstatat is answered by 0x1, which it cannot be"),
    **_answered("lstat", f"6 {PATH} @144", 262, 1, why=b"newfstatat is answered by 0x1, which it cannot be"),
    **_answered("fstat", "5 1 @144", 262, 1, why=b"newfstatat is answered by 0x1, which it cannot be"),
    **_answered(
        "newfstatat", f"262 -100 {PATH} @144 0", 262, 1, why=b"newfstatat is answered by 0x1, which it cannot be"
    ),
    **_answered("statx", f"332 -100 {PATH} 0 0 @256", 262, 1, why=b"newfstatat is answered by 0x1, which it cannot be"),
    "fstat of a negative size": Attack(
        "2 @16:x2f6465762f6e756c6c00 0 0 / 5 3 @144", lie_once(262, None, (2, 48, 8, 1 << 63)), b"a file has"
    ),
    "stat of a negative number of blocks": Attack(
        # /usr: other programs change /tmp meanwhile
        "4 @16:x2f75737200 @144",
        lie_once(262, None, (2, 64, 8, (1 << 64) - 1)),
        b"a file has",
    ),
    **_answered("access", f"21 {PATH} 0", 21, 1, why=b"access is answered by 0x1, which it cannot be"),
    **_answered("faccessat", f"269 -100 {PATH} 0", 21, 1, why=b"access is answered by 0x1, which it cannot be"),
    **_answered("faccessat2", f"439 -100 {PATH} 0 0", 21, 1, why=b"access is answered by 0x1, which it cannot be"),
    **_answered("readlink", f"89 {PATH} @8 8", 89, 9, why=b"readlink of 8 bytes"),
    **_answered("readlinkat", f"267 -100 {PATH} @8 8", 89, 4097, why=b"readlink of 8 bytes"),
    **_answered("getdents64", f"2 {PATH} 0 0 / 217 3 @512 512", 217, 513, why=b"getdents of 512 bytes"),
    **_answered("getdents", f"2 {PATH} 0 0 / 78 3 @512 512", 78, 513, why=b"getdents of 512 bytes"),
    "an entry of no bytes": Attack(
        f"2 {PATH} 0 0 / 217 3 @512 512", lie_once(217, 48, (1, 16, 2, 0)), b"an entry of a folder has 0 bytes"
    ),
    "an entry beyond the answer": Attack(
        f"2 {PATH} 0 0 / 217 3 @512 512", lie_once(217, 48, (1, 16, 2, 64)), b"an entry of a folder has 64 bytes of 48"
    ),
    "an entry cut short": Attack(
        f"2 {PATH} 0 0 / 217 3 @512 512", lie_once(217, 8), b"an entry of a folder is cut short"
    ),
    "an entry whose name does not end": Attack(
        f"2 {PATH} 0 0 / 217 3 @512 512",
        lie_once(217, 24, (1, 16, 2, 24), (1, 18, 6, 0x6161_6161_6161)),
        b"the name of a folder's entry",
    ),
    "an entry that is a path": Attack(
        f"2 {PATH} 0 0 / 217 3 @512 512",
        lie_once(217, 24, (1, 16, 2, 24), (1, 18, 6, 0x612F2E2E04)),
        b"the name of a folder's entry",
    ),
    "an entry without a name": Attack(
        f"2 {PATH} 0 0 / 217 3 @512 512",
        lie_once(217, 24, (1, 16, 2, 24), (1, 18, 6, 4)),
        b"the name of a folder's entry",
    ),
    "an entry whose name is longer than one can be": Attack(
        # what was written stands in the window still
        f"293 @8 0 / 1 4 @512:x{'61' * 512} 512 / 2 {PATH} 0 0 / 217 5 @512 512",
        lie_once(217, 300, (1, 16, 2, 300), (1, 18, 1, 8), (1, 275, 1, 0)),
        b"the name of a folder's entry",
    ),
    "stat of a time that is none": Attack(
        # /usr: other programs change /tmp meanwhile
        "4 @16:x2f75737200 @144",
        lie_once(262, None, (2, 80, 8, 1_000_000_000)),
        b"the time of a file has 1000000000 nanoseconds",
    ),
    **_answered("truncate", f"76 {PATH} 0", 76, 1, why=b"truncate is answered by 0x1, which it cannot be"),
    **_answered("ftruncate", "77 1 0", 77, 1, why=b"ftruncate is answered by 0x1, which it cannot be"),
    **_answered("fallocate", "285 1 0 0 1", 285, 1, why=b"fallocate is answered by 0x1, which it cannot be"),
    **_answered("link", f"86 {PATH} {PATH}", 265, 1, why=b"linkat is answered by 0x1, which it cannot be"),
    **_answered(
        "linkat", f"265 -100 {PATH} -100 {PATH} 0", 265, 1, why=b"linkat is answered by 0x1, which it cannot be"
    ),
    **_answered("symlink", f"88 {PATH} {PATH}", 266, 1, why=b"symlinkat is answered by 0x1, which it cannot be"),
    **_answered(
        "symlinkat", f"266 {PATH} -100 {PATH}", 266, 1, why=b"symlinkat is answered by 0x1, which it cannot be"
    ),
    **_answered("rename", f"82 {PATH} {PATH}", 316, 1, why=b"renameat2 is answered by 0x1, which it cannot be"),
    **_answered(
        "renameat", f"264 -100 {PATH} -100 {PATH}", 316, 1, why=b"renameat2 is answered by 0x1, which it cannot be"
    ),
    **_answered(
        "renameat2", f"316 -100 {PATH} -100 {PATH} 0", 316, 1, why=b"renameat2 is answered by 0x1, which it cannot be"
    ),
    **_answered("unlink", f"87 {PATH}", 263, 1, why=b"unlinkat is answered by 0x1, which it cannot be"),
    **_answered("rmdir", f"84 {PATH}", 263, 1, why=b"unlinkat is answered by 0x1, which it cannot be"),
    **_answered("unlinkat", f"263 -100 {PATH} 0", 263, 1, why=b"unlinkat is answered by 0x1, which it cannot be"),
}
_DESCRIPTORS = {
    **_answered("dup", "32 1", 32, 1, why=b"descriptor 1, which is open"),
    **_answered("dup2", "! 33 1 5 / 1 5 @8 8", 292, 6, why=b"dup3 to 5"),
    **_answered("dup3", "! 292 1 5 0 / 1 5 @8 8", 292, ENCLAVE, why=b"dup3 to 5"),
    **_answered("pipe", "22 @8", 293, 1, why=b"pipe2 is answered by 0x1, which it cannot be"),
    **_answered("pipe2", "293 @8 0", 293, 1, why=b"pipe2 is answered by 0x1, which it cannot be"),
    **{
        f"{name} of {fd:#x}": Attack(words, lie_once(call, fd), b"which is none")
        for name, words, call in (
            ("openat", f"257 -100 {PATH} 0 0", 257),
            ("dup", "32 1", 32),
            ("fcntl", "72 1 0 1", 72),
            ("socket", "41 1 1 0", 41),
            ("accept", f"{SOCKETS}43 3 0 0", 288),
            ("epoll_create1", "291 0", 291),
        )
        for fd in (1 << 31, 1 << 32 | 2, ENCLAVE)
    },
    "pipe2 of what is none": Attack("293 @8 0", lie_once(293, 0, (0, 0, 8, 8 << 32 | 0xFFFFFFFF)), b"which is none"),
    "pipe2 of one descriptor twice": Attack("293 @8 0", lie_once(293, 0, (0, 0, 8, 7 << 32 | 7)), b"descriptor 7"),
    **_answered("fcntl", "72 1 3 0", 72, 1 << 31, why=b"fcntl is answered by"),
    **_answered("fcntl of flags", "72 1 1 0", 72, 2, why=b"fcntl is answered by"),
    **_answered("fcntl that sets flags", "72 1 2 0", 72, 1, why=b"fcntl is answered by"),
    **_answered("fcntl of a lock", f"{_LOCKED}72 3 5 @32", 72, 1, why=b"fcntl is answered by 0x1, which it cannot be"),
    "fcntl of a lock of no type": Attack(
        f"{_LOCKED}72 3 5 @32", lie_once(72, None, (2, 0, 2, 7)), b"a lock that cannot"
    ),
    "fcntl of a lock before the file": Attack(
        f"{_LOCKED}72 3 5 @32", lie_once(72, None, (2, 0, 2, 1), (2, 8, 8, 1 << 63)), b"a lock that cannot be"
    ),
    "ioctl of a negative group": Attack("16 1 21519 @4", lie_once(16, 0, (2, 0, 4, (1 << 32) - 1)), b"has the group"),
    "ioctl of an interface without a number": Attack(
        "53 1 1 0 @8 / 16 3 35123 @40", lie_once(16, 0, (2, 16, 4, 0)), b"an interface has the number"
    ),
    "fcntl duplicates to a lower number": Attack(
        "72 1 0 10", lie_once(72, 9), b"a descriptor from 10 on is asked for, and 9 is given"
    ),
    "fcntl duplicates what is open": Attack("72 1 0 1", lie_once(72, 2), b"descriptor 2, which is open"),
    **_answered("ioctl", "16 1 21531 @8", 16, 1, why=b"ioctl is answered by 0x1, which it cannot be"),
    "ioctl of a negative count": Attack(
        "293 @8 0 / 16 3 21531 @8", lie_once(16, None, (2, 0, 4, 1 << 31)), b"are said to be there to read"
    ),
    "ioctl of an interface's name that does not end": Attack(
        "53 1 1 0 @8 / 16 3 35088 @40:q0,q0,d1", lie_once(16, None, (2, 15, 1, 0x61)), b"the name of an interface"
    ),
    **_answered("epoll_create", "213 1", 291, 1, why=b"descriptor 1, which is open"),
    **_answered("epoll_create1", "291 0", 291, 1, why=b"descriptor 1, which is open"),
    **_answered(
        "epoll_ctl", "291 0 / 233 3 1 1 @12:d1,q77", 233, 1, why=b"epoll_ctl is answered by 0x1, which it cannot be"
    ),
    **_answered("epoll_wait", f"{_EPOLL}232 3 @24 2 0", 232, 3, why=b"epoll_wait for 2 events"),
    **_answered("epoll_pwait", f"{_EPOLL}281 3 @24 2 0 0", 232, 3, why=b"epoll_wait for 2 events"),
    "epoll_wait reports what nobody watches": Attack(
        f"{_EPOLL}232 3 @24 2 0", lie_once(232, 1, (1, 0, 4, 1), (1, 4, 8, 2)), b"epoll reports 0x2"
    ),
    "epoll_wait reports an address": Attack(
        f"{_EPOLL}232 3 @24 2 0", lie_once(232, 1, (1, 0, 4, 1), (1, 4, 8, ENCLAVE)), b"epoll reports"
    ),
    **_answered("poll", "7 @8:d1,d4 1 0", 7, 2, why=b"poll of 1 descriptors"),
    **_answered("ppoll", "271 @8:d1,d4 1 @16 0 8", 271, 2, why=b"poll of 1 descriptors"),
    **_answered("select", "23 2 @128:q2 0 0 @16", 23, 7, why=b"select of 2 descriptors"),
    **_answered("pselect6", "270 2 @128:q2 0 0 @16 0", 270, 7, why=b"select of 2 descriptors"),
}
_NETWORK = {
    **_answered("accept", f"{SOCKETS}43 3 @16 @4:d16", 288, 1, why=b"descriptor 1, which is open"),
    **_answered("accept4", f"{SOCKETS}288 3 @16 @4:d16 0", 288, 1, why=b"descriptor 1, which is open"),
    "accept's address": Attack(f"{SOCKETS}43 3 @16 @4:d16", lie_once(288, 9, (2, 0, 4, 129)), b"address has 129 bytes"),
    **_answered(
        "getsockname", f"{SOCKETS}51 3 @16 @4:d16", 51, 1, why=b"getsockname is answered by 0x1, which it cannot be"
    ),
    **_answered(
        "getpeername", f"{SOCKETS}52 3 @16 @4:d16", 52, 1, why=b"getpeername is answered by 0x1, which it cannot be"
    ),
    "getsockname's length": Attack(
        f"{SOCKETS}51 3 @16 @4:d16", lie_once(51, None, (2, 0, 4, 129)), b"address has 129 bytes"
    ),
    "getpeername's length": Attack(
        f"{SOCKETS}52 3 @16 @4:d16", lie_once(52, None, (2, 0, 4, 0xFFFFFFFF)), b"a socket's address has"
    ),
    **_answered("connect", f"{SOCKETS}42 3 @16:x0100 2", 42, 1, why=b"connect is answered by 0x1, which it cannot be"),
    **_answered("bind", f"{SOCKETS}49 3 @16:x0100 2", 49, 1, why=b"bind is answered by 0x1, which it cannot be"),
    **_answered("sendto", f"{SOCKETS}44 3 @8 8 0 0 0", 44, 9, why=b"sendto of 8 bytes"),
    **_answered("recvfrom", f"{SOCKETS}45 3 @8 8 64 0 0", 45, 9, why=b"recvfrom of 8 bytes"),
    "recvfrom's address": Attack(
        f"{SOCKETS}45 3 @8 8 64 @16 @4:d16", lie_once(45, 8, (5, 0, 4, 4096)), b"address has 4096 bytes"
    ),
    **_answered("socketpair", "53 1 1 0 @8", 53, 1, why=b"socketpair is answered by 0x1, which it cannot be"),
    "socketpair of what is open": Attack("53 1 1 0 @8", lie_once(53, 0, (3, 0, 8, 9 << 32 | 1)), b"descriptor 1"),
    **_answered(
        "getsockopt", f"{SOCKETS}55 3 1 3 @4 @4:d4", 55, 1, why=b"getsockopt is answered by 0x1, which it cannot be"
    ),
    "getsockopt's length": Attack(
        f"{SOCKETS}55 3 1 3 @4 @4:d4", lie_once(55, None, (4, 0, 4, 64)), b"getsockopt of 4 bytes is answered by 64"
    ),
    **_answered("sendmsg", f"{SOCKETS}{_MESSAGE} / 46 3 @56:&1,d0,d0,&2,q1 0", 46, 33, why=b"sendmsg of 32 bytes"),
    **_answered("recvmsg", f"{SOCKETS}{_MESSAGE} / 47 3 @56:q0,d0,d0,&2,q1 64", 47, 33, why=b"recvmsg of 32"),
    "recvmsg's address": Attack(
        f"{SOCKETS}{_MESSAGE} / 47 3 @56:&1,d64,d0,&2,q1 64", lie_once(47, None, (1, 8, 4, 129)), b"recvmsg of 32"
    ),
    "recvmsg's address of half a family": Attack(
        f"{SOCKETS}{_MESSAGE} / 47 3 @56:&1,d64,d0,&2,q1 64",
        lie_once(47, None, (1, 8, 4, 5), (1, 80, 2, 2)),
        b"a socket's address has 5 bytes",
    ),
    "getsockname's address of half a family": Attack(
        "41 2 2 0 / 51 3 @16 @4:d16", lie_once(51, None, (2, 0, 4, 2)), b"a socket's address has 2 bytes"
    ),
    **_answered("socket", "41 2 2 0", 41, 1, why=b"descriptor 1, which is open"),
    "getsockname of another family": Attack(
        "41 2 2 0 / 51 3 @128 @4:d128",
        lie_once(51, None, (1, 0, 2, 10), (2, 0, 4, 28)),
        b"a socket of family 2 has an address of family 10",
    ),
    "getsockname of no address": Attack(
        "41 2 2 0 / 51 3 @128 @4:d128", lie_once(51, None, (2, 0, 4, 0)), b"a socket's address has 0 bytes"
    ),
    "getpeername of another family": Attack(
        f"{SOCKETS}52 4 @128 @4:d128",
        lie_once(52, None, (1, 0, 2, 2), (2, 0, 4, 16)),
        b"a socket of family 1 has an address of family 2",
    ),
    "accept of another family": Attack(
        f"{SOCKETS}43 3 @128 @4:d128",
        lie_once(288, 9, (1, 0, 2, 2), (2, 0, 4, 16)),
        b"a socket of family 1 has an address of family 2",
    ),
    "recvfrom of another family": Attack(
        f"{SOCKETS}45 3 @8 8 64 @128 @4:d128",
        lie_once(45, 8, (4, 0, 2, 10), (5, 0, 4, 28)),
        b"a socket of family 1 has an address of family 10",
    ),
    **{
        f"{name} of a datagram from nobody": Attack(
            # To itself.
            f"41 2 2 0 / 49 3 @16:x02004321{_ADDRESS} 16 / 44 3 @8:q1 8 0 &0 16 / {words}",
            lie_once(call, None, put),
            b"a socket's address has 0 bytes",
        )
        for name, words, call, put in (
            ("recvfrom", "45 3 @8 8 64 @16:q119 @4:d16", 45, (5, 0, 4, 0)),
            ("recvmsg", "102 @16 @16:&2,q8 @16 / 47 3 @56:&4,d16,d0,&3,q1 64", 47, (1, 8, 4, 0)),
        )
    },
    "recvmsg of another family": Attack(
        f"{SOCKETS}{_MESSAGE} / 47 3 @56:&1,d64,d0,&2,q1 64",
        lie_once(47, None, (1, 8, 4, 16), (1, 80, 2, 2)),
        b"a socket of family 1 has an address of family 2",
    ),
    **_answered(
        "setsockopt", f"{SOCKETS}54 3 1 2 @4:d1 4", 54, 1, why=b"setsockopt is answered by 0x1, which it cannot be"
    ),
    "getsockname of a path without an end": Attack(
        "41 1 1 0 / 51 3 @128 @4:d128",
        lie_once(51, None, (1, 0, 2, 1), (2, 0, 4, 111)),
        b"a socket's address has 111 bytes",
    ),
    "getsockname of a short address": Attack(
        "41 16 3 0 / 51 3 @128 @4:d128", lie_once(51, None, (2, 0, 4, 8)), b"a socket's address has 8 bytes"
    ),
    "getsockopt's other family": Attack(
        f"{SOCKETS}55 3 1 39 @4 @4:d4", lie_once(55, None, (3, 0, 4, 2)), b"option 39 of a socket"
    ),
    "getsockopt's short answer": Attack(
        f"{SOCKETS}55 3 1 4 @4:d77 @4:d4", lie_once(55, None, (4, 0, 4, 1)), b"option 4 of a socket is answered by what"
    ),
    "getsockopt's error that is none": Attack(
        f"{SOCKETS}55 3 1 4 @4 @4:d4", lie_once(55, None, (3, 0, 4, 200)), b"option 4 of a socket"
    ),
    "getsockopt's negative size": Attack(
        f"{SOCKETS}55 3 1 7 @4 @4:d4", lie_once(55, None, (3, 0, 4, 1 << 31)), b"option 7 of a socket"
    ),
    "getsockopt's time that is none": Attack(
        f"{SOCKETS}55 3 1 20 @16 @4:d16", lie_once(55, None, (3, 8, 8, 1_000_000)), b"option 20 of a socket"
    ),
    "getsockopt's text without an end": Attack(
        "41 2 1 0 / 55 3 6 13 @16 @4:d16",
        lie_once(55, 0, (3, 0, 8, (1 << 64) - 1), (3, 8, 8, (1 << 64) - 1), (4, 0, 4, 16)),
        b"option 13 of a socket",
    ),
    "getsockopt's structure cut short": Attack(
        "41 2 1 0 / 55 3 6 11 @128 @4:d128", lie_once(55, 0, (4, 0, 4, 103)), b"option 11 of a socket"
    ),
    "getsockopt's short credentials": Attack(
        f"{SOCKETS}55 3 1 17 @12 @4:d12", lie_once(55, 0, (4, 0, 4, 4)), b"option 17 of a socket"
    ),
    **{
        f"recvmsg's {what}": Attack(
            f"{SOCKETS}{_MESSAGE} / 47 3 @56:q0,d0,d0,&2,q1,&3,q64 64",
            # Behind struct msghdr stand the vector, 128 bytes for a name, and the ancillary data.
            lie_once(47, None, (1, 40, 8, 24), (1, 208, 8, length), (1, 216, 8, kind << 32 | 1), (1, 224, 4, 1)),
            why,
        )
        for what, length, kind, why in (
            ("descriptor that is open", 20, 1, b"descriptor 1, which is open"),
            ("process that is open", 20, 4, b"descriptor 1, which is open"),
            ("part of a descriptor", 22, 1, b"ancillary data of kind 1 at level 1 have 6 bytes"),
            ("no descriptor", 16, 1, b"ancillary data of kind 1 at level 1 have 0 bytes"),
            ("credentials cut short", 20, 2, b"ancillary data of kind 2 at level 1 have 4 bytes"),
            ("time cut short", 24, 29, b"ancillary data of kind 29 at level 1 have 8 bytes"),
        )
    },
    "recvmsg's ancillary data": Attack(
        f"{SOCKETS}{_MESSAGE} / 47 3 @56:q0,d0,d0,&2,q1,&3,q64 64", lie_once(47, None, (1, 40, 8, 65)), b"recvmsg of 32"
    ),
}
_OTHERS = {
    **_answered("getpid", "39", 39, 0, 1 << 23, why=b"getpid is answered by"),
    **_answered("gettid", "186", 39, 1 << 23, why=b"getpid is answered by"),
    **_answered("getuid", "102", 102, 1 << 32, why=b"getuid is answered by"),
    **_answered("getgid", "104", 104, 1 << 32, why=b"getgid is answered by"),
    **_answered("geteuid", "107", 107, ENCLAVE, why=b"geteuid is answered by"),
    **_answered("getegid", "108", 108, ENCLAVE, why=b"getegid is answered by"),
    **_answered("setuid", "105 0", 105, 1, why=b"setuid is answered by"),
    **_answered("setgid", "106 0", 106, 1, why=b"setgid is answered by"),
    **_answered("uname", "63 @390", 63, 1, why=b"uname is answered by 0x1, which it cannot be"),
    "uname without an end": Attack("63 @390", lie_once(63, None, (0, 64, 1, 0x61)), b"a string of uname does not end"),
    **_answered("alarm", "37 0", 37, 1 << 32, why=b"alarm is answered by"),
    **_answered("setitimer", "38 0 @32 @32", 38, 1, why=b"setitimer is answered by 0x1, which it cannot be"),
    **_answered("timer_create", _TIMER, 222, 1, why=b"timer_create is answered by 0x1, which it cannot be"),
    **_answered("timer_settime", f"{_TIMER} / 223 0 0 @32 @32", 223, 1, why=b"timer_settime is answered by 0x1,"),
    "timer_settime of no rest": Attack(
        f"{_TIMER} / 223 0 0 @32 @32", lie_once(223, None, (3, 8, 8, 1_000_000_000)), b"the rest of a timer cannot be"
    ),
    **_answered("timer_gettime", f"{_TIMER} / 224 0 @32", 224, 1, why=b"timer_gettime is answered by 0x1,"),
    "timer_gettime of no rest": Attack(
        f"{_TIMER} / 224 0 @32", lie_once(224, None, (1, 24, 8, 1_000_000_000)), b"the rest of a timer cannot be"
    ),
    **_answered("timer_getoverrun", f"{_TIMER} / 225 0", 225, 1 << 31, why=b"timer_getoverrun is answered by"),
    **_answered("timer_delete", f"{_TIMER} / 226 0", 226, 1, why=b"timer_delete is answered by 0x1,"),
    **_answered("nanosleep", "35 @16 @16", 230, 1, why=b"clock_nanosleep is answered by 0x1, which it cannot be"),
    **_answered("clock_nanosleep", "230 1 0 @16 @16", 230, 1, why=b"clock_nanosleep is answered by 0x1,"),
    "what is left of a sleep": Attack(
        "35 @16 @16", lie_once(230, -4, (3, 0, 8, 1), (3, 8, 8, 1_000_000_000)), b"seconds of a sleep are left"
    ),
    "clock_gettime of no time": Attack("228 2 @16", lie_once(228, 0, (1, 0, 8, 1 << 63)), b"clock 2 says"),
    "clock_gettime of too many nanoseconds": Attack("228 2 @16", lie_once(228, 0, (1, 8, 8, 1 << 30)), b"clock 2 says"),
    "gettimeofday": Attack("96 @16 0", lie_once(228, 0, (1, 0, 8, 1 << 40)), b"clock 0 says"),
    **{
        f"{name} of no time": Attack(
            # What was used so far changes by itself.
            words, lie_once(call, 0 if call in (98, 100) else None, (argument, 8, 8, parts)),
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
    "getitimer of a time before all": Attack("36 0 @32", lie_once(36, None, (1, 16, 8, 1 << 63)), b"getitimer is"),
    "getrusage of a negative count": Attack("98 0 @144", lie_once(98, 0, (1, 32, 8, 1 << 63)), b"getrusage is"),
    **{
        f"{name} of {what}": Attack(
            words, lie_once(call, None, (argument, offset, 8, value)), f"{name} is answered by values that".encode()
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
        f"sysinfo of {what}": Attack("99 @112", lie_once(99, None, put), b"sysinfo is answered by values that")
        for what, put in {
            "no unit": (0, 104, 4, 0), "more free memory than memory": (0, 40, 8, 1 << 62),
            "memory that no number counts": (0, 32, 8, (1 << 64) - 1), "a time before it began": (0, 0, 8, 1 << 63),
        }.items()
    },
    "time": Attack("201 @8", lie_once(228, 0, (1, 8, 8, (1 << 64) - 1)), b"clock 0 says"),
}  # fmt: skip
ATTACKS = {**_FILES, **_DESCRIPTORS, **_NETWORK, **_OTHERS}
#: The kernel has no word in these; how each is called to show it.
INSIDE = {
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
WAITING = {"futex": "202 @4 128 0 @16:q0,q1000000", "rt_sigtimedwait": "128 @8:q512 0 @16:q0,q1000000 8"}
#: The rest. An ending has no answer, and a handler's return none either. `close` has done its part when it asks.
#: `clone` asks the process, for a number or an error. What a folder is, and what a mapped file holds, other calls ask.
NO_ANSWER = {"exit", "exit_group", "rt_sigreturn", "pause", "rt_sigsuspend", "close", "clone", "chdir", "fchdir"}
