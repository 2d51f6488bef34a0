# SPDX-License-Identifier: GPL-2.0-or-later
"""Take the ELF kernel out of a bzImage (Linux Documentation/arch/x86/boot.rst, 'Details of Header Fields').

The kernel's own decompressor would need ten seconds of emulated time at every boot; done here it costs half a second,
once.
"""

import bz2
import lzma
import re
import struct
import zlib
from collections.abc import Callable

import zstandard

from veil.guest.errors import GuestImageError

_SETUP_SECTS, _HEADER_MAGIC, _PROTOCOL, _KERNEL_VERSION = 0x1F1, 0x202, 0x206, 0x20E
_PAYLOAD = 0x248  # u32 offset, u32 length
_MIN_PROTOCOL = 0x0208  # the first with payload_offset
_MAX_OUTPUT = 1 << 30
# A release becomes a part of paths: there is no "/" in one.
_BANNER = re.compile(rb"Linux version (\d+\.\d+[\w.+~:@-]{0,100}) \([ -~]{1,400}")
_LZ4_BLOCK = 8 << 20


def is_bzimage(data: bytes) -> bool:
    """Whether the header of the Linux boot protocol is there."""
    return len(data) >= 0x260 and data[0x1FE:0x200] + data[_HEADER_MAGIC : _HEADER_MAGIC + 4] == b"\x55\xaaHdrS"


def bzimage_release(data: bytes) -> str | None:
    """The `uname -r` that the header names, if it names one."""
    (pointer,) = struct.unpack_from("<H", data, _KERNEL_VERSION)
    if not pointer:
        return None
    text = data[pointer + 0x200 :][:200].split(b"\0")[0].decode("ascii", "replace")
    return text.split(" ")[0] or None


def extract_vmlinux(data: bytes, name: str) -> bytes:
    """The uncompressed ELF kernel of the bzImage `data`; `name` is for messages."""
    if not is_bzimage(data):
        raise GuestImageError(f"{name}: not a bzImage (no boot protocol header)")
    protocol, sectors = struct.unpack_from("<H", data, _PROTOCOL)[0], data[_SETUP_SECTS] or 4
    if protocol < _MIN_PROTOCOL:
        raise GuestImageError(f"{name}: boot protocol {protocol >> 8}.{protocol & 0xFF:02} is too old (2.08 is needed)")
    offset, length = struct.unpack_from("<II", data, _PAYLOAD)
    start = (sectors + 1) * 512 + offset
    payload = data[start : start + length]
    if length < 8 or len(payload) != length:
        end = start + length
        raise GuestImageError(f"{name}: the bzImage is cut short ({len(data)} bytes, its payload ends at {end})")
    decompress = _decompressor(payload)
    if decompress is None:
        raise GuestImageError(f"{name}: unknown kernel compression (payload starts with {payload[:6].hex(' ')})")
    # The build appends the size of the output, which bounds what a damaged stream could make us allocate.
    (size,) = struct.unpack_from("<I", payload, length - 4)
    if not 0 < size <= _MAX_OUTPUT:
        raise GuestImageError(f"{name}: the bzImage names an impossible kernel size, {size} bytes")
    try:
        vmlinux = decompress(payload[:-4], size)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, IndexError, zstandard.ZstdError) as error:
        raise GuestImageError(f"{name}: the compressed kernel is damaged: {error}") from error
    if len(vmlinux) != size or vmlinux[:4] != b"\x7fELF":
        raise GuestImageError(f"{name}: the compressed kernel is damaged: no ELF file of {size} bytes came out")
    return vmlinux


def find_banner(vmlinux: bytes) -> tuple[str, str] | None:
    """(`uname -r`, the whole banner 'Linux version ...') of an uncompressed kernel."""
    match = _BANNER.search(vmlinux)
    return (match[1].decode("ascii", "replace"), match[0].decode("ascii", "replace")) if match else None


def _decompressor(payload: bytes) -> Callable[[bytes, int], bytes] | None:
    for magic, function in _MAGICS:
        if payload.startswith(magic):
            return function
    return None


def _zstd(data: bytes, size: int) -> bytes:
    # Kernels are compressed with a window of up to 128 MiB, beyond the library's default limit.
    stream = zstandard.ZstdDecompressor(max_window_size=1 << 30).stream_reader(data, read_across_frames=False)
    return stream.read(size + 1)


def _xz(data: bytes, size: int) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data, size + 1)


def _lzma(data: bytes, size: int) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(data, size + 1)


def _gzip(data: bytes, size: int) -> bytes:
    return zlib.decompressobj(31).decompress(data, size + 1)


def _bzip2(data: bytes, size: int) -> bytes:
    return bz2.BZ2Decompressor().decompress(data, size + 1)


def _lz4(data: bytes, size: int) -> bytes:
    """The legacy frame that the kernel's build uses: a magic, then blocks of at most 8 MiB, each with its length."""
    out, at = bytearray(), 4
    while at + 4 <= len(data) and len(out) < size:
        (length,) = struct.unpack_from("<I", data, at)
        at += 4
        if length > len(data) - at:
            raise ValueError("an lz4 block is cut short")
        out += _lz4_block(data[at : at + length], min(_LZ4_BLOCK, size - len(out)))
        at += length
    return bytes(out)


def _lz4_block(data: bytes, limit: int) -> bytes:
    """One lz4 block (lz4 Block Format Description): a token, literals, then a match into what is already there."""
    out, at, end = bytearray(), 0, len(data)
    while at < end:
        token = data[at]
        at += 1
        literals = token >> 4
        if literals == 15:
            literals, at = _lz4_length(data, at, literals)
        out += data[at : at + literals]
        at += literals
        if at >= end:
            break
        distance = data[at] | data[at + 1] << 8
        at += 2
        length = token & 15
        if length == 15:
            length, at = _lz4_length(data, at, length)
        length += 4
        if not 0 < distance <= len(out) or len(out) + length > limit:
            raise ValueError("an lz4 match leads outside its block")
        source = len(out) - distance
        if distance >= length:
            out += out[source : source + length]
        else:
            pattern = bytes(out[source:])
            out += (pattern * (length // distance + 1))[:length]
    return bytes(out)


def _lz4_length(data: bytes, at: int, length: int) -> tuple[int, int]:
    while True:
        byte = data[at]
        at += 1
        length += byte
        if byte != 255:
            return length, at


_MAGICS: tuple[tuple[bytes, Callable[[bytes, int], bytes]], ...] = (
    (b"\x28\xb5\x2f\xfd", _zstd),
    (b"\xfd7zXZ\x00", _xz),
    (b"\x1f\x8b", _gzip),
    (b"\x02\x21\x4c\x18", _lz4),
    (b"BZh", _bzip2),
    (b"\x5d\x00\x00", _lzma),
)
