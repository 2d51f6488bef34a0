# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets of gdb's remote protocol ("GDB Remote Serial Protocol", E.1): `$`, the data, `#`, a checksum.

Whoever is at the other end may send anything: nothing longer than a packet is kept.
"""

from __future__ import annotations

import enum

__all__ = ["MAX_PACKET", "Deframer", "Mark", "ProtocolError", "escape", "frame"]

#: bytes of data in a packet, in either direction
MAX_PACKET = 0x4000
#: with the framing, and each byte of it escaped
_MAX_WAITING = 2 * MAX_PACKET + 4
_ESCAPE = 0x7D


class ProtocolError(Exception):
    """What came is not of this protocol: the connection is to be closed. One line why."""


class Mark(enum.Enum):
    """What comes outside of packets."""

    INTERRUPT = b"\x03"
    """stop, please"""
    DAMAGED = b"-"
    """what was sent last did not arrive: once more"""


class Deframer:
    """Takes bytes as they come, and gives what they mean in turn."""

    def __init__(self) -> None:
        #: are packets acknowledged, and checked?
        self.acknowledges = True
        self._waiting = bytearray()

    def feed(self, data: bytes) -> list[bytes | Mark | None]:
        """The data of packets, marks, and None for a packet that arrived damaged. Raises ProtocolError."""
        found: list[bytes | Mark | None] = []
        waiting = self._waiting
        waiting += data
        while waiting:
            first = waiting[:1]
            if first == b"$":
                end = waiting.find(b"#")
                if end < 0 or end + 3 > len(waiting):
                    break
                found.append(self._packet(bytes(waiting[1:end]), bytes(waiting[end + 1 : end + 3])))
                del waiting[: end + 3]
                continue
            if first == Mark.INTERRUPT.value:
                found.append(Mark.INTERRUPT)
            elif first == Mark.DAMAGED.value:
                found.append(Mark.DAMAGED)
            elif first != b"+":
                # A browser that was led here says GET or POST.
                raise ProtocolError(f"{bytes(first)!r} begins nothing of gdb's protocol")
            del waiting[:1]
        if len(waiting) > _MAX_WAITING:
            raise ProtocolError("a packet without an end")
        return found

    def _packet(self, data: bytes, checksum: bytes) -> bytes | None:
        if self.acknowledges and checksum.lower() != b"%02x" % (sum(data) % 256):
            return None
        plain = _unescape(data)
        if len(plain) > MAX_PACKET:
            raise ProtocolError(f"a packet of {len(plain)} bytes; the most is {MAX_PACKET}")
        return plain


def _unescape(data: bytes) -> bytes:
    if _ESCAPE not in data:
        return data
    plain = bytearray()
    escaped = False
    for byte in data:
        if not escaped and byte == _ESCAPE:
            escaped = True
            continue
        plain.append(byte ^ 0x20 if escaped else byte)
        escaped = False
    return bytes(plain)


def escape(data: bytes) -> bytes:
    """Binary data as a packet may have it."""
    out = bytearray()
    for byte in data:
        out += bytes((_ESCAPE, byte ^ 0x20)) if byte in b"#$}*" else bytes((byte,))
    return bytes(out)


def frame(data: bytes) -> bytes:
    """A packet; `data` has been escaped."""
    return b"$%s#%02x" % (data, sum(data) % 256)
