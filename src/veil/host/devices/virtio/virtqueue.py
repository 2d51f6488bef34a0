# SPDX-License-Identifier: GPL-2.0-or-later
"""A split virtqueue, the device's side (virtio 1.2, 2.7), of a driver that is not trusted.

All of a queue lies in memory that the guest may change at any time: every value is read once, checked, and used. What
breaks the rules raises QueueError, and the device then asks for a reset; what the rules allow but would let a guest
hold up the host (endless chains, gigabytes in one chain) is bounded here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from veil.host.devices._state import load_integers, save_integers
from veil.snp.errors import SnpError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Chain", "DmaMemory", "QueueError", "Virtqueue"]

#: The most bytes that one chain may carry if a device says nothing else; Linux' drivers stay far below.
MAX_CHAIN_BYTES = 1 << 20

_DESC = struct.Struct("<QIHH")
_USED = struct.Struct("<II")
_U16 = struct.Struct("<H")

_NEXT, _WRITE, _INDIRECT = 1, 2, 4
_AVAIL_NO_INTERRUPT = 1
_USED_NO_NOTIFY = 1
_ADDRESS_LIMIT = 1 << 64


class DmaMemory(Protocol):
    """Guest memory as a device reaches it: the host's view. Refusals are SnpError."""

    def read(self, gpa: int, length: int, /) -> bytes: ...

    def write(self, gpa: int, data: bytes, /) -> None: ...


class QueueError(Exception):
    """The driver broke the queue."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A descriptor chain: (address, length) of each buffer that the device reads, and of each that it may write."""

    head: int
    readable: Sequence[tuple[int, int]]
    writable: Sequence[tuple[int, int]]

    @property
    def room(self) -> int:
        """How much the device may write."""
        return sum(length for _, length in self.writable)


class Virtqueue:
    """Nothing moves before `enable`. Addresses, size and enable are what the driver wrote into the registers."""

    _SAVED = ("size", "enabled", "desc", "avail", "used", "_next_avail", "_next_used", "_quiet")

    def __init__(self, memory: DmaMemory, max_size: int, max_chain: int = MAX_CHAIN_BYTES) -> None:
        """At most `max_size` entries; a chain has at most `max_chain` bytes."""
        self._memory = memory
        self._max_chain = max_chain
        self.max_size = max_size
        self.size = max_size
        self.enabled = False
        self.desc = 0
        self.avail = 0
        self.used = 0
        self._next_avail = 0
        self._next_used = 0
        self._quiet = False

    def reset(self) -> None:
        """As after a device reset."""
        self.size = self.max_size
        self.enabled = False
        self.desc = self.avail = self.used = 0
        self._next_avail = self._next_used = 0
        self._quiet = False

    def enable(self) -> None:
        """The driver has set the queue up. Sizes and alignments: 2.7, 4.1.4.3."""
        self._check()
        self.enabled = True

    def _check(self) -> None:
        size = self.size
        if not 0 < size <= self.max_size or size & size - 1:
            raise QueueError(f"a queue of {size} entries; at most {self.max_size}, a power of two")
        if self.desc & 15 or self.avail & 1 or self.used & 3:
            raise QueueError("a part of the queue is not aligned")
        ends = (self.desc + 16 * size, self.avail + 6 + 2 * size, self.used + 6 + 8 * size)
        if max(ends) > _ADDRESS_LIMIT:
            raise QueueError("a part of the queue is beyond the end of the address space")

    # Guest memory

    def _read(self, gpa: int, length: int) -> bytes:
        try:
            return self._memory.read(gpa, length)
        except SnpError as error:
            raise QueueError(str(error)) from error

    def _write(self, gpa: int, data: bytes) -> None:
        try:
            self._memory.write(gpa, data)
        except SnpError as error:
            raise QueueError(str(error)) from error

    def _read_u16(self, gpa: int) -> int:
        value: int = _U16.unpack(self._read(gpa, 2))[0]
        return value

    # Chains

    def available(self) -> int:
        """How many chains wait."""
        if not self.enabled:
            return 0
        waiting = self._read_u16(self.avail + 2) - self._next_avail & 0xFFFF
        if waiting > self.size:
            raise QueueError(f"{waiting} chains are available in a queue of {self.size}")
        return waiting

    def pop(self) -> Chain | None:
        """The next chain, None if none waits."""
        if not self.available():
            return None
        head = self._read_u16(self.avail + 4 + 2 * (self._next_avail & self.size - 1))
        chain = self._walk(head)
        self._next_avail = self._next_avail + 1 & 0xFFFF
        return chain

    def waiting(self) -> Iterator[Chain]:
        """The chains that wait now, and no more: what a device writes may lie over the queue, and offer more without
        end."""
        for _ in range(self.available()):
            chain = self.pop()
            if chain is None:
                return
            yield chain

    def pop_or_ask(self) -> Chain | None:
        """As `pop`, of a queue that is quiet as long as there is no need: if none waits, the driver is asked to tell of
        the next one."""
        chain = self.pop()
        if chain is None:
            self.set_quiet(False)
            # One may have come before the driver could know.
            chain = self.pop()
        return chain

    def _walk(self, head: int) -> Chain:
        readable: list[tuple[int, int]] = []
        writable: list[tuple[int, int]] = []
        index, total = head, 0
        # A chain that is longer than the queue is a loop.
        for _ in range(self.size):
            if index >= self.size:
                raise QueueError(f"descriptor {index} in a queue of {self.size}")
            address, length, flags, following = _DESC.unpack(self._read(self.desc + 16 * index, 16))
            if flags & _INDIRECT:
                raise QueueError("an indirect descriptor, which was not negotiated")
            total += length
            if total > self._max_chain or address + length > _ADDRESS_LIMIT:
                raise QueueError(f"a buffer of {length} bytes at {address:#x} is too much")
            if flags & _WRITE:
                writable.append((address, length))
            elif writable:
                raise QueueError("a buffer to read behind one to write")
            else:
                readable.append((address, length))
            if not flags & _NEXT:
                return Chain(head, readable, writable)
            index = following
        raise QueueError("a chain without end")

    def read_chain(self, chain: Chain) -> bytes:
        """All that the driver put into a chain."""
        return b"".join(self._read(address, length) for address, length in chain.readable if length)

    def write_chain(self, chain: Chain, data: bytes | memoryview) -> int:
        """As much of the data as fits; returns how much that is."""
        done = 0
        for address, length in chain.writable:
            part = data[done : done + length]
            if not part:
                continue
            self._write(address, bytes(part))
            done += len(part)
        return done

    def push(self, chain: Chain, written: int) -> None:
        """Give a chain back. The entry is complete before the index says so."""
        slot = self._next_used & self.size - 1
        self._write(self.used + 4 + 8 * slot, _USED.pack(chain.head, written))
        self._next_used = self._next_used + 1 & 0xFFFF
        self._write(self.used + 2, _U16.pack(self._next_used))

    def wants_interrupt(self) -> bool:
        """Would the driver hear of used chains (2.7.7)?"""
        return not self._read_u16(self.avail) & _AVAIL_NO_INTERRUPT

    def set_quiet(self, quiet: bool) -> None:
        """Ask the driver to leave notifications out, or to send them (2.7.10); each costs it an exit."""
        if self.enabled and quiet != self._quiet:
            self._write(self.used, _U16.pack(_USED_NO_NOTIFY if quiet else 0))
            self._quiet = quiet

    # Snapshots

    def dump(self) -> dict[str, Any]:
        """For a snapshot; the rings are in guest memory."""
        return save_integers(self, self._SAVED)

    def load(self, state: dict[str, Any]) -> None:
        load_integers(self, self._SAVED, state)
        if self.enabled:
            # Of a queue that is not enabled, the registers hold whatever the driver wrote.
            try:
                self._check()
            except QueueError as error:
                raise ValueError(str(error)) from error
