# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of bytes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.formats.errors import FormatError
from veil.formats.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0"), (1023, "1023"), (1024, "1K"), (16 << 20, "16M"), (1 << 30, "1G"), (1 << 40, "1024G")]
)
def test_as_short_as_can_be(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 1 << 45))
def test_what_is_written_is_read(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(("text", "size"), [("512M", 512 << 20), (" 4g ", 4 << 30), ("64KiB", 64 << 10), ("5", 5)])
def test_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5G", "1T", "0x10", "1 M", "1" * 16])
def test_refused(text: str) -> None:
    with pytest.raises(FormatError, match="is not a size"):
        parse_size(text)
