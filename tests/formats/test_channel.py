# SPDX-License-Identifier: GPL-2.0-or-later
"""Rings, frames and messages of the channel: all that was written arrives, and nothing else harms."""

from __future__ import annotations

import contextlib
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from veil.formats.channel import (
    MAX_FRAME_DATA,
    MAX_MESSAGE,
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
    look_at_counters,
    pack_frame,
    pack_request,
    pack_response,
)
from veil.formats.errors import FormatError
from veil.formats.status import Status

AREA = ChannelArea(0x1000, ring=64)


class Pages:
    def __init__(self) -> None:
        self.data = bytearray(0x1000 + AREA.size)

    def read(self, gpa: int, length: int, /) -> bytes:
        return bytes(self.data[gpa : gpa + length])

    def write(self, gpa: int, data: bytes, /) -> None:
        assert AREA.gpa <= gpa
        assert gpa + len(data) <= AREA.gpa + AREA.size
        self.data[gpa : gpa + len(data)] = data


class Ring(RuleBasedStateMachine):
    """Against a queue of bytes, from a position near the counter's wrap."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = Pages()
        start = 0xFFFFFFF0
        self.writer = RingWriter(self.pages, AREA, to_monitor=True, position=start)
        self.reader = RingReader(self.pages, AREA, to_monitor=True, position=start)
        for offset in (0x00, 0x40):
            self.pages.write(AREA.gpa + offset, start.to_bytes(4, "little"))
        self.held = b""

    @rule(data=st.binary(max_size=100))
    def write(self, data: bytes) -> None:
        count = self.writer.write(data)
        assert count == min(len(data), AREA.ring - len(self.held))
        self.held += data[:count]

    @rule()
    def read(self) -> None:
        assert self.reader.read() == self.held
        self.held = b""

    @precondition(lambda self: self.held)
    @rule()
    def spoil_and_mend(self) -> None:
        """The other end claims more than the ring holds."""
        at = AREA.gpa
        kept = self.pages.read(at, 4)
        self.pages.write(at, (int.from_bytes(kept, "little") + AREA.ring & 0xFFFFFFFF).to_bytes(4, "little"))
        with pytest.raises(FormatError):
            self.reader.read()
        self.pages.write(at, kept)

    @invariant()
    def counts(self) -> None:
        assert self.reader.available() == len(self.held)


TestRing = Ring.TestCase


def test_reader_that_read_what_was_not_written() -> None:
    pages = Pages()
    writer = RingWriter(pages, AREA, to_monitor=False)
    pages.write(AREA.gpa + 0xC0, (1).to_bytes(4, "little"))
    with pytest.raises(FormatError):
        writer.write(b"x")


def test_generations() -> None:
    pages = Pages()
    host, monitor = Generations(pages, AREA), Generations(pages, AREA)
    host.want(5)
    assert (monitor.wanted, host.seen) == (5, 0)
    monitor.follow(monitor.wanted)
    assert host.seen == 5
    assert look_at_counters(pages, AREA) == (0, 5, 5)


frames = st.builds(
    lambda number, data: Frame(number, FrameKind.DATA, data), st.integers(0, 0xFFFFFFFF), st.binary(max_size=60)
)


@given(st.lists(frames, max_size=10), st.lists(st.integers(1, 20), max_size=40))
def test_frames_arrive_however_they_are_cut(sent: list[Frame], cuts: list[int]) -> None:
    stream = b"".join(pack_frame(*frame) for frame in sent)
    reader, got, at = FrameReader(), [], 0
    for cut in [*cuts, len(stream)]:
        got += reader.feed(stream[at : at + cut])
        at += cut
    assert got == sent
    assert reader.held == b""


@pytest.mark.parametrize(
    "data",
    [
        pack_frame(1, FrameKind.OPEN, b"x"),
        pack_frame(1, FrameKind.EXPECTED, b"x"),
        pack_frame(1, FrameKind.CREDIT, b"x"),
        pack_frame(1, FrameKind.CLOSE, b"xxxx"),
        pack_frame(1, FrameKind.PROVEN, b"x"),
        pack_frame(1, FrameKind.DATA, bytes(MAX_FRAME_DATA + 1)),
        b"\0\0\0\0\x07\0\0\0\0\0\0\0",
        b"\0\0\0\0\x02\0\x01\0\0\0\0\0",
    ],
)
def test_bad_frames(data: bytes) -> None:
    with pytest.raises(FormatError):
        FrameReader().feed(data)


@given(st.binary(max_size=100))
def test_any_frames(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        FrameReader().feed(data)


@given(st.integers(0, 0xFFFFFFFF), st.uuids(), st.integers(0, 0xFFFF), st.binary(max_size=50), st.integers(1, 30))
def test_requests(number: int, service: uuid.UUID, call: int, body: bytes, cut: int) -> None:
    request = Request(number, service, call, body)
    stream = pack_request(request) * 2
    reader, got = MessageReader(), []
    for at in range(0, len(stream), cut):
        reader.feed(stream[at : at + cut])
        while (found := reader.request()) is not None:
            got.append(found)
    assert got == [request, request]


@given(st.integers(0, 0xFFFFFFFF), st.sampled_from(Status), st.binary(max_size=50))
def test_responses(number: int, status: Status, body: bytes) -> None:
    reader = MessageReader()
    reader.feed(pack_response(Response(number, status, body)))
    assert reader.response() == Response(number, status, body)
    assert reader.response() is None


def test_bad_messages() -> None:
    for data in ((MAX_MESSAGE + 1).to_bytes(4, "little") + bytes(24), bytes(26) + b"\x01\0"):
        reader = MessageReader()
        reader.feed(data)
        with pytest.raises(FormatError):
            reader.request()
    reader = MessageReader()
    reader.feed(b"\0\0\0\0\x01\0\0\0\x63\0\0\0")
    with pytest.raises(FormatError, match="unknown status"):
        reader.response()
