# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's end of the secure channel: carries users' connections to VeilMon and back, and understands none of it.

VeilMon writes to one port where its rings are, and then when it has put something in (`veil.formats.channel`).
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

from veil.formats.channel import (
    DOORBELL_DATA,
    DOORBELL_MORE,
    DOORBELL_PORT,
    DOORBELL_SPOILT,
    MAX_FRAME_DATA,
    STRANGER_WINDOW,
    WINDOW,
    ChannelArea,
    Frame,
    FrameKind,
    FrameReader,
    Generations,
    RingMemory,
    RingReader,
    RingWriter,
    pack_frame,
)
from veil.formats.domains import MONITOR_VMPL
from veil.formats.errors import FormatError
from veil.formats.page_sizes import PAGE_SIZE
from veil.host.devices.bus import Window
from veil.snp.errors import RmpViolation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from veil.host.devices.bus import IoBus

__all__ = ["ChannelConnection", "ChannelDevice"]

_PORT_BYTES = 4
#: Whose the port is. The kernel could say where rings are, too, and have users' ciphertext carried to it; or say all
#: the time that they are spoilt, which ends connections.


class ChannelConnection:
    """One user's connection. `on_data` gets what VeilMon sends; give its room back with `consumed`."""

    def __init__(self, device: ChannelDevice, number: int) -> None:
        self.number = number
        self.on_data: Callable[[bytes], None] | None = None
        self.on_close: Callable[[], None] | None = None
        #: called when VeilMon has taken what waited in `unsent`
        self.on_room: Callable[[], None] | None = None
        #: called when VeilMon has taken something
        self.on_taken: Callable[[], None] | None = None
        #: called when VeilMon says that this user is somebody whom the launch names
        self.on_proven: Callable[[], None] | None = None
        self.is_open = True
        self._device = device
        self._may_send = STRANGER_WINDOW
        self._may_receive = WINDOW
        self._consumed = 0
        self._waiting: deque[bytes] = deque()
        self.unsent = 0
        """Bytes given to `send` that wait for VeilMon's window. A caller with much to send keeps this small."""

    def send(self, data: bytes) -> None:
        """Bytes from the user."""
        if not self.is_open:
            return
        for at in range(0, len(data), MAX_FRAME_DATA):
            piece = data[at : at + MAX_FRAME_DATA]
            self._waiting.append(piece)
            self.unsent += len(piece)
        self._flush()

    def consumed(self, count: int) -> None:
        """`count` bytes went on to the user."""
        self._consumed += count
        if self._consumed >= WINDOW // 4 and self.is_open:
            grant, self._consumed = self._consumed, 0
            self._may_receive += grant
            self._device.put(pack_frame(self.number, FrameKind.CREDIT, grant.to_bytes(4, "little")))

    def close(self) -> None:
        """The user is gone."""
        if self.is_open:
            self.is_open = False
            self._device.forget(self)
            self._device.put(pack_frame(self.number, FrameKind.CLOSE))

    def _flush(self) -> None:
        while self._waiting and self._may_send:
            piece = self._waiting.popleft()
            if len(piece) > self._may_send:
                self._waiting.appendleft(piece[self._may_send :])
                piece = piece[: self._may_send]
            self._may_send -= len(piece)
            self.unsent -= len(piece)
            self._device.put(pack_frame(self.number, FrameKind.DATA, piece))

    def handle(self, frame: Frame) -> None:
        """A frame from VeilMon, or from whoever can write its shared pages."""
        if frame.kind == FrameKind.DATA:
            self._may_receive -= len(frame.data)
            if self._may_receive < 0:
                raise FormatError("more data than was granted")
            if self.on_data is not None:
                self.on_data(frame.data)
        elif frame.kind == FrameKind.CREDIT:
            self._may_send += int.from_bytes(frame.data, "little")
            waited = self.unsent
            self._flush()
            if waited and not self.unsent and self.on_room is not None:
                self.on_room()
            if self.on_taken is not None:
                self.on_taken()
        elif frame.kind == FrameKind.PROVEN:
            if self.on_proven is not None:
                self.on_proven()
        elif frame.kind == FrameKind.CLOSE:
            self._device.forget(self)
            self.lost()
        else:
            raise FormatError(f"VeilMon sent a frame {frame.kind.name}")

    def lost(self) -> None:
        """The connection is no more."""
        if self.is_open:
            self.is_open = False
            if self.on_close is not None:
                self.on_close()


class ChannelDevice:
    """Rings and connections. `pending`: VeilMon should be entered, there is something for it."""

    def __init__(self, memory: RingMemory) -> None:
        self._memory = memory
        self._area: ChannelArea | None = None
        self._gone = False  # the pages are private: who took them (not VeilMon) ended the channel
        self._connections: dict[int, ChannelConnection] = {}
        self._next = 1
        self.pending = False
        #: called when `pending` becomes true
        self.on_pending: Callable[[], None] | None = None
        self._generation = 0
        self._awaited = False
        self._waiting = bytearray()
        self._gathering = False

    def attach(self, bus: IoBus) -> None:
        """Claim the port."""
        bus.add_window(Window(DOORBELL_PORT, _PORT_BYTES, lambda offset, size: 0, self._write, vmpl=MONITOR_VMPL))

    @property
    def ready(self) -> bool:
        """Has VeilMon said where its rings are, and can the host still reach them?"""
        return self._area is not None and not self._gone

    def open(self, *, expected: bool = False) -> ChannelConnection:
        """A new connection. `expected`: of somebody whom the launch seems to name; VeilMon comes to them first."""
        connection = ChannelConnection(self, self._next)
        self._next += 1
        self._connections[connection.number] = connection
        self.put(pack_frame(connection.number, FrameKind.EXPECTED if expected else FrameKind.OPEN))
        return connection

    def forget(self, connection: ChannelConnection) -> None:
        """The connection carries nothing any more."""
        self._connections.pop(connection.number, None)

    def put(self, frame: bytes) -> None:
        """A frame for VeilMon; waits here while the ring is full, and is lost if there is no ring any more."""
        if self._gone:
            return
        self._waiting += frame
        if not self._gathering:
            self.flush()

    @contextlib.contextmanager
    def gathering(self) -> Iterator[None]:
        """What is put meanwhile goes into the ring in the end, all at once."""
        self._gathering = True
        try:
            yield
        finally:
            self._gathering = False
            self.flush()

    def flush(self) -> None:
        """Put what waits into the ring, as far as there is room."""
        if not self._waiting or self._area is None or self._gone:
            return
        try:
            if not self._in_step():
                return
            count = self._out.write(bytes(self._waiting[: self._area.ring]))
        except (FormatError, RmpViolation):
            self._reset()
            return
        if count:
            del self._waiting[:count]
            self._now_pending()

    def entered(self) -> None:
        """VeilMon is being entered: it will read all that is in its ring."""
        self.pending = False

    def _now_pending(self) -> None:
        if not self.pending:
            self.pending = True
            if self.on_pending is not None:
                self.on_pending()

    def _write(self, offset: int, size: int, value: int) -> None:
        if offset or size != _PORT_BYTES:
            return
        if value not in (DOORBELL_DATA, DOORBELL_MORE, DOORBELL_SPOILT):
            # Where the rings are is said once: whatever becomes of their pages, they are nowhere else.
            if self._area is None:
                self._begin(ChannelArea(value * PAGE_SIZE), 0, 0)
                self.flush()
        elif self.ready and value in (DOORBELL_DATA, DOORBELL_MORE):
            self._receive()
            if value == DOORBELL_MORE:
                self._now_pending()
        elif self.ready and value == DOORBELL_SPOILT:
            self._reset()

    def _begin(self, area: ChannelArea, position_in: int, position_out: int, held: bytes = b"") -> None:
        self._area = area
        self._in = RingReader(self._memory, area, to_monitor=False, position=position_in)
        self._out = RingWriter(self._memory, area, to_monitor=True, position=position_out)
        self._frames = FrameReader(held)
        self._generations = Generations(self._memory, area)

    def _receive(self) -> None:
        assert self._area is not None
        try:
            if not self._in_step():
                return
            data = self._in.read()
            for frame in self._frames.feed(data):
                connection = self._connections.get(frame.connection)
                if connection is not None:
                    connection.handle(frame)
        except (FormatError, RmpViolation):
            self._reset()
            return
        if len(data) > self._area.ring // 2:
            self._now_pending()  # it may have had more than fitted

    def _in_step(self) -> bool:
        """Has VeilMon followed to the last beginning?"""
        if self._generations.seen == self._generation:
            self._awaited = False
            return True
        if self._awaited:
            self._now_pending()  # what it wrote was spoilt, or it has not come to it yet
            return False
        raise FormatError("the channel's generation was changed by somebody else")

    def _reset(self) -> None:
        """The rings are spoilt: start again with the next generation."""
        assert self._area is not None
        lost, self._connections = self._connections, {}
        self._waiting.clear()
        self._generation = self._generation + 1 & 0xFFFFFFFF
        self._awaited = True
        self._begin(self._area, 0, 0)
        try:
            self._in.reset()
            self._out.reset()
            self._generations.want(self._generation)
        except RmpViolation:
            self._gone = True
        self._now_pending()
        for connection in lost.values():
            connection.lost()

    # Snapshots

    def dump(self) -> dict[str, Any]:
        """For a snapshot. Connections do not outlive it."""
        if self._area is None:
            return {"gpa": 0}
        return {
            "gpa": self._area.gpa,
            "generation": self._generation,
            "awaited": self._awaited,
            "in": self._in.position,
            "out": self._out.position,
            "held": self._frames.held.hex(),
            "waiting": bytes(self._waiting).hex(),
            "next": self._next,
        }

    def load(self, state: dict[str, Any]) -> None:
        gpa = int(state["gpa"])
        self._area, self._gone = None, False
        self._connections.clear()
        if not gpa:
            return
        self._generation, self._next = int(state["generation"]), int(state["next"])
        self._awaited = bool(state["awaited"])
        self._waiting = bytearray(bytes.fromhex(state["waiting"]))
        self._begin(ChannelArea(gpa), int(state["in"]), int(state["out"]), bytes.fromhex(state["held"]))
