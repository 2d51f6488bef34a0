# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest writes over an image, or over nothing, kept in a file without a name: with the process it is gone."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Any, BinaryIO

from veil.host.devices.storage.backend import StorageError
from veil.host.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from veil.host.devices.storage.backend import Backend

__all__ = ["MAX_SAVED", "Blank", "Overlay"]

_BLOCK = 4096
#: what a snapshot takes of an overlay, in bytes
MAX_SAVED = 64 << 20
_NUMBER = struct.Struct("<Q")


class Blank:
    """Nothing but zeros."""

    name = "scratch"
    read_only = True

    def __init__(self, size: int) -> None:
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        return bytes(length)

    def write(self, offset: int, data: bytes) -> None:
        raise StorageError("nothing is there to be written to")

    def flush(self) -> None:
        """Nothing to do."""

    def dump(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Nothing to take."""


class Overlay:
    """A backend whose blocks are the base's until they are written."""

    read_only = False

    def __init__(self, base: Backend, stream: BinaryIO) -> None:
        """`stream` is an empty file for reading and writing, without a name."""
        self._base = base
        self._stream = stream
        self._descriptor = stream.fileno()
        #: numbers of blocks that the file has
        self._own: set[int] = set()

    @property
    def name(self) -> str:
        return self._base.name

    @property
    def size(self) -> int:
        return self._base.size

    def read(self, offset: int, length: int) -> bytes:
        parts = []
        for own, start, end in self._runs(offset, offset + length):
            parts.append(self._read_own(start, end - start) if own else self._base.read(start, end - start))
        return b"".join(parts)

    def _runs(self, offset: int, end: int) -> Iterator[tuple[bool, int, int]]:
        """(written?, start, end) of pieces that lie in one place each."""
        start = offset
        while start < end:
            own = start // _BLOCK in self._own
            stop = start
            while stop < end and (stop // _BLOCK in self._own) == own:
                stop = min(end, (stop // _BLOCK + 1) * _BLOCK)
            yield own, start, stop
            start = stop

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        first, last = offset // _BLOCK, -(-end // _BLOCK)
        # Of a block that is written in part the rest comes from the base.
        for block in {first, last - 1} - self._own:
            start, stop = block * _BLOCK, min((block + 1) * _BLOCK, self.size)
            if start < offset or stop > end:
                self._write_own(start, self._base.read(start, stop - start))
                self._own.add(block)
        self._write_own(offset, data)
        self._own.update(range(first, last))

    def _read_own(self, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise StorageError(f"the overlay of {self.name}: {error.strerror}") from error
        if len(data) != length:
            raise StorageError(f"the overlay of {self.name} has become shorter")
        return data

    def _write_own(self, offset: int, data: bytes) -> None:
        try:
            written = os.pwrite(self._descriptor, data, offset)
        except OSError as error:
            raise StorageError(f"the overlay of {self.name}: {error.strerror}") from error
        if written != len(data):
            raise StorageError(f"the overlay of {self.name}: {os.strerror(errno.ENOSPC)}")

    def flush(self) -> None:
        """Nothing to do: what is written here is gone with the process anyway."""

    def dump(self) -> dict[str, Any]:
        blocks = sorted(self._own)
        if len(blocks) * _BLOCK > MAX_SAVED:
            raise HostError(
                f"the guest has written {len(blocks) * _BLOCK >> 20} MiB over the disk {self.name}; a snapshot keeps "
                f"at most {MAX_SAVED >> 20} MiB of that"
            )
        data = b"".join(self._read_own(block * _BLOCK, self._length(block)) for block in blocks)
        numbers = b"".join(map(_NUMBER.pack, blocks))
        return {"base": self._base.dump(), "size": self.size, "blocks": numbers, "data": data}

    def _length(self, block: int) -> int:
        return min(_BLOCK, self.size - block * _BLOCK)

    def load(self, state: dict[str, Any]) -> None:
        self._base.load(state["base"])
        if state["size"] != self.size:
            raise HostError(f"the disk {self.name} has {self.size} bytes; in the snapshot it had {state['size']}")
        numbers, data = bytes(state["blocks"]), bytes(state["data"])
        if len(numbers) % _NUMBER.size:
            raise ValueError("the overlay's block numbers are cut off")
        blocks = [block for (block,) in _NUMBER.iter_unpack(numbers)]
        if blocks != sorted(set(blocks)) or (blocks and blocks[-1] * _BLOCK >= self.size):
            raise ValueError("the overlay's block numbers are not those of a disk")
        if len(data) != sum(map(self._length, blocks)):
            raise ValueError("the overlay's blocks are not as many as their numbers")
        place = 0
        for block in blocks:
            length = self._length(block)
            self._write_own(block * _BLOCK, data[place : place + length])
            place += length
        self._own = set(blocks)
