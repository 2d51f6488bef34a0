# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames: many connections on one pair of streams, each direction of each with a window.

So one that is slow holds up no other.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from veil.formats.errors import FormatError

__all__ = [
    "MAX_FRAME_DATA",
    "STRANGER_WINDOW",
    "WINDOW",
    "Frame",
    "FrameKind",
    "FrameReader",
    "pack_frame",
]

_FRAME = struct.Struct("<IHHI")
MAX_FRAME_DATA = 16 << 10
#: What a side may send on a connection before the other one has granted more by a CREDIT frame.
WINDOW = 64 << 10
#: The same, from the host to VeilMon: it grants the rest when the user has proved to be somebody whom the launch names.
STRANGER_WINDOW = 4 << 10


class FrameKind(enum.IntEnum):
    """What a frame says of its connection."""

    OPEN = 1
    """From the host: a new connection with this number."""
    DATA = 2
    CLOSE = 3
    CREDIT = 4
    """u32: the number of further bytes that may be sent."""
    PROVEN = 5
    """From VeilMon: this user has proved to be somebody whom the launch names, so others should make room for them."""
    EXPECTED = 6
    """From the host, in place of OPEN: a new connection of somebody who seems to be such a user, by their knock."""


_KINDS = frozenset(FrameKind)


class Frame(NamedTuple):
    """A frame."""

    connection: int
    kind: FrameKind
    data: bytes = b""


def pack_frame(connection: int, kind: FrameKind, data: bytes | memoryview = b"") -> bytes:
    """A frame's bytes."""
    return _FRAME.pack(connection, kind, 0, len(data)) + data


class FrameReader:
    """Cuts a stream into frames. `held` is what is left of an earlier one, from a snapshot."""

    def __init__(self, held: bytes = b"") -> None:
        self._held = bytearray(held)

    @property
    def held(self) -> bytes:
        """The beginning of a frame."""
        return bytes(self._held)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete now; raises FormatError, after which the stream is of no use any more."""
        held = self._held
        held += data
        frames = []
        at = 0
        while len(held) - at >= _FRAME.size:
            connection, kind, reserved, length = _FRAME.unpack_from(held, at)
            if kind not in _KINDS or reserved or length > MAX_FRAME_DATA:
                raise FormatError(f"channel frame of kind {kind} with {length} bytes")
            if kind != FrameKind.DATA and length != (4 if kind == FrameKind.CREDIT else 0):
                raise FormatError(f"channel frame {FrameKind(kind).name} with {length} bytes")
            end = at + _FRAME.size + length
            if len(held) < end:
                break
            frames.append(Frame(connection, FrameKind(kind), bytes(held[at + _FRAME.size : end])))
            at = end
        del held[:at]
        return frames
