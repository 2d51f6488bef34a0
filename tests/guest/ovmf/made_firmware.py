# SPDX-License-Identifier: GPL-2.0-or-later
"""Firmware files written by hand from edk2's sources: as large as a page or two, and as wrong as a test wants them."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence

__all__ = ["HASHES_AT", "RESET_ADDRESS", "SECTIONS", "entry", "metadata", "write_firmware"]

PAGE = 4096
FOOTER = "96b582de-1fb2-45f7-baea-a366c55a082d"
METADATA = "dc886566-984a-4798-a75e-5585a7bf67cc"
HASH_TABLE = "7255371f-3a3b-4b04-927b-1da6efa8d454"
RESET_BLOCK = "00f771de-1a7e-4fcb-890e-68c77e2fb44e"

#: (address, size, type) as of Debian's, but smaller
SECTIONS = (
    (0x800000, 0x2000, 1), (0x80D000, 0x1000, 2), (0x80E000, 0x1000, 3), (0x80F000, 0x1000, 4),
    (0x811000, 0x3000, 1), (0x810000, 0x1000, 0x10),
)  # fmt: skip
HASHES_AT = 0x810C00
RESET_ADDRESS = 0x80B004
_METADATA_FROM_END = 0x800


def entry(guid: str, content: bytes) -> bytes:
    """An entry of the table, which is read from its end."""
    return content + struct.pack("<H", len(content) + 18) + uuid.UUID(guid).bytes_le


def metadata(
    sections: Sequence[tuple[int, int, int]],
    *,
    signature: bytes = b"ASEV",
    version: int = 1,
    size: int | None = None,
    count: int | None = None,
) -> bytes:
    """The list of sections."""
    body = b"".join(struct.pack("<III", *section) for section in sections)
    count = len(sections) if count is None else count
    return signature + struct.pack("<III", 16 + len(body) if size is None else size, version, count) + body


def write_firmware(
    sections: Sequence[tuple[int, int, int]] = SECTIONS,
    *,
    pages: int = 2,
    described: bytes | None = None,
    from_end: int = _METADATA_FROM_END,
    hashes_at: int | None = HASHES_AT,
    reset: int | None = RESET_ADDRESS,
    more: bytes = b"",
    table_size: int | None = None,
    footer: str = FOOTER,
) -> bytes:
    """A whole file; `more`: entries of the caller's own, in front of the table."""
    table = more + entry(METADATA, struct.pack("<I", from_end))
    if hashes_at is not None:
        table += entry(HASH_TABLE, struct.pack("<II", hashes_at, 0x400))
    if reset is not None:
        table += entry(RESET_BLOCK, struct.pack("<I", reset))
    table += struct.pack("<H", len(table) + 18 if table_size is None else table_size) + uuid.UUID(footer).bytes_le
    data = bytearray(index % 251 for index in range(pages * PAGE))
    described = metadata(sections) if described is None else described
    start = len(data) - _METADATA_FROM_END
    data[start : start + len(described)] = described
    data[-32 - len(table) : -32] = table
    return bytes(data)
