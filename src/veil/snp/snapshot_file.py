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

import hashlib
import json
import os
import struct
import zlib
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from veil.disk import describe_full_disk, is_full
from veil.formats.page_sizes import PAGE_SIZE, PAGE_SIZE_2M
from veil.private_files import make_folder, replacing
from veil.snp.errors import SnapshotError
from veil.snp.memory import Memory

__all__ = ["Snapshot", "from_plain", "read_snapshot", "to_plain", "write_snapshot"]

_MAGIC = b"VEILSNAP"
_VERSION = 1
_HEADER = struct.Struct("<8sIQ32s")
_MEMORY_ALIGNMENT = PAGE_SIZE_2M
_MAX_INDEX = 1 << 20
#: what sections may have beside the RMP's eight bytes a page: the files of a CVM's configuration are the largest
_MAX_SECTIONS = 256 << 20


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
    total, most = sum(map(len, sections.values())), _most_of_sections(len(memory))
    if total > most:
        raise SnapshotError(f"the snapshot {path} would have {total} bytes beside memory, at most {most} can be kept")
    try:
        make_folder(path.parent)
        with replacing(path) as stream:
            _write(stream, memory, sections)
    except OSError as error:
        if is_full(error):
            raise SnapshotError(describe_full_disk("a snapshot", path.parent)) from error
        raise SnapshotError(f"cannot write the snapshot {path}: {error.strerror}") from error


def _write(stream: BinaryIO, memory: memoryview, sections: dict[str, bytes]) -> None:
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


def _most_of_sections(memory_size: int) -> int:
    return _MAX_SECTIONS + memory_size // (PAGE_SIZE // 8)


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
    """Open and check a snapshot; raises SnapshotError in one line, whatever the file holds."""
    try:
        with open(path, "rb") as stream:
            return _read(path, stream, os.fstat(stream.fileno()).st_size)
    except OSError as error:
        raise SnapshotError(f"cannot read the snapshot {path}: {error.strerror}") from error
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise SnapshotError(f"the snapshot {path} is damaged: its index is not valid ({error!r:.80})") from error


def _read(path: Path, stream: BufferedReader, size: int) -> Snapshot:
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise SnapshotError(f"{path} is not a snapshot")
    _, version, length, digest = _HEADER.unpack(header)
    if version != _VERSION:
        raise SnapshotError(f"{path} is a snapshot of version {version}, this is {_VERSION}")
    text = stream.read(min(length, _MAX_INDEX))
    if hashlib.sha256(text).digest() != digest or len(text) != length:
        raise SnapshotError(f"the snapshot {path} is damaged: its index does not match its checksum")
    index = json.loads(text)
    memory_size, memory_crc, total = (_count(index[name]) for name in ("memory_size", "memory_crc", "sections_length"))
    start = _HEADER.size + length
    base = _align(start + total)
    if size != base + memory_size:
        raise SnapshotError(f"the snapshot {path} is damaged: it has {size} bytes, not {base + memory_size}")
    if total > _most_of_sections(memory_size):
        raise SnapshotError(f"the snapshot {path} is damaged: its sections are longer than any machine's")
    sections: dict[str, bytes] = {}
    position = 0
    # One after the other, as they are written: overlapping ones would be read again and again.
    for name, (offset, count, expected) in index["sections"].items():
        if _count(offset) != position or _count(count) > total - position:
            raise SnapshotError(f"the snapshot {path} is damaged: section {name[:40]!r} is not where it should be")
        stream.seek(start + offset)
        data = stream.read(count)
        if hashlib.sha256(data).hexdigest() != expected:
            raise SnapshotError(f"the snapshot {path} is damaged: section {name[:40]!r} does not match its checksum")
        sections[name] = data
        position += count
    return Snapshot(path, sections, memory_size, base, memory_crc)


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.40} is not a number of bytes")
    return value


def to_plain(value: Any) -> Any:
    """Values with bytes in them, as JSON can have them."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def from_plain(value: Any) -> Any:
    """The other way."""
    if isinstance(value, dict):
        if set(value) == {"hex"}:
            return bytes.fromhex(value["hex"])
        return {key: from_plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    return value
