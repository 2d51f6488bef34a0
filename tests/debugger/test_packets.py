# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets: whatever comes, in whatever pieces."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.debugger.packets import MAX_PACKET, Deframer, Mark, ProtocolError, escape, frame


def _pieces(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(st.lists(st.binary(max_size=40), max_size=5), st.lists(st.integers(0, 500), max_size=8))
def test_what_was_framed_arrives(contents: list[bytes], cuts: list[int]) -> None:
    deframer = Deframer()
    sent = b"+".join(frame(escape(content)) for content in contents)
    found = [item for piece in _pieces(sent, cuts) for item in deframer.feed(piece)]
    assert found == contents


@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from([b"$", b"#", b"+", b"-", b"\x03", b"$#00"]))))
def test_nonsense_is_refused_or_ignored(pieces: list[bytes]) -> None:
    deframer = Deframer()
    with contextlib.suppress(ProtocolError):
        for piece in pieces:
            for item in deframer.feed(piece):
                assert item is None or isinstance(item, bytes | Mark)


def test_marks_and_damage() -> None:
    deframer = Deframer()
    assert deframer.feed(b"+\x03-$g#00$g#67") == [Mark.INTERRUPT, Mark.DAMAGED, None, b"g"]
    deframer.acknowledges = False
    assert deframer.feed(b"$g#00") == [b"g"]


def test_a_packet_without_an_end_is_not_kept() -> None:
    deframer = Deframer()
    deframer.feed(b"$" + b"a" * MAX_PACKET)
    with pytest.raises(ProtocolError, match="without an end"):
        deframer.feed(b"a" * MAX_PACKET + b"aaaaa")


def test_a_packet_that_is_too_long() -> None:
    assert Deframer().feed(frame(b"a" * MAX_PACKET)) == [b"a" * MAX_PACKET]
    with pytest.raises(ProtocolError, match="the most is"):
        Deframer().feed(frame(b"a" * (MAX_PACKET + 1)))


def test_a_browser_gets_nowhere() -> None:
    with pytest.raises(ProtocolError):
        Deframer().feed(b"POST / HTTP/1.1\r\n\r\n$k#6b")
