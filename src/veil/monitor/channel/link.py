# SPDX-License-Identifier: GPL-2.0-or-later
"""All connections, and the rings on which the host carries them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any

from veil.formats.channel import (
    DOORBELL_DATA,
    DOORBELL_MORE,
    DOORBELL_PORT,
    DOORBELL_SPOILT,
    ChannelArea,
    Frame,
    FrameKind,
    FrameReader,
    Generations,
    RingReader,
    RingWriter,
    look_at_counters,
    pack_frame,
)
from veil.formats.errors import FormatError
from veil.formats.page_sizes import PAGE_SIZE
from veil.formats.roles import Role
from veil.monitor.channel.bounds import (
    MAX_EXPECTED,
    MAX_FRAMES,
    MAX_HANDSHAKE_NS,
    MAX_KNOWN,
    MAX_STRANGERS,
    MAX_UNSENT,
)
from veil.monitor.channel.connection import Connection, Rank
from veil.monitor.channel.connection_turns import Budget, Schedule
from veil.snp.errors import RmpViolation

if TYPE_CHECKING:
    from veil.monitor.channel.tls import TlsEnd
    from veil.monitor.channel.user_requests import Requests
    from veil.monitor.ghcb import Ghcb
    from veil.snp.view import View

__all__ = ["ChannelLink"]


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
        clock: Callable[[], int],
        saved: dict[str, Any] | None = None,
    ) -> None:
        """`roles`: of users, by the fingerprints of their keys. `clock` counts nanoseconds. `saved` is from `dump`;
        connections do not survive a snapshot."""
        self._memory = _SharedPages(view)
        self._area = area
        self._requests = requests
        self._accept = accept
        self._roles = roles
        self._clock = clock
        #: by number, the oldest first
        self._connections: dict[int, Connection] = {}
        #: of them those in their handshakes, the oldest first (some have done with it)
        self._greeted: dict[int, Connection] = {}
        #: those of users whom the launch names, the least recently heard of first
        self._known: dict[int, Connection] = {}
        #: those whom the host expects to be such users, until they are or are not, the oldest first
        self._expected: dict[int, Connection] = {}
        #: those that may have something to send, in turn: users whom the launch names or the host expects, and others
        self._touched_first: dict[int, Connection] = {}
        self._touched: dict[int, Connection] = {}
        self._received: deque[Frame] = deque()
        self._generations = Generations(self._memory, area)
        self._working = self._again = False
        self._begin(saved or {})
        self._left = bool(self._unsent)
        """What `due` says while nobody writes to the rings."""

    def _begin(self, saved: dict[str, Any]) -> None:
        self._forget()
        self._generation: int = saved.get("generation", 0)
        self._in = RingReader(self._memory, self._area, to_monitor=True, position=saved.get("in", 0))
        self._out = RingWriter(self._memory, self._area, to_monitor=False, position=saved.get("out", 0))
        self._frames = FrameReader(bytes.fromhex(saved.get("held", "")))
        self._unsent = bytearray(bytes.fromhex(saved.get("unsent", "")))
        self._broken = False

    def _forget(self) -> None:
        for those in self._lists:
            those.clear()
        self._received.clear()
        self._schedule = Schedule()

    @property
    def _lists(self) -> tuple[dict[int, Connection], ...]:
        those = self._connections, self._greeted, self._known, self._expected
        return *those, self._touched_first, self._touched

    def dump(self) -> dict[str, Any]:
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

    @property
    def due(self) -> bool:
        """Is there something to do: what the host has put in, what was left until it comes again, a handshake whose
        time may be up, or a counter of VeilMon's that somebody wrote over?"""
        if self._left:
            return True
        try:
            written, wanted, seen = look_at_counters(self._memory, self._area)
        except RmpViolation:
            return True
        return written != self._in.position or not wanted == seen == self._generation

    def announce(self, host: Ghcb) -> Generator[None, None, None]:
        """Tell the host where the rings are."""
        yield from host.out(DOORBELL_PORT, self._area.gpa // PAGE_SIZE)

    def work(self, host: Ghcb, vcpu: int) -> Generator[None, None, None]:
        """Take what came, answer some of it, send what is due. What is left waits until the host comes again."""
        if self._working:
            # Another VCPU is at work and waits for the host just now. Tell the host to enter once more afterwards.
            self._again = True
            return
        self._working = self._left = True
        self._again = False
        try:
            yield from self._work(host, vcpu)
        finally:
            self._working = False
            self._left = bool(self._again or self._received or self._unsent or self._greeted or self._schedule.busy)

    def _work(self, host: Ghcb, vcpu: int) -> Generator[None, None, None]:
        try:
            sent = self._out.position
            self._receive_frames()
            yield from self._serve(host, vcpu)
            self._send_frames()
            more = self._again or bool(self._received) or self._schedule.busy
            if more or self._out.position != sent:
                yield from host.out(DOORBELL_PORT, DOORBELL_MORE if more else DOORBELL_DATA)
        except (FormatError, RmpViolation):
            # Spoilt rings, or pages that the host took away. Nothing can be said on them until the next generation.
            self._forget()
            self._broken = True
            yield from host.out(DOORBELL_PORT, DOORBELL_SPOILT)

    def _receive_frames(self) -> None:
        wanted = self._generations.wanted
        if wanted != self._generation:
            self._begin({"generation": wanted})
            self._in.reset()
            self._out.reset()
        if self._generations.seen != self._generation:
            self._generations.follow(self._generation)
        self._close_late_ones()
        # A host that opens connections and never reads what becomes of them is not listened to for a while.
        if self._broken or len(self._unsent) > MAX_UNSENT:
            return
        if not self._received:
            self._received.extend(self._frames.feed(self._in.read()))
        for _ in range(min(MAX_FRAMES, len(self._received))):
            frame = self._received.popleft()
            if frame.kind in (FrameKind.OPEN, FrameKind.EXPECTED):
                self._open(frame)
                continue
            connection = self._connections.get(frame.connection)
            if connection is None:
                continue
            if frame.kind == FrameKind.CLOSE:
                self._remove(connection)  # at once: it must take nobody's place
                continue
            connection.handle(frame)
            self._touch(connection)
            if connection.number in self._known:
                self._known[connection.number] = self._known.pop(connection.number)

    def _open(self, frame: Frame) -> None:
        number = frame.connection
        if number in self._connections:
            raise FormatError(f"connection {number} is opened twice")
        expected = frame.kind == FrameKind.EXPECTED
        if expected and len(self._expected) >= MAX_EXPECTED:
            self._close(next(iter(self._expected.values())))
        connection = Connection(number, self._accept, self._roles, opened_ns=self._clock(), expected=expected)
        self._connections[number] = self._greeted[number] = connection
        if expected:
            self._expected[number] = connection
        self._make_room()

    def _make_room(self) -> None:
        """Strangers who keep connections open do not keep anybody out: for one too many the oldest goes."""
        if len(self._connections) - len(self._known) - len(self._expected) > MAX_STRANGERS:
            self._close(next(item for item in self._connections.values() if item.rank > Rank.EXPECTED))

    def _close_late_ones(self) -> None:
        now = self._clock()
        while self._greeted:
            first = next(iter(self._greeted.values()))
            if first.in_handshake and now - first.opened_ns < MAX_HANDSHAKE_NS:
                return
            del self._greeted[first.number]
            if first.in_handshake:
                self._close(first)

    def _serve(self, host: Ghcb, vcpu: int) -> Generator[None, None, None]:
        """Work on connections in turn, until there is nothing to do or the kernel should run again."""
        budget = Budget(self._clock)
        for touched in (*self._touched_first.values(), *self._touched.values()):
            self._schedule.put(touched)
        while (connection := self._schedule.next(budget)) is not None:
            rank, begin = connection.rank, self._clock()
            request = connection.step()
            if request is not None:
                response = yield from self._requests.answer(host, vcpu, connection.user, request)
                connection.respond(response)
            self._schedule.charge(rank, self._clock() - begin)
            if rank != connection.rank:
                self._meet(connection)
                if connection.number not in self._connections:
                    continue
            self._touch(connection)
            self._schedule.put(connection)

    def _touch(self, connection: Connection) -> None:
        """It may have something to send."""
        first = connection.rank <= Rank.EXPECTED
        (self._touched_first if first else self._touched).setdefault(connection.number, connection)

    def _meet(self, connection: Connection) -> None:
        """Its handshake is done. Of users whom the launch names, with one more than there may be, the one who was
        silent the longest goes."""
        self._expected.pop(connection.number, None)
        self._touched_first.pop(connection.number, None)
        self._touched.pop(connection.number, None)
        if connection.rank == Rank.KNOWN:
            if len(self._known) >= MAX_KNOWN:
                self._close(next(iter(self._known.values())))
            self._known[connection.number] = connection
        else:
            self._make_room()

    def _close(self, connection: Connection) -> None:
        self._remove(connection)
        self._unsent += pack_frame(connection.number, FrameKind.CLOSE)

    def _remove(self, connection: Connection) -> None:
        for those in self._lists:
            those.pop(connection.number, None)
        self._schedule.drop(connection)

    def _send_frames(self) -> None:
        """Frames of the connections that have some, in turn, as long as the ring takes them whole."""
        while (touched := self._touched_first or self._touched) and not self._broken and self._flush():
            connection = touched.pop(next(iter(touched)))
            frame = connection.next_frame()
            if frame is not None:
                self._unsent += frame
                touched[connection.number] = connection
            elif connection.closing:
                self._close(connection)
            else:
                # There is room for its answers again.
                self._schedule.put(connection)
        self._flush()

    def _flush(self) -> bool:
        """Write what is left of earlier frames; False if the ring is full."""
        if self._unsent:
            del self._unsent[: self._out.write(bytes(self._unsent))]
        return not self._unsent
