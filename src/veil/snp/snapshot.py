# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshot files: named sections and guest memory, which is mapped from the file and copied only as it is written.

    0        magic, version, length and SHA-256 of the index
    ...      index (JSON): length of memory, its offset, and for each section offset, length and SHA-256
    ...      sections
    ...      memory at a multiple of 2 MiB, a hole in the file for each run of zero pages

Opening checks index and sections; memory is checked by its length only, since reading all of it would cost more than
everything else together (`verify` does).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import zlib
from dataclasses import dataclass
from io import BufferedReader, BufferedWriter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from veil.disk import full_disk_words, is_full
from veil.snp.errors import SnapshotError
from veil.snp.memory import PAGE_SIZE, Memory

__all__ = ["Snapshot", "read_snapshot", "write_snapshot"]

_MAGIC = b"VEILSNAP"
_VERSION = 1
_HEADER = struct.Struct("<8sIQ32s")
_MEMORY_ALIGNMENT = 2 << 20
_MAX_INDEX = 1 << 20


@dataclass(frozen=True)
class Snapshot:
    """An opened snapshot."""

    path: Path
    sections: dict[str, bytes]
    memory_size: int
    memory_offset: int
    memory_crc: int

    def map_memory(self) -> Memory:
        """Guest memory with the snapshot's content; writes stay in this process."""
        try:
            with open(self.path, "rb") as stream:
                return Memory.from_file(stream.fileno(), self.memory_size, self.memory_offset)
        except OSError as error:
            raise SnapshotError(f"cannot map the snapshot {self.path}: {error.strerror}") from error

    def verify(self) -> None:
        """Read all of memory and compare its checksum; raises SnapshotError."""
        with open(self.path, "rb") as stream:
            stream.seek(self.memory_offset)
            if _checksum_stream(stream, self.memory_size) != self.memory_crc:
                raise SnapshotError(f"the snapshot {self.path} is damaged: memory does not match its checksum")


def _runs(nonzero: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(first, end) of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], nonzero, [False])).astype(np.int8)))
    return [(int(first), int(end)) for first, end in zip(edges[::2], edges[1::2], strict=True)]


def write_snapshot(path: Path, *, memory: memoryview, sections: dict[str, bytes]) -> None:
    """Write a snapshot whole or not at all; raises SnapshotError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as stream:
            _write(stream, memory, sections)
        os.replace(temporary, path)
    except OSError as error:
        if is_full(error):
            raise SnapshotError(full_disk_words("a snapshot", path.parent)) from error
        raise SnapshotError(f"cannot write the snapshot {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _write(stream: BufferedWriter, memory: memoryview, sections: dict[str, bytes]) -> None:
    words: NDArray[np.uint64] = np.frombuffer(memory, dtype="<u8").reshape(-1, PAGE_SIZE // 8)
    runs = _runs(np.asarray(words.any(axis=1)))
    crc = 0
    for first, end in runs:
        crc = zlib.crc32(memory[first * PAGE_SIZE : end * PAGE_SIZE], zlib.crc32(struct.pack("<2Q", first, end), crc))
    entries = {}
    position = 0
    for name, data in sections.items():
        entries[name] = (position, len(data), hashlib.sha256(data).hexdigest())
        position += len(data)
    index = {"memory_size": len(memory), "memory_crc": crc, "sections": entries, "sections_length": position}
    text = json.dumps(index).encode()
    stream.write(_HEADER.pack(_MAGIC, _VERSION, len(text), hashlib.sha256(text).digest()))
    stream.write(text)
    for data in sections.values():
        stream.write(data)
    base = _align(_HEADER.size + len(text) + position)
    for first, end in runs:
        stream.seek(base + first * PAGE_SIZE)
        stream.write(memory[first * PAGE_SIZE : end * PAGE_SIZE])
    stream.truncate(base + len(memory))


def _align(length: int) -> int:
    return -(-length // _MEMORY_ALIGNMENT) * _MEMORY_ALIGNMENT


def _checksum_stream(stream: BufferedReader, size: int) -> int:
    content: NDArray[np.uint64] = np.fromfile(stream, dtype="<u8", count=size // 8).reshape(-1, PAGE_SIZE // 8)
    crc = 0
    view = memoryview(content.data).cast("B")
    for first, end in _runs(np.asarray(content.any(axis=1))):
        crc = zlib.crc32(view[first * PAGE_SIZE : end * PAGE_SIZE], zlib.crc32(struct.pack("<2Q", first, end), crc))
    return crc


def read_snapshot(path: Path) -> Snapshot:
    """Open and check a snapshot; raises SnapshotError in one line."""
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            header = stream.read(_HEADER.size)
            if len(header) < _HEADER.size or not header.startswith(_MAGIC):
                raise SnapshotError(f"{path} is no snapshot")
            _, version, length, digest = _HEADER.unpack(header)
            if version != _VERSION:
                raise SnapshotError(f"{path} is a snapshot of version {version}, this is {_VERSION}")
            text = stream.read(min(length, _MAX_INDEX))
            if hashlib.sha256(text).digest() != digest:
                raise SnapshotError(f"the snapshot {path} is damaged: its index does not match its checksum")
            index = json.loads(text)
            sections = {}
            start = _HEADER.size + length
            for name, (offset, count, expected) in index["sections"].items():
                stream.seek(start + offset)
                data = stream.read(count)
                if hashlib.sha256(data).hexdigest() != expected:
                    raise SnapshotError(f"the snapshot {path} is damaged: section {name!r} does not match its checksum")
                sections[name] = data
    except OSError as error:
        raise SnapshotError(f"cannot read the snapshot {path}: {error.strerror}") from error
    base = _align(start + index["sections_length"])
    if size != base + index["memory_size"]:
        raise SnapshotError(f"the snapshot {path} is damaged: it has {size} bytes, not {base + index['memory_size']}")
    return Snapshot(path, sections, index["memory_size"], base, index["memory_crc"])
