# SPDX-License-Identifier: GPL-2.0-or-later
"""What the network's process gives up before it reads the guest's first frame: whoever takes it over has sockets of
IPv4, what is open, a bounded amount of memory, and nothing else of this computer's user.

Filter and Landlock are two ways to the same end: a call that the filter's table should not have let through still
opens no file.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import socket
import termios
from collections.abc import Iterator
from fcntl import F_GETFD, F_GETFL, F_SETFD, F_SETFL

from veil.network.landlock import give_up_names
from veil.network.seccomp import Action, Filters, Rule, is_, masked

__all__ = ["confine", "limit", "rules"]

#: Each connection of a guest, or of those who come to it, takes one, and memory for what is on its way.
_DESCRIPTORS = 1024
#: bytes of address space. A connection has two buffers of 128 KiB.
_MEMORY = 768 << 20
_SOCKET_TYPE = 0xF  # SOCK_TYPE_MASK: the other bits are SOCK_NONBLOCK and SOCK_CLOEXEC
_IP_TTL, _IP_RECVERR = 2, 11
_CAPABILITY_VERSION_3 = 0x20080522

_ALWAYS = (
    # memory and time
    "brk", "clock_gettime", "futex", "gettimeofday", "getrandom", "madvise", "mremap", "munmap", "sched_yield",
    # this process's own signals, and its end
    "exit", "exit_group", "restart_syscall", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack",
    # what is open: by recvmsg the errors of a datagram's way come
    "accept", "accept4", "close", "getpeername", "getsockname", "poll", "ppoll", "read", "readv", "recvfrom", "recvmsg",
    "shutdown", "write", "writev",
)  # fmt: skip
_OPTIONS_READ = ((socket.SOL_SOCKET, socket.SO_ERROR),)
_OPTIONS_SET = (
    (socket.SOL_SOCKET, socket.SO_REUSEADDR),
    (socket.SOL_SOCKET, socket.SO_OOBINLINE),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    (socket.IPPROTO_IP, _IP_TTL),
    (socket.IPPROTO_IP, _IP_RECVERR),
)
#: type and protocol: TCP, UDP, and pings, where this computer lets its users send them
_SOCKETS = ((socket.SOCK_STREAM, 0), (socket.SOCK_DGRAM, 0), (socket.SOCK_DGRAM, socket.IPPROTO_ICMP))


def rules(*, restrict: bool) -> Iterator[Rule]:
    """What the process may go on to call; `restrict`: it reaches nobody by it who has not come to it."""
    yield from map(Rule, _ALWAYS)
    for call in ("mmap", "mprotect"):
        yield Rule(call, (masked(2, mmap.PROT_EXEC, 0),))
    for command in (F_GETFD, F_SETFD, F_GETFL, F_SETFL):
        # Not F_SETOWN, which has signals sent to others.
        yield Rule("fcntl", (is_(1, command),))
    for request in (termios.FIONBIO, termios.FIONREAD):
        yield Rule("ioctl", (is_(1, request),))
    for call, options in (("getsockopt", _OPTIONS_READ), ("setsockopt", _OPTIONS_SET)):
        for level, option in options:
            yield Rule(call, (is_(1, level), is_(2, option)))
    # libslirp looks whether /etc/resolv.conf is another file than before. With what it has of the old one untouched
    # it finds that it is not, and takes the name server that it has.
    for call in ("stat", "newfstatat"):
        yield Rule(call, action=Action.PRETEND)
    if restrict:
        # Without an address: with one, MSG_FASTOPEN connects whatever socket of TCP is not connected.
        yield Rule("sendto", (is_(4, 0),))
        return
    yield Rule("sendto")
    yield Rule("connect")
    for kind, protocol in _SOCKETS:
        yield Rule("socket", (is_(0, socket.AF_INET), masked(1, _SOCKET_TYPE, kind), is_(2, protocol)))


def limit() -> None:
    """Bound what the process takes of this computer. Raises OSError."""
    for kind, wanted in (
        (resource.RLIMIT_NOFILE, _DESCRIPTORS),
        (resource.RLIMIT_AS, _MEMORY),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        _, most = resource.getrlimit(kind)
        bound = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(kind, (bound, bound))


def confine(filters: Filters, *, restrict: bool) -> None:
    """Give up the rest, for good. Raises OSError where the kernel has no such filters."""
    _give_up_capabilities()
    give_up_names()
    filters.load(rules(restrict=restrict), Action.REFUSE)


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("process", ctypes.c_int)]


def _give_up_capabilities() -> None:
    """Those of root; others have none."""
    libc = ctypes.CDLL(None, use_errno=True)
    none = (ctypes.c_uint32 * 6)()
    if libc.capset(ctypes.byref(_Header(_CAPABILITY_VERSION_3)), none):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
