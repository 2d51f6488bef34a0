# SPDX-License-Identifier: GPL-2.0-or-later
"""The secure channel: rings in memory that somebody hostile shares, frames, messages."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable

from fuzz.target import Target
from veil.formats.channel import (
    MAX_FRAME_DATA,
    ChannelArea,
    Frame,
    FrameKind,
    FrameReader,
    Generations,
    MessageReader,
    Request,
    Response,
    RingReader,
    RingWriter,
    pack_frame,
    pack_request,
    pack_response,
)
from veil.formats.errors import FormatError
from veil.formats.services_manifest import CHANNEL_SERVICE
from veil.formats.status import Status

__all__ = ["TARGETS"]

# Frames and messages. An input: a byte that says how long the pieces are in which the stream comes, then the stream.
# However it is cut, the same must be read.

_FRAME_HEADER = 12


def _pieces(data: bytes) -> list[bytes]:
    step = (data[0] if data else 0) + 1
    return [data[at : at + step] for at in range(1, len(data), step)]


def _whole(data: bytes) -> list[bytes]:
    return [data[1:]]


def _read_frames(pieces: list[bytes]) -> tuple[list[Frame], bytes, bool]:
    reader, frames = FrameReader(), []
    for piece in pieces:
        # A snapshot between any two pieces changes nothing.
        reader = FrameReader(reader.held)
        try:
            frames += reader.feed(piece)
        except FormatError:
            return frames, b"", True
        assert len(reader.held) < _FRAME_HEADER + MAX_FRAME_DATA
    return frames, reader.held, False


def _frames(data: bytes) -> None:
    frames, held, bad = _read_frames(_pieces(data))
    again, held_again, bad_again = _read_frames(_whole(data))
    assert bad == bad_again
    if bad:
        raise FormatError("not frames")
    assert (frames, held) == (again, held_again)
    assert b"".join(pack_frame(*frame) for frame in frames) + held == data[1:]


def _frame_seeds() -> Iterable[bytes]:
    frames = [
        pack_frame(1, FrameKind.OPEN),
        pack_frame(1, FrameKind.DATA, b"hello"),
        pack_frame(1, FrameKind.CREDIT, b"\0\x10\0\0"),
        pack_frame(1, FrameKind.CLOSE),
        pack_frame(2, FrameKind.EXPECTED),
    ]
    for step in (0, 6, 255):
        yield bytes((step,)) + b"".join(frames)
    yield b"\xff" + pack_frame(0xFFFFFFFF, FrameKind.DATA, bytes(1000))


def _messages(pack: Callable[[MessageReader], bytes | None]) -> Callable[[bytes], None]:
    """`pack` reads one message and gives its bytes."""

    def read(pieces: list[bytes]) -> tuple[bytes, bool]:
        reader, got = MessageReader(), b""
        for piece in pieces:
            reader.feed(piece)
            try:
                while (message := pack(reader)) is not None:
                    got += message
            except FormatError:
                return got, True
        return got, False

    def run(data: bytes) -> None:
        got, bad = read(_pieces(data))
        assert (got, bad) == read(_whole(data))
        assert data[1:].startswith(got)
        if bad:
            raise FormatError("not messages")

    return run


def _request(reader: MessageReader) -> bytes | None:
    found = reader.request()
    return None if found is None else pack_request(found)


def _response(reader: MessageReader) -> bytes | None:
    found = reader.response()
    return None if found is None else pack_response(found)


def _request_seeds() -> Iterable[bytes]:
    requests = [Request(1, CHANNEL_SERVICE, 0, b"body"), Request(0xFFFFFFFF, uuid.UUID(int=1), 0xFFFF)]
    for step in (3, 255):
        yield bytes((step,)) + b"".join(map(pack_request, requests))


def _response_seeds() -> Iterable[bytes]:
    responses = [Response(number, status, b"words") for number, status in enumerate(Status)]
    for step in (3, 255):
        yield bytes((step,)) + b"".join(map(pack_response, responses))


# Rings. The other end answers every read as it likes, another time otherwise: an input is what it says in turn. The
# first four bytes are the position at which this end is.

_AREA = ChannelArea(0x10000, ring=256)
_ROUNDS = 16


class _Hostile:
    """Memory whose every read is the other end's choice; counters come from the input, zeros when it has ended."""

    def __init__(self, says: bytes) -> None:
        self._says = says

    def _check(self, gpa: int, length: int) -> None:
        assert length > 0
        assert _AREA.gpa <= gpa
        assert gpa + length <= _AREA.gpa + _AREA.size

    def read(self, gpa: int, length: int, /) -> bytes:
        self._check(gpa, length)
        said, self._says = self._says[:length], self._says[length:]
        return said.ljust(length, b"\0")

    def write(self, gpa: int, data: bytes, /) -> None:
        self._check(gpa, len(data))

    @property
    def silent(self) -> bool:
        return not self._says


def _rings(data: bytes) -> None:
    position = int.from_bytes(data[:4], "little")
    memory = _Hostile(data[4:])
    for to_monitor in (True, False):
        reader = RingReader(memory, _AREA, to_monitor=to_monitor, position=position)
        writer = RingWriter(memory, _AREA, to_monitor=to_monitor, position=position)
        for number in range(_ROUNDS):
            start = reader.position
            got = reader.read()
            assert len(got) <= _AREA.ring
            assert reader.position == start + len(got) & 0xFFFFFFFF
            start = writer.position
            written = writer.write(bytes(number * 20))
            assert written <= min(number * 20, _AREA.ring)
            assert writer.position == start + written & 0xFFFFFFFF
            generations = Generations(memory, _AREA)
            generations.follow(generations.wanted)
            if memory.silent:
                return


def _ring_seeds() -> Iterable[bytes]:
    for position in (0, 200, 0xFFFFFFF0):
        start = position.to_bytes(4, "little")
        full = (position + _AREA.ring & 0xFFFFFFFF).to_bytes(4, "little")
        yield start + start * 3
        yield start + full + bytes(_AREA.ring) + start
        yield start + full + bytes(_AREA.ring) + start + bytes(4) + full + start


TARGETS = (
    Target("frames", _frames, _frame_seeds, max_bytes=2048),
    Target("requests", _messages(_request), _request_seeds, words=(CHANNEL_SERVICE.bytes,), max_bytes=1024),
    Target("responses", _messages(_response), _response_seeds, max_bytes=1024),
    Target("rings", _rings, _ring_seeds, max_bytes=2048),
)
