# SPDX-License-Identifier: GPL-2.0-or-later
"""What editors and shells put before and after a report."""

from __future__ import annotations

import base64

import pytest

from veil.formats.errors import FormatError
from veil.remote import read_report

REPORT = bytes([3, 0, 0, 0]) + bytes(range(1, 256)) * 4 + bytes(160)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_end_after_the_bytes(end: bytes) -> None:
    assert read_report(REPORT + end).report == REPORT


@pytest.mark.parametrize("text", [base64.b64encode(REPORT), REPORT.hex().encode(), b"0x" + REPORT.hex().encode()])
def test_a_byte_order_mark_before_text(text: bytes) -> None:
    assert read_report(b"\xef\xbb\xbf" + text + b"\r\n").report == REPORT


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", [base64.b64encode(REPORT).decode(), REPORT.hex() + "\r\n", "{}"])
def test_utf_16_is_named(text: str, encoding: str) -> None:
    with pytest.raises(FormatError, match=r"UTF-16.*save it as ASCII or UTF-8"):
        read_report(text.encode(encoding))


def test_what_is_read_is_named() -> None:
    with pytest.raises(FormatError, match="base64, hexadecimal"):
        read_report(base64.b64encode(REPORT[:-8]))
