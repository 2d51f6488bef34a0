# SPDX-License-Identifier: GPL-2.0-or-later
"""Small made-up kernels."""

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable

import zstandard

BANNER = b"Linux version 6.12.1-made-up (someone@somewhere) (a compiler) #1 SMP\n\0"
FILLER = bytes(range(256)) * 300 + b"abcabcabc" * 1000 + bytes(20000)


def elf(
    segments: list[tuple[int, bytes, int]] | None = None, entry: int = 0x1000010, *, kind: int = 2, machine: int = 62
) -> bytes:
    """An ELF64 file with segments (physical address, data, memory size)."""
    if segments is None:
        segments = [(0x1000000, BANNER + FILLER, len(BANNER + FILLER)), (0x1200000, b"data" * 10, 0x3000)]
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", kind, machine, 1, entry, 64, 0, 0, 64, 56, len(segments), 0, 0, 0
    )
    at = 64 + 56 * len(segments)
    programs, body = b"", b""
    for address, data, size in segments:
        offset = at + len(body)
        virtual = address - 0x1000000 + 0xFFFFFFFF81000000
        programs += struct.pack("<IIQQQQQQ", 1, 7, offset, virtual, address, len(data), size, 0x1000)
        body += data
    return header + programs + body


def bzimage(vmlinux: bytes, compressed: bytes, release: str = "6.12.1-made-up") -> bytes:
    """A bzImage around an already compressed kernel."""
    setup = bytearray(5 * 512)
    struct.pack_into("<B", setup, 0x1F1, 4)
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, 0x020F)
    struct.pack_into("<H", setup, 0x20E, 0x300)
    setup[0x500 : 0x500 + len(release) + 10] = release.encode() + b" (someone)"
    payload = compressed + struct.pack("<I", len(vmlinux))
    struct.pack_into("<II", setup, 0x248, 0x40, len(payload))
    return bytes(setup) + bytes(0x40) + payload + bytes(100)


def lz4_legacy(data: bytes) -> bytes:
    """A simple lz4 encoder: greedy matches found by their first four bytes."""
    out = bytearray(b"\x02\x21\x4c\x18")
    for start in range(0, len(data), 8 << 20):
        block = _lz4_block(data[start : start + (8 << 20)])
        out += struct.pack("<I", len(block)) + block
    return bytes(out)


def _length(value: int) -> bytes:
    return b"\xff" * (value // 255) + bytes([value % 255])


def _lz4_block(data: bytes) -> bytes:
    out, seen, at, literal = bytearray(), dict[bytes, int](), 0, 0

    def emit(literals: bytes, distance: int = 0, length: int = 0) -> None:
        token = min(len(literals), 15) << 4 | (min(length - 4, 15) if length else 0)
        out.append(token)
        if len(literals) >= 15:
            out.extend(_length(len(literals) - 15))
        out.extend(literals)
        if length:
            out.extend(struct.pack("<H", distance))
            if length - 4 >= 15:
                out.extend(_length(length - 4 - 15))

    while at < len(data) - 12:
        word = data[at : at + 4]
        before = seen.get(word, -70000)
        seen[word] = at
        if at - before > 65535:
            at += 1
            continue
        length = 4
        while at + length < len(data) - 5 and data[before + length] == data[at + length]:
            length += 1
        emit(data[literal:at], at - before, length)
        at += length
        literal = at
    emit(data[literal:])
    return bytes(out)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "zstd": lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data),
    "xz": lambda data: lzma.compress(data, lzma.FORMAT_XZ, check=lzma.CHECK_CRC32),
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "lz4": lz4_legacy,
    "bzip2": bz2.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
}
