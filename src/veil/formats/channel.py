# SPDX-License-Identifier: GPL-2.0-or-later
"""The secure channel between a remote user and VeilMon, outside in.

1. Rings: two byte streams in pages that VeilMon shares with the host (`RingWriter`, `RingReader`).
2. Frames on them: many connections on one pair of streams, each direction of each with a window, so that one that is
   slow holds up no other. (Between the user and the host a connection is a TCP connection.)
3. TLS 1.3 on each connection, ending in VeilMon. All that follows is for its two ends alone.
4. Messages in TLS: requests to VeilMon or to a service, and their responses.

Whoever reads any of this reads what somebody hostile may have written: everything is checked, FormatError otherwise.
"""

from __future__ import annotations

import enum
import struct
import uuid
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from veil.formats.errors import FormatError

__all__ = [
    "AREA_HEADER",
    "DOORBELL_DATA",
    "DOORBELL_MORE",
    "DOORBELL_PORT",
    "DOORBELL_SPOILT",
    "FRAME_DATA_MAX",
    "MESSAGE_MAX",
    "STRANGER_MESSAGE_MAX",
    "STRANGER_WINDOW",
    "WINDOW",
    "ChannelArea",
    "Frame",
    "FrameKind",
    "FrameReader",
    "Generations",
    "MessageReader",
    "Request",
    "Response",
    "RingMemory",
    "RingReader",
    "RingWriter",
    "Status",
    "pack_frame",
    "pack_request",
    "pack_response",
]

# 1. Rings

#: I/O port of 4 bytes: VeilMon writes the area's page number once, then one of the next three.
DOORBELL_PORT = 0x0CE0
#: there is something in the ring to the host
DOORBELL_DATA = 0
#: the same, and VeilMon has left work lying, so that the kernel can run: enter it again
DOORBELL_MORE = 0xFFFFFFFE
#: the rings are spoilt: begin anew
DOORBELL_SPOILT = 0xFFFFFFFF
#: the first page of the area; the rings follow, first the one to VeilMon
AREA_HEADER = 4096
_TO_MONITOR_HEAD, _TO_MONITOR_TAIL, _TO_HOST_HEAD, _TO_HOST_TAIL = 0x00, 0x40, 0x80, 0xC0
#: u32 each: the host counts one up to begin anew with empty rings and no connections, VeilMon follows. Whoever can
#: write shared pages, the kernel at VMPL 3 too, can spoil the rings; this is how they come back.
_GENERATION_WANTED, _GENERATION_SEEN = 0x100, 0x140
_COUNTER = struct.Struct("<I")
_COUNTER_MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class ChannelArea:
    """Where the rings are. `ring` is a power of two."""

    gpa: int
    ring: int = 64 << 10

    @property
    def size(self) -> int:
        """In bytes."""
        return AREA_HEADER + 2 * self.ring


class RingMemory(Protocol):
    """How an end reaches the shared pages."""

    def read(self, gpa: int, length: int, /) -> bytes: ...

    def write(self, gpa: int, data: bytes, /) -> None: ...


class _Ring:
    def __init__(self, memory: RingMemory, area: ChannelArea, *, to_monitor: bool) -> None:
        self._memory = memory
        self._head = area.gpa + (_TO_MONITOR_HEAD if to_monitor else _TO_HOST_HEAD)
        self._tail = area.gpa + (_TO_MONITOR_TAIL if to_monitor else _TO_HOST_TAIL)
        self._data = area.gpa + AREA_HEADER + (0 if to_monitor else area.ring)
        self._size = area.ring

    def _counter(self, gpa: int) -> int:
        value: int = _COUNTER.unpack(self._memory.read(gpa, _COUNTER.size))[0]
        return value

    def _set(self, gpa: int, value: int) -> None:
        self._memory.write(gpa, _COUNTER.pack(value & _COUNTER_MASK))

    def _pieces(self, at: int, length: int) -> list[tuple[int, int]]:
        start = at % self._size
        first = min(length, self._size - start)
        pieces = [(self._data + start, first)]
        if length > first:
            pieces.append((self._data, length - first))
        return pieces


class Generations:
    """The two counters by which host and VeilMon agree on a new beginning."""

    def __init__(self, memory: RingMemory, area: ChannelArea) -> None:
        self._memory = memory
        self._wanted = area.gpa + _GENERATION_WANTED
        self._seen = area.gpa + _GENERATION_SEEN

    @property
    def wanted(self) -> int:
        """What the host wants."""
        value: int = _COUNTER.unpack(self._memory.read(self._wanted, _COUNTER.size))[0]
        return value

    @property
    def seen(self) -> int:
        """What VeilMon has followed."""
        value: int = _COUNTER.unpack(self._memory.read(self._seen, _COUNTER.size))[0]
        return value

    def want(self, value: int) -> None:
        """For the host."""
        self._memory.write(self._wanted, _COUNTER.pack(value & _COUNTER_MASK))

    def follow(self, value: int) -> None:
        """For VeilMon."""
        self._memory.write(self._seen, _COUNTER.pack(value & _COUNTER_MASK))


class RingWriter(_Ring):
    """One end: writes. Its own position is never read back from memory that the other end can write."""

    def __init__(self, memory: RingMemory, area: ChannelArea, *, to_monitor: bool, position: int = 0) -> None:
        super().__init__(memory, area, to_monitor=to_monitor)
        self.position = position

    def reset(self) -> None:
        """Begin anew: each end clears the counter that it writes."""
        self._set(self._head, 0)
        self.position = 0

    def write(self, data: bytes | memoryview) -> int:
        """As much as there is room for; returns how much. Raises FormatError if the reader's counter is impossible."""
        used = self.position - self._counter(self._tail) & _COUNTER_MASK
        if used > self._size:
            raise FormatError("the channel's ring claims that more was read than was written")
        count = min(len(data), self._size - used)
        view = memoryview(data)[:count]
        done = 0
        for gpa, length in self._pieces(self.position, count):
            if length:
                self._memory.write(gpa, bytes(view[done : done + length]))
            done += length
        if count:
            self.position = self.position + count & _COUNTER_MASK
            self._set(self._head, self.position)
        return count


class RingReader(_Ring):
    """The other end: reads."""

    def __init__(self, memory: RingMemory, area: ChannelArea, *, to_monitor: bool, position: int = 0) -> None:
        super().__init__(memory, area, to_monitor=to_monitor)
        self.position = position

    def reset(self) -> None:
        """Begin anew: each end clears the counter that it writes."""
        self._set(self._tail, 0)
        self.position = 0

    def available(self) -> int:
        """Bytes to read. Raises FormatError if the writer's counter is impossible."""
        count = self._counter(self._head) - self.position & _COUNTER_MASK
        if count > self._size:
            raise FormatError("the channel's ring claims more than it holds")
        return count

    def read(self) -> bytes:
        """All that is there."""
        count = self.available()
        if not count:
            return b""
        data = b"".join(self._memory.read(gpa, length) for gpa, length in self._pieces(self.position, count))
        self.position = self.position + count & _COUNTER_MASK
        self._set(self._tail, self.position)
        return data


# 2. Frames

_FRAME = struct.Struct("<IHHI")
FRAME_DATA_MAX = 16 << 10
#: What a side may send on a connection before the other one has granted more by a CREDIT frame.
WINDOW = 64 << 10
#: The same, from the host to VeilMon: it grants the rest when the user has proved to be somebody whom the launch names.
STRANGER_WINDOW = 4 << 10


class FrameKind(enum.IntEnum):
    """What a frame says of its connection."""

    OPEN = 1
    """From the host: a new connection with this number."""
    DATA = 2
    CLOSE = 3
    CREDIT = 4
    """u32: so many bytes more may be sent."""
    PROVEN = 5
    """From VeilMon: this user has proved to be somebody whom the launch names, so others should make room for him."""


_KINDS = frozenset(FrameKind)


class Frame(NamedTuple):
    """A frame."""

    connection: int
    kind: FrameKind
    data: bytes = b""


def pack_frame(connection: int, kind: FrameKind, data: bytes | memoryview = b"") -> bytes:
    """A frame's bytes."""
    return _FRAME.pack(connection, kind, 0, len(data)) + data


class FrameReader:
    """Cuts a stream into frames. `held` is what is left of an earlier one, from a snapshot."""

    def __init__(self, held: bytes = b"") -> None:
        self._held = bytearray(held)

    @property
    def held(self) -> bytes:
        """The beginning of a frame."""
        return bytes(self._held)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete now; raises FormatError, after which the stream is of no use any more."""
        held = self._held
        held += data
        frames = []
        at = 0
        while len(held) - at >= _FRAME.size:
            connection, kind, reserved, length = _FRAME.unpack_from(held, at)
            if kind not in _KINDS or reserved or length > FRAME_DATA_MAX:
                raise FormatError(f"channel frame of kind {kind} with {length} bytes")
            if kind != FrameKind.DATA and length != (4 if kind == FrameKind.CREDIT else 0):
                raise FormatError(f"channel frame {FrameKind(kind).name} with {length} bytes")
            end = at + _FRAME.size + length
            if len(held) < end:
                break
            frames.append(Frame(connection, FrameKind(kind), bytes(held[at + _FRAME.size : end])))
            at = end
        del held[:at]
        return frames


# 4. Messages

_REQUEST = struct.Struct("<II16sHH")
_RESPONSE = struct.Struct("<IIHH")
MESSAGE_MAX = 1 << 20
#: The body of a request by somebody whom the launch does not name.
STRANGER_MESSAGE_MAX = 4 << 10


class Status(enum.IntEnum):
    """How a request ended."""

    OK = 0
    UNKNOWN_SERVICE = 1
    UNKNOWN_CALL = 2
    BAD_REQUEST = 3
    NOT_ALLOWED = 4
    """This user may not ask this (`veil.formats.roles`)."""
    UNAVAILABLE = 5
    """Not now; the body says why."""
    FULL = 6
    """There is no room; ask again when somebody has made some."""


@dataclass(frozen=True)
class Request:
    """To VeilMon (CHANNEL_SERVICE) or a service, by GUID."""

    number: int
    service: uuid.UUID
    call: int
    body: bytes = b""


@dataclass(frozen=True)
class Response:
    """To the request with this number; if `status` is not OK the body is a line of text."""

    number: int
    status: Status
    body: bytes = b""


def pack_request(request: Request) -> bytes:
    """A request's bytes."""
    return _REQUEST.pack(len(request.body), request.number, request.service.bytes, request.call, 0) + request.body


def pack_response(response: Response) -> bytes:
    """A response's bytes."""
    return _RESPONSE.pack(len(response.body), response.number, response.status, 0) + response.body


class MessageReader:
    """Cuts the plain text of a connection into requests or responses, with bodies of at most so many bytes."""

    def __init__(self, most: int = MESSAGE_MAX) -> None:
        self.most = most
        self._held = bytearray()

    def _next(self, header: struct.Struct) -> tuple[tuple[Any, ...], bytes] | None:
        held = self._held
        if len(held) < header.size:
            return None
        fields = header.unpack_from(held)
        length, reserved = fields[0], fields[-1]
        if length > self.most or reserved:
            raise FormatError(f"channel message of {length} bytes, at most {self.most} are allowed")
        end = header.size + length
        if len(held) < end:
            return None
        body = bytes(held[header.size : end])
        del held[:end]
        return fields, body

    def feed(self, data: bytes) -> None:
        """Take in plain text."""
        self._held += data

    def request(self) -> Request | None:
        """The next complete request."""
        found = self._next(_REQUEST)
        if found is None:
            return None
        (_, number, service, call, _), body = found
        return Request(number, uuid.UUID(bytes=service), call, body)

    def response(self) -> Response | None:
        """The next complete response."""
        found = self._next(_RESPONSE)
        if found is None:
            return None
        (_, number, status, _), body = found
        if status not in set(Status):
            raise FormatError(f"channel response with unknown status {status}")
        return Response(number, Status(status), body)
