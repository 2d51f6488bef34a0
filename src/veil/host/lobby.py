# SPDX-License-Identifier: GPL-2.0-or-later
"""The lobby of `veil.host.channel_listener`: how many connections it has room for, how fast new ones come in, and what
those in it have said."""

from __future__ import annotations

import enum
import errno
import resource
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from veil.host.knocks import Knock

__all__ = [
    "ACCEPTS",
    "BURST",
    "LOBBY",
    "LOBBY_SHARE",
    "Intake",
    "Said",
    "first_words",
    "hear",
    "is_exhausted",
    "lobby_size",
]

#: Connections in the lobby, if the process may have so many descriptors.
LOBBY = 2048
#: New connections a second, and how many may come at once.
ACCEPTS, BURST = 2000, 128
#: How much of one core the lobby may take, where `ACCEPTS` would take more: by knocks, above all.
LOBBY_SHARE = 0.3

#: Descriptors that the process needs for other things.
_OTHER_FILES = 512
_PAUSE_S = 0.5
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def lobby_size(places: int) -> int:
    """As many as the process may have beside `places` with VeilMon; the soft limit is raised if the hard one allows."""
    wanted = LOBBY + places + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return LOBBY
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(LOBBY, soft - places - _OTHER_FILES))


def is_exhausted(error: OSError) -> bool:
    """Did accept(2) fail for want of descriptors or memory? Else it is that one connection that came to nothing."""
    return error.errno in _EXHAUSTED


class Intake:
    """When the next connection may be taken in: at a pace, and no more than the lobby's share of a core."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._next = 0.0

    @property
    def opens(self) -> float:
        """The time from which on one may."""
        return self._next - BURST / ACCEPTS

    def took_one(self) -> None:
        """A connection was taken in, or came to nothing."""
        self._next = max(self._next, self._clock()) + 1 / ACCEPTS

    def worked(self, seconds: float) -> None:
        """The lobby took so much of a core: the next one waits as long as that is worth."""
        self._next += seconds / LOBBY_SHARE

    def pause(self) -> None:
        """The process has no room."""
        self._next = self._clock() + _PAUSE_S + BURST / ACCEPTS


class Said(enum.Enum):
    """What somebody in the lobby has said."""

    NOTHING = enum.auto()
    GONE = enum.auto()
    WORDS = enum.auto()
    """For VeilMon."""
    PROOF = enum.auto()
    """That they are one whom the launch names."""


def hear(sock: socket.socket, knock: Knock) -> Said:
    """Somebody has said something, or is gone. What is no knock is read when they are let in."""
    try:
        if knock.over:
            return Said.WORDS if sock.recv(1, socket.MSG_PEEK) else Said.GONE
        data = sock.recv(knock.wants)
    except BlockingIOError:
        return Said.NOTHING
    except OSError:
        return Said.GONE
    if not data:
        return Said.GONE
    if answer := knock.heard(data):
        # A new connection has room for it; else the user's time is up some day.
        with suppress(OSError):
            sock.send(answer)
        return Said.NOTHING
    if knock.named:
        return Said.PROOF
    return Said.WORDS if knock.words else Said.NOTHING


def first_words(sock: socket.socket, knock: Knock, piece: int) -> bytes:
    """What was said in the lobby (and `piece` bytes more); nothing if they have gone since: no work for VeilMon."""
    data = knock.words
    try:
        more = sock.recv(piece)
        data += more
        gone = len(more) < piece and not (more and sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return data
    except OSError:
        return b""
    return b"" if gone else data
