# SPDX-License-Identifier: GPL-2.0-or-later
"""Text of others, made safe to show."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.formats.printable import one_line, printable

HOSTILE = (
    "\x1b[2J", "\x9b2J", "\r", "\n", "\b", "\x00", "\x7f", "\x85", "\u2028", "\u2029", "\u202e", "\u2066", "\u200f",
    "\u200b", "\u200d", "\ufeff", "\ud800", "\udc9b", "\ufe0f", "\u0301", "\u05d0", "\u0627", "\u3164", "\xa0",
    "\U000e0041",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_what_does_not_show_is_escaped(text: str) -> None:
    for made in (printable(f"a{text}b"), one_line(f"a{text}b")):
        assert text not in made
        assert made.startswith("a\\")
        assert made.endswith("b")
        assert made.isascii()
        assert made.isprintable()


def test_letters() -> None:
    assert one_line("/home/jürgen/журнал/記録 ✓") == "/home/jürgen/журнал/記録 ✓"
    assert printable("ARK-\u041cilan") == "ARK-\\u041cilan", "a letter that looks like another one"
    assert printable(b"caf\xc3\xa9\x1b[0m") == "caf\\xc3\\xa9\\x1b[0m"


@given(st.one_of(st.text(), st.binary()), st.one_of(st.none(), st.integers(0, 60)))
def test_printable(text: str | bytes, limit: int | None) -> None:
    made = printable(text, limit)
    assert made.isascii()
    assert made.isprintable()
    assert limit is None or len(made) <= limit + len(f"... ({len(text)} in all)")
    assert printable(made, None) == made


@given(st.text())
def test_one_line(text: str) -> None:
    made = one_line(text)
    assert made.isprintable()
    assert not any(unicodedata.bidirectional(char) in ("R", "AL", "AN") for char in made)
    assert one_line(made) == made


def test_long_texts_are_cut() -> None:
    assert printable("x" * 600) == "x" * 500 + "... (600 in all)"
    assert printable("\x1b" * 400, 10) == "\\x1b\\x1b\\x... (400 in all)"
    assert printable(b"x" * 500) == "x" * 500
