# SPDX-License-Identifier: GPL-2.0-or-later
"""VeilMon's answer to a request for attestation: the parts come back, and nothing else is taken for them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.formats.errors import FormatError
from veil.formats.monitor_calls import AttestedAnswer

PARTS = st.builds(AttestedAnswer, st.binary(max_size=64), st.binary(max_size=64), st.binary(max_size=64))


@given(PARTS)
def test_comes_back(answer: AttestedAnswer) -> None:
    assert AttestedAnswer.parse(answer.pack()) == answer


def test_on_the_wire() -> None:
    assert AttestedAnswer(b"r", b"mm", b"").pack() == struct.pack("<III", 1, 2, 0) + b"rmm"


@given(PARTS, st.data())
def test_parts_that_are_not_the_body(answer: AttestedAnswer, data: st.DataObject) -> None:
    body = answer.pack()
    shorter = body[: data.draw(st.integers(0, len(body) - 1))]
    for wrong in (shorter, body + b"\0"):
        with pytest.raises(FormatError, match=r"cut short|claims parts"):
            AttestedAnswer.parse(wrong)


def test_lengths_that_overflow() -> None:
    """They are not added up in 32 bits."""
    with pytest.raises(FormatError, match="claims parts"):
        AttestedAnswer.parse(struct.pack("<III", 0xFFFFFFFF, 1, 0))
