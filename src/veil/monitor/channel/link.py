# SPDX-License-Identifier: GPL-2.0-or-later
"""All connections, and the rings on which the host carries them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any

from veil.formats.channel import (
    DOORBELL_DATA,
    DOORBELL_PORT,
    DOORBELL_SPOILT,
    ChannelArea,
    Frame,
    FrameKind,
    FrameReader,
    Generations,
    RingReader,
    RingWriter,
    pack_frame,
)
from veil.formats.errors import FormatError
from veil.formats.roles import Role
from veil.monitor.channel.connection import Connection
from veil.snp.errors import RmpViolation

if TYPE_CHECKING:
    from veil.monitor.channel.requests import Requests
    from veil.monitor.channel.tls import TlsEnd
    from veil.monitor.ghcb import Ghcb
    from veil.snp.view import View

__all__ = ["ChannelLink"]

_MAX_CONNECTIONS = 64
_MAX_UNSENT = 64 << 10
_PAGE = 4096


class _SharedPages:
    """Shared memory through VeilMon's view."""

    def __init__(self, view: View) -> None:
        self._view = view

    def read(self, gpa: int, length: int, /) -> bytes:
        return self._view.read(gpa, length, private=False)

    def write(self, gpa: int, data: bytes, /) -> None:
        self._view.write(gpa, data, private=False)


class ChannelLink:
    """VeilMon's side of the rings.

    The host enters VeilMon when it has put something in; VeilMon rings the doorbell when it has. Everything that comes
    in is the host's, or the kernel's: it can also write these pages. At worst connections end.
    """

    def __init__(
        self,
        view: View,
        area: ChannelArea,
        requests: Requests,
        accept: Callable[[], TlsEnd],
        roles: Mapping[bytes, Role],
        saved: dict[str, Any] | None = None,
    ) -> None:
        """`roles`: of users, by the fingerprints of their keys. `saved` is from `dump`; connections do not survive a
        snapshot."""
        self._memory = _SharedPages(view)
        self._area = area
        self._requests = requests
        self._accept = accept
        self._roles = roles
        #: by number, the least recently heard of first
        self._connections: dict[int, Connection] = {}
        self._generations = Generations(self._memory, area)
        self._working = self._again = False
        self._begin(saved or {})

    def _begin(self, saved: dict[str, Any]) -> None:
        self._connections.clear()
        self._generation: int = saved.get("generation", 0)
        self._in = RingReader(self._memory, self._area, to_monitor=True, position=saved.get("in", 0))
        self._out = RingWriter(self._memory, self._area, to_monitor=False, position=saved.get("out", 0))
        self._frames = FrameReader(bytes.fromhex(saved.get("held", "")))
        self._unsent = bytearray(bytes.fromhex(saved.get("unsent", "")))
        self._broken = False

    def dump(self) -> dict[str, Any]:
        """For a snapshot."""
        return {
            "generation": self._generation,
            "in": self._in.position,
            "out": self._out.position,
            "held": self._frames.held.hex(),
            "unsent": self._unsent.hex(),
        }

    @property
    def working(self) -> bool:
        """Is a request being answered?"""
        return self._working

    def announce(self, host: Ghcb) -> Generator[None, None, None]:
        """Tell the host where the rings are."""
        yield from host.out(DOORBELL_PORT, self._area.gpa // _PAGE)

    def work(self, host: Ghcb, vcpu: int) -> Generator[None, None, None]:
        """Take what came, answer it, send what is due."""
        if self._working:
            # Another VCPU does, which waits for the host just now: it must look once more, the host will not come again
            # for what it has put in already.
            self._again = True
            return
        self._working = self._again = True
        try:
            while self._again:
                self._again = False
                yield from self._work(host, vcpu)
        finally:
            self._working = False

    def _work(self, host: Ghcb, vcpu: int) -> Generator[None, None, None]:
        try:
            sent = self._out.position
            self._take()
            for connection in list(self._connections.values()):
                while (request := connection.next_request()) is not None:
                    response = yield from self._requests.answer(host, vcpu, connection.user, request)
                    connection.respond(response)
            self._give()
            if self._out.position != sent:
                yield from host.out(DOORBELL_PORT, DOORBELL_DATA)
        except (FormatError, RmpViolation):
            # Spoilt rings, or pages that the host took away. Nothing can be said on them until it begins anew.
            self._broken = True
            self._connections.clear()
            yield from host.out(DOORBELL_PORT, DOORBELL_SPOILT)

    def _take(self) -> None:
        wanted = self._generations.wanted
        if wanted != self._generation:
            self._begin({"generation": wanted})
            self._in.reset()
            self._out.reset()
        if self._generations.seen != self._generation:
            self._generations.follow(self._generation)
        # A host that opens connections and never reads what becomes of them is not listened to for a while.
        if self._broken or len(self._unsent) > _MAX_UNSENT:
            return
        for frame in self._frames.feed(self._in.read()):
            if frame.kind == FrameKind.OPEN:
                self._open(frame)
                continue
            connection = self._connections.pop(frame.connection, None)
            if connection is not None:
                connection.handle(frame)
                self._connections[frame.connection] = connection

    def _open(self, frame: Frame) -> None:
        if frame.connection in self._connections:
            raise FormatError(f"connection {frame.connection} is opened twice")
        if len(self._connections) >= _MAX_CONNECTIONS:
            # Strangers who keep connections open do not keep anybody out.
            strangers = (item for item in self._connections.values() if item.user.role == Role.ANYONE)
            oldest = next(strangers, None)
            if oldest is None:
                self._unsent += pack_frame(frame.connection, FrameKind.CLOSE)
                return
            self._close(oldest)
        self._connections[frame.connection] = Connection(frame.connection, self._accept(), self._roles)

    def _close(self, connection: Connection) -> None:
        del self._connections[connection.number]
        self._unsent += pack_frame(connection.number, FrameKind.CLOSE)

    def _give(self) -> None:
        """Frames of all connections in turn, as long as the ring takes them whole."""
        if self._broken or not self._push():
            return
        waiting = deque(self._connections.values())
        while waiting:
            connection = waiting.popleft()
            frame = connection.next_frame()
            if frame is None:
                if connection.closing:
                    self._close(connection)
                    if not self._push():
                        return
                continue
            waiting.append(connection)
            self._unsent += frame
            if not self._push():
                return

    def _push(self) -> bool:
        """Write what is left of earlier frames; False if the ring is full."""
        if self._unsent:
            del self._unsent[: self._out.write(bytes(self._unsent))]
        return not self._unsent
