# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries in a ring of protected memory, each with the time at which it came, and the Merkle tree over them."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

from veil.formats.log import ENTRY_HEADER, EntryKind
from veil.formats.merkle import CompactRange, MerkleTree, leaf_hash
from veil.services.context import LogSpan

if TYPE_CHECKING:
    from collections.abc import Callable

    from veil.services.context import ServiceMemory

__all__ = ["LogFull", "LogStore"]


class LogFull(Exception):
    """The entry does not fit before something is acknowledged."""


class LogStore:
    """Appends, reads, forgets what was acknowledged. Never overwrites anything else.

    Hashes are computed when an entry comes, the same small work for each, and kept: what anybody asks for later
    costs O(log entries). An entry takes 72 bytes here besides its place in the ring (64 in the tree, its position).
    """

    def __init__(self, memory: ServiceMemory, now: Callable[[], int]) -> None:
        """`now` is the machine's time in nanoseconds."""
        self._memory = memory
        self._now = now
        self._size = memory.size
        #: positions count bytes from the log's beginning; modulo the size they are offsets
        self._head = self._tail = 0
        self.first = self.next = 0
        self._positions = array("Q")  # of entries `first` to `next`
        self._tree = MerkleTree()

    @property
    def free(self) -> int:
        """Bytes that are free."""
        return self._size - (self._head - self._tail)

    @property
    def span(self) -> LogSpan:
        """Its size, and between which of all bytes it stands."""
        return LogSpan(self._size, self._head, self._tail)

    def append(self, kind: EntryKind, body: bytes, *, reserve: int = 0) -> int:
        """Keep an entry, of now; returns its sequence number. `reserve` bytes stay free. Raises LogFull."""
        length = ENTRY_HEADER.size + len(body)
        if length + reserve > self._size - (self._head - self._tail):
            raise LogFull
        sequence = self.next
        raw = ENTRY_HEADER.pack(sequence, self._now(), kind, len(body)) + body
        offset = self._head % self._size
        room = self._size - offset
        if length <= room:
            self._memory.write(offset, raw)
        else:
            self._memory.write(offset, raw[:room])
            self._memory.write(0, raw[room:])
        self._positions.append(self._head)
        self._tree.append(leaf_hash(raw))
        self._head += length
        self.next = sequence + 1
        return sequence

    def read(self, sequence: int, most: int) -> bytes:
        """Whole entries from one on: as many as `most` bytes hold, and at least one if there is one."""
        if not self.first <= sequence < self.next:
            return b""
        positions = self._positions
        index = sequence - self.first
        start = positions[index]
        last = index + 1
        while last < len(positions) and positions[last] - start <= most:
            last += 1
        # `last` is the first entry that begins too late; the one before may end too late.
        while last - index > 1 and self._position(last) - start > most:
            last -= 1
        return self._bytes(start, self._position(last) - start)

    def _position(self, index: int) -> int:
        return self._positions[index] if index < len(self._positions) else self._head

    def _bytes(self, position: int, length: int) -> bytes:
        offset = position % self._size
        room = self._size - offset
        if length <= room:
            return self._memory.read(offset, length)
        return self._memory.read(offset, room) + self._memory.read(0, length - room)

    def acknowledge(self, upto: int) -> None:
        """Forget the entries below; `upto` is at most `next`."""
        count = upto - self.first
        if count <= 0:
            return
        self._tree.forget(upto)
        self._tail = self._position(count)
        del self._positions[:count]
        self.first = upto

    # The tree

    def root(self) -> bytes:
        """Of all entries so far."""
        return self._tree.root()

    def range_at_first(self) -> CompactRange:
        """The compact range of all acknowledged entries."""
        return self._tree.range_at(self.first)

    def inclusion(self, index: int, size: int) -> list[bytes] | None:
        """A proof for an entry that is still there; None if it is not."""
        if not self.first <= index < size <= self.next:
            return None
        return self._tree.inclusion(index, size)

    def consistency(self, first: int, second: int) -> list[bytes] | None:
        """A proof between two sizes of which none is below the acknowledged one; None for others."""
        if not max(self.first, 1) <= first <= second <= self.next:
            return None
        return self._tree.consistency(first, second)

    # Snapshots

    def dump(self) -> dict[str, Any]:
        """What is not in the memory, but for nodes that follow from it."""
        return {
            "head": self._head,
            "tail": self._tail,
            "first": self.first,
            "positions": list(self._positions),
            "acknowledged": [item.hex() for item in self.range_at_first().hashes],
        }

    def load(self, state: dict[str, Any]) -> None:
        """From `dump`, with the memory as it was."""
        self._head, self._tail, self.first = state["head"], state["tail"], state["first"]
        self._positions = array("Q", state["positions"])
        self.next = self.first + len(self._positions)
        self._tree = MerkleTree(CompactRange(self.first, [bytes.fromhex(item) for item in state["acknowledged"]]))
        for index, start in enumerate(self._positions):
            self._tree.append(leaf_hash(self._bytes(start, self._position(index + 1) - start)))
