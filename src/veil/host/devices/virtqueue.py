# SPDX-License-Identifier: GPL-2.0-or-later
"""A split virtqueue, device side (virtio 1.2, section 2.7). Every number in it is the guest's: checked before use."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["QUEUE_SIZE_MAX", "Chain", "DmaMemory", "QueueError", "Virtqueue"]

QUEUE_SIZE_MAX = 256

_NEXT, _WRITE, _INDIRECT = 1, 2, 4
_DESCRIPTOR = struct.Struct("<QIHH")
#: More than any driver of ours sends at once; bounds what a hostile chain can make the host hold.
_CHAIN_BYTES_MAX = 1 << 20


class DmaMemory(Protocol):
    """The host's view of guest memory."""

    def is_shared(self, gpa: int, length: int = 1, /) -> bool: ...

    def read(self, gpa: int, length: int, /) -> bytes: ...

    def write(self, gpa: int, data: bytes, /) -> None: ...


class QueueError(Exception):
    """The driver broke the queue's rules: the device stops until it is reset."""


@dataclass(slots=True)
class Chain:
    """A request: where its device-readable and device-writable buffers are."""

    head: int
    readable: list[tuple[int, int]] = field(default_factory=list)
    writable: list[tuple[int, int]] = field(default_factory=list)

    @property
    def room(self) -> int:
        """Bytes that the device may write."""
        return sum(length for _, length in self.writable)


class Virtqueue:
    """One queue; addresses are set by the transport before it is enabled."""

    def __init__(self, memory: DmaMemory) -> None:
        self._memory = memory
        self.reset()

    def reset(self) -> None:
        """As after a device reset."""
        self.size = QUEUE_SIZE_MAX
        self.enabled = False
        self.vector = 0xFFFF
        self.descriptors = self.driver = self.device = 0
        self._next_available = 0
        self._used = 0

    def enable(self) -> None:
        """Check the layout and start; raises QueueError."""
        size = self.size
        if not size or size > QUEUE_SIZE_MAX or size & size - 1:
            raise QueueError(f"queue size {size}")
        for name, gpa, length, alignment in (
            ("descriptor table", self.descriptors, 16 * size, 16),
            ("driver area", self.driver, 6 + 2 * size, 2),
            ("device area", self.device, 6 + 8 * size, 4),
        ):
            if gpa % alignment or not self._memory.is_shared(gpa, length):
                raise QueueError(f"{name} at {gpa:#x} is not in shared memory")
        self.enabled = True

    def _read(self, gpa: int, length: int) -> bytes:
        # Shared a moment ago is not shared now: the guest may take a page back at any time.
        if not self._memory.is_shared(gpa, length):
            raise QueueError(f"{gpa:#x} is not in shared memory")
        return self._memory.read(gpa, length)

    def _write(self, gpa: int, data: bytes) -> None:
        if not self._memory.is_shared(gpa, len(data)):
            raise QueueError(f"{gpa:#x} is not in shared memory")
        self._memory.write(gpa, data)

    def pop(self) -> Chain | None:
        """The next available chain, or None; raises QueueError."""
        if not self.enabled:
            return None
        available = struct.unpack("<H", self._read(self.driver + 2, 2))[0]
        waiting = available - self._next_available & 0xFFFF
        if not waiting:
            return None
        if waiting > self.size:
            raise QueueError(f"{waiting} chains made available in a queue of {self.size}")
        slot = self.driver + 4 + 2 * (self._next_available & self.size - 1)
        head = struct.unpack("<H", self._read(slot, 2))[0]
        chain = self._walk(head)
        self._next_available = self._next_available + 1 & 0xFFFF
        return chain

    def _walk(self, head: int) -> Chain:
        chain = Chain(head)
        index, total = head, 0
        for _ in range(self.size):
            if index >= self.size:
                raise QueueError(f"descriptor {index} in a queue of {self.size}")
            gpa, length, flags, following = _DESCRIPTOR.unpack(self._read(self.descriptors + 16 * index, 16))
            if flags & _INDIRECT:
                raise QueueError("an indirect descriptor that was not negotiated")
            total += length
            if total > _CHAIN_BYTES_MAX:
                raise QueueError("a chain of more than 1 MiB")
            if flags & _WRITE:
                chain.writable.append((gpa, length))
            elif chain.writable:
                raise QueueError("a readable buffer after a writable one")
            else:
                chain.readable.append((gpa, length))
            if not flags & _NEXT:
                return chain
            index = following
        raise QueueError("a chain that does not end")

    def read_chain(self, chain: Chain) -> bytes:
        """What the driver sent."""
        return b"".join(self._read(gpa, length) for gpa, length in chain.readable if length)

    def write_chain(self, chain: Chain, data: bytes) -> int:
        """Fill the writable buffers with as much of `data` as fits; returns how much."""
        done = 0
        for gpa, length in chain.writable:
            part = data[done : done + length]
            if not part:
                break
            self._write(gpa, part)
            done += len(part)
        return done

    def push(self, chain: Chain, written: int) -> bool:
        """Give a chain back; True if the driver wants an interrupt."""
        slot = self.device + 4 + 8 * (self._used & self.size - 1)
        self._write(slot, struct.pack("<II", chain.head, written))
        self._used = self._used + 1 & 0xFFFF
        self._write(self.device + 2, struct.pack("<H", self._used))
        return not self._read(self.driver, 1)[0] & 1

    _SAVED = ("size", "enabled", "vector", "descriptors", "driver", "device", "_next_available", "_used")

    def state(self) -> dict[str, Any]:
        """For a snapshot."""
        return {name: getattr(self, name) for name in self._SAVED}

    def load(self, state: dict[str, Any]) -> None:
        """From a snapshot."""
        for name in self._SAVED:
            setattr(self, name, state[name])
