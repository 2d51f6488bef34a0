# SPDX-License-Identifier: GPL-2.0-or-later
"""Two byte streams in pages that VeilMon shares with the host.

Both ends can write all of it, and so can the kernel at VMPL 3: positions are never read back, counters are checked.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

from veil.formats.errors import FormatError
from veil.formats.page_sizes import PAGE_SIZE

__all__ = [
    "AREA_HEADER",
    "DOORBELL_DATA",
    "DOORBELL_MORE",
    "DOORBELL_PORT",
    "DOORBELL_SPOILT",
    "ChannelArea",
    "Generations",
    "RingMemory",
    "RingReader",
    "RingWriter",
    "look_at_counters",
]

#: I/O port of 4 bytes: VeilMon writes the area's page number once, then one of the next three.
DOORBELL_PORT = 0x0CE0
#: there is something in the ring to the host
DOORBELL_DATA = 0
#: the same, and VeilMon has left work lying, so that the kernel can run: enter it again
DOORBELL_MORE = 0xFFFFFFFE
#: the rings are spoilt: start again with the next generation
DOORBELL_SPOILT = 0xFFFFFFFF
#: the first page of the area; the rings follow, first the one to VeilMon
AREA_HEADER = PAGE_SIZE
_TO_MONITOR_HEAD, _TO_MONITOR_TAIL, _TO_HOST_HEAD, _TO_HOST_TAIL = 0x00, 0x40, 0x80, 0xC0
#: u32 each: the host counts one up to start again with empty rings and no connections, VeilMon follows. Whoever can
#: write shared pages, the kernel at VMPL 3 too, can spoil the rings; this is how they come back.
_GENERATION_WANTED, _GENERATION_SEEN = 0x100, 0x140
_COUNTER = struct.Struct("<I")
#: _TO_MONITOR_HEAD, _GENERATION_WANTED and _GENERATION_SEEN
_LOOK = struct.Struct("<I252xI60xI")
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


def look_at_counters(memory: RingMemory, area: ChannelArea) -> tuple[int, int, int]:
    """What tells VeilMon whether there is something for it, by one read: the position to which the host has written,
    the generation that it wants, and the one that VeilMon has followed."""
    written, wanted, seen = _LOOK.unpack(memory.read(area.gpa + _TO_MONITOR_HEAD, _LOOK.size))
    return written, wanted, seen


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
        """Start again empty: each end clears the counter that it writes."""
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
        """Start again empty: each end clears the counter that it writes."""
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
