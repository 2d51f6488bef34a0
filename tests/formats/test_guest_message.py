# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest messages: only what was sealed with the key, number and level opens."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.formats.errors import FormatError
from veil.formats.guest_message import (
    MAX_PAYLOAD,
    MESSAGE_BYTES,
    MessageType,
    open_message,
    parse_report_response,
    seal_message,
)

KEY = bytes(range(32))


@given(st.binary(max_size=MAX_PAYLOAD), st.integers(1, (1 << 64) - 2), st.integers(0, 3))
def test_round_trip(payload: bytes, number: int, vmpck: int) -> None:
    page = seal_message(KEY, number, vmpck, MessageType.KEY_REQ, payload)
    assert len(page) == MESSAGE_BYTES
    assert open_message(KEY, page, sequence_number=number, vmpck=vmpck) == (MessageType.KEY_REQ, payload)


@given(st.integers(0, 0x60 + 31), st.integers(1, 255))
def test_every_changed_bit_is_noticed(at: int, change: int) -> None:
    page = bytearray(seal_message(KEY, 7, 1, MessageType.REPORT_REQ, bytes(32)))
    page[at] ^= change
    # The tag's second half and the reserved field after the number are neither used nor authenticated.
    if 0x10 <= at < 0x20:
        return
    with pytest.raises(FormatError):
        open_message(KEY, bytes(page), sequence_number=7, vmpck=1)


def test_other_key_number_or_level() -> None:
    page = seal_message(KEY, 7, 1, MessageType.REPORT_REQ, b"payload")
    with pytest.raises(FormatError, match="not authentic"):
        open_message(bytes(32), page, sequence_number=7, vmpck=1)
    with pytest.raises(FormatError, match="0x7 where 0x9"):
        open_message(KEY, page, sequence_number=9, vmpck=1)
    with pytest.raises(FormatError, match="VMPCK 1, not 0"):
        open_message(KEY, page, sequence_number=7, vmpck=0)


def test_what_cannot_be_sealed() -> None:
    with pytest.raises(FormatError, match="holds"):
        seal_message(KEY, 1, 0, MessageType.KEY_REQ, bytes(MAX_PAYLOAD + 1))
    for number in (0, (1 << 64) - 1):
        with pytest.raises(FormatError, match="used up"):
            seal_message(KEY, number, 0, MessageType.KEY_REQ, b"")


@given(st.binary(max_size=200))
def test_any_page(data: bytes) -> None:
    with pytest.raises(FormatError):
        open_message(KEY, data.ljust(MESSAGE_BYTES, b"\0"), sequence_number=1, vmpck=0)
    with pytest.raises(FormatError):
        open_message(KEY, data, sequence_number=1, vmpck=0)


@given(st.integers(0, (1 << 32) - 1), st.binary(max_size=60), st.integers(-2, 2), st.binary(max_size=8))
def test_report_responses(status: int, report: bytes, off: int, behind: bytes) -> None:
    """One that is as it must be but for its length, and what may stand behind the report."""
    claimed = len(report) + off
    payload = struct.pack("<II24x", status, max(claimed, 0)) + report + behind
    if claimed > len(report) + len(behind):
        with pytest.raises(FormatError, match="claims a report"):
            parse_report_response(payload)
    else:
        assert parse_report_response(payload) == (status, (report + behind)[: max(claimed, 0)])


@given(st.binary(max_size=31))
def test_report_responses_cut_short(payload: bytes) -> None:
    with pytest.raises(FormatError, match="cut short"):
        parse_report_response(payload)
